"""SpQR: tiny groups whose scales are rounded too, and the few weights that no grid suits kept in float.

Paper: Dettmers et al. 2023, arXiv 2306.03078, algorithm 1.
Problem: that of GPTQ. A group of 16 weights is rounded much better than one of 128, but its scale and zero
    in 32 bits each would cost 4 bits a weight; and one odd weight still spoils the grid of its 15 neighbours.
Rule: GPTQ, and when a group of columns is reached, for each row
      1. leave-one-out test: how much does the group's error sum ((w - w^) / U_jj)^2 fall if a weight is left
         out and the range is fitted to the others? By more than tau: it will be an outlier. For the
         fit, outliers are replaced by the mean of the others.
      2. scale = (hi - lo) / (2^b - 1), zero = -lo / scale, not rounded to a whole number; then the scales of
         16 neighbouring rows are themselves rounded to 3 bits, and so are their zeros.
      3. column by column as in GPTQ; a weight with ((w - w^) / U_jj)^2 > tau stays in float16.
    tau = threshold * mean_j (var_i(W_ij) / U_jj^2), so `threshold` means the same for each layer.
Why it works: ((w - w^) / U_jj)^2 is what an error costs at the outputs once all later columns have
    compensated. A per cent of the weights makes most of that cost.
Shapes: W [outputs, inputs], H [inputs, inputs], scale and zero [outputs, groups].
Needs: the Hessian. Changes: this weight only.
Left out: the published code lets a group of one sign keep 0 out of its range. Its zero then lies far from the
    codes and spoils the 3 bits of the 15 zeros beside it; here every range reaches 0. The numbers of the
    second level are kept in float32: 16 by 16 weights share four, 0.5 bits a weight instead of 0.25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import QuantError
from qlib.grid import Grid, encode, fit_float_zero, to_codes_float_zero, to_values
from qlib.methods.checks import check_types
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.second_order import Layer, check_damping, check_layer, known_hessian, walk, with_token_note
from qlib.quantized_weight import QuantizedWeight, SecondLevel


def spqr(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    threshold: float = 0.2,
    second_bits: int = 3,
    second_group: int = 16,
    damping: float = 1.0,
    act_order: Literal["off", "dynamic"] = "dynamic",
) -> QuantizedWeight:
    """Round a weight in small groups, and keep the weights that would cost most.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    hessian : Tensor
        [inputs, inputs], the sum of x x^T over the inputs of this layer.
    grid : Grid
        Bits and group, asymmetric. The paper's group is 16: `Grid(bits=4, group=16)`.
    threshold : float
        Cost from which on a weight stays in float, in shares of what it costs on average to replace a
        weight by the mean of its column. More: fewer outliers; infinity: none.
    second_bits : int
        Bits of a scale, and of a zero, 2 to 8.
    second_group : int
        Neighbouring rows whose scales are rounded together; 1 leaves the scales as they are.
    damping : float
        The share of the mean of diag(H) that is added to it.
    act_order : {"off", "dynamic"}
        Visit the columns from left to right, or those with the largest H_jj first, grouped as they are
        visited (the result then carries their index).

    Returns
    -------
    QuantizedWeight
        With `outliers`, their values in float16 (codes 0), and `second`, which decodes to `scale` and
        `zero`; `notes` give the share of outliers.

    Raises
    ------
    QuantError
        NaN weights, a Hessian of another shape or not positive definite, a symmetric grid, a setting out of
        range.

    Examples
    --------
    Rows of 0, 1, 2, 3, which 2 bits hold exactly, and one 9, which would take the grid away from its row.

    >>> weight = torch.arange(256.0).view(64, 4) % 4
    >>> weight[5, 2] = 9.0
    >>> result = spqr(weight, torch.eye(4), Grid(bits=2))
    >>> result.decode()[5].tolist(), result.outliers.tolist()
    ([0.0, 1.0, 9.0, 3.0], [22])
    """
    settings = SpQR(threshold, second_bits, second_group, damping, act_order)
    H = check_layer(weight, hessian, grid)
    order = torch.arange(len(H), device=H.device)
    if act_order == "dynamic":
        order = H.diagonal().argsort(descending=True, stable=True)
    layer = Layer.of(weight, H, order, damping)
    levels = _TwoLevels(layer, H.diagonal()[order] != 0, grid, settings)
    walk(layer, grid.slices(len(H)), levels.fit_group, levels.round_column)
    return levels.result()


def leave_one_out(group: Tensor, pivots: Tensor, grid: Grid) -> Tensor:
    """Return how much the error of a group falls if one weight is left out, for each weight, [rows, width].

    The range without a weight differs from that of the whole group only if it is the smallest or the largest,
    so three ranges a row are enough, however wide the group.

    Parameters
    ----------
    group : Tensor
        [rows, width].
    pivots : Tensor
        1 / U_jj of each column, [width].
    grid : Grid
        Its bits count.
    """
    cost = _cost(group, pivots, grid)
    gains, total = cost.clone(), cost.sum(1, keepdim=True)
    smallest, largest = group.min(1, keepdim=True), group.max(1, keepdim=True)
    for end, inside in ((smallest, largest), (largest, smallest)):
        others = _cost(group.scatter(1, end.indices, inside.values), pivots, grid)
        gains.scatter_(1, end.indices, total - others.scatter_(1, end.indices, 0).sum(1, keepdim=True))
    return gains


def _cost(group: Tensor, pivots: Tensor, grid: Grid) -> Tensor:
    """Return ((w - w^) / U_jj)^2 for each weight of a group fitted alone, [rows, width]."""
    scale, zero = _fit(group, grid)
    rounded = to_values(to_codes_float_zero(group, scale, zero, grid), scale, zero)
    return rounded.sub_(group).mul_(pivots).square_()


def _fit(group: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scale and zero [rows, 1] of a group [rows, width], its range extended to reach 0."""
    fitted = fit_float_zero(pad(group, (0, 1)), grid)  # by a column of zeros
    assert fitted.zero is not None
    return fitted.scale, fitted.zero


