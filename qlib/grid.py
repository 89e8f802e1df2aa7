"""Grids of integer codes: where weights are rounded (inputs: `qlib/activation.py`).

A grid keeps, for each group of neighbouring weights of a row, 2^b equally spaced values, and a weight
becomes the number (the code) of the nearest one:

    asymmetric  scale = (hi - lo) / (2^b - 1)          lo = min(w, 0), hi = max(w, 0) over the group
                zero  = round(-lo / scale)             codes 0 .. 2^b - 1
    symmetric   scale = max|w| / (2^(b-1) - 1)         codes -2^(b-1) .. 2^(b-1) - 1, no zero
    code  = clamp(round(w / scale) + zero)             value = scale (code - zero)

Why the range always reaches 0: then 0.0 has a code of its own, so padding, dead inputs and all-zero rows
survive exactly. Rounding is half to even. A group of zeros takes the range [-1, 1]: no division by 0.

>>> weight = torch.tensor([[-1.0, 0.2, 0.9, 2.0]])
>>> grid = Grid(bits=2)
>>> params = fit_minmax(weight, grid)  # scale 1, zero point 1
>>> encode(weight, params, grid).tolist()
[[0, 1, 2, 3]]

Shapes: weight [rows, columns] = (out, in); scale and zero [rows, groups]; groups run along the columns.
Numbers: float32 whatever the weight's dtype, except that float64 stays float64.
Scales in fewer bits (`scale_bits`): in float32 a scale costs 32 bits a group, half a bit per weight at a
group of 64. `short_scales` rounds it to 16 bits, or to 2 .. 8 in two levels, before any code is chosen: a
value then carries one error, that of its code. Every fit ends there.
Left out: zero points in two levels. Whole ones take b bits anyway; those of `fit_float_zero` take 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import QuantError, as_whole, describe, did_you_mean, settle, true_or_false

Fit = Literal["minmax", "mse"]

# The shares of the full range that fit_mse tries, 1 to 0.21, and its exponent of the error: those of GPTQ's
# code (grid=100, maxshrink=0.8, norm=2.4 in quant.py). With an exponent above 2 large errors count more than
# in a mean square.
SHRINKS = [1 - step / 100 for step in range(80)]
NORM = 2.4
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights
ROWS_TOGETHER = 16  # rows whose scales share a grid, with scale_bits of 2 to 8: those of SpQR
MOST_STEPS = 1024  # a float16 counts whole steps up to 2048
CHUNK = 1 << 17  # numbers handled at once by fit_mse and HQQ: 0.5 MB of float32 stay in a processor's cache


@dataclass(frozen=True)
class Grid:
    """How finely weights are rounded, and which of them share a scale.

    Parameters
    ----------
    bits : int
        Bits of one code, 2 to 8.
    group : int or None
        Number of neighbouring columns of a row that share a scale; the last group may be narrower.
        None: the whole row is one group ("per channel").
    symmetric : bool
        False: codes 0 .. 2^bits - 1 and an integer zero point. True: signed codes, no zero point.
    scale_bits : int
        Bits of a scale. 32: as it is fitted (64 for weights in float64). 16: bfloat16. 2 to 8: the scales of
        16 neighbouring rows are themselves codes, and share a scale and a zero point of 16 bits each.
        Below 32, zero points that are not whole (`fit_float_zero`) are float16.

    Raises
    ------
    QuantError
        Bits that are no whole number from 2 to 8, a group that is none from 1 on, a `symmetric` that is
        neither True nor False, or other `scale_bits`. NumPy's and torch's whole numbers are taken.

    Examples
    --------
    >>> print(Grid(bits=4, group=64))
    w4 g64 asymmetric
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    scale_bits: int = 32

    def __post_init__(self) -> None:
        remedy = "Use bits=8, 4, 3 or 2, and skip a layer that should stay in floating point."
        bits = check_bits(self.bits, "Grid", remedy)
        group = None if self.group is None else _check_group(self.group, bits)
        symmetric = true_or_false(
            self.symmetric, "symmetric in Grid", QuantError, "Use symmetric=True or symmetric=False."
        )
        scale_bits = _check_scale_bits(self.scale_bits)
        settle(self, bits=bits, group=group, symmetric=symmetric, scale_bits=scale_bits)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return self.qmin + self.levels - 1

    @property
    def levels(self) -> int:
        """Number of codes, 2^bits."""
        return 1 << self.bits

    @property
    def code_dtype(self) -> torch.dtype:
        """Dtype of the codes: int8 when symmetric, else uint8."""
        return torch.int8 if self.symmetric else torch.uint8

    def slices(self, columns: int) -> list[slice]:
        """Return the column range of each group; the last may be narrower.

        >>> Grid(bits=4, group=128).slices(288)
        [slice(0, 128, None), slice(128, 256, None), slice(256, 288, None)]
        """
        width = self.group or columns
        return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]

    def group_index(self, columns: int) -> Tensor:
        """Return the group of each column, an int64 tensor [columns]."""
        return torch.arange(columns) // (self.group or columns)

    def check(self, columns: int, where: str) -> None:
        """Refuse a group that is larger than the layer.

        Parameters
        ----------
        columns : int
            Inputs of the layer.
        where : str
            Name of the layer, for the message.

        Raises
        ------
        QuantError
            `group` exceeds `columns`.
        """
        if self.group is not None and self.group > columns:
            raise QuantError(
                f"group={self.group} is larger than the {columns} columns of {where}. "
                f"Use group={columns} or less, or group=None for one scale per row."
            )

    def __str__(self) -> str:
        group = "per channel" if self.group is None else f"g{self.group}"
        name = f"w{self.bits} {group} {'symmetric' if self.symmetric else 'asymmetric'}"
        return name if self.scale_bits == 32 else f"{name}, {self.scale_bits}-bit scales"


