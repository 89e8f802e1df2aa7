"""Lesson 8: learned clipping (OmniQuant).

What you will learn
- a narrower range has a finer step, but cuts off the largest weights: somewhere in between is a best range;
- where it is, only the output can tell: large weights behind weak inputs may go;
- rounding is a staircase without slope; "straight through" gives gradients a slope to follow all the same;
- what is learned fits in a float weight, clamped, which rounding to nearest then finishes.

Paper: OmniQuant (Shao et al. 2023, arXiv 2308.13137), equation 2. Page: docs/methods/omniquant.md
Source: qlib/methods/omniquant.py, straight_through.py
Exercise: examples/exercises/ex09_straight_through.py
Run: python examples/08_learned_clipping.py        (seconds)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from drawing import BLUE, GREEN, ORANGE, RED, canvas, save
from torch import Tensor
from torch.nn.functional import gelu

from qlib.grid import Fit, Grid
from qlib.methods.contracts import BlockTask
from qlib.methods.omniquant import OmniQuant, fake_quant
from qlib.methods.rtn import rtn

WIDTH, HIDDEN, WEAK = 32, 64, 4
Weights = dict[str, Tensor]


# %% What is computed
def utterances(seed: int) -> Tensor:
    """Return inputs [utterances, time, WIDTH] whose first channels are weak."""
    tokens = torch.randn(8, 40, WIDTH, generator=torch.Generator().manual_seed(seed))
    tokens[..., :WEAK] *= 0.05
    return tokens


def make_weights() -> Weights:
    """Return two layers; the columns that meet weak inputs hold the largest weights."""
    generator = torch.Generator().manual_seed(1)
    fc1 = torch.randn(HIDDEN, WIDTH, generator=generator) * WIDTH**-0.5
    fc2 = torch.randn(WIDTH, HIDDEN, generator=generator) * HIDDEN**-0.5
    fc1[:, :WEAK] *= 4
    return {"fc1.weight": fc1, "fc2.weight": fc2}


def block(weights: Weights, x: Tensor) -> Tensor:
    """Return the output of a feed-forward block, [time, WIDTH]."""
    return gelu(x @ weights["fc1.weight"].T) @ weights["fc2.weight"].T


def make_task(weights: Weights, inputs: Tensor) -> BlockTask:
    """Return the block as a learning problem: come close to what the float weights give."""
    return BlockTask(
        weights, layers=("fc1", "fc2"), groups=(), stats={}, samples=len(inputs),
        output=lambda candidate, i: block(candidate, inputs[i]), target=lambda i: block(weights, inputs[i]),
    )  # fmt: skip


def rounded(weights: Weights, grid: Grid, fit: Fit = "minmax") -> Weights:
    """Return all weights rounded to nearest."""
    return {name: rtn(weight, grid, fit=fit).decode() for name, weight in weights.items()}


def error(weights: Weights, other: Weights, inputs: Tensor) -> Tensor:
    """Return the relative squared error of the block's output."""
    right = block(weights, inputs)
    return (block(other, inputs) - right).square().sum() / right.square().sum()


def sweep(weights: Weights, inputs: Tensor, grid: Grid) -> tuple[Tensor, list[float]]:
    """Return shares of the range in %, sigmoid(u) = 1 / (1 + e^-u), alike for all rows, and their errors."""
    logits, errors = torch.linspace(-2, 5, 60), []
    for logit in logits:
        upper = torch.full((HIDDEN, 1), logit.item())
        values = fake_quant(weights["fc1.weight"], grid, upper, upper)
        errors.append(100 * error(weights, {**weights, "fc1.weight": values}, inputs).item())
    return 100 * logits.sigmoid(), errors


