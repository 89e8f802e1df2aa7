"""GPTQ: round one column of the weight after the other, and let the columns still to come make up for it.

Paper: Frantar et al. 2022, arXiv 2210.17323, algorithm 1 and equations 2 to 4.
Problem: minimise |X W^T - X W^^T|^2 over W^ on the grid, that is tr (W - W^) H (W - W^)^T with H = X^T X.
Rule: with U upper triangular, U^T U = H^-1; for column j = 0, 1, ...                        (`gptq_steps`)
          q = Q(w_j)      e = (w_j - q) / U_jj      w_k -= e U_jk  for all k >= j
Why it works: once column j is fixed, the best the free columns can do is a least-squares problem, and its
    answer is row j of the inverse of H[j:, j:], the part of H that belongs to columns j and later. A new
    inverse for each column would cost n^4. But let H = R R^T with R upper triangular (Cholesky, begun at
    the last column). Then H[j:, j:] = R[j:, j:] R[j:, j:]^T for every j at once, so with U = R^-1 its inverse
    is U[j:, j:]^T U[j:, j:], and the row wanted is U_jj U[j, j:]. One triangular matrix holds them all.
Fast form: unrolled, the rule rounds column j at w_j + sum_{i<j} d_i R_ij / R_jj, where d = W - W^ is counted
    from the *original* weight: no inverse, and the sum over earlier blocks is a matrix product (`gptq`).
Shapes: W [outputs, inputs], H [inputs, inputs]; inside, W is transposed so that a column is contiguous.
Needs: the Hessian. Changes: this weight only, every column of it.
Precision: Cholesky and the sums over earlier blocks in float64, the rest as everywhere (float32).
Left out: nothing. Unlike the published code, a group's scale is always fitted to up-to-date columns; there it
    is fitted to stale ones where a group begins inside a block, and the result depends on the block size.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Fit, Grid, QuantizedWeight, check_fit, check_weight, fit_scale, nearest, value_of
from qlib.methods.contracts import LayerStats, Needs

ActOrder = Literal["off", "dynamic", "static"]


def hessian(inputs: Tensor) -> Tensor:
    """Return the sum of x x^T over all tokens, [features, features], float64.

    The Hessians of several batches are added: `total += hessian(batch)`. A constant factor changes nothing.

    Parameters
    ----------
    inputs : Tensor
        [..., features], any floating dtype.
    """
    tokens = inputs.reshape(-1, inputs.shape[-1]).double()
    return tokens.T @ tokens


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
    columns = len(_checked(hessian, hessian.shape[-1]))
    factor, _ = _factor(hessian.double(), torch.arange(columns, device=hessian.device), damping)
    return _invert(factor)


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
    act_order : {"off", "dynamic", "static"}
        Visit the columns from left to right, or those with the largest H_jj first. Then "dynamic" groups the
        columns as they are visited (the result carries their index), "static" groups neighbours, with
        scales fitted to the original weight.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.
    block : int
        Columns from one matrix product to the next, at most a group: a matter of speed, not of codes.

    Returns
    -------
    QuantizedWeight
        Codes in the original order of the columns; `notes` say which inputs were never used and where
        damping outweighs the data.

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
    job = _prepare(weight, hessian, grid, GPTQ(damping, act_order, fit, block))
    R, W = job.factor, job.weight
    D = torch.zeros_like(W, dtype=torch.float64)  # W - W^, [columns, rows], filled from the top
    codes = torch.empty_like(W)
    for group in job.groups:
        owed = R[: group.start, group].T @ D[: group.start]  # what all earlier errors ask of this group
        if not job.static:
            moved = torch.linalg.solve_triangular(R[group, group].T, owed, upper=False) if group.start else 0
            job.fit_group(W[group] + moved)
        for start, asked in zip(range(group.start, group.stop, block), torch.split(owed, block), strict=True):
            part = slice(start, start + len(asked))
            asked += R[group.start : start, part].T @ D[group.start : start]
            _round_block(job, part, asked, D[part], codes[part])
    return job.finish(codes)


def _round_block(job: _Job, part: slice, asked: Tensor, D: Tensor, codes: Tensor) -> None:
    """Fill one block of D and codes, given what the columns before the block ask of it, [columns, rows]."""
    W, R, pivots = job.weight[part], job.factor[part, part], job.factor.diagonal()[part]
    bases = (W + asked / pivots[:, None]).to(W.dtype)
    shares = (R / pivots).T.to(W.dtype).contiguous()
    done = torch.zeros_like(W)  # rows not yet reached are 0, so each column may take the sum over all of them
    before, scales = done.T, [job.scales[group] for group in job.group_of[part]]
    rows = (tensor.unbind() for tensor in (W, bases, shares, done, codes))
    for original, base, share, difference, code, (scale, zero) in zip(*rows, scales, strict=True):
        column = torch.addmv(base, before, share)
        nearest(column, scale, zero, job.grid, out=code)
        torch.sub(original, value_of(code, scale, zero), out=difference)
    D.copy_(done)


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
    job = _prepare(weight, hessian, grid, GPTQ(damping, act_order, fit))
    U = _invert(job.factor)
    W = job.weight.double()  # [columns, rows]
    codes = torch.empty_like(job.weight)
    groups = {group.start: group for group in job.groups}
    for j in range(len(W)):
        if j in groups and not job.static:
            job.fit_group(W[groups[j]])
        scale, zero = job.scales[job.group_of[j]]
        codes[j] = nearest(W[j].to(codes.dtype), scale, zero, grid)
        error = (W[j] - value_of(codes[j], scale, zero)) / U[j, j]
        W[j:] -= U[j, j:, None] * error
        yield GPTQStep(int(job.order[j]), codes[j], error, W.T)
    return job.finish(codes)


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
    """Settings of GPTQ; see `gptq`."""

    damping: float = 0.01  # the paper's
    act_order: ActOrder = "off"  # "static" is often better below 4 bits
    fit: Fit = "minmax"
    block: int = 128  # the paper's

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "Frantar et al. 2022, arXiv 2210.17323"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        check_fit(self.fit)
        if not 0 <= self.damping < float("inf"):
            raise QuantError(f"damping={self.damping} in GPTQ is not a number >= 0. Use damping=0.01.")
        if self.act_order not in ("off", "dynamic", "static"):
            raise QuantError(
                f"act_order={self.act_order!r} in GPTQ is unknown. Use 'off', 'dynamic' or 'static'."
            )
        if self.block < 1:
            raise QuantError(f"block={self.block} in GPTQ is not a number of columns >= 1. Use block=128.")

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian; `notes` also say when there were fewer tokens than inputs.

        Raises
        ------
        QuantError
            The statistics hold no Hessian, and all that `gptq` refuses.
        """
        if stats.hessian is None:
            raise QuantError("GPTQ got statistics without a Hessian. Calibrate with needs=Needs.HESSIAN.")
        result = gptq(
            weight, stats.hessian, grid,
            damping=self.damping, act_order=self.act_order, fit=self.fit, block=self.block,
        )  # fmt: skip
        if stats.tokens >= weight.shape[1]:
            return result
        note = (
            f"{stats.tokens} tokens for {weight.shape[1]} inputs: "
            f"the Hessian has rank {stats.tokens} at most, and damping decides the rest"
        )
        return replace(result, notes=(note, *result.notes))