def check_bits(bits: object, where: str, remedy: str) -> int:
    """Return a whole number of bits from 2 to 8 as an int; `where`, the class, is named in the error."""
    number = as_whole(bits)
    if number is None or not 2 <= number <= 8:
        shown = repr(bits) if number is None else number
        raise QuantError(f"bits={shown} in {where} is outside 2 to 8 (whole numbers). {remedy}")
    return number


def _check_group(group: object, bits: int) -> int:
    """Return a whole number of columns >= 1 as an int."""
    if isinstance(group, bool):
        raise QuantError(
            f"group={group} in Grid is no number of columns. Use group=64. "
            f"Did you mean Grid(bits={bits}, symmetric={group})?"
        )
    number = as_whole(group)
    if number is None or number < 1:
        raise QuantError(
            f"group={group if number is None else number!r} in Grid is not a number of columns >= 1. "
            "Use group=64, or group=None for one scale per row."
        )
    return number


def _check_scale_bits(scale_bits: object) -> int:
    """Return 32, 16 or 2 .. 8 as an int."""
    number = as_whole(scale_bits)
    if number is None or number not in (*range(2, 9), 16, 32):
        raise QuantError(
            f"scale_bits={scale_bits!r} in Grid is none of 32, 16 and 2 to 8. Use scale_bits=16, or "
            "scale_bits=4 for scales in two levels."
        )
    return number


def check_grid(grid: object) -> None:
    """Refuse what is not a `Grid`."""
    if isinstance(grid, Grid):
        return
    remedy = "Pass a Grid, such as Grid(bits=4, group=64)."
    if (bits := as_whole(grid)) is not None and 2 <= bits <= 8:
        remedy = f"Did you mean Grid(bits={bits})?"
    raise QuantError(f"the grid is {describe(grid)}. {remedy}")


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of every group, and which group each column belongs to.

    Parameters
    ----------
    scale : Tensor
        Distance between two neighbouring values, [rows, groups], > 0.
    zero : Tensor or None
        Code of the value 0.0, [rows, groups]; None: it is 0. uint8, or a float that need not be whole
        (`fit_float_zero`), when 0.0 has no code of its own.
    index : Tensor or None
        Group of each column, [columns], int64; None: there is one group.
    second : RoundedScales or None
        What `scale` was decoded from, on a grid with `scale_bits` of 2 to 8.
    """

    scale: Tensor
    zero: Tensor | None = None
    index: Tensor | None = None
    second: RoundedScales | None = None

    def per_column(self) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero, both in the scale's dtype, as [rows, columns] ([rows, 1] when one group)."""
        zero = None if self.zero is None else self.zero.to(self.scale.dtype)
        if self.index is None:
            return self.scale, zero
        # Not [:, index]: the same numbers, but six times slower.
        columns = self.scale.index_select(1, self.index)
        return columns, None if zero is None else zero.index_select(1, self.index)


