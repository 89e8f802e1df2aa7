"""The columns of a weight one after the other, each as the errors of the columns before have moved it.

What GPTQ, QUIK and SpQR share. The method has the loop: it asks for a group of columns, fits a grid to it,
rounds its columns one by one, and sets each to what it became. All columns to come make up for the error.

    compensated = Compensated(weight, hessian, order, damping)
    for group in compensated.groups(grid.slices(len(order))):
        scale, zero = ...                                      # fitted to group.weight, [columns, rows]
        for j, w in group:                                     # w [rows]
            codes[j] = to_codes(w, scale, zero, grid)
            compensated.set(j, to_values(codes[j], scale, zero))

Formula: in the rule of `qlib/methods/hessian.py`, column j has been moved by every e_i U_ij, i < j, when its
    turn comes. Counted from the *original* weight, with d_i = w_i - w^_i, that is
          w_j + sum_{i<j} d_i R_ij / R_jj
    because d = e U gives e = d R, and w_j is now q + e_j U_jj = q + sum_{i<=j} d_i R_ij / R_jj. No inverse.
Blocks: the sum over all columns before a block is one matrix product for the whole block, and only the sum
    over the columns of the block itself is taken column by column.
Shapes: W is transposed, [columns, rows], and in the order of the visit, so that a column is contiguous.
Precision: sums over earlier blocks in float64, the rest as everywhere (float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Fit, Grid, RoundedScales, fit_scale
from qlib.methods.hessian import factorize
from qlib.methods.two_levels import of_all_groups
from qlib.quantized_weight import QuantizedWeight, SecondLevel


def visiting_order(H: Tensor, act_order: bool) -> Tensor:
    """Return the columns from left to right, or (`act_order`) the largest H_jj first, [columns]."""
    if act_order:
        return H.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(H), device=H.device)


def in_order(weight: Tensor, H: Tensor, order: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return a weight [rows, columns] as [columns, rows] in the order of the visit, and notes for the result.

    A column whose input was 0 for every token is set to 0: whatever the weight is, 0 does the same, and takes
    no room in the range of its group.
    """
    dead = H.diagonal() == 0
    W = weight.detach().T.to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True)
    W[dead] = 0
    note = f"{int(dead.sum())} of {len(W)} inputs were 0 for every token: their weights count as 0"
    return W[order].contiguous(), (note,) if dead.any() else ()


@dataclass(frozen=True)
class Group:
    """A run of columns; iterate over it once to visit them: pairs of j and column j, [rows], as it is now.

    Parameters
    ----------
    part : slice
        Its columns, in the order of the visit.
    weight : Tensor
        [columns, rows], as the errors of all columns before the group have moved them.
    visit : iterator
        What iterating over the group goes through.
    """

    part: slice
    weight: Tensor
    visit: Iterator[tuple[int, Tensor]]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return self.visit


