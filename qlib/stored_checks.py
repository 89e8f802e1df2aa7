"""Whether the tensors of a stored layer fit one another and the layer: shapes, dtypes, indices in range."""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.activation import Activation
from qlib.errors import ModelError, QuantError
from qlib.grid import Grid
from qlib.kept_columns import KeepColumns
from qlib.quantized_weight import QuantizedWeight, check_scale_bits


def check_consistent(weight: QuantizedWeight, grid: Grid, shape: tuple[int, int]) -> None:
    """Refuse a weight whose parts do not fit together, or that holds NaN or infinity.

    Raises
    ------
    QuantError
        The message names the part, what it is and what it should be.
    """
    rows, columns = shape
    groups = groups_of(weight.columns, grid, columns)
    expect_tensor("codes", weight.codes, shape, grid.code_dtype)
    expect_tensor("scale", weight.scale, (rows, groups), None)
    check_scale_bits(weight, grid)
    if (weight.zero is None) != grid.symmetric:
        have = "no zero point" if weight.zero is None else "a zero point"
        raise QuantError(f"{have} on the grid {grid}: only asymmetric grids have one")
    if weight.zero is not None:
        whole = not weight.zero.is_floating_point()
        expect_tensor("zero", weight.zero, (rows, groups), torch.uint8 if whole else weight.scale.dtype)
        if whole and int(weight.zero.max()) > grid.qmax:
            raise QuantError(
                f"the zero point {int(weight.zero.max())} is above {grid.qmax}, the highest code"
            )
    _check_index("index", weight.index, columns, groups)
    check_beside_codes(weight, shape)


def groups_of(in_float: Tensor | None, grid: Grid, columns: int) -> int:
    """Return how many groups those of the columns have that do not stay in float; one if all do."""
    kept = 0 if in_float is None else in_float.numel()
    return len(grid.slices(columns - kept)) if columns > kept else 1


def check_beside_codes(weight: QuantizedWeight, shape: tuple[int, int]) -> None:
    """Refuse what stays in float, or codes of scales, where they do not fit the layer and its scales.

    Raises
    ------
    QuantError
        As `check_consistent`, of which this is the part about columns, outliers and the second level.
    """
    (rows, columns), groups = shape, weight.scale.shape[1]
    kept = 0 if weight.columns is None else weight.columns.numel()
    _check_places("columns", weight.columns, weight.column_values, (rows, kept), columns)
    count = 0 if weight.outliers is None else weight.outliers.numel()
    _check_places("outliers", weight.outliers, weight.outlier_values, (count,), rows * columns)
    if weight.second is not None:
        for part, level in weight.second.levels().items():
            blocks = len(weight.second.grid.slices(rows))
            expect_tensor(f"{part}_codes", level.codes, (groups, rows), weight.second.grid.code_dtype)
            if int(level.codes.max()) > weight.second.grid.qmax:
                raise QuantError(
                    f"{part}_codes reach {int(level.codes.max())}, above {weight.second.grid.qmax}, the "
                    "highest code"
                )
            expect_tensor(f"{part}_scale", level.scale, (groups, blocks), None)
            if level.zero is None:
                raise QuantError(f"{part}_zero is missing")
            expect_tensor(f"{part}_zero", level.zero, (groups, blocks), None)
            _check_index(f"{part}_index", level.index, rows, blocks)
            check_scale_bits(level, weight.second.grid)


def expect_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """Refuse another shape, another dtype (None: any float), NaN and infinity."""
    if tuple(tensor.shape) != shape:
        raise QuantError(f"{name} is {list(tensor.shape)}, not {list(shape)}")
    if tensor.dtype != dtype if dtype is not None else not tensor.is_floating_point():
        raise QuantError(f"{name} is {tensor.dtype}, not {dtype or 'a float'}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise QuantError(f"{name} holds {int((~tensor.isfinite()).sum())} NaN or infinite numbers")


def _check_index(name: str, index: Tensor | None, columns: int, groups: int) -> None:
    """Refuse an index that does not name a group for each column."""
    if index is None and groups > 1:
        raise QuantError(f"{name} is missing, though there are {groups} groups")
    if index is not None:
        expect_tensor(name, index, (columns,), torch.int64)
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise QuantError(f"{name} names groups {int(index.min())} to {int(index.max())} of {groups}")


def _check_places(
    name: str, places: Tensor | None, values: Tensor | None, shape: tuple[int, ...], limit: int
) -> None:
    """Refuse places that are not ascending and below a limit, or that are not as many as their values."""
    if (places is None) != (values is None):
        raise QuantError(f"{name} and their values belong together, and one of them is missing")
    if places is None or values is None:
        return
    expect_tensor(name, places, shape[-1:], torch.int64)
    expect_tensor(f"values of {name}", values, shape, None)
    inside = not len(places) or (int(places[0]) >= 0 and int(places[-1]) < limit)
    if not inside or not bool((places.diff() > 0).all()):
        raise QuantError(f"{name} are not ascending numbers from 0 to {limit - 1}")


def check_kept_columns(activation: Activation | None, columns: Tensor | None) -> None:
    """Refuse an input rounding that keeps other columns in float than the weight does."""
    if isinstance(activation, KeepColumns):
        kept = [] if columns is None else columns.tolist()
        if activation.columns.tolist() != kept:
            raise ModelError(
                f"its input keeps the columns {activation.columns.tolist()} in float, its weight {kept}"
            )