# --- what both forms share


@dataclass
class _Job:
    """A layer in the order in which its columns are visited."""

    weight: Tensor  # [columns, rows]; inputs that were never used have weight 0
    factor: Tensor  # R, [columns, columns]
    order: Tensor  # original place of each column
    grid: Grid
    fit: Fit
    static: bool  # the scales of all groups are known before the first column
    group_of: list[int]  # group of each column
    notes: tuple[str, ...]
    # Scale and zero [rows] of each group that is fitted so far.
    scales: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    @property
    def groups(self) -> list[slice]:
        """Runs of columns that are fitted together; all at once where nothing has to be fitted on the way."""
        columns = len(self.weight)
        return [slice(0, columns)] if self.static else self.grid.slices(columns)

    def fit_group(self, columns: Tensor) -> None:
        """Fit the next group's scale to its columns as they are now, [columns, rows]."""
        self.add_scales(columns.to(self.weight.dtype).T, replace(self.grid, group=None))

    def add_scales(self, weight: Tensor, grid: Grid) -> None:
        """Fit all groups of a weight [rows, columns] and keep their scales."""
        scale = fit_scale(weight, grid, self.fit)
        for group in range(scale.scale.shape[1]):
            zero = None if scale.zero is None else scale.zero[:, group].to(weight.dtype)
            self.scales.append((scale.scale[:, group].contiguous(), zero))

    def finish(self, codes: Tensor) -> QuantizedWeight:
        """Put the codes [columns, rows] back in the original order of the columns."""
        groups = torch.tensor(self.group_of, device=codes.device)
        scale = torch.stack([scale for scale, _ in self.scales], dim=1)
        zeros = [zero for _, zero in self.scales if zero is not None]
        back = self.order.argsort()
        return QuantizedWeight(
            codes.to(self.grid.code_dtype)[back].T.contiguous(),
            scale,
            torch.stack(zeros, dim=1).to(torch.uint8) if zeros else None,
            groups[back] if len(self.scales) > 1 else None,
            self.notes,
        )


