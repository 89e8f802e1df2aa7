"""What is refused before anything is rounded, and the dtype in which it is rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.errors import QuantError, describe
from qlib.grid.definition import Grid, check_grid

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights


def as_compute_dtype(values: Tensor) -> Tensor:
    """Return the values in the dtype of the arithmetic: float64 as it is, all others float32."""
    return values if values.dtype == torch.float64 else values.float()


def check_tensor(values: object, name: str, remedy: str) -> None:
    """Refuse what is no tensor with numbers in it: an array, a list, a layer, a tensor on the meta device."""
    if isinstance(values, Tensor) and not values.is_meta:
        return
    if isinstance(values, Tensor):
        remedy = "A tensor on the meta device has no numbers. Load the checkpoint first."
    elif type(values).__module__ == "numpy":
        remedy = f"Use torch.from_numpy(...). {remedy}"
    raise QuantError(f"{name} is {describe(values)}, not a tensor. {remedy}")


def check_weight(weight: Tensor) -> None:
    """Refuse what is not a non-empty matrix of finite numbers.

    Raises
    ------
    QuantError
        Says the shape and dtype, or how many numbers are NaN or infinite and where the first one is.
    """
    check_tensor(
        weight, "the weight", "Pass a floating-point matrix [outputs, inputs], such as layer.weight."
    )
    if weight.ndim != 2 or weight.numel() == 0 or weight.dtype not in FLOATS:
        raise QuantError(
            f"a weight of shape {tuple(weight.shape)} and dtype {weight.dtype} cannot be quantized. Pass a "
            "floating-point matrix [outputs, inputs] of 16, 32 or 64 bits."
        )
    if weight.sum().isfinite():  # one NaN or infinity spoils the sum; float16 sums can overflow without
        return
    finite = weight.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise QuantError(
            f"{int((~finite).sum())} of {weight.numel()} weights are NaN or infinite, the first "
            f"({weight[row, column].item()}) at row {row}, column {column}. "
            "Repair the checkpoint, or skip this layer."
        )


def check_weight_on(weight: Tensor, grid: Grid) -> None:
    """Refuse what `check_weight` refuses, what is no grid, and a group larger than the weight."""
    check_grid(grid)
    check_weight(weight)
    grid.check(weight.shape[1], "the weight")
