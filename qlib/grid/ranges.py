"""From the smallest and largest weight of a group to its scale and zero point.

    reaching 0    scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale), with lo <= 0 <= hi
    symmetric     scale = max(-lo, hi) / (2^(b-1) - 1), no zero
    as it is      scale = (hi - lo) / (2^b - 1), and 0.0 need not have a code (`fit_float_zero`)

Every scale is a positive normal number and every value of the grid is finite, whatever the weights: empty
groups, the smallest and the largest numbers of a dtype have a line of their own.

Shapes: weight [rows, columns], in groups [rows, groups, group]; lo, hi, scale and zero have one for a group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.grid.definition import Grid

MOST_STEPS = 1024  # a float16 counts whole steps up to 2048


def in_groups(values: Tensor, grid: Grid) -> Tensor:
    """Return values [rows, columns] as [rows, groups, group]; gradients pass.

    A narrower last group is filled up with zeros. That is exact, not approximate: each range reaches 0
    anyway, and 0 is rounded without error.
    """
    columns = values.shape[1]
    width = grid.group or columns
    if columns % width:
        values = pad(values, (0, -columns % width))
    return values.reshape(len(values), -1, width)


# --- ranges that reach 0


def min_max_with_zero(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value over the last axis (kept, of size 1), extended to reach 0."""
    # Two passes on purpose: on a CPU, torch.aminmax along an axis takes 15 times as long as both together.
    return values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0)


def min_max_on(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the ends of the range that a grid spans over the last axis (kept, of size 1).

    Smallest and largest value, extended to reach 0; on a symmetric grid, -max|w| and max|w|.
    """
    lo, hi = min_max_with_zero(values)
    if not grid.symmetric:
        return lo, hi
    hi = torch.maximum(-lo, hi)
    return -hi, hi


def scale_and_zero_point(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return scale and (float) zero of the range [lo, hi], which contains 0."""
    span = torch.maximum(-lo, hi) if grid.symmetric else hi - lo
    numbers = torch.finfo(span.dtype)
    if bool((span > numbers.max / 2).any()):  # a value of the grid, or the span itself, could be infinite
        return _scale_of_huge(lo, hi, grid)
    scale = span / grid.qmax
    empty = scale == 0  # tested on the scale, not on the span: a span of 1e-45 divides to 0 as well
    # Below the smallest normal number a scale has few digits left, and some processors take it for 0.
    scale.clamp_(min=numbers.tiny).masked_fill_(empty, (1 if grid.symmetric else 2) / grid.qmax)
    return scale, None if grid.symmetric else lo.masked_fill(empty, -1).neg_().div_(scale).round_()


def _scale_of_huge(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero of ranges near the largest number of the dtype: every code's value is finite.

    Fitted to a quarter of the range, and then made so small that the outermost code stays below the end:
    a number there may be a whole step off instead of half of one.
    """
    lo, hi, numbers = lo / 4, hi / 4, torch.finfo(lo.dtype)
    span = torch.maximum(-lo, hi) if grid.symmetric else hi - lo
    scale = (span / grid.qmax).clamp_(min=numbers.tiny)
    zero = None if grid.symmetric else (-lo / scale).round_()
    codes = torch.full_like(scale, -grid.qmin) if zero is None else zero.maximum(grid.qmax - zero)
    return torch.minimum(scale * 4, numbers.max * (1 - 1e-6) / codes), zero


# --- ranges as they are


def min_max_of_groups(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of each group, [rows, groups], of values [rows, columns]."""
    # Not by `in_groups`: the zeros that fill up the last group would stretch its range.
    parts = [values[:, part] for part in grid.slices(values.shape[1])]
    lo = torch.stack([part.amin(1) for part in parts], dim=1)
    return lo, torch.stack([part.amax(1) for part in parts], dim=1)


def scale_between(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the scale of the range [lo, hi], which need not hold 0, and where any other would do as well.

    With `scale_bits` below 32 the zero point is a float16, which has 11 digits: the scale is then at least
    1/1024 of the largest |w|, so that the zero point stays below 2048 and its own rounding is half a step at
    most. (`short_scales` may still make the scale smaller, by a quarter at most.)
    """
    numbers = torch.finfo(lo.dtype)
    scale = (hi - lo) / grid.qmax
    # A span near the dtype's largest number: divided first, and a little less, so that values are finite.
    huge = ~(hi - lo <= numbers.max / 2)
    scale = torch.where(huge, (hi / grid.qmax - lo / grid.qmax) * (1 - 1e-6), scale)
    largest = torch.maximum(-lo, hi)
    equal = hi == lo
    if grid.scale_bits < 32:
        scale, equal = torch.maximum(scale, largest / MOST_STEPS), largest == 0
    return scale.clamp(min=numbers.tiny).masked_fill_(equal, 1), equal
