"""AWQ: enlarge the weights that meet large inputs before rounding, and clip ranges where the outputs gain.

Paper: Lin et al. 2023, arXiv 2306.00978, equations 4 and 5; the clip search is in its code only.
Problem: minimise |Q(W s) (x / s) - W x|^2 over the tokens: tr (D H D^T), D = Q(W s) / s - W, H = X^T X.
Rule: s = a^alpha / sqrt(max * min), a = mean|x| of each channel; alpha = 0, 1/20 .. 19/20, the best wins
      (`awq_scale`). Then clip each group of each row to 100 %, 95 % .. 55 % of its range; the error there is
      d H_gg d^T, the best wins (`awq_clip`).
Why it works: rounding errors are about equal for all weights of a group, large or small. W s is rounded s
    times finer where s > 1, and only the largest weight of a group pays: spend s where inputs are large.
Shapes: W [outputs, inputs], one or several that read the same input; H [inputs, inputs]; a, s [inputs].
Needs: the Hessian and the mean |x|. Changes: these weights, and the operation before, which absorbs 1 / s.
Precision: the searches run in float32 (float64 for such weights).
Left out: the published search looks at the output of the enclosing module (attention, MLP), this one at those
    of the layers: H is all it takes, no token is kept, but it cannot know that softmax or a gate hides one
    layer's error or enlarges another's. The published clip search sees 512 tokens, H_gg all; neither sees how
    errors of two groups add up. Neither clips q and k: `awq_clip` does as told, `quantize` leaves them out.
Unlike it: both ends of a range shrink by the same share (there to +-m, however lopsided the range), and no
    channel counts as smaller than 1e-4 of the largest: an unused one (a = 0) would blow up sqrt(max * min).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, check_grid, check_tensor, check_weight, decode, encode, fit_minmax
from qlib.methods.checks import check_stats, check_symmetric_hessian, check_types, check_weights
from qlib.methods.contracts import LayerStats, Needs

FAINT = 1e-4  # no channel counts as smaller than this share of the largest
STRIP = 256  # columns of H that are multiplied at once


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
    The second input is large, so its weight deserves the finer grid.

    >>> weight, inputs = torch.tensor([[1.0, 0.3, -0.8]]), torch.tensor([[1.0, 25.0, 1.0]])
    >>> scale, losses = awq_scale([weight], inputs.T @ inputs, inputs[0], Grid(bits=3))
    >>> bool(scale[1] > scale[0]), bool(losses.min() < 0.1 * losses[0])
    (True, True)
    """
    AWQ(points=points)  # refuses a bad number
    check_weights(weights, "AWQ")
    grids = list(grid) if isinstance(grid, Sequence) else [grid] * len(weights)
    for each in grids:
        check_grid(each)
    if len(grids) != len(weights):
        raise QuantError(
            f"AWQ got {len(grids)} grids for {len(weights)} weights. Pass one Grid, or one for each."
        )
    check_tensor(magnitude, "the magnitude", "Pass the mean |x| of each input: inputs.abs().mean(0).")
    floats = [_checked(weight, hessian, magnitude) for weight in weights]
    form = _upper(hessian, floats[0])
    magnitude = magnitude.detach().to(floats[0])
    candidates = [_candidate(magnitude, k / points) for k in range(points)]
    losses = torch.zeros(points, dtype=torch.float64, device=form.device)
    for k, scale in enumerate(candidates):
        for W, own in zip(floats, grids, strict=True):
            losses[k] += _energy(_round(W * scale, own) / scale - W, form).sum(dtype=torch.float64)
    return candidates[int(losses.argmin())], losses


def _candidate(magnitude: Tensor, alpha: float) -> Tensor:
    """Return a^alpha, normalised."""
    largest = magnitude.max()
    if largest == 0:
        return torch.ones_like(magnitude)
    scale = (magnitude / largest).clamp(min=FAINT) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()


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
    AWQ(steps=steps, shrink=shrink)  # refuses bad settings
    check_grid(grid)
    W = _checked(weight, hessian, None)
    grid.check(W.shape[1], "the weight")
    clipped = torch.empty_like(W)
    for group in grid.slices(W.shape[1]):
        shares = [1 - step * shrink / steps for step in range(steps)]
        clipped[:, group] = _clip_group(W[:, group].contiguous(), hessian[group, group], grid, shares)
    return clipped.to(weight.dtype)


