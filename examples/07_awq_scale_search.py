"""Lesson 7: AWQ searches one number, then clips.

What you will learn
- weights that meet large inputs deserve a finer grid; scaling them up before rounding gives it to them;
- how far is a search over one exponent: too small protects nothing, too large spoils all other weights;
- the loss needs no tokens, only H = X^T X: it is d H d^T for each row d of the weight's error;
- clipping each row's range, with the same kind of loss, helps on top of that.

Paper: AWQ (Lin et al. 2023, arXiv 2306.00978), equations 4 and 5. Page: docs/methods/awq.md
Source: qlib/methods/awq.py    Exercise: examples/exercises/ex08_awq_alpha.py
Run: python examples/07_awq_scale_search.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, RED, canvas, save
from torch import Tensor

from qlib.grid import Grid
from qlib.methods.awq import awq_clip, awq_scale
from qlib.methods.gptq import hessian
from qlib.methods.rtn import rtn

ROWS, COLUMNS, TOKENS = 128, 128, 2000
SIZES, COLORS = [1, 5, 20, 50], [GREY, BLUE, GREEN, ORANGE]
GRIDS = [Grid(2), Grid(3), Grid(4), Grid(3, group=32)]


# %% What is computed
def inputs(size: float, seed: int = 0) -> Tensor:
    """Return tokens whose channels differ, and every 16th is `size` times larger still."""
    tokens = torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    tokens *= torch.logspace(-0.3, 0.3, COLUMNS)
    tokens[:, ::16] *= size
    return tokens


def error(weight: Tensor, values: Tensor, tokens: Tensor) -> float:
    """Return the relative squared output error."""
    return float((tokens @ (values - weight).T).square().sum() / (tokens @ weight.T).square().sum())


def ladder(weight: Tensor, grid: Grid, size: float) -> list[float]:
    """Return the errors on unseen tokens: nothing, clipped only, scaled only, both."""
    tokens, unseen = inputs(size), inputs(size, 1)
    H = hessian(tokens)
    scale, _ = awq_scale([weight], H, tokens.abs().mean(0), grid)
    s = scale.double()
    H_scaled = H / s / s[:, None]  # what the scaled weight reads is x / s: sum of (x / s)(x / s)^T
    both = awq_clip(weight * scale, H_scaled, grid)
    return [
        error(weight, rtn(weight, grid).decode(), unseen),
        error(weight, rtn(awq_clip(weight, H, grid), grid).decode(), unseen),
        error(weight, rtn(weight * scale, grid).decode() / scale, unseen),
        error(weight, rtn(both, grid).decode() / scale, unseen),
    ]


def print_table(weight: Tensor) -> list[list[float]]:
    """Print and return the errors of each grid."""
    print("Relative squared output error in %, channels 20 times larger, unseen tokens\n")
    print(f"{'grid':28}{'RTN':>9}{'clip':>9}{'scale':>9}{'both':>9}")
    rows = [ladder(weight, grid, 20) for grid in GRIDS]
    for grid, found in zip(GRIDS, rows, strict=True):
        print(f"{grid!s:28}" + "".join(f"{100 * each:9.4g}" for each in found))
    return rows


# %% The pictures
def draw_losses(axes: Any, weight: Tensor) -> None:
    """Draw the loss over the exponent, for outliers of several sizes."""
    for size, color in zip(SIZES, COLORS, strict=True):
        tokens = inputs(size)
        _, losses = awq_scale([weight], hessian(tokens), tokens.abs().mean(0), Grid(3))
        shares = losses / losses[0]
        best = int(losses.argmin())
        axes.plot([k / 20 for k in range(20)], shares, color=color, label=f"{size}x")
        axes.plot(best / 20, shares[best], "o", color=color)
    axes.set(title="One number is searched", xlabel="exponent alpha", yscale="log")
    axes.set_ylabel("squared output error, RTN = 1")
    axes.legend(title="outliers")


def draw_errors(axes: Any, weight: Tensor) -> None:
    """Draw the rounding error of each column, before and after, over the size of its input."""
    tokens = inputs(20)
    magnitude = tokens.abs().mean(0)
    scale, _ = awq_scale([weight], hessian(tokens), magnitude, Grid(3))
    for name, values, color in (
        ("as it is", rtn(weight, Grid(3)).decode(), GREY),
        ("scaled", rtn(weight * scale, Grid(3)).decode() / scale, BLUE),
    ):
        axes.scatter(magnitude, (values - weight).square().mean(0).sqrt(), color=color, s=14, label=name)
    axes.set(title="Smaller errors where inputs are large", xlabel="mean |x| of a channel",
             ylabel="error of its weights", xscale="log", yscale="log")  # fmt: skip
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xticks([], minor=True)
    axes.legend()


def draw_ladder(axes: Any, rows: list[list[float]]) -> None:
    """Draw what each search contributes."""
    for k, (name, color) in enumerate(
        zip(("RTN", "clip", "scale", "both"), (GREY, RED, BLUE, GREEN), strict=True)
    ):
        axes.bar(
            [g + 0.2 * k for g in range(len(rows))], [row[k] for row in rows], 0.18, color=color, label=name
        )
    axes.set(title="What each search adds", ylabel="relative squared output error", yscale="log")
    names = [f"w{grid.bits}" + (f" g{grid.group}" if grid.group else "") for grid in GRIDS]
    axes.set_xticks([g + 0.3 for g in range(len(rows))], names)
    axes.legend()


def main() -> None:
    """Print one table, draw one picture."""
    # %% 1. What each search adds, on four grids
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    rows = print_table(weight)
    # %% 2. The losses over the exponent, the errors of the weights, and the table again
    figure = canvas(13, 4)
    axes = figure.subplots(1, 3)
    draw_losses(axes[0], weight)
    draw_errors(axes[1], weight)
    draw_ladder(axes[2], rows)
    save(figure, "07_awq_scale_search")


# %% Try this: predict first, then run
# 1. 8 bits (`Grid(8)` in `draw_losses`; a row of it in GRIDS): where is the best exponent, what does it gain?
# 2. Every second channel 20 times larger (`::2` in `inputs`): is there anything left to protect?
# 3. Swap scale and clip in `ladder` (`clipped = awq_clip(weight, H, grid)`, search for it, `both` is
#    `clipped * scale`): is "both" as good?

if __name__ == "__main__":
    main()