class _TwoLevels:
    """Fits groups and rounds columns for `walk`.

    Parameters
    ----------
    layer : Layer
        The weight.
    alive : Tensor
        False where an input was always 0, [columns]: what is rounded there costs nothing.
    grid, settings : Grid, SpQR
        See `spqr`.
    """

    def __init__(self, layer: Layer, alive: Tensor, grid: Grid, settings: SpQR) -> None:
        columns, rows = layer.weight.shape
        self.layer, self.grid = layer, replace(grid, group=None)
        self.second = Grid(settings.second_bits, min(settings.second_group, rows))
        pivots = layer.factor.diagonal() * alive  # 1 / U_jj
        spread = layer.weight.var(1, correction=min(1, rows - 1)) * pivots.square()
        self.pivots = pivots.to(layer.weight.dtype)
        self.tau = settings.threshold * float(spread.mean())
        self.index = grid.group_index(columns).to(pivots.device)
        self.codes = torch.empty_like(layer.weight)  # [columns, rows], whole numbers as floats
        self.kept = torch.empty_like(layer.weight, dtype=torch.bool)
        self.values = torch.empty_like(layer.weight, dtype=torch.float16)  # count where kept
        self.levels: list[QuantizedWeight] = []  # of each group: scales in row 0, zeros in row 1

    def fit_group(self, group: slice, weight: Tensor) -> None:
        """Fit the next group to its columns as they are now, [columns, rows], without its outliers."""
        W = weight.T
        odd = (leave_one_out(W, self.pivots[group], self.grid) > self.tau) & W.half().isfinite()
        odd &= ~odd.all(1, keepdim=True)  # where all would be, nobody is left to fit the range to
        mean = W.masked_fill(odd, 0).sum(1, keepdim=True) / (~odd).sum(1, keepdim=True)
        others = torch.where(odd, mean, W)
        scale, zero = _fit(others, self.grid)
        self._lend(scale[:, 0], others.abs().amax(1) / self.grid.qmax == 0)
        both = torch.cat([scale, zero], 1).T
        fitted = fit_float_zero(both, self.second)
        codes = encode(both, fitted, self.second)
        self.levels.append(QuantizedWeight(codes, fitted.scale, fitted.zero, fitted.index))
        self.scale, self.zero = self.levels[-1].decode()

    def _lend(self, scale: Tensor, empty: Tensor) -> None:
        """Give rows of zeros, which any scale suits, one that leaves the 3 bits to their neighbours."""
        for part in self.second.slices(len(scale)) if empty.any() else []:
            if not empty[part].all():
                scale[part].masked_fill_(empty[part], float(scale[part][~empty[part]].min()))

    def round_column(self, column: int, weight: Tensor) -> Tensor:
        """Return the values of a column [rows], rounded or kept."""
        codes = to_codes_float_zero(weight, self.scale, self.zero, self.grid)
        rounded, short = to_values(codes, self.scale, self.zero), weight.half()
        cost = (weight - rounded).mul_(self.pivots[column]).square_()
        kept = (cost > self.tau) & short.isfinite()  # what float16 cannot hold is rounded like the rest
        self.codes[column], self.kept[column], self.values[column] = codes.masked_fill_(kept, 0), kept, short
        return torch.where(kept, short.to(weight.dtype), rounded)

    def result(self) -> QuantizedWeight:
        """Return everything in the original order of the columns."""
        codes, kept, values = (
            self.layer.restore(each).T.contiguous() for each in (self.codes, self.kept, self.values)
        )
        places = kept.flatten().nonzero().squeeze(1)
        second = SecondLevel(self.second, *(self._level(row) for row in (0, 1)))
        scale, zero = second.decode()
        share = 100 * len(places) / kept.numel()
        note = f"{len(places)} of {kept.numel()} weights ({share:.2f} %) stay in float16"
        return QuantizedWeight(
            codes.to(self.grid.code_dtype),
            scale,
            zero,
            self.layer.restore(self.index) if scale.shape[1] > 1 else None,
            (note, *self.layer.notes),
            outliers=places if len(places) else None,
            outlier_values=values.flatten()[places] if len(places) else None,
            second=second,
        )

    def _level(self, row: int) -> QuantizedWeight:
        """Return the scales (row 0) or zeros (row 1) of all groups, [groups, rows]."""
        codes, scales, zeros = (
            torch.cat([getattr(level, name)[row : row + 1] for level in self.levels])
            for name in ("codes", "scale", "zero")
        )
        return QuantizedWeight(codes, scales, zeros, self.levels[0].index)


