"""Lesson 2: granularity, or how many weights should share a scale.

What you will learn
- one large weight spoils the grid of everything that shares its scale;
- smaller groups have smaller errors, but each has to store a scale and a zero point: compare at equal
  *stored* bits per weight.

Paper: Krishnamoorthi 2018 (arXiv 1806.08342), section 2.6. Page: docs/methods/rtn.md
Source: qlib/grid/definition.py, qlib/methods/rtn.py
Exercise: examples/exercises/ex02_groups_and_stored_bits.py
Run: python examples/02_granularity.py        (a few seconds)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save
from torch import Tensor

from qlib.grid import Grid
from qlib.methods.rtn import rtn

BITS = [2, 3, 4, 5, 6, 8]
# Name: columns that share a scale (0: the whole tensor, None: a row), color.
GRAINS = {"per tensor": (0, GREY), "per channel": (None, RED), "group 128": (128, ORANGE),
          "group 64": (64, GREEN), "group 32": (32, BLUE), "group 8": (8, PURPLE)}  # fmt: skip


# %% What is computed
def layer(rows: int = 384, columns: int = 384) -> Tensor:
    """Return a weight as trained layers have it: rows of different size, one weight in 500 far out."""
    generator = torch.Generator().manual_seed(0)
    size = 0.05 * (0.3 + torch.rand(rows, 1, generator=generator))
    weight = size * torch.randn(rows, columns, generator=generator)
    outlier = torch.rand(rows, columns, generator=generator) < 1 / 500
    return torch.where(outlier, weight * 8, weight)


def relative_error(weight: Tensor, bits: int, group: int | None) -> float:
    """Return the squared error of rounding to nearest, as a share of the squared weight."""
    if group == 0:
        weight, group = weight.reshape(1, -1), None  # one long row: one scale
    error = rtn(weight, Grid(bits, group)).decode() - weight
    return float(error.square().sum() / weight.square().sum())


def stored_bits(weight: Tensor, bits: int, group: int | None) -> float:
    """Return the bits a weight takes, its share of scale and zero point included."""
    sharing = weight.numel() if group == 0 else group or weight.shape[1]
    return bits + (32 + bits) / sharing  # a float32 scale, a zero point as wide as a code


def print_table(weight: Tensor) -> dict[str, list[float]]:
    """Print error and size for each grain and number of bits; return the errors for the picture."""
    print("Relative squared error in %, and stored bits per weight (in brackets)\n")
    print(f"{'':12}" + "".join(f"{f'{bits} bits':>17}" for bits in BITS))
    errors = {}
    for name, (group, _) in GRAINS.items():
        errors[name] = [relative_error(weight, bits, group) for bits in BITS]
        sizes = [stored_bits(weight, bits, group) for bits in BITS]
        print(
            f"{name:12}"
            + "".join(f"{100 * e:10.3g} ({s:4.1f})" for e, s in zip(errors[name], sizes, strict=True))
        )
    return errors


def print_sorted(weight: Tensor, errors: dict[str, list[float]]) -> None:
    """Print all settings between 4 and 6 stored bits, the smallest first."""
    rows = [
        (stored_bits(weight, bits, group), errors[name][i], f"{bits} bits, {name}")
        for name, (group, _) in GRAINS.items()
        for i, bits in enumerate(BITS)
    ]
    print("\nbits stored   error %   setting")
    for size, error, setting in sorted(rows):
        if 4 <= size <= 6:
            print(f"{size:11.2f}{100 * error:10.3g}   {setting}")


# %% The pictures
def draw_row(axes: Any, weight: Tensor) -> None:
    """Draw one row of weights and the half step that two grains give it."""
    row = weight[[int((weight.amax(1) - 0.5).abs().argmin())]]  # its outlier is about 0.5
    for group, color, name in ((None, RED, "one scale a row"), (64, BLUE, "one scale for 64 columns")):
        half = rtn(row, Grid(4, group)).scale[0].repeat_interleave(group or row.shape[1]) / 2
        axes.fill_between(range(384), -half, half, step="mid", color=color, alpha=0.45, lw=0, label=name)
    axes.plot(row[0], ".", color=INK, markersize=3)
    place, top = int(row.abs().argmax()), float(row.abs().max())
    side, ha = (-20, "right") if place > 140 else (20, "left")
    axes.annotate(f"the largest: {top:.2f}", (place, 0.12), (place + side, 0.1), ha=ha, va="center",
                  arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    axes.set(
        title="Half a step at 4 bits, over one row", xlabel="column", ylabel="weight", ylim=(-0.12, 0.12)
    )
    axes.legend(loc="lower right")


def draw_curves(axes: Any, errors: dict[str, list[float]]) -> None:
    """Draw the error of each grain against the bits of a code."""
    for name, (_, color) in GRAINS.items():
        axes.plot(BITS, errors[name], "o-", color=color, markersize=4, label=name)
    axes.set(title="Smaller groups, smaller errors", xlabel="bits of a code", yscale="log")
    axes.set_ylabel("relative squared error")
    axes.legend(loc="lower left")


def bits_for(goal: float, weight: Tensor, group: int) -> float:
    """Return the stored bits that reach an error, interpolated between whole numbers of bits."""
    errors = [math.log(relative_error(weight, bits, group)) for bits in range(2, 9)]
    above = sum(error > math.log(goal) for error in errors) or 1  # place of the first error below the goal
    part = (math.log(goal) - errors[above - 1]) / (errors[above] - errors[above - 1])
    return stored_bits(weight, above + 1, group) + part


def draw_cost(axes: Any, weight: Tensor) -> None:
    """Draw how many bits have to be stored to reach a given error, for each group size."""
    groups = [8, 16, 32, 48, 64, 96, 128, 192, 384]
    for goal, color in ((0.1, BLUE), (0.01, ORANGE), (0.001, PURPLE)):
        needed = [bits_for(goal, weight, group) for group in groups]
        axes.plot(groups, needed, "o-", color=color, markersize=4, label=f"squared error {100 * goal:g} %")
        axes.plot(groups[needed.index(min(needed))], min(needed), "o", color=color, markersize=10, mfc="none")
    axes.set(title="... but they are not free", xlabel="columns in a group", ylabel="stored bits per weight")
    axes.set_xscale("log", base=2)
    axes.set_xticks([8, 16, 32, 64, 128, 384], ["8", "16", "32", "64", "128", "row"])
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. One weight, six grains, six widths
    weight = layer()
    errors = print_table(weight)
    small, wide = stored_bits(weight, 4, 8), stored_bits(weight, 8, None)
    print("\nRead down a column: smaller groups always win. Read the brackets: 4 bits in groups of 8 take")
    print(f"{small:.1f}, 8 bits per channel {wide:.1f}, and theirs is by far the smaller error.")
    print("32 to 128 is the usual compromise.")
    print_sorted(weight, errors)
    # %% 2. One row, the errors, and what they cost in stored bits
    figure = canvas(13, 4)
    left, middle, right = figure.subplots(1, 3)
    draw_row(left, weight)
    draw_curves(middle, errors)
    draw_cost(right, weight)
    save(figure, "02_granularity")


# %% Try this: predict first, then run
# 1. No outliers (`< 0` in `layer`): at 4 bits, does group 8 still gain on group 128? And which group stores
#    the fewest bits for the same error (circles, picture on the right)?
# 2. Scales of 16 bits (`16 + bits` in `stored_bits`): do the circles move to larger or smaller groups?
# 3. No outliers, and rows of equal size (`size = 0.05`): is per channel still better than per tensor? Why?

if __name__ == "__main__":
    main()