def _clip_group(W: Tensor, hessian: Tensor, grid: Grid, shares: Sequence[float]) -> Tensor:
    """Return one group [outputs, width], each row clipped to its best share."""
    form, whole = _upper(hessian, W), replace(grid, group=None)
    low, high = W.amin(1, keepdim=True).clamp(max=0), W.amax(1, keepdim=True).clamp(min=0)
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best, least = torch.ones_like(low), torch.full_like(low, torch.inf)
    for share in shares:
        error = _energy(_round(W.clamp(low * share, high * share), whole) - W, form)[:, None]
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return W.clamp(low * best, high * best)


# --- what both share


def _round(W: Tensor, grid: Grid) -> Tensor:
    """Return Q(W)."""
    scale = fit_minmax(W, grid)
    return decode(encode(W, scale, grid), scale)


def _upper(hessian: Tensor, like: Tensor) -> Tensor:
    """Return the upper triangle U with d U d^T = d H d^T, in the dtype of the weight: half the products."""
    H = hessian.detach().to(like.device)
    return (2 * H.triu() - H.diagonal().diag()).to(like.dtype)


def _energy(D: Tensor, upper: Tensor) -> Tensor:
    """Return d H d^T, the squared output error over all tokens, of each row d of D [rows, columns]."""
    total = torch.zeros(len(D), dtype=D.dtype, device=D.device)
    for start in range(0, D.shape[1], STRIP):
        stop = min(start + STRIP, D.shape[1])
        total += (D[:, :stop] @ upper[:stop, start:stop]).mul_(D[:, start:stop]).sum(1)
    return total


def _checked(weight: Tensor, hessian: Tensor, magnitude: Tensor | None) -> Tensor:
    """Refuse what does not belong together or is not finite; return the weight in the search's dtype."""
    check_weight(weight)
    check_tensor(hessian, "the Hessian", "Pass the sum of x x^T over this layer's inputs.")
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or (magnitude is not None and magnitude.shape != (columns,)):
        raise QuantError(
            f"AWQ got a Hessian of shape {tuple(hessian.shape)}"
            + ("" if magnitude is None else f" and magnitudes of shape {tuple(magnitude.shape)}")
            + f" for {columns} inputs. Pass the statistics of this very layer's inputs."
        )
    for name, values in (("Hessian", hessian), ("mean inputs", magnitude)):
        if values is not None and not values.sum().isfinite():  # one bad number spoils the sum
            raise QuantError(
                f"{int((~values.isfinite()).sum())} of {values.numel()} numbers of AWQ's {name} are NaN or "
                "infinite. Look for a bad calibration sample, or for a model that overflows in its dtype."
            )
    check_symmetric_hessian(hessian)
    if magnitude is not None and bool((magnitude < 0).any()):
        raise QuantError(
            f"{int((magnitude < 0).sum())} of {len(magnitude)} mean inputs are below 0. "
            "Pass the mean of |x|: inputs.abs().mean(0)."
        )
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class AWQ:
    """Settings of AWQ; see `awq_scale` and `awq_clip`. The defaults are the paper's."""

    scale: bool = True  # search a scale for each group of layers
    clip: bool = True  # search a range for each group of weights
    points: int = 20  # exponents tried
    steps: int = 10  # ranges tried
    shrink: float = 0.5  # the narrowest range is just above 1 - shrink

    name: ClassVar[str] = "awq"
    paper: ClassVar[str] = "Lin et al. 2023, arXiv 2306.00978"
    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.MAGNITUDE

    def __post_init__(self) -> None:
        check_types(self, ("shrink",), ("points", "steps"), ("scale", "clip"))
        for name, good, remedy in (
            ("points", self.points >= 1, "is not a number >= 1. Use points=20"),
            ("steps", self.steps >= 1, "is not a number >= 1. Use steps=10"),
            ("shrink", 0 < self.shrink < 1, "is not between 0 and 1. Use shrink=0.5"),
        ):
            if not good:
                raise QuantError(f"{name}={getattr(self, name)!r} in AWQ {remedy}.")

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
        if not self.clip:
            return weight
        check_stats(stats, "AWQ")
        if stats.hessian is None:
            raise QuantError("AWQ got statistics without a Hessian. Calibrate with needs=Needs.HESSIAN.")
        return awq_clip(weight, stats.hessian, grid, steps=self.steps, shrink=self.shrink)
