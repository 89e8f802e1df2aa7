"""The straight-through gradient of rounding weights within learned ranges, written out for OmniQuant.

The plain form is `fake_quant_plain` of `qlib/methods/omniquant.py`. Its gradient takes round(x) as x plus a
constant. With w' the weight clamped to [lo, hi], w^ = w' + scale * constant, and so

    dw^/dw' = 1     dw^/dscale = constant = (w^ - w') / scale     dscale/dhi = -dscale/dlo = 1 / qmax

where w' is w inside the range and an end of it outside. On a symmetric grid lo = -hi and scale = hi / qmax.
Autograd adds the same terms in another order, so that what is learned would differ in its last bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qlib.grid import Grid, fit_minmax, to_codes, to_values


def round_within(groups: Tensor, lo: Tensor, hi: Tensor, grid: Grid) -> Tensor:
    """Return weights rounded to the grids that span the ranges [lo, hi]: w^ = scale (code - zero).

    Shapes: weights [rows, groups, group]; lo and hi [rows, groups, 1]. Gradients pass to all three.
    """
    return _RoundWithin.apply(groups, lo, hi, grid)  # type: ignore[no-any-return,no-untyped-call]


class _RoundWithin(torch.autograd.Function):
    """The values forward; backward, the gradients of the plain form."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, lo: Tensor, hi: Tensor, grid: Grid) -> Tensor:
        # The ends are the smallest and largest weight of a group of two: the grid's own fit, on few numbers.
        fit = fit_minmax(torch.cat([lo, hi], -1).flatten(1), replace(grid, group=2))
        scale = fit.scale.view_as(hi)
        zero = None if fit.zero is None else fit.zero.view_as(hi).to(scale)
        clamped = weight.clamp(lo, hi)
        values = to_values(to_codes(clamped, scale, zero, grid, out=clamped), scale, zero)
        ctx.grid = grid
        ctx.save_for_backward(weight, values, lo, hi, scale)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, values, lo, hi, scale = ctx.saved_tensors
        above, below = weight > hi, weight < lo
        of_scale = (values - weight.clamp(lo, hi)).mul_(gradient).sum(-1, keepdim=True) / scale
        of_hi = (gradient * above).sum(-1, keepdim=True) + of_scale / ctx.grid.qmax
        of_lo = (gradient * below).sum(-1, keepdim=True)
        if not ctx.grid.symmetric:
            of_lo -= of_scale / ctx.grid.qmax
        of_weight = gradient.masked_fill(above | below, 0) if ctx.needs_input_grad[0] else None
        return of_weight, of_lo, of_hi, None