def one_row(weights: Weights, inputs: Tensor, grid: Grid) -> tuple[Tensor, list[float], list[float]]:
    """Return logits, errors of the first row's output, and their slopes by straight-through gradients."""
    row, logits, errors, slopes = weights["fc1.weight"][:1], torch.linspace(0, 3, 600), [], []
    right = inputs @ row.T
    for logit in logits:
        upper = torch.full((1, 1), logit.item(), requires_grad=True)
        values = fake_quant(row, grid, upper, upper)
        loss = 100 * (inputs @ values.T - right).square().sum() / right.square().sum()
        errors.append(loss.item())
        slopes.append(torch.autograd.grad(loss, upper)[0].item())
    return logits, errors, slopes


# %% The pictures
def draw_tangents(axes: Any, swept: tuple[Tensor, list[float], list[float]]) -> None:
    """Draw an error that jumps, and the straight-through slope at some places."""
    logits, errors, slopes = swept
    axes.plot(logits, errors, color=BLUE, linewidth=1, label="error of one row")
    for i in range(30, 600, 60):
        x, dx = logits[i].item(), 0.12
        axes.plot([x - dx, x + dx], [errors[i] - slopes[i] * dx, errors[i] + slopes[i] * dx], color=ORANGE)
    axes.plot([], [], color=ORANGE, label="straight-through slope")
    axes.set(title="A slope for an error that jumps", xlabel="what is learned: logit of the share kept",
             ylabel="squared error of the row's output, %")  # fmt: skip
    axes.legend()


def draw(axes: Any, swept: tuple[Tensor, list[float]], curves: dict[int, list[float]]) -> None:
    """Draw the error against the range kept, and the losses while learning."""
    kept, errors = swept
    axes[0].plot(kept, errors, color=BLUE, marker=".")
    axes[0].set(title="In between is best", xlabel="range kept by all rows, %")
    axes[0].set_ylabel("squared output error, %")
    for (bits, losses), color in zip(curves.items(), (GREEN, BLUE, RED), strict=True):
        axes[2].plot(torch.tensor(losses) / losses[0], color=color, label=f"{bits} bits")
    axes[2].set(
        title="Each row learns its own range", xlabel="epoch", ylabel="loss / loss of the first epoch"
    )
    axes[2].legend()


def main() -> None:
    """Print one table, draw one picture."""
    # %% 1. Three ways to choose the range, three widths
    weights, inputs, others = make_weights(), utterances(seed=2), utterances(seed=3)
    print("Relative squared error of the block's output in %, on the inputs learned from and on others\n")
    print(f"{'bits':6}{'nearest':>22}{'least weight error':>22}{'learned range':>22}")
    curves: Any = {}
    for bits in (4, 3, 2):
        grid, curves[bits] = Grid(bits), []
        task = replace(make_task(weights, inputs), progress=curves[bits].append)
        learned = {**weights, **OmniQuant(epochs=30, clip_rate=0.03).fit(task, grid)}
        found = [rounded(*way) for way in ((weights, grid), (weights, grid, "mse"), (learned, grid))]
        errors = [100 * error(weights, each, data) for each in found for data in (inputs, others)]
        print(f"{bits:<6}" + "".join(f"{each:11.2f}" for each in errors))
    kept = learned["fc1.weight"].abs().amax(1) / weights["fc1.weight"].abs().amax(1)
    print(f"\nAt {bits} bits, rows of fc1 kept {kept.min():.0%} to {kept.max():.0%} of their largest weight.")
    # %% 2. The error over the range kept, its slope for one row, and the losses while learning
    figure = canvas(13, 4)
    axes = figure.subplots(1, 3)
    draw(axes, sweep(weights, inputs, Grid(3)), curves)
    draw_tangents(axes[1], one_row(weights, inputs, Grid(3)))
    save(figure, "08_learned_clipping")


# %% Try this: predict first, then run
# 1. WEAK = 0: do rows still give up a part of their range (the line below the table), and how much?
# 2. clip_rate=0.3: does the loss of the first epochs fall faster, and where does it end?
# 3. One utterance to learn from (`utterances(seed=2)[:1]`), as many steps (epochs=240): which of the two
#    columns of "learned range" suffers?

if __name__ == "__main__":
    main()
