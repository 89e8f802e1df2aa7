"""Lesson 5: HQQ, one iteration after the other.

What you will learn
- HQQ sees no data: it moves the zero point of each group until the weights themselves are met better;
- an error R larger than a limit, beta^(-1/(2-p)), counts as an outlier and loses most of its say;
- with the paper's beta = 10 that limit is 0.17, so ordinary weights of size 0.05 have no outliers at all,
  and HQQ is then simply the least-squares fit of the zero;
- a huge beta calls every error an outlier, and nothing moves.

Paper: HQQ (Badri and Shaji 2023, Mobius Labs), sub-problems 1 and 2. Page: docs/methods/hqq.md
Source: qlib/methods/hqq.py    Exercise: examples/exercises/ex06_hqq_zero.py
Run: python examples/05_hqq_iterations.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, canvas, save
from torch import Tensor

from qlib.grid import Grid
from qlib.methods.hqq import HQQStep, hqq, hqq_steps
from qlib.methods.rtn import rtn

ROWS, COLUMNS = 256, 256
GRID = Grid(bits=3, group=64)
BETAS = [1.0, 10.0, 100.0, 1000.0, 1e5]
COLORS = [BLUE, ORANGE, GREEN, PURPLE, GREY]


# %% What is computed
def weights(size: float = 0.05) -> Tensor:
    """Return weights with a few large ones, as trained layers have them."""
    generator = torch.Generator().manual_seed(0)
    tail = torch.randn(5, ROWS, COLUMNS, generator=generator).square().mean(0).sqrt()
    return size * torch.randn(ROWS, COLUMNS, generator=generator) / tail


def norm(weight: Tensor, iterations: int, beta: float, p: float) -> float:
    """Return the mean of |W - W^|^p."""
    values = hqq(weight, GRID, beta=beta, iterations=iterations).decode()
    return float((weight - values).abs().pow(p).mean())


def print_table(weight: Tensor, walks: dict[float, list[HQQStep]]) -> None:
    """Print what each beta makes of the same weights."""
    usual = (weight - hqq(weight, GRID, iterations=0).decode()).abs().median()
    print(f"{GRID}, median |R| {usual:.4f}; errors after / before\n")
    print(f"{'beta':>8}{'limit':>9}{'outliers %':>12}{'steps':>7}{'|R|^0.7':>9}{'|R|':>9}{'|R|^2':>9}")
    for beta, steps in walks.items():
        shares = [norm(weight, 20, beta, p) / norm(weight, 0, beta, p) for p in (0.7, 1.0, 2.0)]
        print(f"{beta:8.0f}{beta ** (-1 / 1.3):9.4f}{100 * steps[0].outliers:12.2f}{len(steps) - 1:7d}"
              + "".join(f"{share:9.4f}" for share in shares))  # fmt: skip


def compare_with_rtn(weight: Tensor) -> dict[int, list[float]]:
    """Print and return the error for a whole zero point, a float one, and HQQ's, for each width."""
    print("\nRelative error of the weights, in %\n")
    print(f"{'':8}{'RTN, whole zero':>18}{'float zero':>14}{'HQQ':>10}")
    found = {}
    for bits in (2, 3, 4):
        grid = Grid(bits, group=64)
        ways = (rtn(weight, grid), hqq(weight, grid, iterations=0), hqq(weight, grid))
        found[bits] = [100 * float((each.decode() - weight).norm() / weight.norm()) for each in ways]
        print(f"{bits} bits  {found[bits][0]:18.2f}{found[bits][1]:14.2f}{found[bits][2]:10.2f}")
    print("\nA whole zero point gives 0 a code, and many weights are near 0. A float one takes 0 off it:")
    print("that costs more the coarser the grid is. HQQ moves it on as long as the mean of |W - W^| falls.")
    return found


# %% The pictures
def draw_gain(axes: Any, found: dict[int, list[float]]) -> None:
    """Draw the three errors of each width, RTN's being 1."""
    for k, (name, color) in enumerate((("RTN", GREY), ("float zero", ORANGE), ("HQQ", BLUE))):
        places = [i + 0.27 * k for i in range(len(found))]
        axes.bar(places, [each[k] / each[0] for each in found.values()], 0.25, color=color, label=name)
    axes.set_xticks([i + 0.27 for i in range(len(found))], [f"{bits} bits" for bits in found])
    axes.set(title="What a zero point can do", ylabel="error of the weights, RTN = 1", ylim=(0, 1.4))
    axes.legend(ncols=3)


def draw_walks(axes: Any, walks: dict[float, list[HQQStep]]) -> None:
    """Draw the mean error along the iterations."""
    for (beta, steps), color in zip(walks.items(), COLORS, strict=True):
        kept = [step.error / steps[0].error for step in steps if step.kept]
        width = 5 if beta == 1 else 1.8  # beta = 10 covers it
        axes.plot(range(len(kept)), kept, color=color, linewidth=width, label=f"beta = {beta:g}")
    axes.set(title="The error falls, soon slowly", xlabel="iteration", ylabel="mean |W - W^|, start = 1")
    axes.legend()


def draw_shrinkage(axes: Any, weight: Tensor) -> None:
    """Draw how much of an error still moves the zero: R - E; shaded: 97 in 100 of the errors."""
    errors = (weight - hqq(weight, GRID, iterations=0).decode()).abs().flatten()
    R = torch.linspace(0.001, 0.6, 300)
    for beta, color in zip(BETAS, COLORS, strict=True):
        axes.plot(R, torch.minimum(R, R.pow(-0.3) / beta), color=color, label=f"beta = {beta:g}")
    axes.axvspan(0, errors.quantile(0.97).item(), color=GREY, alpha=0.25, label="usual |R|")
    axes.set(title="Large errors lose their vote", xlabel="|R|", ylabel="R - E: moves the zero")
    axes.legend()


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. Five values of beta
    weight = weights()
    walks = {beta: list(hqq_steps(weight, GRID, beta=beta)) for beta in BETAS}
    print_table(weight, walks)
    # %% 2. Where nothing is an outlier, p does not matter
    same = torch.equal(hqq(weight, GRID, p=0.7).codes, hqq(weight, GRID, p=1.0).codes)
    print(f"\nAt beta = 10, p = 0.7 and p = 1 give the same codes: {same}")
    # %% 3. Against rounding to nearest; errors along the iterations, and what an error may move
    found = compare_with_rtn(weight)
    figure = canvas(13, 4)
    axes = figure.subplots(1, 3)
    draw_gain(axes[0], found)
    draw_walks(axes[1], walks)
    draw_shrinkage(axes[2], weight)
    save(figure, "05_hqq_iterations")


# %% Try this: predict first, then run
# 1. weights(size=0.5) in `main`: at which beta do outliers begin now? (The limit does not move, |R| does.)
# 2. `for bits in (2, 3, 4, 8)` in `compare_with_rtn`: is the share of the error that HQQ takes off (left
#    picture) smaller at 8 bits?
# 3. GRID with group=8: which of the three norms gets worse? (See "When it fails" on the page.)

if __name__ == "__main__":
    main()
