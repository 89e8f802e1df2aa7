"""What GPTQ, QUIK and SpQR share: the Hessian, its factor, and the walk over the columns of a weight.

Not a method. The three differ in the order of the columns, in the grid, and in what is not rounded; they
share the problem, and the way in which columns not yet rounded make up for those that are.

Problem: minimise |X W^T - X W^^T|^2 over W^ on the grid, that is tr (W - W^) H (W - W^)^T with H = X^T X.
Rule: with U upper triangular, U^T U = H^-1; for column j = 0, 1, ...
          q = Q(w_j)      e = (w_j - q) / U_jj      w_k -= e U_jk  for all k >= j
Why it works: once column j is fixed, the best the free columns can do is a least-squares problem, and its
    answer is row j of the inverse of H[j:, j:], the part of H that belongs to columns j and later. A new
    inverse for each column would cost n^4. But let H = R R^T with R upper triangular (Cholesky, begun at
    the last column). Then H[j:, j:] = R[j:, j:] R[j:, j:]^T for every j at once, so with U = R^-1 its inverse
    is U[j:, j:]^T U[j:, j:], and the row wanted is U_jj U[j, j:]. One triangular matrix holds them all.
Fast form: unrolled, the rule rounds column j at w_j + sum_{i<j} d_i R_ij / R_jj, where d = W - W^ is counted
    from the *original* weight: no inverse, and the sum over earlier blocks is a matrix product (`walk`).
Shapes: W [outputs, inputs], H [inputs, inputs]; inside, W is transposed so that a column is contiguous.
Precision: Cholesky and the sums over earlier blocks in float64, the rest as everywhere (float32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlib.errors import QuantError, real_number
from qlib.grid import Fit, Grid, check_tensor, check_weight_on, fit_scale, to_codes, to_values
from qlib.methods.checks import check_hessian, check_stats
from qlib.methods.contracts import LayerStats
from qlib.quantized_weight import QuantizedWeight

ENOUGH = 4  # tokens for each input, from which on a Hessian is not worth a note


# --- the Hessian


def hessian(inputs: Tensor) -> Tensor:
    """Return the sum of x x^T over all tokens, [features, features], float64.

    The Hessians of several batches are added: `total += hessian(batch)`. A constant factor changes nothing.

    Parameters
    ----------
    inputs : Tensor
        [..., features], any floating dtype.
    """
    check_tensor(inputs, "the input", "Pass the inputs of a layer, [..., features].")
    tokens = inputs.reshape(-1, inputs.shape[-1]).double()
    return tokens.T @ tokens


def check_layer(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Return the Hessian of a weight [outputs, inputs] as float64, beside the weight and without gradients.

    Raises
    ------
    QuantError
        The weight is not a matrix of finite numbers, a group is larger than it, or the Hessian is not
        [inputs, inputs] or holds NaN or infinity.
    """
    check_weight_on(weight, grid)
    check_hessian(hessian, weight.shape[1])
    return hessian.detach().to(weight.device, torch.float64)