@dataclass(frozen=True)
class RoundedScales:
    """Scales that are codes themselves, transposed: [groups, rows], neighbouring rows on one grid.

    Parameters
    ----------
    grid : Grid
        Bits of a scale; its group is the number of neighbouring rows.
    codes : Tensor
        [groups, rows], uint8.
    params : QuantParams
        Their scale and zero point, [groups, blocks of rows], 16 bits each.
    """

    grid: Grid
    codes: Tensor
    params: QuantParams

    def decode(self) -> Tensor:
        """Return the scales, [rows, groups]."""
        return decode(self.codes, self.params).T.contiguous()


# --- the arithmetic, on any shapes that broadcast; codes and zeros are whole numbers in a float tensor


def to_codes(
    values: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid, out: Tensor | None = None
) -> Tensor:
    """Return the code nearest to each value, as floats (written to `out`, if given). A NaN stays a NaN."""
    codes = torch.div(values, scale, out=out).round_()
    if zero is not None:
        codes += zero
    return codes.clamp_(grid.qmin, grid.qmax)


def to_codes_float_zero(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Return the code nearest to each value where zero is not a whole number: it is added before rounding."""
    return torch.div(values, scale).add_(zero).round_().clamp_(grid.qmin, grid.qmax)


def to_values(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return the value of each code (a float tensor): scale (code - zero), for both kinds of zero."""
    return codes * scale if zero is None else (codes - zero).mul_(scale)


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


# --- fitting


def fit_minmax(weight: Tensor, grid: Grid) -> QuantParams:
    """Fit each group's range to its smallest and largest weight.

    Parameters
    ----------
    weight : Tensor
        [rows, columns], any floating dtype.
    grid : Grid
        Bits, group and symmetry.

    Raises
    ------
    QuantError
        The weight is not a matrix, holds NaN or infinity, or is narrower than a group.
    """
    lo, hi = min_max_with_zero(_grouped(weight, grid))  # [rows, groups, 1]
    scale, zero = scale_and_zero_point(lo, hi, grid)
    return _as_params(scale, zero, lo == hi, weight.shape[1], grid)


def fit_mse(weight: Tensor, grid: Grid) -> QuantParams:
    """Shrink each group's range to the share of it that makes the sum of |error|^2.4 smallest.

    A narrower range clips the few largest weights, and all others are rounded more finely. Tries 100 %,
    99 %, ... 21 % of the full range; the widest range wins a tie. Arguments and errors as for `fit_minmax`.
    """
    groups = _grouped(weight, grid)
    lo, hi = min_max_with_zero(groups)
    scale, zero = scale_and_zero_point(lo, hi, grid)
    rows = max(1, CHUNK // groups[0].numel())
    for row in range(0, len(groups), rows):
        part = slice(row, row + rows)
        _shrink(groups[part], scale[part], None if zero is None else zero[part], grid)
    return _as_params(scale, zero, lo == hi, weight.shape[1], grid)


def fit_float_zero(weight: Tensor, grid: Grid) -> QuantParams:
    """Fit each group's range to its smallest and largest weight, without reaching for 0.

        scale = (hi - lo) / (2^b - 1)      zero = -lo / scale, not rounded

    The grid is as fine as it can be, and 0.0 need not be on it. A group of equal weights is exact.
    With `scale_bits` below 32 the zero point is a float16, which has 11 digits: the scale is then at least
    1/1024 of the largest |w|, so that the zero point stays below 1024 and its own rounding below half a step.
    Arguments and errors as for `fit_minmax`; a symmetric grid, which has no zero, is another error.
    """
    check_weight_on(weight, grid)
    columns = weight.shape[1]
    if grid.symmetric:
        raise QuantError("A float zero point needs an asymmetric grid. Use Grid(..., symmetric=False).")
    parts = [as_compute_dtype(weight.detach())[:, part] for part in grid.slices(columns)]
    lo = torch.stack([part.amin(1) for part in parts], dim=1)
    hi = torch.stack([part.amax(1) for part in parts], dim=1)
    numbers = torch.finfo(lo.dtype)
    scale = (hi - lo) / grid.qmax
    # A span near the dtype's largest number: divided first, and a little less, so that values are finite.
    huge = ~(hi - lo <= numbers.max / 2)
    scale = torch.where(huge, (hi / grid.qmax - lo / grid.qmax) * (1 - 1e-6), scale)
    largest = torch.maximum(-lo, hi)
    equal = hi == lo
    if grid.scale_bits < 32:
        scale, equal = torch.maximum(scale, largest / MOST_STEPS), largest == 0
    scale = scale.clamp(min=numbers.tiny).masked_fill_(equal, 1)
    scale, second = short_scales(scale, equal, grid)
    index = None if len(parts) == 1 else grid.group_index(columns).to(weight.device)
    return QuantParams(scale, short_zero(-lo / scale, grid), index, second)


def fit_scale(weight: Tensor, grid: Grid, fit: Fit) -> QuantParams:
    """Fit by name: "minmax" or "mse".

    Raises
    ------
    QuantError
        Another name, and whatever the fit itself refuses.
    """
    check_fit(fit)
    return fit_mse(weight, grid) if fit == "mse" else fit_minmax(weight, grid)


def check_fit(fit: str) -> None:
    """Refuse a name that `fit_scale` does not know."""
    if not isinstance(fit, str) or fit not in ("minmax", "mse"):
        near = did_you_mean(fit, ("minmax", "mse"))
        raise QuantError(f"fit={fit!r} is unknown. Use fit='minmax' or fit='mse'.{near}")


def _shrink(groups: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> None:
    """Shrink scales [rows, groups, 1] in place to those with the smallest error.

    Both ends of the range shrink by the same share, so the code of 0.0 stays where it is.
    """
    full, best = scale.clone(), torch.full_like(scale, torch.inf)
    for share in SHRINKS:
        tried = full * share
        values = to_values(to_codes(groups, tried, zero, grid), tried, zero)
        error = values.sub_(groups).abs_().pow_(NORM).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale.copy_(torch.where(better, tried, scale))


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """Return a checked weight as [rows, groups, group]."""
    check_weight_on(weight, grid)
    return in_groups(as_compute_dtype(weight.detach()), grid)


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


def _as_params(scale: Tensor, zero: Tensor | None, empty: Tensor, columns: int, grid: Grid) -> QuantParams:
    """Return a `QuantParams` from numbers [rows, groups, 1], the scales in the bits that the grid gives them.

    A zero point is the share of the range below 0, whatever the scale: it is not moved by the rounding.
    """
    index = None if scale.shape[1] == 1 else grid.group_index(columns).to(scale.device)
    short, second = short_scales(scale.squeeze(-1), empty.squeeze(-1), grid)
    return QuantParams(short, None if zero is None else zero.squeeze(-1).to(torch.uint8), index, second)


# --- scales in fewer bits


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
    Its 8 binary digits move a scale by 1/512 at most: that clips the largest weight by half a step of 8 bits,
    and by 1/34 of a step of 4.

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
    params = fit_float_zero(scales, second)
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


# --- codes


def encode(weight: Tensor, params: QuantParams, grid: Grid) -> Tensor:
    """Return the codes of a weight, [rows, columns], uint8 (asymmetric) or int8 (symmetric).

    Raises
    ------
    QuantError
        The weight is not a matrix, or holds NaN or infinity.
    """
    check_grid(grid)
    check_weight(weight)
    values, (scale, zero) = _aligned(as_compute_dtype(weight.detach()), params, grid)
    float_zero = params.zero is not None and params.zero.is_floating_point()
    if zero is not None and float_zero:
        codes = to_codes_float_zero(values, scale, zero, grid)
    else:
        codes = to_codes(values, scale, zero, grid)
    # By way of int16: from float to uint8 at once takes three times as long.
    return codes.to(torch.int16).to(grid.code_dtype).view(weight.shape)


def _aligned(values: Tensor, params: QuantParams, grid: Grid) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """Return values, and the scale and zero of each, in shapes that broadcast."""
    columns, width = values.shape[1], grid.group
    if params.index is None or width is None or columns % width:
        return values, params.per_column()
    if not torch.equal(params.index, grid.group_index(columns).to(params.index.device)):
        return values, params.per_column()
    # Neighbours share a group: as [rows, groups, group], no scale has to be copied for each column.
    zero = None if params.zero is None else params.zero.to(params.scale.dtype).unsqueeze(-1)
    return values.reshape(len(values), -1, width), (params.scale.unsqueeze(-1), zero)


def decode(codes: Tensor, params: QuantParams) -> Tensor:
    """Return the values of codes, [rows, columns], in the scale's dtype."""
    return to_values(codes.to(params.scale.dtype), *params.per_column())


def round_to_nearest(weight: Tensor, grid: Grid) -> Tensor:
    """Return Q(W), the nearest values of a grid fitted by `fit_minmax`, [rows, columns]; errors as there."""
    params = fit_minmax(weight, grid)
    return decode(encode(weight, params, grid), params)
