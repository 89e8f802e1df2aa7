"""Slow and obvious roundings of one layer, to compare a method with, in float64.

They take scales from `qlib.grid.fit_minmax`, as methods do; no other line is shared with a method.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, fit_minmax

MOST = 1 << 16  # codings of one row that `best_rounding` tries


def gptq_column_by_column(weight: Tensor, hessian: Tensor, grid: Grid, damping: float = 0.01) -> Tensor:
    """Return the weight [outputs, inputs] as GPTQ rounds it from left to right, in float64.

    The inverse of the free columns' part of H is computed anew for each column: inputs^4 operations. Scales
    of a group are fitted to its columns as they are when the first of them is reached.

    >>> weight, inputs = torch.tensor([[0.4, 0.4, 3.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> gptq_column_by_column(weight, inputs.T @ inputs, Grid(bits=2)).tolist()
    [[0.0, 1.0, 3.0]]
    """
    W, H = weight.detach().double().clone(), hessian.detach().double().clone()
    dead = H.diagonal() == 0
    W[:, dead] = 0
    H += torch.eye(len(H)).to(H) * damping * H.diagonal()[~dead].sum() / max(int((~dead).sum()), 1)
    H[dead, dead] = 1
    width = grid.group or len(H)
    for j in range(len(H)):
        # 1. Where a group begins, its scale and zero point.
        if j % width == 0:
            scale, zero = _one_group(W[:, j : j + width], grid)
        # 2. Round column j.
        q = (torch.round(W[:, j] / scale) + zero).clamp(grid.qmin, grid.qmax)
        error = W[:, j] - scale * (q - zero)
        # 3. Move the columns from j on as least squares says: row j of the inverse of H[j:, j:].
        inverse = torch.linalg.inv(H[j:, j:])
        W[:, j:] -= error[:, None] * inverse[0] / inverse[0, 0]
    return W


def best_rounding(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Return the values [outputs, inputs] of least squared output error on the scales of rounding to nearest.

    Tries every code of every weight of a row: levels^inputs codings, each row alone. float64. No method that
    uses these scales can have a smaller error.

    Raises
    ------
    QuantError
        More than 65,536 codings.

    >>> weight, inputs = torch.tensor([[0.4, 0.4, 3.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> best_rounding(weight, inputs.T @ inputs, Grid(bits=2)).tolist()
    [[0.0, 1.0, 3.0]]
    """
    rows, columns = weight.shape
    if (codings := grid.levels**columns) > MOST:
        raise QuantError(
            f"{columns} columns on {grid} have {codings:,} codings, more than {MOST:,}. Use fewer columns or "
            "bits: 8 columns at 2 bits."
        )
    W, H = weight.detach().double(), hessian.detach().double()
    codes = torch.arange(grid.qmin, grid.qmax + 1).to(W)
    every = torch.cartesian_prod(*[codes] * columns).view(-1, columns)
    scale, zero = fit_minmax(W, grid).per_column()
    scale, zero = (
        scale.expand(rows, columns),
        (scale.new_zeros(1) if zero is None else zero).expand(rows, columns),
    )
    best = torch.empty_like(W)
    for row in range(rows):
        values = scale[row] * (every - zero[row])
        D = values - W[row]
        best[row] = values[((D @ H) * D).sum(1).argmin()]
    return best


def _one_group(columns: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scale, in the bits of the grid, and zero point [outputs] of columns that share them."""
    scale, zero = fit_minmax(columns, replace(grid, group=None)).per_column()
    return scale[:, 0], (torch.zeros_like(scale) if zero is None else zero)[:, 0]
