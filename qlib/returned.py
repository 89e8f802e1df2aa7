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
from qlib.quantized_weight import QuantizedWeight, check_scale_bits


def check_scale(scale: object, inputs: int, method: str) -> Tensor:
    """Return a scale [inputs] of finite numbers > 0.

    Raises
    ------
    QuantError
        It is something else.
    """
    scale = _floats(scale, f"{method}.scale_group", (inputs,))
    if bad := int((scale <= 0).sum()):
        raise QuantError(
            f"{method}.scale_group returned {bad} of {inputs} scales that are 0 or below. Inputs are divided "
            "by them: give inputs that are always 0 the scale 1."
        )
    return scale


def check_clipped(weight: object, shape: torch.Size, method: str) -> Tensor:
    """Return a clipped weight of finite numbers in the shape of the weight it was.

    Raises
    ------
    QuantError
        It is something else.
    """
    return _floats(weight, f"{method}.clip_layer", tuple(shape))


def check_fitted(fitted: object, parameters: Mapping[str, Tensor], method: str) -> Fitted:
    """Return the changed parameters of a block, each by a name and in the shape that the block has.

    Raises
    ------
    QuantError
        It is no mapping, a name is unknown, or a tensor is of another shape or not finite.
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
        _floats(value, f"{what}, for {name},", tuple(parameters[name].shape))
    return fitted if isinstance(fitted, Fitted) else Fitted(fitted)


def check_rounded(rounded: object, shape: torch.Size, grid: Grid, method: str) -> QuantizedWeight:
    """Return a quantized weight that belongs to a weight of this shape and to the grid.

    Raises
    ------
    QuantError
        It is no `QuantizedWeight`; its codes are of another shape or dtype or outside of the grid; its
        scales, zeros or groups are of another shape; or its values are not finite.
    """
    what = f"{method}.quantize_layer"
    if not isinstance(rounded, QuantizedWeight):
        raise QuantError(
            f"{what} returned {describe(rounded)}. Return qlib.QuantizedWeight(codes, scale, zero, index)."
        )
    _check_codes(rounded.codes, shape, grid, what)
    _check_scales(rounded, grid, what)
    try:
        check_scale_bits(rounded, grid)
    except QuantError as error:
        raise QuantError(f"{what} returned other scales than were asked for: {error}") from error
    if not rounded.decode().isfinite().all():
        raise QuantError(f"{what} returned codes and scales whose values are not finite. Check its scales.")
    return rounded


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
    """Refuse scales, zeros and groups that do not belong to the codes."""
    rows, columns = rounded.codes.shape
    scale, zero, index = rounded.scale, rounded.zero, rounded.index
    if (
        not isinstance(scale, Tensor)
        or scale.ndim != 2
        or len(scale) != rows
        or not scale.is_floating_point()
    ):
        raise QuantError(
            f"{what} returned scales that are {describe(scale)}. Return floats [{rows}, groups]."
        )
    _floats(scale, f"{what}, for the scales,", tuple(scale.shape))
    if (zero is None) != grid.symmetric:
        has = "no zero points" if zero is None else "zero points"
        raise QuantError(f"{what} returned {has} for {grid}. Only asymmetric grids have them, and all do.")
    if zero is not None and (not isinstance(zero, Tensor) or zero.shape != scale.shape):
        raise QuantError(
            f"{what} returned zero points that are {describe(zero)} for scales {list(scale.shape)}. Return "
            "one per scale."
        )
    if (
        zero is not None
        and not zero.is_floating_point()
        and not 0 <= int(zero.min()) <= int(zero.max()) <= grid.qmax
    ):
        raise QuantError(
            f"{what} returned zero points from {int(zero.min())} to {int(zero.max())}, but {grid} has the "
            f"codes {grid.qmin} to {grid.qmax}. Clamp them, or return floats."
        )
    if index is None and scale.shape[1] == 1:
        return
    groups = scale.shape[1]
    known = isinstance(index, Tensor) and index.shape == (columns,) and index.dtype == torch.int64
    if index is None or not known or not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise QuantError(
            f"{what} returned {groups} scales per row and for the group of each column {describe(index)}. "
            f"Return int64 numbers [{columns}] from 0 to {groups - 1}, such as grid.group_index({columns})."
        )


def _floats(values: object, what: str, shape: tuple[int, ...]) -> Tensor:
    """Return a float tensor of this shape without NaN or infinity."""
    if not isinstance(values, Tensor) or tuple(values.shape) != shape or not values.is_floating_point():
        raise QuantError(f"{what} returned {describe(values)}. Return a float tensor {list(shape)}.")
    if bad := int((~values.isfinite()).sum()):
        raise QuantError(
            f"{what} returned {bad} of {values.numel()} numbers that are NaN or infinite. Look for a "
            "division by 0, such as the scale of a group of zeros."
        )
    return values
