"""SpQR: tiny groups whose scales are rounded too, and the few weights that no grid suits kept in float.

Paper: Dettmers et al. 2023, arXiv 2306.03078, algorithm 1.
Problem: that of GPTQ. A group of 16 weights is rounded much better than one of 128, but its scale and zero
    in 32 bits each would cost 4 bits per weight; and one large weight still spoils the grid of its
    15 neighbours.
Rule: GPTQ, and when a group of columns is reached, for each row
      1. leave-one-out test: how much does the group's error sum ((w - w^) / U_jj)^2 fall if a weight is left
         out and the range is fitted to the others? By more than tau: it is left out of
         the fit, where its place takes the mean of the others. Step 3 decides whether it stays in float.
      2. scale = (hi - lo) / (2^b - 1), zero = -lo / scale, not rounded to a whole number, with lo = min(w, 0)
         and hi = max(w, 0) over the group; then the scales of 16 neighbouring rows are themselves rounded to
         3 bits, and so are their zeros.
      3. column by column as in GPTQ; a weight with ((w - w^) / U_jj)^2 > tau stays in float16.
    tau = threshold * mean_j (var_i(W_ij) / U_jj^2), so `threshold` means the same for each layer.
Why it works: ((w - w^) / U_jj)^2 is what an error costs at the outputs once all later columns have
    compensated. A per cent of the weights makes most of that cost.
Shapes: W [outputs, inputs], H [inputs, inputs], scale and zero [outputs, groups].
Needs: the Hessian. Changes: this weight only.
Left out: the published code lets a group of one sign keep 0 out of its range. Its zero then lies far from the
    codes and spoils the 3 bits of the 15 zeros beside it; here every range reaches 0. The four numbers of the
    second level, which 16 by 16 weights share, have the grid's `scale_bits`, 32 or 16: 0.5 or 0.25 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import QuantError, real_number, settle
from qlib.grid import Grid, fit_float_zero, to_codes_float_zero, to_values
from qlib.methods.checks import (
    check_act_order,
    check_damping,
    check_layer,
    check_layer_stats,
    check_whole,
    with_token_note,
)
from qlib.methods.compensate import Compensated, visiting_order
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.two_levels import check_first_level, round_scales, second_level
from qlib.quantized_weight import QuantizedWeight, SecondLevel


def spqr(
    weight: Tensor,
    hessian: Tensor | LayerStats,
    grid: Grid,
    *,
    threshold: float = 0.2,
    second_bits: int = 3,
    second_group: int = 16,
    damping: float = 1.0,
    act_order: bool = True,
) -> QuantizedWeight:
    """Round a weight in small groups, and keep the weights that would cost most.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    hessian : Tensor or LayerStats
        [inputs, inputs], the sum of x x^T over the inputs of this layer; or statistics that hold it.
    grid : Grid
        Bits and group, asymmetric. The paper's group is 16: `Grid(bits=4, group=16, scale_bits=16)`. Its
        `scale_bits`, 32 or 16, are those of the numbers that scales and zeros were rounded with.
    threshold : float
        A weight stays in float if its error costs more than `threshold` times what it costs on average to
        replace a weight by the mean of its column. Larger: fewer outliers; infinity: none.
    second_bits : int
        Bits of a scale, and of a zero, 2 to 8.
    second_group : int
        Neighbouring rows whose scales are rounded together; 1 leaves the scales as they are
        (with the grid's `scale_bits` of 16, to 1/2048).
    damping : float
        The share of the mean of diag(H) that is added to it.
    act_order : bool
        Visit the columns with the largest H_jj first, grouped as they are visited (the result then carries
        the group of each), instead of from left to right.

    Returns
    -------
    QuantizedWeight
        With `outliers`, positions in the flattened weight, their values in float16 (codes 0), and `second`,
        which decodes to `scale` and `zero`; `notes` give the share of outliers.

    Raises
    ------
    QuantError
        NaN weights, a Hessian of another shape or not positive definite, a symmetric grid, a setting out of
        range.

    Examples
    --------
    Rows of 0, 1, 2, 3, which 2 bits hold exactly, and one 9, which would stretch the grid of its row.

    >>> weight = torch.arange(256.0).view(64, 4) % 4
    >>> weight[5, 2] = 9.0
    >>> result = spqr(weight, torch.eye(4), Grid(bits=2))
    >>> result.decode()[5].tolist(), result.outliers.tolist()
    ([0.0, 1.0, 9.0, 3.0], [22])
    """
    threshold, second_bits, second_group, damping, act_order = _checked(
        threshold, second_bits, second_group, damping, act_order
    )
    check_first_level(grid)
    H = check_layer(weight, hessian, grid)
    order = visiting_order(H, act_order)
    compensated = Compensated(weight, H, order, damping)
    W, one_group = compensated.weight, replace(grid, group=None, scale_bits=32)  # [columns, rows]
    second = Grid(second_bits, min(second_group, W.shape[1]), scale_bits=grid.scale_bits)
    # What an error costs: ((w - w^) / U_jj)^2, and nothing at an input that was always 0.
    pivots = compensated.R.diagonal() * (H.diagonal()[order] != 0)  # 1 / U_jj
    variance = W.var(1, correction=min(1, W.shape[1] - 1))  # 0 where there is one row
    tau = threshold * float((variance * pivots.square()).mean())
    pivots, levels = pivots.to(W.dtype), []
    codes, outlier, value = torch.empty_like(W), torch.empty_like(W, dtype=torch.bool), W.half()
    for group in compensated.groups(grid.slices(len(H))):
        # 1. The leave-one-out test says which weights the fit leaves out.
        left_out = leave_one_out(group.weight.T, pivots[group.part], one_group) > tau
        # 2. Scale and zero point, fitted to the others; then both are rounded.
        scale, zero, all_zero = fit_without(group.weight.T, left_out, one_group)
        scale, zero, level = round_scales(scale, zero, all_zero, second)
        levels.append(level)
        for j, w in group:
            # 3. Round one column; a weight whose error costs more than tau stays in float16.
            code = to_codes_float_zero(w, scale, zero, grid)
            q, in_float16 = to_values(code, scale, zero), w.half()
            cost = (w - q).mul_(pivots[j]).square_()
            is_outlier = (cost > tau) & in_float16.isfinite()  # what float16 cannot hold is rounded
            codes[j], outlier[j], value[j] = code.masked_fill_(is_outlier, 0), is_outlier, in_float16
            # 4. All columns to come make up for the errors of this one.
            compensated.set(j, torch.where(is_outlier, in_float16.to(w.dtype), q))
    return _assemble(compensated, grid, codes, outlier, value, second_level(levels, second))


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


def fit_without(group: Tensor, left_out: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Fit scale and zero point of a group without some of its weights, which count as the mean of the others.

    Parameters
    ----------
    group : Tensor
        [rows, width].
    left_out : Tensor
        [rows, width], bool. A weight that float16 cannot hold is not left out; nor is any of a row that has
        nothing else.
    grid : Grid
        Its bits count.

    Returns
    -------
    tuple of Tensor
        Scale and zero point, [rows], and which rows are all zeros, so that any scale suits them, [rows].
    """
    left_out = left_out & group.half().isfinite()
    left_out &= ~left_out.all(1, keepdim=True)
    mean = group.masked_fill(left_out, 0).sum(1, keepdim=True) / (~left_out).sum(1, keepdim=True)
    others = torch.where(left_out, mean, group)
    scale, zero = _fit(others, grid)
    return scale[:, 0], zero[:, 0], others.abs().amax(1) / grid.qmax == 0


def _assemble(
    compensated: Compensated,
    grid: Grid,
    codes: Tensor,
    outlier: Tensor,
    value: Tensor,
    second: SecondLevel,
) -> QuantizedWeight:
    """Return everything in the original order; codes, outlier and value are [columns, rows]."""
    codes, outlier, value = (
        compensated.in_original_order(each).T.contiguous() for each in (codes, outlier, value)
    )
    places = outlier.flatten().nonzero().squeeze(1)
    scale, zero = second.decode()
    index = grid.group_index(codes.shape[1]).to(codes.device)
    share = 100 * len(places) / outlier.numel()
    note = f"{len(places)} of {outlier.numel()} weights ({share:.2f} %) stay in float16"
    return QuantizedWeight(
        codes.to(grid.code_dtype),
        scale,
        zero,
        compensated.in_original_order(index) if scale.shape[1] > 1 else None,
        (note, *compensated.notes),
        outliers=places if len(places) else None,
        outlier_values=value.flatten()[places] if len(places) else None,
        second=second,
    )


@dataclass(frozen=True)
class SpQR:
    """Settings of SpQR; see `spqr`. The defaults are the paper's, which go with `Grid(bits=4, group=16)`."""

    threshold: float = 0.2
    second_bits: int = 3
    second_group: int = 16
    damping: float = 1.0
    act_order: bool = True

    name: ClassVar[str] = "spqr"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv 2306.03078"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        settle(self, **dict(zip(asdict(self), _checked(**asdict(self)), strict=True)))

    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        """Refuse a symmetric grid: scales and zeros are rounded together."""
        if grid.symmetric:
            raise QuantError(
                f"SpQR rounds zero points with the scales, and {grid} has none: it needs an asymmetric grid. "
                "Use Grid(..., symmetric=False), or another method."
            )
        check_first_level(grid)

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian; `notes` also say when there were too few tokens.

        Raises
        ------
        QuantError
            The statistics hold no Hessian, and all that `spqr` refuses.
        """
        (H,) = check_layer_stats(stats, weight, self.needs, "SpQR")
        return with_token_note(spqr(weight, H, grid, **asdict(self)), stats.tokens)


def _checked(
    threshold: float, second_bits: int, second_group: int, damping: float, act_order: bool
) -> tuple[float, int, int, float, bool]:
    """Return the settings as plain numbers, or refuse one."""
    threshold = real_number(threshold, "threshold in SpQR", QuantError, "Use threshold=0.2.")
    if not threshold >= 0:
        raise QuantError(f"threshold={threshold} in SpQR is not a number >= 0. Use threshold=0.2.")
    second_bits = check_whole(second_bits, "second_bits", "SpQR", 3)
    second_group = check_whole(second_group, "second_group", "SpQR", 16)
    if not 2 <= second_bits <= 8 or second_group < 1:
        raise QuantError(
            f"second_bits={second_bits}, second_group={second_group} in SpQR: scales take 2 to 8 bits and "
            "groups of 1 row or more. Use second_bits=3, second_group=16."
        )
    damping, act_order = check_damping(damping, "SpQR", 1.0), check_act_order(act_order, "SpQR", False)
    return threshold, second_bits, second_group, damping, act_order
