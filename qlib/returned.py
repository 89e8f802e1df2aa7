"""What a method returned, looked at before it goes into the model.

A method may come from outside. What it hands back is checked once here, so that a mistake is an error that
names the method, the layer and the numbers, and not a model that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qlib.errors import QuantError, describe, list_names
from qlib.grid import Grid
from qlib.methods.contracts import Fitted
from qlib.quantized_weight import QuantizedWeight, SecondLevel, check_scale_bits
from qlib.stored_checks import check_beside_codes, groups_of


def check_scale(scale: object, weight: Tensor, method: str) -> Tensor:
    """Return a scale [inputs] of finite numbers > 0, for weights [outputs, inputs] such as this one.

    Raises
    ------
    QuantError
        It is something else.
    """
    inputs = weight.shape[1]
    scale = _floats(scale, f"{method}.scale_group", (inputs,), weight.device)
    if bad := int((scale <= 0).sum()):
        raise QuantError(
            f"{method}.scale_group returned {bad} of {inputs} scales that are 0 or below. Inputs are divided "
            "by them: give inputs that are always 0 the scale 1."
        )
    return scale


def check_clipped(clipped: object, weight: Tensor, method: str) -> Tensor:
    """Return a clipped weight of finite numbers in the shape of the weight it was.

    Raises
    ------
    QuantError
        It is something else.
    """
    return _floats(clipped, f"{method}.clip_layer", tuple(weight.shape), weight.device)


def check_fitted(fitted: object, parameters: Mapping[str, Tensor], method: str) -> Fitted:
    """Return the changed parameters of a block, each by a name and in the shape that the block has.

    Raises
    ------
    QuantError
        It is no mapping, a name is unknown, or a tensor is of another shape, on another device or not finite.
    """
    what = f"{method}.fit"
    if not isinstance(fitted, Mapping):
        raise QuantError(
            f"{what} returned {describe(fitted)}. Return a dict of the changed parameters by full name, "
            "empty where nothing changes."
        )
    if unknown := [str(name) for name in fitted if name not in parameters]:
        raise QuantError(
            f"{what} returned {list_names(unknown)}, which the block does not have. Its parameters are "
            f"{list_names(parameters)}."
        )
    for name, value in fitted.items():
        _floats(value, f"{what}, for {name},", tuple(parameters[name].shape), parameters[name].device)
    return fitted if isinstance(fitted, Fitted) else Fitted(fitted)


def check_rounded(rounded: object, weight: Tensor, grid: Grid, method: str) -> QuantizedWeight:
    """Return a quantized weight that belongs to this weight [outputs, inputs] and to the grid.

    What passes can be saved, and comes back from disk with the same bits.

    Raises
    ------
    QuantError
        It is no `QuantizedWeight`; its codes are of another shape or dtype or outside of the grid; its
        scales, zeros or groups are of another shape; what stays in float, or the codes of the scales, do not
        fit the rest; a part lies on another device; or its values are not finite.
    """
    what = f"{method}.quantize_layer"
    if not isinstance(rounded, QuantizedWeight):
        raise QuantError(
            f"{what} returned {describe(rounded)}. Return qlib.QuantizedWeight(codes, scale, zero, index)."
        )
    _check_kinds(rounded, weight.device, what)
    _check_codes(rounded.codes, weight.shape, grid, what)
    _check_scales(rounded, grid, what)
    _check_zeros(rounded, grid, what)
    _check_groups(rounded, what)
    try:
        check_scale_bits(rounded, grid)
    except QuantError as error:
        raise QuantError(f"{what} returned other scales than were asked for: {error}") from error
    try:
        check_beside_codes(rounded, (weight.shape[0], weight.shape[1]))
    except QuantError as error:
        raise QuantError(f"{what} returned parts that do not fit together: {error}.{REMEDY}") from error
    _check_left_out(rounded, what)
    if not _is_far_from_infinite(rounded, grid) and not rounded.decode().isfinite().all():
        raise QuantError(f"{what} returned codes and scales whose values are not finite. Check its scales.")
    return rounded


REMEDY = (
    " The fields of qlib.QuantizedWeight and their shapes are in docs/adding_a_method.md; "
    "QuantizedWeight.of(codes, params) takes what a fit returned."
)


def _check_kinds(rounded: QuantizedWeight, device: torch.device, what: str) -> None:
    """Refuse parts that are no tensors or lie on another device, and notes that are no texts."""
    notes = rounded.notes
    if not isinstance(notes, tuple) or not all(isinstance(note, str) for note in notes):
        raise QuantError(f"{what} returned notes that are {describe(notes)}. Return a tuple of texts.")
    if rounded.second is not None and not isinstance(rounded.second, SecondLevel):
        raise QuantError(
            f"{what} returned a second level that is {describe(rounded.second)}. Return "
            "QuantizedWeight.of(codes, params), which takes it from a fit."
        )
    for name, value in rounded.tensors().items():
        if not isinstance(value, Tensor):
            raise QuantError(f"{what} returned {name} that are {describe(value)}. Return a tensor.")
        if value.device != device:
            raise QuantError(_elsewhere(f"{what} returned {name}", value, device))


def _is_far_from_infinite(rounded: QuantizedWeight, grid: Grid) -> bool:
    """Return whether the largest scale times the largest code is a number that its dtype holds.

    False as well where something stays in float. To decode the weight would tell all, but takes longer than
    to round it to nearest.
    """
    if rounded.columns is not None or rounded.outliers is not None:
        return False
    far = float(grid.levels)  # no whole zero point is farther from a code
    if rounded.zero is not None and rounded.zero.is_floating_point():
        far += rounded.zero.abs().max().item()
    return bool(rounded.scale.abs().max().item() * far < torch.finfo(rounded.scale.dtype).max)


def _check_left_out(rounded: QuantizedWeight, what: str) -> None:
    """Refuse parts that a checkpoint leaves out, and that would be others when it is read."""
    if rounded.columns is not None and bool((kept := rounded.codes[:, rounded.columns]).any()):
        raise QuantError(
            f"{what} returned {int(kept.count_nonzero())} codes other than 0 in the {len(rounded.columns)} "
            "columns that stay in float. Set codes[:, columns] = 0."
        )
    if rounded.second is None:
        return
    for name, second in zip(("scale", "zero"), rounded.second.decode(), strict=True):
        first = getattr(rounded, name)
        if second is not None and (first is None or not torch.equal(first, second.to(first.dtype))):
            raise QuantError(
                f"{what} returned a {name} that is not what second.decode() gives. Return scales and zero "
                "points as the fit that rounded them returned them."
            )


def _check_codes(codes: object, shape: torch.Size, grid: Grid, what: str) -> None:
    """Refuse codes of another shape or dtype, or outside of the grid."""
    if not isinstance(codes, Tensor) or codes.shape != shape or codes.dtype != grid.code_dtype:
        raise QuantError(
            f"{what} returned codes that are {describe(codes)}, for a weight {list(shape)} on {grid}. Return "
            f"one code per weight, codes.to({grid.code_dtype})."
        )
    low, high = int(codes.min()), int(codes.max())
    if low < grid.qmin or high > grid.qmax:
        raise QuantError(
            f"{what} returned codes from {low} to {high}, but {grid} has {grid.qmin} to {grid.qmax}. Clamp "
            "them before they become integers."
        )


def _check_scales(rounded: QuantizedWeight, grid: Grid, what: str) -> None:
    """Refuse scales that do not belong to the codes."""
    rows, columns = rounded.codes.shape
    scale: object = rounded.scale
    if (
        not isinstance(scale, Tensor)
        or scale.ndim != 2
        or len(scale) != rows
        or not scale.is_floating_point()
    ):
        raise QuantError(
            f"{what} returned scales that are {describe(scale)}. Return floats [{rows}, groups]."
        )
    groups = groups_of(rounded.columns, grid, columns)
    if scale.shape[1] != groups:
        kept = 0 if rounded.columns is None else rounded.columns.numel()
        raise QuantError(
            f"{what} returned {scale.shape[1]} scales per row. On {grid}, the {columns - kept} columns that "
            f"are rounded ({kept} stay in float) have {groups}. Fit the scales to these columns."
        )
    _floats(scale, f"{what}, for the scales,", tuple(scale.shape), scale.device)


def _check_zeros(rounded: QuantizedWeight, grid: Grid, what: str) -> None:
    """Refuse zero points that do not belong to the scales, or are no codes of the grid."""
    scale, zero = rounded.scale, rounded.zero
    if (zero is None) != grid.symmetric:
        has = "no zero points" if zero is None else "zero points"
        raise QuantError(f"{what} returned {has} for {grid}. Only asymmetric grids have them, and all do.")
    if zero is None:
        return
    if zero.shape != scale.shape:
        raise QuantError(
            f"{what} returned zero points that are {describe(zero)} for scales {list(scale.shape)}. Return "
            "one per scale."
        )
    if zero.is_floating_point():
        _floats(zero, f"{what}, for the zero points,", tuple(zero.shape), zero.device)
    elif not 0 <= int(zero.min()) <= int(zero.max()) <= grid.qmax:
        raise QuantError(
            f"{what} returned zero points from {int(zero.min())} to {int(zero.max())}, but {grid} has the "
            f"codes {grid.qmin} to {grid.qmax}. Clamp them, or return floats."
        )
    if zero.dtype not in (torch.uint8, scale.dtype):
        raise QuantError(
            f"{what} returned zero points in {zero.dtype}. Return whole ones in torch.uint8, others in the "
            f"dtype of the scales, {scale.dtype}."
        )


def _check_groups(rounded: QuantizedWeight, what: str) -> None:
    """Refuse an index that does not name a group for each column."""
    columns, groups, index = rounded.codes.shape[1], rounded.scale.shape[1], rounded.index
    if index is None and groups == 1:
        return
    known = index is not None and index.shape == (columns,) and index.dtype == torch.int64
    if index is None or not known or not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise QuantError(
            f"{what} returned {groups} scales per row and for the group of each column {describe(index)}. "
            f"Return int64 numbers [{columns}] from 0 to {groups - 1}, such as grid.group_index({columns})."
        )


def _floats(values: object, what: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a float tensor of this shape, on this device, without NaN or infinity."""
    if not isinstance(values, Tensor) or tuple(values.shape) != shape or not values.is_floating_point():
        raise QuantError(f"{what} returned {describe(values)}. Return a float tensor {list(shape)}.")
    if values.device != device:
        raise QuantError(_elsewhere(f"{what} returned a tensor", values, device))
    if bad := int((~values.isfinite()).sum()):
        raise QuantError(
            f"{what} returned {bad} of {values.numel()} numbers that are NaN or infinite. Look for a "
            "division by 0, such as the scale of a group of zeros."
        )
    return values


def _elsewhere(returned: str, value: Tensor, device: torch.device) -> str:
    return (
        f"{returned} on {value.device}, and the weight is on {device}. Make new tensors where the weight is: "
        "device=weight.device."
    )
