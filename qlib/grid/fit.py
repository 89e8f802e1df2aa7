"""Fits: where the grid of each group lies, from the weights of the group alone.

    fit_minmax      the range of the weights, extended to reach 0
    fit_mse         the share of that range with the smallest sum of |error|^2.4: large weights are clipped
    fit_float_zero  the range of the weights, whether or not it holds 0

Shapes: weight [rows, columns]; scale and zero [rows, groups].
Needs: nothing but the weight, in any floating dtype. No gradients pass: ranges that are learned go through
    `scale_and_zero_point` itself (`qlib/methods/omniquant.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qlib.errors import QuantError, did_you_mean
from qlib.grid.checks import as_compute_dtype, check_weight_on
from qlib.grid.codes import QuantParams, decode, encode, to_codes, to_values
from qlib.grid.definition import Grid
from qlib.grid.ranges import in_groups, min_max_of_groups, min_max_with_zero, scale_and_zero_point
from qlib.grid.short_scales import params_between, short_scales

Fit = Literal["minmax", "mse"]

# The shares of the full range that fit_mse tries, 1 to 0.21, and its exponent of the error: those of GPTQ's
# code (grid=100, maxshrink=0.8, norm=2.4 in quant.py). With an exponent above 2 large errors count more than
# in a mean square.
SHRINKS = [1 - step / 100 for step in range(80)]
NORM = 2.4
CHUNK = 1 << 17  # numbers handled at once by fit_mse and HQQ: 0.5 MB of float32 stay in a processor's cache


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
    With `scale_bits` below 32 the scale is at least 1/1024 of the largest |w|: see `scale_between`.
    Arguments and errors as for `fit_minmax`; a symmetric grid, which has no zero, is another error.
    """
    check_weight_on(weight, grid)
    if grid.symmetric:
        raise QuantError("A float zero point needs an asymmetric grid. Use Grid(..., symmetric=False).")
    lo, hi = min_max_of_groups(as_compute_dtype(weight.detach()), grid)
    return params_between(lo, hi, weight.shape[1], grid)


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


def _as_params(scale: Tensor, zero: Tensor | None, empty: Tensor, columns: int, grid: Grid) -> QuantParams:
    """Return a `QuantParams` from numbers [rows, groups, 1], the scales in the bits that the grid gives them.

    A zero point is the share of the range below 0, whatever the scale: it is not moved by the rounding.
    """
    index = None if scale.shape[1] == 1 else grid.group_index(columns).to(scale.device)
    short, second = short_scales(scale.squeeze(-1), empty.squeeze(-1), grid)
    return QuantParams(short, None if zero is None else zero.squeeze(-1).to(torch.uint8), index, second)


def round_to_nearest(weight: Tensor, grid: Grid) -> Tensor:
    """Return Q(W), the nearest values of a grid fitted by `fit_minmax`, [rows, columns]; errors as there."""
    params = fit_minmax(weight, grid)
    return decode(encode(weight, params, grid), params)
