"""AWQ: enlarge the weights that meet large inputs before rounding, and clip ranges where the outputs gain.

Paper: Lin et al. 2023, arXiv 2306.00978, equations 4 and 5. That ranges are clipped is said in
    section 3.2, how they are searched in its code only.
Problem: minimise |Q(W s) (x / s) - W x|^2 over the tokens: tr (D H D^T), D = Q(W s) / s - W, H = X^T X.
Rule: s = a^alpha / sqrt(max * min), a = mean|x| of each channel; alpha = 0, 1/20 .. 19/20, the best wins
      (`awq_scale`). Then clip each group of each row to 100 %, 95 % .. 55 % of its range; the error there is
      d H_gg d^T, d a row of D within the group, the best wins (`awq_clip`).
Why it works: rounding errors are about equal for all weights of a group, large or small. W s is rounded s
    times finer where s > 1, and the range of the group grows only if that is its largest weight. So a large
    s belongs where inputs are large, for there an error counts most.
Shapes: W [outputs, inputs], one or several that read the same input; H [inputs, inputs]; a, s [inputs].
Needs: the Hessian and the mean |x|. Changes: these weights, and the operation before, which absorbs 1 / s.
Precision: the searches run in float32 (float64 for such weights).
Left out: the published search looks at the output of the enclosing module (attention, MLP), this one at those
    of the layers: H is all it takes, no token is kept, but it cannot know that softmax or a gate hides one
    layer's error or enlarges another's. The published clip search sees 512 tokens, H_gg all; neither sees how
    errors of two groups add up. Neither clips q and k: `awq_clip` clips any weight, `quantize` leaves these
    two out.
Unlike it: both ends of a range shrink by the same share (there the range becomes -m to m), and no channel
    counts as smaller than 1e-4 of the largest: for an unused one (a = 0) sqrt(max * min) would be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError, as_whole, real_number
from qlib.grid import (
    Grid,
    as_compute_dtype,
    check_grid,
    check_tensor,
    check_weight,
    min_max_on,
    round_to_nearest,
)
from qlib.methods.channels import check_channels
from qlib.methods.checks import check_hessian, check_stats, check_types, check_weights
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.output_error import error_of_rows, upper_triangle

SMALLEST_SHARE = 1e-4  # of the largest mean |x|: smaller ones count as this; the authors' code: s >= 1e-4


def awq_scale(
    weights: Sequence[Tensor],
    hessian: Tensor,
    magnitude: Tensor,
    grid: Grid | Sequence[Grid],
    *,
    points: int = 20,
) -> tuple[Tensor, Tensor]:
    """Search the factor that moves from each input channel into the weights that read it.

    Parameters
    ----------
    weights : sequence of Tensor
        All weights [outputs, inputs] that read this input; they share one s, and their errors are added.
    hessian : Tensor
        Sum of x x^T over the tokens, [inputs, inputs].
    magnitude : Tensor
        Mean |x| of each channel, [inputs].
    grid : Grid, or sequence of Grid
        The grid that the scaled weights will be rounded to, or one for each of them.
    points : int
        Exponents tried: 0, 1 / points .. 1 - 1 / points.

    Returns
    -------
    tuple of Tensor
        s [inputs], > 0, with sqrt(max s * min s) = 1, and the summed squared output error of each exponent,
        [points], float64.

    Raises
    ------
    QuantError
        No weight, shapes that do not belong together, NaN or infinite numbers, fewer than one point.

    Examples
    --------
    The second input is large, so its weight is to be rounded more finely.

    >>> weight, inputs = torch.tensor([[1.0, 0.3, -0.8]]), torch.tensor([[1.0, 25.0, 1.0]])
    >>> scale, losses = awq_scale([weight], inputs.T @ inputs, inputs[0], Grid(bits=3))
    >>> bool(scale[1] > scale[0]), bool(losses.min() < 0.1 * losses[0])
    (True, True)
    """
    grids = check_search(weights, hessian, magnitude, grid, points)
    Ws = [as_compute_dtype(weight.detach()) for weight in weights]
    a, upper = magnitude.detach().to(Ws[0]), upper_triangle(hessian, Ws[0])
    losses = torch.zeros(points, dtype=torch.float64, device=upper.device)
    for k in range(points):
        # 1. Try s = a^alpha / sqrt(max * min).
        s = candidate_scale(a, k / points)
        for W, own in zip(Ws, grids, strict=True):
            # 2. Round the scaled weight: D = Q(W s) / s - W, for what it reads is x / s.
            D = round_to_nearest(W * s, own) / s - W
            # 3. The squared error of the outputs, over all tokens: tr (D H D^T).
            losses[k] += error_of_rows(D, upper).sum(dtype=torch.float64)
    # 4. The best alpha wins; the first one wins a tie.
    return candidate_scale(a, int(losses.argmin()) / points), losses


def candidate_scale(a: Tensor, alpha: float) -> Tensor:
    """Return a^alpha / sqrt(max * min), [inputs], for the mean |x| of each channel, a [inputs]."""
    largest = a.max()
    if largest == 0:
        return torch.ones_like(a)
    s = (a / largest).clamp(min=SMALLEST_SHARE) ** alpha
    return s / (s.max() * s.min()).sqrt()


def awq_clip(weight: Tensor, hessian: Tensor, grid: Grid, *, steps: int = 10, shrink: float = 0.5) -> Tensor:
    """Clip each group of each row where the part of the output that it adds to then changes least.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], after scaling. Left as it is.
    hessian : Tensor
        [inputs, inputs], of the scaled inputs.
    grid : Grid
        The grid that the clipped weight will be rounded to.
    steps : int
        Shares of the range tried: 1, 1 - shrink / steps .. The widest wins a tie.
    shrink : float
        Between 0 and 1: the search ends before the range is shrunk by this much.

    Returns
    -------
    Tensor
        [outputs, inputs], in the weight's dtype.

    Raises
    ------
    QuantError
        Shapes that do not belong together, NaN or infinite numbers, a setting out of range.
    """
    check_ranges(steps, shrink)
    check_grid(grid)
    check_weight(weight)
    check_hessian(hessian, weight.shape[1])
    grid.check(weight.shape[1], "the weight")

    W, clipped = as_compute_dtype(weight.detach()), torch.empty_like(weight)
    for group in grid.slices(W.shape[1]):
        w, upper = W[:, group].contiguous(), upper_triangle(hessian[group, group], W)
        lo, hi = min_max_on(w, grid)  # [outputs, 1]
        best, least = torch.ones_like(lo), torch.full_like(lo, torch.inf)
        for step in range(steps):
            # 1. Try a share of the range.
            share = 1 - step * shrink / steps
            # 2. Round what is clipped to it: d = Q(clamp(w)) - w.
            d = round_to_nearest(w.clamp(lo * share, hi * share), replace(grid, group=None)) - w
            # 3. The squared error of this part of the outputs: d H_gg d^T of each row.
            error = error_of_rows(d, upper)[:, None]
            # 4. The best share of each row wins.
            best = torch.where(error < least, share, best)
            least = torch.minimum(error, least)
        clipped[:, group] = w.clamp(lo * best, hi * best)
    return clipped


def check_search(
    weights: Sequence[Tensor], hessian: Tensor, magnitude: Tensor, grid: Grid | Sequence[Grid], points: int
) -> list[Grid]:
    """Refuse arguments of `awq_scale` that do not belong together; return one grid for each weight."""
    check_points(points)
    check_weights(weights, "AWQ")
    grids = list(grid) if isinstance(grid, Sequence) else [grid] * len(weights)
    for each in grids:
        check_grid(each)
    if len(grids) != len(weights):
        raise QuantError(
            f"AWQ got {len(grids)} grids for {len(weights)} weights. Pass one Grid, or one for each."
        )
    for weight in weights:
        check_hessian(hessian, weight.shape[1])
    remedy = "Pass the mean |x| of each input: inputs.abs().mean(0)."
    check_tensor(magnitude, "the magnitude", remedy)
    check_channels(magnitude, weights, "mean inputs", remedy)
    return grids


def check_points(points: int) -> None:
    """Refuse what is not a number of exponents."""
    if (as_whole(points) or 0) < 1:
        raise QuantError(f"points={points!r} in AWQ is not a whole number >= 1. Use points=20.")


def check_ranges(steps: int, shrink: float) -> None:
    """Refuse what is not a number of ranges, and a share that is not between 0 and 1."""
    if (as_whole(steps) or 0) < 1:
        raise QuantError(f"steps={steps!r} in AWQ is not a whole number >= 1. Use steps=10.")
    if not 0 < real_number(shrink, "shrink in AWQ", QuantError, "Use shrink=0.5.") < 1:
        raise QuantError(f"shrink={shrink!r} in AWQ is not between 0 and 1. Use shrink=0.5.")


@dataclass(frozen=True)
class AWQ:
    """Settings of AWQ; see `awq_scale` and `awq_clip`. The defaults are those of the authors' code."""

    scale: bool = True  # search a scale for each group of layers
    clip: bool | None = None  # search a range for each group of weights; None: if `before` says so
    points: int = 20  # exponents tried
    steps: int = 10  # ranges tried
    shrink: float = 0.5  # the narrowest range is just above 1 - shrink

    name: ClassVar[str] = "awq"
    paper: ClassVar[str] = "Lin et al. 2023, arXiv 2306.00978"
    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.MAGNITUDE

    def __post_init__(self) -> None:
        check_types(self, ("shrink",), ("points", "steps"), ("scale", "clip"))
        check_points(self.points)
        check_ranges(self.steps, self.shrink)

    def before(self, rounding: str) -> AWQ:
        """Return the settings in front of a rounding method, by its name: it clips before RTN and HQQ.

        These two take the range of a weight as it is. The others weigh errors themselves, and reproduce the
        weight that they are given: what was cut off is lost. With GPTQ at 3 bits, recognizers then loop.
        """
        return replace(self, clip=rounding in ("rtn", "hqq")) if self.clip is None else self

    def scale_group(self, weights: Sequence[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        """Return s for the layers that share an input; see `scale_mixed`."""
        return self.scale_mixed(weights, stats, [grid] * len(weights))

    def scale_mixed(self, weights: Sequence[Tensor], stats: LayerStats, grids: Sequence[Grid]) -> Tensor:
        """Return s for layers that share an input, each with its grid; ones with `scale=False`.

        Raises
        ------
        QuantError
            The statistics lack the Hessian or the magnitudes, and all that `awq_scale` refuses.
        """
        check_stats(stats, "AWQ")
        if stats.hessian is None or stats.magnitude is None:
            raise QuantError(
                "AWQ got statistics without a Hessian or mean |x|. "
                "Calibrate with needs=Needs.HESSIAN | Needs.MAGNITUDE."
            )
        if not self.scale:
            return torch.ones_like(stats.magnitude, dtype=torch.float32)
        return awq_scale(weights, stats.hessian, stats.magnitude, grids, points=self.points)[0]

    def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        """Return the clipped weight, or with `clip=False` the weight itself.

        Raises
        ------
        QuantError
            The statistics lack the Hessian, and all that `awq_clip` refuses.
        """
        if self.clip is False:
            return weight
        check_stats(stats, "AWQ")
        if stats.hessian is None:
            raise QuantError("AWQ got statistics without a Hessian. Calibrate with needs=Needs.HESSIAN.")
        return awq_clip(weight, stats.hessian, grid, steps=self.steps, shrink=self.shrink)
