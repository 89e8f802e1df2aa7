"""OmniQuant: learn by gradients where to clip each group of weights, and how to scale its inputs.

Paper: Shao et al. 2023, arXiv 2308.13137, equations 2 to 4.
Problem: min over u, l, s, z of |block(X_q; Q(W s)) - block_float(X)|^2, one block after the other.
Rule: LWC, learnable weight clipping: each group's range becomes hi' = sigmoid(u) hi, lo' = sigmoid(l) lo.
    LET, learnable equivalent transformation: W x = (W s) ((x - z) / s) + W z; s and z are folded away.
    AdamW on all of them; round() passes gradients straight through, the rounding of a zero point none.
Why it works: a narrower range has a finer step, and the block's own output says which large weights can be
    cut. Scaling makes the range of inputs smaller and that of the weights larger, and weights are clipped.
Shapes: weight [rows, columns]; u, l [rows, groups]; s, z [columns].
Needs: inputs and float outputs of whole blocks; for LET, also the ranges of the layers' inputs.
Changes: all layers of the block, to float weights: folded, and clamped to the learned ranges, so that RTN or
    GPTQ find the learned grid by themselves.
Left out: the scale between queries and keys. It multiplies whole rows, and a row's grid with them: no code
    would change. The second target of the official code, and its float16 arithmetic.
Differences: W is clamped before it is rounded, not its code afterwards: the same codes (but for ties at an
    end of the range), other gradients beyond it. s is learned as log s, so it stays > 0. The parameters of
    the best epoch are kept, not the last ones, and only if they beat rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from qlib.errors import QuantError
from qlib.grid import Grid, in_groups, min_max_on, round_to_nearest, scale_and_zero_point, short_scales
from qlib.methods.checks import check_learnable, check_types
from qlib.methods.contracts import BlockTask, Fitted, Fold, Needs, apply_folds
from qlib.methods.straight_through import round_within

START = 4.0  # first u and l, those of the authors' code: sigmoid(4) = 0.982 of each range is kept
TINY = 1e-5  # smaller ranges count as this in the first scales, as in SmoothQuant: no division by 0


# --- LWC: learnable weight clipping


def learned_range(groups: Tensor, grid: Grid, upper: Tensor, lower: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ends of each group's learned range, lo' = sigmoid(l) lo and hi' = sigmoid(u) hi.

    Shapes: groups [rows, groups, group]; upper and lower [rows, groups]; the ends [rows, groups, 1].
    """
    lo, hi = min_max_on(groups, grid)
    hi = hi * upper.sigmoid().unsqueeze(-1)
    return (-hi if lower is None else lo * lower.sigmoid().unsqueeze(-1)), hi


