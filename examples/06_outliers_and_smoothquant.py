"""Lesson 6: a few huge channels, and how SmoothQuant shares the burden.

What you will learn
- a channel is here one input of a layer: a column of X, which meets one column of W;
- a few channels 100 times larger than the rest stretch the grid of every token, and the others drown;
- dividing a channel by s and multiplying its weights by s changes nothing in float;
- alpha says how much of the range moves: too little leaves the inputs hard, too much makes the weights hard;
- a channel that never carries anything keeps s = 1.

Paper: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), equations 3 and 4. Page: docs/methods/smoothquant.md
Source: qlib/methods/smoothquant.py    Exercise: examples/exercises/ex07_smoothing_scale.py
Run: python examples/06_outliers_and_smoothquant.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREEN, ORANGE, canvas, save
from torch import Tensor

from qlib.activation import PerToken
from qlib.grid import Grid
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale

ROWS, COLUMNS, TOKENS = 128, 96, 1000
WEIGHTS, INPUTS = Grid(bits=8, symmetric=True), PerToken(bits=8, symmetric=True)
ALPHAS = [k / 20 for k in range(21)]
SIZES = [1, 10, 30, 100]


# %% What is computed
def inputs(size: float, seed: int = 0) -> Tensor:
    """Return tokens; every 24th channel is `size` times larger, channel 5 is always 0."""
    tokens = torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    tokens[:, ::24] *= size
    tokens[:, 5] = 0
    return tokens


def error(weight: Tensor, tokens: Tensor, scale: Tensor, rounds: str) -> float:
    """Return the relative squared output error when weights ("w"), inputs ("x") or both are rounded."""
    W, X = weight * scale, tokens / scale
    if "w" in rounds:
        W = rtn(W, WEIGHTS).decode()
    if "x" in rounds:
        X = INPUTS(X)
    expected = tokens @ weight.T
    return float((X @ W.T - expected).square().sum() / expected.square().sum())


def print_table(weight: Tensor) -> None:
    """Print the error on tokens that were not looked at."""
    alphas = [0.25, 0.5, 0.75, 1.0]
    print(f"Relative output error in %, w{WEIGHTS.bits}, inputs in {INPUTS.bits} bits, unseen tokens\n")
    print(f"{'outliers':>9}{'RTN':>10}" + "".join(f"{f'alpha {alpha}':>12}" for alpha in alphas))
    for size in SIZES:
        ranges, unseen = inputs(size).abs().amax(0), inputs(size, 1)
        plain = error(weight, unseen, torch.ones(COLUMNS), "wx")
        found = [error(weight, unseen, smoothing_scale(ranges, [weight], alpha), "wx") for alpha in alphas]
        print(f"{size:8d}x{100 * plain**0.5:10.2f}" + "".join(f"{100 * each**0.5:12.2f}" for each in found))


# %% The pictures
def draw_ranges(axes: Any, weight: Tensor, tokens: Tensor, scale: Tensor, title: str) -> None:
    """Draw the largest value of each channel of inputs and weights."""
    axes.plot((tokens / scale).abs().amax(0), "--", color=ORANGE, zorder=3, label="inputs")
    axes.plot((weight * scale).abs().amax(0), color=BLUE, label="weights")
    axes.set(title=title, xlabel="channel", ylabel="largest |value|", yscale="log", ylim=(1, 2000))
    axes.legend(ncols=2, loc="upper right")


def draw_alphas(axes: Any, weight: Tensor, tokens: Tensor) -> None:
    """Draw who pays for which alpha."""
    scales = [smoothing_scale(tokens.abs().amax(0), [weight], alpha) for alpha in ALPHAS]
    highest, lowest = 0.0, 1e9
    for rounds, name, color in (
        ("x", "inputs rounded", ORANGE),
        ("w", "weights rounded", BLUE),
        ("wx", "both", GREEN),
    ):
        errors = [100 * error(weight, tokens, scale, rounds) ** 0.5 for scale in scales]  # as in the table
        axes.plot(ALPHAS, errors, color=color, label=name)
        highest, lowest = max(highest, *errors), min(lowest, *errors)
    axes.set(title="The middle is a compromise", xlabel="alpha", yscale="log")
    axes.set_ylabel("relative output error, %")
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 20) if 0.9 * lowest < tick < 1.1 * highest]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()


def main() -> None:
    """Print one table, draw one picture."""
    # %% 1. Outliers of four sizes, four values of alpha
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    print_table(weight)
    # %% 2. In float nothing changes
    tokens = inputs(100)
    scale = smoothing_scale(tokens.abs().amax(0), [weight])
    changed = error(weight.double(), tokens.double(), scale.double(), "")
    unchanged = "nothing" if changed < 1e-20 else f"{changed:.1e}"
    print(f"\nChanged in float: {unchanged}; s of the dead channel: {scale[5]:.0f}")
    # %% 3. The ranges before and after, and who pays for which alpha
    figure = canvas(13, 4)
    axes = figure.subplots(1, 3)
    draw_ranges(axes[0], weight, tokens, torch.ones(COLUMNS), "Before")
    draw_ranges(axes[1], weight, tokens, scale, "After, alpha = 0.5")
    draw_alphas(axes[2], weight, tokens)
    save(figure, "06_outliers_and_smoothquant")


# %% Try this: predict first, then run
# 1. WEIGHTS of 4 bits: does the best alpha move to the left or to the right?
# 2. Outliers in half of the tokens only (`tokens[::2, ::24] *= size`), and errors of the others alone
#    (`unseen = inputs(size, 1)[1::2]` in `print_table`): what does alpha = 1 do to them?
# 3. WEIGHTS with group=24: who pays less for a large alpha, and why?

if __name__ == "__main__":
    main()
