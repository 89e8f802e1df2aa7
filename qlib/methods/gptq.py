"""GPTQ: round one column of the weight after the other, and let the columns still to come make up for it.

Paper: Frantar et al. 2022, arXiv 2210.17323, algorithm 1 and equations 2 to 4.
Problem: minimise |X W^T - X W^^T|^2 over W^ on the grid, that is tr (W - W^) H (W - W^)^T with H = X^T X.
Rule: with U upper triangular, U^T U = H^-1; for column j = 0, 1, ...                        (`gptq_steps`)
          q = Q(w_j)      e = (w_j - q) / U_jj      w_k -= e U_jk  for all k >= j
Why it works: an error in one column is seen in the outputs only as far as the other columns cannot undo it;
    row j of U says how they best try. `qlib/methods/hessian.py` derives that, and `compensate.py` the fast
    form of the rule (`gptq`), which needs no inverse and works in blocks.
Shapes: W [outputs, inputs], H [inputs, inputs]; inside, W is transposed so that a column is contiguous.
Needs: the Hessian. Changes: this weight only, every column of it.
Left out: nothing. Without `static_groups` a group's scale is fitted to up-to-date columns; in the published
    code it is fitted to stale ones where a group begins inside a block, and the result depends on the size of
    a block.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError, settle, true_or_false
from qlib.grid import Fit, Grid, check_fit, to_codes, to_values
from qlib.methods.checks import (
    check_act_order,
    check_damping,
    check_layer,
    check_layer_stats,
    check_whole,
    with_token_note,
)
from qlib.methods.compensate import Compensated, Scale, assemble, fit_groups, in_order, visiting_order
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.hessian import factorize, hessian, inverse_factor, invert
from qlib.quantized_weight import QuantizedWeight

__all__ = ["GPTQ", "GPTQStep", "gptq", "gptq_plain", "gptq_steps", "hessian", "inverse_factor"]


# --- as the paper writes it


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
        (w - q) / U_jj, [outputs]: times row j of U, it is what all later columns are moved by.
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
    hessian: Tensor | LayerStats,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    fit: Fit = "minmax",
) -> Generator[GPTQStep, None, QuantizedWeight]:
    """Yield after each column: the rule as the paper writes it, for learners. Arguments as for `gptq`."""
    damping, act_order, static_groups, _ = _checked(damping, act_order, static_groups, fit)
    H = check_layer(weight, hessian, grid)
    order = visiting_order(H, act_order)
    U = invert(factorize(H, order, damping))  # U^T U = H^-1, in the order of the visit
    original, notes = in_order(weight, H, order)  # [columns, rows]
    index, slices, scales = _groups(original, order, grid, static_groups, fit)
    begins = {} if static_groups else {part.start: part for part in slices}
    W, codes, one_group = original.double(), torch.zeros_like(original), replace(grid, group=None)
    for j in range(len(W)):
        # 1. Where a group begins: fit its scale and zero point to its columns as they are now.
        if j in begins:
            scales += fit_groups(W[begins[j]].to(original.dtype), one_group, fit)
        scale, zero, _ = scales[index[j]]
        # 2. Round the column: q = Q(w_j).
        codes[j] = to_codes(W[j].to(original.dtype), scale, zero, grid)
        q = to_values(codes[j], scale, zero)
        # 3. What is left to make up for: e = (w_j - q) / U_jj.
        error = (W[j] - q) / U[j, j]
        # 4. The later columns make up for it: w_k -= e U_jk for all k >= j. For k = j this leaves w_j = q.
        W[j:] -= U[j, j:, None] * error
        yield GPTQStep(int(order[j]), codes[j], error, W.T)
    return assemble(codes, scales, index, grid, order, notes)


def gptq_plain(
    weight: Tensor,
    hessian: Tensor | LayerStats,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    fit: Fit = "minmax",
) -> QuantizedWeight:
    """Run `gptq_steps` to its end: the codes of `gptq`, slowly."""
    steps = gptq_steps(
        weight, hessian, grid, damping=damping, act_order=act_order, static_groups=static_groups, fit=fit
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: QuantizedWeight = end.value
            return result


# --- the same codes, fast


def gptq(
    weight: Tensor,
    hessian: Tensor | LayerStats,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    fit: Fit = "minmax",
    block: int = 128,
) -> QuantizedWeight:
    """Round a weight so that its outputs, not its entries, change least.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    hessian : Tensor or LayerStats
        [inputs, inputs], as the function `hessian` returns it for the inputs of this layer; or statistics.
    grid : Grid
        Bits, group and symmetry.
    damping : float
        The share of the mean of diag(H) that is added to it; makes up for too few tokens.
    act_order : bool
        Visit the columns with the largest H_jj first, instead of from left to right.
    static_groups : bool
        False: a group is made of columns visited one after the other, and fitted to them as they are when the
        first is reached; with `act_order` the result then carries the group of each column. True: groups are
        neighbours in the weight, and fitted to the original weight before anything is rounded.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.
    block : int
        Columns rounded before one matrix product corrects all later ones, never more than a group: a matter
        of speed, not of codes.

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
    Two inputs that are always equal: what the first weight loses, the second gains.

    >>> weight = torch.tensor([[0.4, 0.4, 3.0]])
    >>> inputs = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> gptq(weight, hessian(inputs), Grid(bits=2)).decode().tolist()
    [[0.0, 1.0, 3.0]]
    """
    damping, act_order, static_groups, block = _checked(damping, act_order, static_groups, fit, block)
    H = check_layer(weight, hessian, grid)
    order = visiting_order(H, act_order)
    compensated = Compensated(weight, H, order, damping)
    index, slices, scales = _groups(compensated.weight, order, grid, static_groups, fit)
    codes, one_group = torch.zeros_like(compensated.weight), replace(grid, group=None)  # [columns, rows]
    group_of, codes_of = index.tolist(), codes.unbind()  # of each column
    for group in compensated.groups(slices, block):
        # 1. Fit scale and zero point of the group to its columns as the errors so far have moved them.
        if not static_groups:
            scales.extend(fit_groups(group.weight, one_group, fit))
        for j, w in group:  # w: column j as the errors so far have moved it
            # 2. Round one column.
            scale, zero, _ = scales[group_of[j]]
            to_codes(w, scale, zero, grid, out=codes_of[j])
            # 3. and 4. All columns to come make up for its error.
            compensated.set(j, to_values(codes_of[j], scale, zero))
    return assemble(codes, scales, index, grid, order, compensated.notes)


def _groups(
    original: Tensor, order: Tensor, grid: Grid, static_groups: bool, fit: Fit
) -> tuple[Tensor, list[slice], list[Scale]]:
    """Return the group of each column, the runs of columns to visit together, and the scales known already.

    The columns of `original`, [columns, rows], are in the order of the visit, and so is the group of each.
    """
    columns = len(original)
    index = grid.group_index(columns).to(original.device)
    if not static_groups:
        return index, grid.slices(columns), []
    return index[order], [slice(0, columns)], fit_groups(original[order.argsort()], grid, fit)


@dataclass(frozen=True)
class GPTQ:
    """Settings of GPTQ; see `gptq`.

    The functions have the paper's settings, which suit its 262,144 calibration tokens; of a speech decoder's
    few thousand they make too much. These defaults were chosen on calibration speech, fitted to some speakers
    and judged on others, with two models at 3 and 4 bits: docs/methods/gptq.md.
    """

    damping: float = 0.3
    act_order: bool = True
    static_groups: bool = False
    fit: Fit = "mse"
    block: int = 128  # the paper's

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "Frantar et al. 2022, arXiv 2210.17323"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        damping, act_order, static_groups, block = _checked(
            self.damping, self.act_order, self.static_groups, self.fit, self.block, default_damping=0.3
        )
        settle(self, damping=damping, act_order=act_order, static_groups=static_groups, block=block)

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian; `notes` also say when there were too few tokens.

        Raises
        ------
        QuantError
            The statistics hold no Hessian, and all that `gptq` refuses.
        """
        (H,) = check_layer_stats(stats, weight, self.needs, "GPTQ")
        result = gptq(
            weight, H, grid, damping=self.damping, act_order=self.act_order,
            static_groups=self.static_groups, fit=self.fit, block=self.block,
        )  # fmt: skip
        return with_token_note(result, stats.tokens)


def _checked(
    damping: float,
    act_order: bool,
    static_groups: bool,
    fit: Fit,
    block: int = 128,
    default_damping: float = 0.01,
) -> tuple[float, bool, bool, int]:
    """Return damping, act_order, static_groups and block as plain numbers, or refuse a setting."""
    damping = check_damping(damping, "GPTQ", default_damping)
    act_order = check_act_order(act_order, "GPTQ")
    remedy = "Use static_groups=True or False."
    static_groups = true_or_false(static_groups, "static_groups in GPTQ", QuantError, remedy)
    check_fit(fit)
    block = check_whole(block, "block", "GPTQ", 128)
    if block < 1:
        raise QuantError(f"block={block} in GPTQ is not a number of columns >= 1. Use block=128.")
    return damping, act_order, static_groups, block