class Compensated:
    """A weight whose columns to come make up for the errors of those that have been set.

    Parameters
    ----------
    weight : Tensor
        [rows, columns], checked.
    H : Tensor
        [columns, columns], checked, float64.
    order : Tensor
        The columns in the order of the visit, [columns].
    damping : float
        See `factorize`.

    Attributes
    ----------
    weight : Tensor
        The original weight, [columns, rows], in the order of the visit; see `in_order`.
    R : Tensor
        Upper triangular, R R^T = H with damping, [columns, columns]; 1 / U_jj is R_jj.
    error : Tensor
        W - W^, [columns, rows], float64; 0 for columns that have not been set.
    notes : tuple of str
        Which inputs were never used.
    """

    def __init__(self, weight: Tensor, H: Tensor, order: Tensor, damping: float) -> None:
        self.order, self.R = order, factorize(H, order, damping)
        self.weight, self.notes = in_order(weight, H, order)
        # Laid out in memory as the weight is: the last bit of a matrix product depends on that.
        self.error = torch.zeros_like(weight.detach().T, dtype=torch.float64)
        self._original = self.weight.unbind()
        self._errors: dict[int, Tensor] = {}  # of the block that is being visited: column -> [rows]
        self._visited: int | None = None  # the column that is to be set now
        self._done = 0  # columns of the groups that are finished

    def groups(self, slices: Sequence[slice], block: int = 128) -> Iterator[Group]:
        """Yield groups of columns; visit all columns of one, and set them, before asking for the next.

        Parameters
        ----------
        slices : sequence of slice
            The columns of each group, from column 0 on without a gap.
        block : int
            Columns from one matrix product to the next, at most a group: a matter of speed, not of codes.

        Raises
        ------
        QuantError
            The group before is not finished, a column of it was visited and not set, or there is a gap.
        """
        for part in slices:
            self._check_done(part.start)
            correction = self._correction(slice(0, part.start), part)
            yield Group(part, self._moved(part, correction), self._visit(part, correction, block))
            self._check_done(part.stop)

    def set(self, j: int, values: Tensor) -> None:
        """Set column j, which is being visited, to what it became, [rows].

        Raises
        ------
        QuantError
            Another column is being visited, or this one has been set.
        """
        if j != self._visited:
            raise QuantError(
                f"column {j} was set, but the one to set now is {self._visited}. Set each column once, in "
                "the loop over its group."
            )
        self._visited = None
        torch.sub(self._original[j], values, out=self._errors[j])

    def rest(self, start: int) -> Tensor:
        """Return all columns from `start` on, [columns, rows], as the errors of those before moved them.

        Raises
        ------
        QuantError
            Not all columns before `start` have been set.
        """
        self._check_done(start)
        part = slice(start, len(self.weight))
        return self._moved(part, self._correction(slice(0, start), part))

    def in_original_order(self, values: Tensor) -> Tensor:
        """Return values [columns, ...] in the order that the columns have in the weight."""
        return values[self.order.argsort()]

    def _correction(self, done: slice, part: slice) -> Tensor:
        """Return sum_i R_ij d_i over columns i that are done, for each j of a part, [columns, rows]."""
        correction: Tensor = self.R[done, part].T @ self.error[done]
        return correction

    def _moved(self, part: slice, correction: Tensor) -> Tensor:
        """Return columns as all those before the part moved them: they solve R_pp^T x = correction."""
        if not part.start:
            return self.weight[part]
        moved: Tensor = torch.linalg.solve_triangular(self.R[part, part].T, correction, upper=False)
        end = torch.finfo(self.weight.dtype).max
        return moved.add_(self.weight[part]).clamp_(-end, end).to(self.weight.dtype)

    def _visit(self, group: slice, correction: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
        """Yield j and column j for the columns of a group, block by block."""
        starts = range(group.start, group.stop, block)
        for start, of_block in zip(starts, torch.split(correction, block), strict=True):
            part = slice(start, start + len(of_block))
            of_block += self._correction(slice(group.start, start), part)
            W, R = self.weight[part], self.R[part, part]
            diagonal = R.diagonal()
            base = (W + of_block / diagonal[:, None]).to(W.dtype)  # moved by all columns before the block
            ratio = (R / diagonal).T.to(W.dtype).contiguous()  # row j: R_ij / R_jj
            errors = torch.zeros_like(W)  # 0 where not yet set, so each column may take the sum over all
            self._errors = dict(enumerate(errors.unbind(), start))
            before = errors.T
            for j, (base_j, ratio_j) in enumerate(zip(base.unbind(), ratio.unbind(), strict=True), start):
                self._visited = j
                yield j, torch.addmv(base_j, before, ratio_j)
                if self._visited is not None:
                    raise QuantError(f"column {j} was visited and not set. Set it to what it became.")
            self.error[part] = errors
        self._done = group.stop

    def _check_done(self, columns: int) -> None:
        """Refuse to go on unless so many columns, all of finished groups, have been set."""
        if self._done != columns:
            raise QuantError(
                f"{self._done} columns are set where {columns} should be. Visit all columns of a group, and "
                "set each, before going on; groups follow one another without a gap."
            )


# --- the ordinary grid, of GPTQ and QUIK


class Scale(NamedTuple):
    """Scale and zero point of one group, [rows] each, and the codes of the scales if these were rounded."""

    scale: Tensor
    zero: Tensor | None
    second: RoundedScales | None


def fit_groups(weight: Tensor, grid: Grid, fit: Fit) -> list[Scale]:
    """Return scale and zero point of each group of a weight [columns, rows]."""
    one_group, scales = replace(grid, group=None), []
    for part in grid.slices(len(weight)):
        fitted = fit_scale(weight[part].T, one_group, fit)
        zero = None if fitted.zero is None else fitted.zero[:, 0].to(weight.dtype)
        scales.append(Scale(fitted.scale[:, 0].contiguous(), zero, fitted.second))
    return scales


def _second_level(rounded: Sequence[RoundedScales]) -> SecondLevel | None:
    """Return the scales of all groups, from those of each."""
    if not rounded:
        return None
    levels = [SecondLevel.of(each).scale for each in rounded]
    return SecondLevel(rounded[0].grid, of_all_groups(levels, 0))


def assemble(
    codes: Tensor, scales: Sequence[Scale], index: Tensor, grid: Grid, order: Tensor, notes: tuple[str, ...]
) -> QuantizedWeight:
    """Return codes and scales in the original order of the columns.

    Parameters
    ----------
    codes : Tensor
        [columns, rows] in the order of the visit, whole numbers as floats.
    scales : sequence of Scale
        One for each group.
    index : Tensor
        Group of each column in the order of the visit, [columns], int64.
    grid : Grid
        Bits and symmetry.
    order : Tensor
        The columns in the order of the visit, [columns].
    notes : tuple of str
        Notes of the result.
    """
    place = order.argsort()
    zeros = [each.zero for each in scales if each.zero is not None]
    rounded = [each.second for each in scales if each.second is not None]
    return QuantizedWeight(
        codes.to(grid.code_dtype)[place].T.contiguous(),
        torch.stack([each.scale for each in scales], dim=1),
        torch.stack(zeros, dim=1).to(torch.uint8) if zeros else None,
        index[place] if len(scales) > 1 else None,
        notes,
        second=_second_level(rounded),
    )
