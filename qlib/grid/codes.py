"""Value -> code -> value: the only rounding of weights in this library.

Paper: Krishnamoorthi 2018, arXiv 1806.08342, section 2.1.
Rule: code  = clamp(round(w / scale) + zero, lowest, highest)    zero a whole number; none if symmetric
      code  = clamp(round(w / scale + zero), lowest, highest)    zero any number (`fit_float_zero`)
      value = scale (code - zero)                                in both cases
Why it works: within the range of the codes, a value is at most half a scale from its weight.
Shapes: in the first three functions, any that broadcast. `encode` and `decode` take a whole weight
    [rows, columns], and the scales [rows, groups] of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.grid.checks import as_compute_dtype, check_weight
from qlib.grid.definition import Grid, check_grid

# --- the arithmetic; codes and zeros are whole numbers in a float tensor


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


# --- a whole weight: its parameters, its codes, and its values


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