def _prepare(weight: Tensor, hessian: Tensor, grid: Grid, settings: GPTQ) -> _Job:
    """Check the arguments, factor the Hessian, sort the columns, fit what can be fitted now."""
    check_weight(weight)
    columns = weight.shape[1]
    grid.check(columns, "the weight")
    H = _checked(hessian, columns).detach().to(weight.device, torch.float64)
    energy = H.diagonal()
    order = torch.arange(columns, device=weight.device)
    if settings.act_order != "off":
        order = energy.argsort(descending=True, stable=True)
    factor, notes = _factor(H, order, settings.damping)
    W = weight.detach().T.to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True)
    # Nothing ever came in here: whatever the weight is, 0 does the same, and takes no room in the range.
    W[energy == 0] = 0
    static = settings.act_order == "static"
    group_of = grid.group_index(columns)[order.cpu()] if static else grid.group_index(columns)
    job = _Job(W[order].contiguous(), factor, order, grid, settings.fit, static, group_of.tolist(), notes)
    if static:
        job.add_scales(W.T, grid)
    return job


def _checked(hessian: Tensor, columns: int) -> Tensor:
    """Refuse a Hessian of another shape, or with NaN or infinity."""
    if hessian.shape != (columns, columns):
        raise QuantError(
            f"a Hessian of shape {tuple(hessian.shape)} for {columns} inputs. Pass the sum of x x^T "
            "over the inputs of this very layer, as hessian(inputs) returns it."
        )
    if not hessian.sum().isfinite():  # one bad number spoils the sum
        bad = int((~hessian.isfinite()).sum())
        raise QuantError(
            f"{bad} of {hessian.numel()} entries of the Hessian are NaN or infinite. "
            "Look for a bad calibration sample, or for a model that overflows in its dtype."
        )
    return hessian


def _factor(H: Tensor, order: Tensor, damping: float) -> tuple[Tensor, tuple[str, ...]]:
    """Return the upper triangular R with R R^T = damped H, rows and columns in `order`, and notes.

    Cholesky begins at the first column and gives a lower triangle; begun at the last, an upper one.
    """
    columns = len(H)
    energy = H.diagonal()[order]
    dead = energy == 0
    added = damping * float(energy.sum() / (~dead).sum().clamp(min=1))
    natural = bool((order[1:] > order[:-1]).all())
    last_first = order.flip(0)
    # Column-major (.T; the matrix is symmetric) is how LAPACK wants it: it then works in place.
    lower = (H.flip(0, 1) if natural else H[last_first][:, last_first]).T
    diagonal = lower.diagonal().add_(added).add_(dead.flip(0)).clone()
    info = torch.empty((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    factor = lower.flip(0, 1)
    pivots = factor.diagonal().square()
    # Rounding errors can make a singular matrix pass as a barely regular one, with nonsense for an answer.
    weak = pivots <= columns * torch.finfo(H.dtype).eps * diagonal.flip(0)
    if int(info) or weak.any():
        place = columns - int(info) if int(info) else int(weak.nonzero()[-1])
        raise QuantError(
            f"the Hessian is not positive definite at column {int(order[place])} of {columns} with "
            f"damping={damping} (that adds {added:.3g} to its diagonal). This input repeats others: use "
            "damping=0.01 or more, or more calibration data."
        )
    return factor, _notes(dead, int((~dead & (pivots < 2 * added)).sum()), added, damping)


def _notes(dead: Tensor, led: int, added: float, damping: float) -> tuple[str, ...]:
    """Say in words what was done to inputs without data, and what damping did to the others."""
    notes, columns = [], len(dead)
    if dead.any():
        notes.append(f"{int(dead.sum())} of {columns} inputs were 0 for every token: their weights became 0")
    if led:
        notes.append(
            f"damping added {added:.3g} to the Hessian's diagonal ({damping:.3g} of its mean), "
            f"which outweighs the data in {led} of {columns} columns"
        )
    return tuple(notes)


def _invert(factor: Tensor) -> Tensor:
    """Return U = R^-1."""
    inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=True)
    return inverse