def factorize(H: Tensor, order: Tensor, damping: float) -> Tensor:
    """Return the upper triangular R with R R^T = H + damping * mean(diag H) * I, columns taken in `order`.

    Parameters
    ----------
    H, damping : Tensor, float
        As in `inverse_factor`; H is checked and float64.
    order : Tensor
        A permutation of the columns, [inputs], int64.

    Raises
    ------
    QuantError
        Not positive definite: names the column.
    """
    # Cholesky begins at the first column and gives a lower triangle; begun at the last, an upper one.
    columns, last_first = len(H), order.flip(0)
    dead = H.diagonal() == 0
    added = damping * float(H.diagonal().sum() / (~dead).sum().clamp(min=1))
    natural = bool((order[1:] > order[:-1]).all())
    # Column-major (.T; the matrix is symmetric) is how LAPACK wants it: it then works in place.
    lower = (H.flip(0, 1) if natural else H[last_first][:, last_first]).T
    diagonal = lower.diagonal().add_(added).add_(dead[last_first]).clone()
    info = torch.empty((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    # Rounding errors can make a singular matrix pass as a barely regular one, with nonsense for an answer.
    weak = lower.diagonal().square() <= columns * torch.finfo(H.dtype).eps * diagonal
    if int(info) or weak.any():
        step = int(info) - 1 if int(info) else int(weak.nonzero()[0])
        raise QuantError(
            f"the Hessian is not positive definite at column {int(last_first[step])} of {columns} with "
            f"damping={damping} (that adds {added:.3g} to its diagonal). {_why_not(H)}"
        )
    return lower.flip(0, 1)


def _why_not(H: Tensor) -> str:
    """Say why a Hessian is not positive definite, and what to do."""
    if bool((H.diagonal() < 0).any()):
        return "Its diagonal is partly below 0, so it is no sum of x x^T: pass hessian(inputs)."
    return "This input repeats others: use damping=0.01 or more, or more calibration data."


def invert(R: Tensor) -> Tensor:
    """Return U = R^-1 of an upper triangular R."""
    inverse: Tensor = torch.linalg.solve_triangular(R, torch.eye(len(R)).to(R), upper=True)
    return inverse


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Return the upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1, float64.

    Parameters
    ----------
    hessian : Tensor
        [inputs, inputs], symmetric. An input that was always 0 (H_jj = 0) gets 1 there as well.
    damping : float
        The share of the mean of diag(H), over the inputs that were not always 0, that is added to it.

    Raises
    ------
    QuantError
        Not a square matrix of finite numbers, or not positive definite: names the column.
    """
    check_tensor(hessian, "the Hessian", "Pass hessian(inputs) of this layer's inputs.")
    check_damping(damping, "inverse_factor")
    check_tensor(hessian, "the Hessian", "Pass hessian(inputs) of this layer's inputs.")
    check_hessian(hessian, hessian.shape[-1] if hessian.ndim else 0)
    H = hessian.detach().double()
    return invert(factorize(H, torch.arange(len(H), device=H.device), damping))


# --- the walk over the columns


@dataclass
class Layer:
    """A weight in the order in which its columns are visited.

    Parameters
    ----------
    weight : Tensor
        The original W, [columns, rows]; inputs that were never used have weight 0.
    factor : Tensor
        R, [columns, columns], see `factorize`.
    order : Tensor
        Original place of each column, [columns].
    change : Tensor
        D = W - W^, [columns, rows], float64; 0 for columns not yet visited.
    notes : tuple of str
        Which inputs were never used.
    """

    weight: Tensor
    factor: Tensor
    order: Tensor
    change: Tensor
    notes: tuple[str, ...]

    @classmethod
    def of(cls, weight: Tensor, H: Tensor, order: Tensor, damping: float) -> Layer:
        """Sort the columns of a weight [rows, columns] and factor its checked Hessian."""
        R, dead = factorize(H, order, damping), H.diagonal() == 0
        W = weight.detach().T.to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True)
        # Nothing ever came in here: whatever the weight is, 0 does the same, and takes no room in the range.
        W[dead] = 0
        note = f"{int(dead.sum())} of {len(W)} inputs were 0 for every token: their weights count as 0"
        change = torch.zeros_like(W, dtype=torch.float64)
        return cls(W[order].contiguous(), R, order, change, (note,) if dead.any() else ())

    def owed(self, part: slice) -> Tensor:
        """Return what the errors of all columns before a part ask of it, [columns of the part, rows]."""
        owed: Tensor = self.factor[: part.start, part].T @ self.change[: part.start]
        return owed

    def compensated(self, part: slice, owed: Tensor) -> Tensor:
        """Return columns as those before them have moved them, [columns of the part, rows]."""
        if not part.start:
            return self.weight[part]
        moved: Tensor = torch.linalg.solve_triangular(self.factor[part, part].T, owed, upper=False)
        end = torch.finfo(self.weight.dtype).max
        return moved.add_(self.weight[part]).clamp_(-end, end).to(self.weight.dtype)

    def restore(self, values: Tensor) -> Tensor:
        """Return values [columns, ...] in the original order of the columns."""
        return values[self.order.argsort()]


Fitter = Callable[[slice, Tensor], None]
Rounder = Callable[[int, Tensor], Tensor]


def walk(
    layer: Layer, groups: Sequence[slice], fit_group: Fitter, round_column: Rounder, block: int = 128
) -> None:
    """Round one column after the other and fill `layer.change`.

    Parameters
    ----------
    layer : Layer
        Nothing of it has been rounded yet.
    groups : sequence of slice
        Runs of columns whose scales are fitted together, from column 0 on without a gap.
    fit_group : callable
        Called with a group and its columns as they are when the first one is reached, [columns, rows].
    round_column : callable
        Called with the number of a column and the column, [rows]; returns the rounded values.
    block : int
        Columns from one matrix product to the next, at most a group: a matter of speed, not of codes.
    """
    for group in groups:
        owed = layer.owed(group)
        fit_group(group, layer.compensated(group, owed))
        for start, asked in zip(range(group.start, group.stop, block), torch.split(owed, block), strict=True):
            part = slice(start, start + len(asked))
            asked += layer.factor[group.start : start, part].T @ layer.change[group.start : start]
            _round_block(layer, part, asked, round_column)


def _round_block(layer: Layer, part: slice, asked: Tensor, round_column: Rounder) -> None:
    """Round the columns of one block, given what those before the block ask of it, [columns, rows]."""
    W, R = layer.weight[part], layer.factor[part, part]
    pivots = R.diagonal()
    bases = (W + asked / pivots[:, None]).to(W.dtype)
    shares = (R / pivots).T.to(W.dtype).contiguous()
    change = torch.zeros_like(W)  # rows not yet reached are 0, so each column may take the sum over all
    before = change.T
    rows = zip(W.unbind(), bases.unbind(), shares.unbind(), change.unbind(), strict=True)
    for column, (original, base, share, difference) in enumerate(rows, part.start):
        rounded = round_column(column, torch.addmv(base, before, share))
        torch.sub(original, rounded, out=difference)
    layer.change[part] = change


class OnGrid:
    """Fits groups and rounds columns for `walk`: the ordinary grid of GPTQ and QUIK.

    Parameters
    ----------
    layer : Layer
        The weight.
    grid : Grid
        Bits, group and symmetry.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.
    index : Tensor
        Group of each column in the order of the visit, [columns], int64.
    """

    def __init__(self, layer: Layer, grid: Grid, fit: Fit, index: Tensor) -> None:
        self.layer, self.grid, self.fit, self.index = layer, grid, fit, index
        self.codes = torch.zeros_like(layer.weight)  # [columns, rows], whole numbers as floats
        self._codes, self._groups = self.codes.unbind(), index.tolist()
        self._scales: list[tuple[Tensor, Tensor | None]] = []  # scale and zero [rows] of each group

    def fit_group(self, group: slice, weight: Tensor) -> None:
        """Fit the next group to its columns as they are now, [columns, rows], unless `fit_all` has."""
        if len(self._scales) <= self._groups[group.start]:
            self.fit_all(weight.T, replace(self.grid, group=None))

    def fit_all(self, weight: Tensor, grid: Grid) -> None:
        """Fit all groups of a weight [rows, columns] on a grid."""
        fitted = fit_scale(weight, grid, self.fit)
        for group in range(fitted.scale.shape[1]):
            zero = None if fitted.zero is None else fitted.zero[:, group].to(weight.dtype)
            self._scales.append((fitted.scale[:, group].contiguous(), zero))

    def round_column(self, column: int, weight: Tensor) -> Tensor:
        """Return the rounded values of a column [rows] and keep its codes."""
        scale, zero = self._scales[self._groups[column]]
        codes = to_codes(weight, scale, zero, self.grid, out=self._codes[column])
        return to_values(codes, scale, zero)

    def result(self) -> QuantizedWeight:
        """Return codes and scales in the original order of the columns."""
        scales, zeros = zip(*self._scales, strict=True)
        return QuantizedWeight(
            self.layer.restore(self.codes.to(self.grid.code_dtype)).T.contiguous(),
            torch.stack(scales, dim=1),
            None if self.grid.symmetric else torch.stack(zeros, dim=1).to(torch.uint8),
            self.layer.restore(self.index) if len(scales) > 1 else None,
            self.layer.notes,
        )


# --- what the methods check and note alike


def check_damping(damping: float, method: str) -> None:
    """Refuse damping that is not a number >= 0."""
    real_number(damping, f"damping in {method}", QuantError, "Use damping=0.01.")
    if not 0 <= damping < float("inf"):
        raise QuantError(f"damping={damping} in {method} is not a number >= 0. Use damping=0.01.")


def known_hessian(stats: LayerStats, method: str) -> Tensor:
    """Return the Hessian of a layer, or say that it is missing."""
    check_stats(stats, method)
    if stats.hessian is None:
        raise QuantError(f"{method} got statistics without a Hessian. Calibrate with needs=Needs.HESSIAN.")
    return stats.hessian


def with_token_note(result: QuantizedWeight, tokens: int) -> QuantizedWeight:
    """Return a result that says so if there were too few tokens to trust its Hessian."""
    inputs = result.codes.shape[1]
    if tokens < inputs:
        means = f"the Hessian has rank {tokens} at most, and damping decides the rest"
    elif tokens < ENOUGH * inputs:
        means = f"so few leave much to chance. Calibrate on {ENOUGH * inputs} or more, or raise damping"
    else:
        return result
    return replace(result, notes=(f"{tokens} tokens for {inputs} inputs: {means}", *result.notes))
