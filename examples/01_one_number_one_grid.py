"""Lesson 1: one number, one grid.

What you will learn
- what a scale, a zero point and a code are, and how a number becomes a code and comes back;
- why the error is at most half a step, and what one bit more buys;
- why a symmetric grid wastes codes on weights that lean to one side.

Paper: Krishnamoorthi 2018 (arXiv 1806.08342), section 2.1. Page: docs/methods/rtn.md
Source: qlib/grid/codes.py, fit.py    Exercise: examples/exercises/ex01_encode_decode.py
Run: python examples/01_one_number_one_grid.py        (a second)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREY, INK, ORANGE, PALE, canvas, save
from torch import Tensor

from qlib.grid import Grid, decode, encode, fit_minmax

WEIGHTS = torch.tensor([[-1.0, -0.55, -0.1, 0.0, 0.2, 0.45, 0.9, 1.3, 2.0]])
LOW, HIGH = WEIGHTS.min().item(), WEIGHTS.max().item()
LINE = torch.linspace(LOW - 0.4, HIGH + 0.4, 2001)[None]  # stands for "any number": shows the staircase


# %% What is computed
def through(grid: Grid, numbers: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return codes and values of some numbers on the grid fitted to WEIGHTS, and its step."""
    params = fit_minmax(WEIGHTS, grid)
    codes = encode(numbers, params, grid)
    return codes, decode(codes, params), params.scale.item()


def print_journey(grid: Grid) -> None:
    """Print how each weight becomes a code and comes back."""
    params = fit_minmax(WEIGHTS, grid)
    codes, values, step = through(grid, WEIGHTS)
    assert params.zero is not None
    print(f"{grid}: scale {step:.3f} (one step), zero point {params.zero.item()} (the code of 0.0)\n")
    print("  weight   weight / scale   code   value   error")
    for weight, code, value in zip(WEIGHTS[0].tolist(), codes[0].tolist(), values[0].tolist(), strict=True):
        print(f"{weight:8.2f} {weight / step:16.2f} {code:6d} {value:7.2f} {value - weight:7.2f}")
    zero, weight = int(params.zero.item()), WEIGHTS[0, 5].item()
    code, value = int(codes[0, 5]), values[0, 5].item()
    print(f"\n{weight:.2f} there: round({weight:.2f} / {step:.3f}) + {zero} = {code}", end="")
    print(f"    and back: {step:.3f} * ({code} - {zero}) = {value:.2f}")


def print_bits() -> None:
    """Print what each bit buys."""
    print("\n  bits   codes    step   largest error   half a step   symmetric: step")
    for bits in (2, 3, 4, 8):
        _, values, step = through(Grid(bits), WEIGHTS)
        worst = (values - WEIGHTS).abs().max().item()
        other = through(Grid(bits, symmetric=True), WEIGHTS)[2]
        print(f"{bits:6d} {2**bits:7d} {step:7.3f} {worst:15.4f} {step / 2:13.4f} {other:17.3f}")


# %% The pictures
def draw_staircase(axes: Any, grid: Grid) -> None:
    """Draw value against weight: flat where many numbers share a code, and flat outside the range."""
    _, values, _ = through(grid, LINE)
    axes.plot(LINE[0], LINE[0], color=GREY, linewidth=1, linestyle="--", label="no rounding")
    axes.plot(LINE[0], values[0], color=BLUE, label="value after rounding")
    rounded = through(grid, WEIGHTS)[1]
    axes.vlines(WEIGHTS[0], WEIGHTS[0], rounded[0], color=ORANGE, linewidth=1.5)
    axes.plot(WEIGHTS[0], rounded[0], "o", color=ORANGE, markersize=5, label=f"the {WEIGHTS.numel()} weights")
    axes.axvspan(LOW - 0.4, LOW, color=PALE, zorder=0)
    axes.axvspan(HIGH, HIGH + 0.4, color=PALE, zorder=0)
    axes.text(LOW - 0.37, HIGH + 0.2, "outside the\nrange: clipped", fontsize=8, color=INK, va="top")
    axes.set(title=f"{grid.bits} bits are {2**grid.bits} stairs", xlabel="weight", ylabel="value",
             xlim=(LOW - 0.4, HIGH + 0.4), ylim=(LOW - 0.5, HIGH + 0.5))  # fmt: skip
    axes.legend(loc="lower right")


def draw_error(axes: Any) -> None:
    """Draw the error against the weight for two grids: a saw whose teeth are one step wide."""
    coarse = through(Grid(2), WEIGHTS)[2]
    for bits, color in ((2, BLUE), (4, ORANGE)):
        _, values, step = through(Grid(bits), LINE)
        axes.plot(LINE[0], (values - LINE)[0], color=color, label=f"{bits} bits")
        axes.axhline(step / 2, color=color, linewidth=1, linestyle=":")
        axes.axhline(-step / 2, color=color, linewidth=1, linestyle=":")
    axes.set(
        title="The error is at most half a step",
        xlabel="weight",
        ylabel="value - weight",
        xlim=(LOW, HIGH),
        ylim=(-0.8 * coarse, 0.8 * coarse),
    )
    axes.legend(loc="upper right", ncols=2)


def draw_codes(axes: Any) -> None:
    """Draw the eight values of two 3-bit grids over the weights."""
    for height, symmetric, color in ((1, False, BLUE), (0, True, ORANGE)):
        grid = Grid(3, symmetric=symmetric)
        codes = torch.arange(grid.qmin, grid.qmax + 1)[None]
        used, _, step = through(grid, WEIGHTS)
        values = decode(codes, fit_minmax(WEIGHTS, grid))[0]
        axes.plot(
            values, torch.full_like(values, height), "|", color=color, markersize=26, markeredgewidth=2.5
        )
        for code, value in zip(codes[0].tolist(), values.tolist(), strict=True):
            axes.text(value, height + 0.24, str(code), ha="center", fontsize=9, color=color)
    axes.plot(WEIGHTS[0], torch.full_like(WEIGHTS[0], 0.5), "o", color=INK, markersize=4)
    left, right = min(values.min().item(), LOW) - 0.25, max(values.max().item(), HIGH) + 0.2  # symmetric
    unused = int(used.min()) - grid.qmin
    if unused:
        axes.axvspan(left, (used.min().item() - 0.5) * step, color=PALE, zorder=0)
        axes.text(left + 0.05, -0.38, f"shaded: codes that no weight uses, {unused}", fontsize=8, va="center")
    axes.set(title="One-sided weights, wasted codes", xlabel="weights (dots) and the values of 3-bit codes",
             xlim=(left, right), ylim=(-0.5, 1.6))  # fmt: skip
    axes.set_yticks([0, 1], ["symmetric", "asymmetric"])
    axes.grid(visible=False)


def main() -> None:
    """Print two tables, draw one picture."""
    # %% 1. Nine weights on four values: there and back
    print_journey(Grid(bits=2))
    # %% 2. What each bit buys
    print_bits()
    # %% 3. The same in pictures: a staircase, a saw, and codes that no weight uses
    figure = canvas(12, 3.9)
    staircase, error, codes = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    draw_staircase(staircase, Grid(bits=2))
    draw_error(error)
    draw_codes(codes)
    save(figure, "01_one_number_one_grid")


# %% Try this: predict first, then run
# 1. Add a weight of -3.0 at the end: which of the nine weights change their codes, and how large is a step?
# 2. 3 bits: how many times smaller is the step than with 2, and why not exactly half?
# 3. Take 2.0 out: by how much do the steps of symmetric and asymmetric differ now?

if __name__ == "__main__":
    main()