@dataclass(frozen=True)
class SpQR:
    """Settings of SpQR; see `spqr`. The defaults are the paper's, which go with `Grid(bits=4, group=16)`."""

    threshold: float = 0.2
    second_bits: int = 3
    second_group: int = 16
    damping: float = 1.0
    act_order: Literal["off", "dynamic"] = "dynamic"

    name: ClassVar[str] = "spqr"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv 2306.03078"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        check_types(self, ("damping", "threshold"), ("second_bits", "second_group"))
        check_damping(self.damping, "SpQR")
        if not self.threshold >= 0:
            raise QuantError(f"threshold={self.threshold} in SpQR is not a number >= 0. Use threshold=0.2.")
        if self.act_order not in ("off", "dynamic"):
            raise QuantError(f"act_order={self.act_order!r} in SpQR is unknown. Use 'off' or 'dynamic'.")
        if not 2 <= self.second_bits <= 8 or self.second_group < 1:
            raise QuantError(
                f"second_bits={self.second_bits}, second_group={self.second_group} in SpQR: scales take 2 "
                "to 8 bits and groups of 1 row or more. Use second_bits=3, second_group=16."
            )

    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        """Refuse a symmetric grid: scales and zeros are rounded together."""
        if grid.symmetric:
            raise QuantError(
                f"SpQR rounds zero points with the scales, and {grid} has none: it needs an asymmetric grid. "
                "Use Grid(..., symmetric=False), or another method."
            )

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian; `notes` also say when there were too few tokens.

        Raises
        ------
        QuantError
            The statistics hold no Hessian, and all that `spqr` refuses.
        """
        result = spqr(
            weight, known_hessian(stats, "SpQR"), grid,
            threshold=self.threshold, second_bits=self.second_bits, second_group=self.second_group,
            damping=self.damping, act_order=self.act_order,
        )  # fmt: skip
        return with_token_note(result, stats.tokens)
