"""Scales and zero points that are rounded together: the second level of SpQR.

Any other method rounds its scales alone, on a grid with `scale_bits` of 2 to 8: `qlib.grid.two_levels`.

Paper: Dettmers et al. 2023, arXiv 2306.03078, algorithm 1.
Rule: within a group of columns, the scales of 16 neighbouring rows are rounded as 16 weights would be: to
    3 bits, with a scale and a zero point of their own. So are their zero points.
Why it works: with a group of 16 weights, a scale and a zero point in float32 cost 4 bits per weight; in
    3 bits each, 0.375. Neighbouring rows have scales of much the same size, so 3 bits are enough.
Shapes: scale and zero [rows] of one group, [rows, groups] of all. On the second level a group of columns is a
    row, and its rows are the columns, in groups of 16: codes [groups, rows].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, encode, fit_float_zero
from qlib.quantized_weight import QuantizedWeight, SecondLevel


def round_scales(
    scale: Tensor, zero: Tensor, empty: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, QuantizedWeight]:
    """Round the scales of neighbouring rows on a grid of their own, and so their zero points.

    Parameters
    ----------
    scale, zero : Tensor
        Of each row, [rows].
    empty : Tensor
        Rows of zeros, [rows], bool. Their scale does not matter to them, but it would stretch the grid that
        they share with their neighbours: they get the smallest scale among these.
    grid : Grid
        Bits of a scale; its group is the number of neighbouring rows.

    Returns
    -------
    tuple
        Scale and zero point as they are after rounding, [rows], and their codes: scales in row 0, zeros in 1.
    """
    scale = scale.clone()
    for part in grid.slices(len(scale)) if empty.any() else []:
        if not empty[part].all():
            scale[part].masked_fill_(empty[part], float(scale[part][~empty[part]].min()))
    both = torch.stack([scale, zero])
    fitted = fit_float_zero(both, grid)
    level = QuantizedWeight(encode(both, fitted, grid), fitted.scale, fitted.zero, fitted.index)
    rounded_scale, rounded_zero = level.decode()
    return rounded_scale, rounded_zero, level


def check_first_level(grid: Grid) -> None:
    """Refuse a grid that rounds scales in two levels by itself."""
    if isinstance(grid, Grid) and grid.scale_bits < 16:
        raise QuantError(
            f"scale_bits={grid.scale_bits} for SpQR, which rounds its scales to second_bits by itself. "
            f"Use SpQR(second_bits={grid.scale_bits}) and Grid(..., scale_bits=16)."
        )


def second_level(levels: Sequence[QuantizedWeight], grid: Grid) -> SecondLevel:
    """Return the rounded scales and zero points of all groups, from what `round_scales` gave for each.

    Parameters
    ----------
    levels : sequence of QuantizedWeight
        One for each group, in their order: codes [2, rows].
    grid : Grid
        The one that they were rounded on.
    """
    return SecondLevel(grid, of_all_groups(levels, 0), of_all_groups(levels, 1))


def of_all_groups(levels: Sequence[QuantizedWeight], row: int) -> QuantizedWeight:
    """Return what was rounded in one row of the codes of each group, for all groups, [groups, rows]."""
    codes, scales, zeros = (
        torch.cat([getattr(level, name)[row : row + 1] for level in levels])
        for name in ("codes", "scale", "zero")
    )
    return QuantizedWeight(codes, scales, zeros, levels[0].index)