def round_ste(x: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Return round(x) within [lowest, highest], with the gradient of x ("straight through")."""
    return x + (x.round().clamp(lowest, highest) - x).detach()


def fake_quant_plain(weight: Tensor, grid: Grid, upper: Tensor, lower: Tensor | None = None) -> Tensor:
    """Return what `fake_quant` returns, by the formulas of the paper: equal but for rounding errors."""
    groups = in_groups(weight, grid)
    # 1. The learned range of each group: hi' = sigmoid(u) hi, lo' = sigmoid(l) lo.
    lo, hi = learned_range(groups, grid, upper, lower)
    # 2. Its scale and zero point, equation 2. The rounding of the zero point passes no gradient.
    scale, zero = scale_and_zero_point(lo, hi, grid)
    short, _ = short_scales(scale.squeeze(-1), (lo == hi).squeeze(-1), grid)
    scale = scale + (short.unsqueeze(-1) - scale).detach()  # in the grid's bits, straight through
    z = torch.zeros_like(scale) if zero is None else zero.detach()
    # 3. Clip to the range, and round: scale (code - zero), the code within those of the grid.
    w = groups.minimum(hi).maximum(lo)
    values = scale * round_ste(w / scale, grid.qmin - z, grid.qmax - z)
    return values.flatten(1)[:, : weight.shape[1]]


def fake_quant(weight: Tensor, grid: Grid, upper: Tensor, lower: Tensor | None = None) -> Tensor:
    """Return the values that a weight is rounded to within its learned range.

    Parameters
    ----------
    weight : Tensor
        [rows, columns], float32 or float64.
    grid : Grid
        Groups run along the columns; the last may be narrower.
    upper, lower : Tensor
        u and l, [rows, groups]. A symmetric grid has one factor, sigmoid(u) on max|w|, and no l.

    Returns
    -------
    Tensor
        [rows, columns], with gradients for weight, upper and lower: those of the plain formula, round(x)
        being replaced by x plus a constant.
    """
    groups = in_groups(weight, grid)
    values = round_within(groups, *learned_range(groups, grid, upper, lower), grid)
    return values.flatten(1)[:, : weight.shape[1]]


def clip_range(weight: Tensor, grid: Grid, upper: Tensor, lower: Tensor | None = None) -> Tensor:
    """Return the weight clamped to its learned range; arguments as for `fake_quant`.

    The ends of the learned range are its smallest and largest numbers, so rounding it to nearest gives the
    codes, scales and zero points of `fake_quant`, bit for bit.
    """
    groups = in_groups(weight, grid)
    return groups.clamp(*learned_range(groups, grid, upper, lower)).flatten(1)[:, : weight.shape[1]]


# --- LET: learnable equivalent transformation


def initial_scale(weights: Sequence[Tensor], absmax: Tensor, alpha: float) -> Tensor:
    """Return s = max|x|^alpha / max|w|^(1 - alpha) of each input: the first s, SmoothQuant's.

    Parameters
    ----------
    weights : sequence of Tensor
        [rows, columns] each, of all layers that share the input.
    absmax : Tensor
        Largest |x| of each input, [columns].
    alpha : float
        0: make all columns of the weights equally large, 1: all inputs.

    Returns
    -------
    Tensor
        [columns], > 0. Inputs that are always 0 keep the scale 1, and so do those that meet nothing but
        zeros: their scale has no effect, and SmoothQuant's, near 1e5, would be a bad start.
    """
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    s = absmax.clamp(min=TINY) ** alpha / largest.clamp(min=TINY) ** (1 - alpha)
    return s.masked_fill((absmax == 0) | (largest == 0), 1)


@dataclass
class Learned:
    """What is learned for one block.

    Parameters
    ----------
    upper, lower : dict
        u and l of each weight, by its full name, [rows, groups]; no l on a symmetric grid.
    log_scale, shift : dict
        log s and z of each group, by its first layer, [columns]; empty without LET. No z where an offset
        may not move.
    """

    upper: dict[str, Tensor]
    lower: dict[str, Tensor]
    log_scale: dict[str, Tensor] = field(default_factory=dict)
    shift: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, task: BlockTask, grid: Grid, logit: float = START) -> Learned:
        """Return the same logit for all ends of ranges, and no scales."""
        upper = {}
        for layer in task.layers:
            weight = task.parameters[name := f"{layer}.weight"]
            groups = len(task.grid_of(name, grid).slices(weight.shape[1]))
            upper[name] = weight.new_full((len(weight), groups), logit, requires_grad=True)
        return cls(upper, {n: deepcopy(u) for n, u in upper.items() if not task.grid_of(n, grid).symmetric})

    def start_scales(self, task: BlockTask, alpha: float) -> None:
        """Add SmoothQuant's scales, and shifts that centre each input.

        Raises
        ------
        QuantError
            The ranges of an input are not known.
        """
        for group in task.groups:
            stats = task.stats[first := group.layers[0]]
            if stats.low is None or stats.high is None or stats.absmax is None:
                raise QuantError(f"No ranges for the input of {first}: calibrate with needs=Needs.RANGE.")
            weights = [task.parameters[f"{layer}.weight"] for layer in group.layers]
            self.log_scale[first] = initial_scale(weights, stats.absmax, alpha).log().requires_grad_()
            if group.shift:
                self.shift[first] = ((stats.low + stats.high) / 2).to(weights[0]).requires_grad_()

    def folds(self, task: BlockTask) -> list[Fold]:
        """Return s and z of each group that has them."""
        found = [(group, group.layers[0]) for group in task.groups if group.layers[0] in self.log_scale]
        return [Fold(group, group.tie(self.log_scale[n].exp()), self.shift.get(n)) for group, n in found]

    def folded(self, task: BlockTask) -> dict[str, Tensor]:
        """Return the block's parameters with s and z folded in: the same function in float."""
        return apply_folds(task.parameters, self.folds(task))

    def rounded(self, task: BlockTask, grid: Grid) -> dict[str, Tensor]:
        """Return the folded parameters with each weight rounded within its learned range."""
        parameters = self.folded(task)
        for name, u in self.upper.items():
            parameters[name] = fake_quant(parameters[name], task.grid_of(name, grid), u, self.lower.get(name))
        return parameters

    def clipped(self, task: BlockTask, grid: Grid) -> Fitted:
        """Return the folded parameters with each weight clamped to its learned range, and the folds."""
        parameters = Fitted(self.folded(task), self.folds(task))
        for name, u in self.upper.items():
            parameters[name] = clip_range(parameters[name], task.grid_of(name, grid), u, self.lower.get(name))
        return parameters


# --- learning


def learn(task: BlockTask, grid: Grid, start: Learned, method: OmniQuant) -> Learned:
    """Run all epochs; return what was learned by the end of the one with the smallest loss on the way."""
    learned = deepcopy(start)
    best, least = learned, inf
    variables = [
        {"params": [*learned.upper.values(), *learned.lower.values()], "lr": method.clip_rate},
        {"params": [*learned.log_scale.values(), *learned.shift.values()], "lr": method.scale_rate},
    ]
    optimizer = torch.optim.AdamW(variables, weight_decay=0)
    for _ in range(method.epochs):
        total = 0.0
        for sample in range(task.samples):
            with torch.enable_grad():
                # 1. Fold s and z into the weights, and round these within their learned ranges: Q(W s).
                parameters = learned.rounded(task, grid)
                # 2. The loss: |block(X_q; Q(W s)) - block_float(X)|^2 of one utterance.
                loss = block_loss(task, parameters, sample)
            # 3. Its gradients for u, l, s and z, and a step of AdamW.
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()
        task.progress(total / task.samples)
        # 4. Keep the best epoch.
        if total < least:
            best, least = deepcopy(learned), total
    return best


def block_loss(task: BlockTask, parameters: Mapping[str, Tensor], sample: int) -> Tensor:
    """Return the mean squared error of the block's output for one utterance."""
    if not (loss := mse_loss(task.output(parameters, sample), task.target(sample))).isfinite():
        raise QuantError(
            f"The loss of the block of {task.layers[0]} is {loss.item()} for utterance {sample} of "
            f"{task.samples}. Check that recording, or learn more slowly: a smaller clip_rate or scale_rate."
        )
    return loss


def mean_loss(task: BlockTask, parameters: Mapping[str, Tensor]) -> float:
    """Return the mean of the utterances' losses: what learning is to make smaller."""
    return sum(block_loss(task, parameters, sample).item() for sample in range(task.samples)) / task.samples


@dataclass(frozen=True)
class OmniQuant:
    """Settings of OmniQuant; see the module."""

    # The defaults are those of the authors' code, but for `clip_rate`, 1e-2 there, which needs thousands of
    # steps (omniquant.md). The paper takes 20 epochs (40 at 2 bits), 5e-3 for u and l and 1e-2 for s and z;
    # without rounded inputs it learns s and z for OPT, and none for LLaMA.
    epochs: int = 10
    clip_rate: float = 5e-2  # step size of u and l
    scale_rate: float = 5e-3  # step size of log s and z
    let: bool | None = None  # learn s and z; None: where the inputs of layers are rounded
    alpha: float = 0.5  # of the first scales

    name: ClassVar[str] = "omniquant"
    paper: ClassVar[str] = "Shao et al. 2023, arXiv 2308.13137"
    needs: ClassVar[Needs] = Needs.BLOCK | Needs.RANGE

    def __post_init__(self) -> None:
        check_types(self, ("clip_rate", "scale_rate", "alpha"), ("epochs",), ("let",))
        rates = 0 < self.clip_rate < inf and 0 < self.scale_rate < inf
        if not (self.epochs >= 0 and rates and 0 <= self.alpha <= 1):
            raise QuantError(f"{self}: epochs must be >= 0, rates > 0, alpha from 0 to 1. Use OmniQuant().")

    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        """Refuse weights too short to learn in, naming the layer."""
        check_learnable(weights, grid)

    @torch.no_grad()
    def fit(self, task: BlockTask, grid: Grid) -> Fitted:
        """Learn one block, one step for each utterance; `grid` is that of layers not in `task.grids`.

        Returns
        -------
        Fitted
            The float parameters that change, by full name, folded and clamped: ready to be rounded to
            nearest on `grid`; and the folds. Empty if that is not better, over all utterances, than rounding
            the block's own weights to nearest.

        Raises
        ------
        QuantError
            No utterances, a group larger than a layer, weights in float16, statistics without ranges, or a
            loss that is not finite; the message names a layer.
        """
        if not task.samples:
            raise QuantError(f"OmniQuant got no utterances for the block of {task.layers[0]}. Pass calib=...")
        weights = {layer: task.parameters[f"{layer}.weight"] for layer in task.layers}
        grids = {layer: task.grid_of(layer, grid) for layer in task.layers}
        for layer, weight in weights.items():
            self.check_weights({layer: weight}, grids[layer])
        start = Learned.start(task, grid)
        if task.rounds_inputs if self.let is None else self.let:
            start.start_scales(task, self.alpha)

        nearest = {f"{layer}.weight": round_to_nearest(w, grids[layer]) for layer, w in weights.items()}
        best, least = Fitted({}), mean_loss(task, {**task.parameters, **nearest})
        for candidate in (start, learn(task, grid, start, self)):
            if (loss := mean_loss(task, candidate.rounded(task, grid))) < least:
                best, least = candidate.clipped(task, grid), loss
        return best.without(task.parameters)

    def fit_mixed(self, task: BlockTask) -> Fitted:
        """Learn one block whose layers have different grids, `task.grids`; otherwise as `fit`."""
        return self.fit(task, task.grids[task.layers[0]])
