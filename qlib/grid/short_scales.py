"""Scales and zero points in the bits that a grid gives them, before any code is chosen.

    32       as they are fitted
    16       scale: bfloat16, which has the range of float32; a zero that is not whole: float16
    2 to 8   two levels: the scales of 16 neighbouring rows are codes themselves, scale = step (code - zero)

Paper: two levels, SpQR (Dettmers et al. 2023, arXiv 2306.03078).
Problem: in float32 a scale costs 32 bits a group, half a bit per weight at a group of 64.
Why it works: a weight is rounded with the scale as it is stored, so that its value carries one error, that of
    its code. Every fit ends here.
Shapes: scale and zero [rows, groups]. On the second level a group of columns is a row, and rows are columns.
Left out: whole zero points in two levels: they take b bits anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import QuantError
from qlib.grid.checks import as_compute_dtype, check_weight
from qlib.grid.codes import QuantParams, RoundedScales, to_codes_float_zero, to_values
from qlib.grid.definition import Grid
from qlib.grid.ranges import min_max_of_groups, scale_between

ROWS_TOGETHER = 16  # rows whose scales share a grid, with scale_bits of 2 to 8: those of SpQR


def short_scales(scale: Tensor, empty: Tensor, grid: Grid) -> tuple[Tensor, RoundedScales | None]:
    """Return scales as a grid stores them, and their codes where these are what is stored.

    Parameters
    ----------
    scale : Tensor
        [rows, groups], > 0.
    empty : Tensor
        Groups of zeros, [rows, groups], bool; any scale suits them.
    grid : Grid
        With its `scale_bits`: 32, nothing is done; 16, the nearest bfloat16; 2 to 8, `two_levels`.

    Why bfloat16: it has the range of float32, so no scale becomes 0; float16 would lose those below 6e-8.
    Its 8 binary digits move a scale by 1/256 at most: that clips the largest weight of a range centred at 0
    by half a step of 8 bits, and by 1/34 of a step of 4; twice as much where all weights have one sign.

    Raises
    ------
    QuantError
        A scale at the end of the range of float32, or beyond it (of weights in float64).
    """
    if grid.scale_bits == 32:
        return scale, None
    numbers = torch.finfo(torch.bfloat16)
    if bool(((scale > numbers.max / 2048) | (scale < numbers.tiny / 2)).any()):
        raise QuantError(
            f"scales from {float(scale.min()):.3g} to {float(scale.max()):.3g} do not fit into "
            f"{grid.scale_bits} bits. Use Grid(..., scale_bits=32) for this layer."
        )
    if grid.scale_bits == 16:
        return scale.to(torch.bfloat16).to(scale.dtype), None
    second = two_levels(scale, empty, grid)
    return second.decode(), second


def two_levels(scale: Tensor, empty: Tensor, grid: Grid) -> RoundedScales:
    """Round the scales of neighbouring rows as weights are rounded: to codes with a scale and a zero point.

    Paper: SpQR (Dettmers et al. 2023, arXiv 2306.03078), with one change: where the nearest code would narrow
    the range by more than one step of the weights' own grid, the next one above is taken. With 3 or 4 bits a
    weight that is rare; with 8, where a step is small, the nearest code would multiply the error.

    Parameters
    ----------
    scale, empty, grid
        As for `short_scales`. An empty group would stretch the grid of its neighbours: it takes the smallest
        scale among these.
    """
    rows = len(scale)
    second = Grid(grid.scale_bits, min(ROWS_TOGETHER, rows), scale_bits=16)
    scales = _fill_empty(scale, empty, second).T.contiguous()  # [groups, rows]
    # 1. One scale and zero point for 16 rows, in 16 bits.
    check_weight(scales)  # a NaN passes the comparisons of `short_scales`
    lo, hi = min_max_of_groups(as_compute_dtype(scales.detach()), second)
    params = params_between(lo, hi, rows, second)
    step, zero = params.per_column()
    assert zero is not None
    # 2. The nearest code.
    codes = to_codes_float_zero(scales, step, zero, second)
    values = to_values(codes, step, zero)
    # 3. The next one, where the outermost weight, at qmax steps, would be clipped by more than a step.
    codes += (scales - values) * grid.qmax > values
    return RoundedScales(second, codes.clamp_(max=second.qmax).to(second.code_dtype), params)


def _fill_empty(scale: Tensor, empty: Tensor, second: Grid) -> Tensor:
    """Return scales [rows, groups] where empty groups have the smallest scale of their neighbours, if any."""
    rows = len(scale)
    used = pad(scale.masked_fill(empty, torch.inf).T, (0, -rows % (second.group or rows)), value=torch.inf)
    smallest = used.reshape(scale.shape[1], -1, second.group or rows).amin(-1)  # [groups, blocks]
    smallest = smallest.index_select(1, second.group_index(rows).to(scale.device)).T
    return torch.where(empty & smallest.isfinite(), smallest, scale)


def params_between(lo: Tensor, hi: Tensor, columns: int, grid: Grid) -> QuantParams:
    """Return scale and zero point of ranges that need not hold 0, both as the grid stores them.

    Shapes: lo and hi [rows, groups], of values [rows, columns].
    """
    scale, equal = scale_between(lo, hi, grid)
    scale, second = short_scales(scale, equal, grid)
    index = None if scale.shape[1] == 1 else grid.group_index(columns).to(scale.device)
    return QuantParams(scale, short_zero(-lo / scale, grid), index, second)


def short_zero(zero: Tensor, grid: Grid) -> Tensor:
    """Return zero points that need not be whole as a grid stores them: below 32 `scale_bits` as float16.

    float16, because a zero point is of the size of a code, where bfloat16 has steps of 1/16 to 1. One that is
    not 0 does not become 0: a scale of the second level would be 0 with it.
    """
    if grid.scale_bits == 32:
        return zero
    rounded = zero.half().to(zero.dtype)
    smallest = torch.full_like(zero, 2.0**-24).copysign(zero)
    return torch.where((rounded == 0) & (zero != 0), smallest, rounded)
