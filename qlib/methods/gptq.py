"""GPTQ: round one column of the weight after the other, and let the columns still to come make up for it.

Paper: Frantar et al. 2022, arXiv 2210.17323, algorithm 1 and equations 2 to 4.
Problem: minimise |X W^T - X W^^T|^2 over W^ on the grid, that is tr (W - W^) H (W - W^)^T with H = X^T X.
Rule: with U upper triangular, U^T U = H^-1; for column j = 0, 1, ...                        (`gptq_steps`)
          q = Q(w_j)      e = (w_j - q) / U_jj      w_k -= e U_jk  for all k >= j
Why it works: an error in one column is seen in the outputs only as far as the other columns cannot undo it;
    row j of U says how they best try. `qlib/methods/second_order.py` derives that, and the fast form of the
    rule (`gptq`), which needs no inverse and works in blocks.
Shapes: W [outputs, inputs], H [inputs, inputs]; inside, W is transposed so that a column is contiguous.
Needs: the Hessian. Changes: this weight only, every column of it.
Left out: nothing. Unlike the published code, a group's scale is always fitted to up-to-date columns; there it
    is fitted to stale ones where a group begins inside a block, and the result depends on the block size.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from qlib.errors import QuantError, did_you_mean
from qlib.grid import Fit, Grid, check_fit
from qlib.methods.checks import check_types
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.second_order import (
    Layer,
    OnGrid,
    check_damping,
    check_layer,
    hessian,
    inverse_factor,
    invert,
    known_hessian,
    walk,
    with_token_note,
)
from qlib.quantized_weight import QuantizedWeight

__all__ = ["GPTQ", "ActOrder", "GPTQStep", "gptq", "gptq_plain", "gptq_steps", "hessian", "inverse_factor"]

ActOrder = Literal["off", "off-static", "dynamic", "static"]


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: ActOrder = "off",
    fit: Fit = "minmax",
    block: int = 128,
) -> QuantizedWeight:
    """Round a weight so that its outputs, not its entries, change least.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    hessian : Tensor
        [inputs, inputs], as the function `hessian` returns it for the inputs of this layer.
    grid : Grid
        Bits, group and symmetry.
    damping : float
        See `inverse_factor`; makes up for too few tokens.
    act_order : {"off", "off-static", "dynamic", "static"}
        Visit the columns from left to right ("off"), or those with the largest H_jj first. "off" fits a group
        to its columns as they are when the first is reached; so does "dynamic", whose groups are of columns
        visited together (the result carries their index). With "static", groups are neighbours and their
        scales are fitted to the original weight, before anything is rounded.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.
    block : int
        Columns from one matrix product to the next, at most a group: a matter of speed, not of codes.

    Returns
    -------
    QuantizedWeight
        Codes in the original order of the columns; `notes` say which inputs were never used.

    Raises
    ------
    QuantError
        NaN weights, a Hessian of another shape or not positive definite, a setting out of range.

    Examples
    --------
    Two inputs that are always equal: what the first weight loses, the second wins.

    >>> weight = torch.tensor([[0.4, 0.4, 3.0]])
    >>> inputs = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> gptq(weight, hessian(inputs), Grid(bits=2)).decode().tolist()
    [[0.0, 1.0, 3.0]]
    """
    layer, on_grid, groups = _prepare(weight, hessian, grid, GPTQ(damping, act_order, fit, block))
    walk(layer, groups, on_grid.fit_group, on_grid.round_column, block)
    return on_grid.result()


@dataclass(frozen=True)
class GPTQStep:
    """One column of `gptq_steps`.

    Parameters
    ----------
    column : int
        Its place in the weight.
    codes : Tensor
        Its codes, [outputs], as floats.
    error : Tensor
        What it asks of the later columns, (w - q) / U_jj, [outputs].
    weight : Tensor
        [outputs, inputs] in the order of the visit: rounded up to this column, compensated after it. A view
        of the running weight: clone it to keep it.
    """

    column: int
    codes: Tensor
    error: Tensor
    weight: Tensor


def gptq_steps(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: ActOrder = "off",
    fit: Fit = "minmax",
) -> Generator[GPTQStep, None, QuantizedWeight]:
    """Yield after each column: the rule as the paper writes it, for learners. Arguments as for `gptq`."""
    layer, on_grid, groups = _prepare(weight, hessian, grid, GPTQ(damping, act_order, fit))
    U = invert(layer.factor)
    W = layer.weight.double()  # [columns, rows]
    starts = {group.start: group for group in groups}
    for j in range(len(W)):
        if j in starts:
            on_grid.fit_group(starts[j], W[starts[j]].to(layer.weight.dtype))
        error = (W[j] - on_grid.round_column(j, W[j].to(layer.weight.dtype))) / U[j, j]
        W[j:] -= U[j, j:, None] * error
        yield GPTQStep(int(layer.order[j]), on_grid.codes[j], error, W.T)
    return on_grid.result()


def gptq_plain(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: ActOrder = "off",
    fit: Fit = "minmax",
) -> QuantizedWeight:
    """Run `gptq_steps` to its end: the codes of `gptq`, slowly."""
    steps = gptq_steps(weight, hessian, grid, damping=damping, act_order=act_order, fit=fit)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: QuantizedWeight = end.value
            return result


@dataclass(frozen=True)
class GPTQ:
    """Settings of GPTQ; see `gptq`.

    The functions have the paper's settings, which suit its 262,144 calibration tokens; of a speech decoder's
    few thousand they make too much. These defaults were chosen on calibration speech, fitted to some speakers
    and judged on others, with two models at 3 and 4 bits: docs/methods/gptq.md.
    """

    damping: float = 0.3
    act_order: ActOrder = "dynamic"
    fit: Fit = "mse"
    block: int = 128  # the paper's

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "Frantar et al. 2022, arXiv 2210.17323"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        check_types(self, ("damping",), ("block",))
        check_fit(self.fit)
        check_damping(self.damping, "GPTQ")
        if not isinstance(self.act_order, str) or self.act_order not in get_args(ActOrder):
            known = ", ".join(map(repr, get_args(ActOrder)))
            near = did_you_mean(str(self.act_order), get_args(ActOrder))
            raise QuantError(f"act_order={self.act_order!r} in GPTQ is unknown. Use one of {known}.{near}")
        if self.block < 1:
            raise QuantError(f"block={self.block} in GPTQ is not a number of columns >= 1. Use block=128.")

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian; `notes` also say when there were too few tokens.

        Raises
        ------
        QuantError
            The statistics hold no Hessian, and all that `gptq` refuses.
        """
        result = gptq(
            weight, known_hessian(stats, "GPTQ"), grid,
            damping=self.damping, act_order=self.act_order, fit=self.fit, block=self.block,
        )  # fmt: skip
        return with_token_note(result, stats.tokens)


def _prepare(
    weight: Tensor, hessian: Tensor, grid: Grid, settings: GPTQ
) -> tuple[Layer, OnGrid, list[slice]]:
    """Check the arguments, sort the columns, and say which runs of them are fitted together on the way."""
    H = check_layer(weight, hessian, grid)
    columns = len(H)
    order, index = torch.arange(columns, device=weight.device), grid.group_index(columns).to(weight.device)
    if settings.act_order in ("dynamic", "static"):
        order = H.diagonal().argsort(descending=True, stable=True)
    layer = Layer.of(weight, H, order, settings.damping)
    if settings.act_order in ("off", "dynamic"):
        return layer, OnGrid(layer, grid, settings.fit, index), grid.slices(columns)
    on_grid = OnGrid(layer, grid, settings.fit, index[order])
    on_grid.fit_all(layer.restore(layer.weight).T, grid)
    return layer, on_grid, [slice(0, columns)]
