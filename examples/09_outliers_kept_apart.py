"""Lesson 9: outliers kept apart (QUIK, SpQR).

What you will learn
- a few inputs far larger than the rest spoil the grid of every token: QUIK leaves them, and the weight
  columns that meet them, in float; once they are out, more columns hardly help;
- a few single weights spoil the grid of their group: SpQR keeps those in float, one by one;
- which weight is an outlier is a matter of what its error costs at the outputs, not of its size;
- a kept weight takes 24 or 32 bits (value and place; 48 if they are very rare), so what counts is the error
  at equal bits.

Papers: QUIK (arXiv 2310.09259), section 3; SpQR (arXiv 2306.03078), algorithm 1.
Pages: docs/methods/quik.md, docs/methods/spqr.md    Source: qlib/methods/quik.py, spqr.py
Exercise: examples/exercises/ex10_outliers_at_equal_bits.py
Run: python examples/09_outliers_kept_apart.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, canvas, save
from torch import Tensor

from qlib import Grid, QuantizedWeight
from qlib.activation import PerToken
from qlib.kept_columns import KeepColumns
from qlib.methods.hessian import hessian, statistics
from qlib.methods.quik import quik
from qlib.methods.spqr import spqr

ROWS, COLUMNS, TOKENS = 128, 128, 1000
LARGE, ODD = 4, 0.01  # inputs that are 40 times larger; share of weights that are 6 times larger
INPUT_BITS = 4
KEPT = [0, 1, 2, 3, 4, 6, 8, 16, 32]
THRESHOLDS = [float("inf"), 1.0, 0.5, 0.2, 0.1, 0.05, 0.02]


# %% What is computed
def problem() -> tuple[Tensor, Tensor]:
    """Return tokens whose last few features are far larger, and a weight with a few larger entries."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * torch.logspace(0, -1, COLUMNS)[:, None]
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing
    inputs[:, -LARGE:] *= 40
    odd = torch.rand(ROWS, COLUMNS, generator=generator) < ODD
    return inputs, torch.randn(ROWS, COLUMNS, generator=generator) * (1 + 5 * odd)


def output_error(weight: Tensor, other: Tensor, inputs: Tensor, rounded: Tensor) -> float:
    """Return |X W^T - X^ W^^T|^2 / |X W^T|^2."""
    exact = inputs @ weight.T
    return float((rounded @ other.T - exact).square().sum() / exact.square().sum())


def columns_kept(weight: Tensor, inputs: Tensor) -> dict[str, list[float]]:
    """Return the output error for each number of float columns, inputs in float and rounded."""
    errors: dict[str, list[float]] = {"w4, inputs in float": [], f"w4, inputs in {INPUT_BITS} bits": []}
    for count in KEPT:
        result = quik(weight, statistics(inputs), Grid(4, symmetric=True), columns=count)
        kept = torch.empty(0, dtype=torch.int64) if result.columns is None else result.columns
        rounded = KeepColumns(PerToken(bits=INPUT_BITS), kept)(inputs)
        for name, seen in zip(errors, (inputs, rounded), strict=True):
            errors[name].append(output_error(weight, result.decode(), inputs, seen))
    return errors


def weights_kept(weight: Tensor, inputs: Tensor, grid: Grid) -> list[tuple[float, float, QuantizedWeight]]:
    """Return stored bits per weight, output error and result for each threshold."""
    results = [spqr(weight, hessian(inputs), grid, threshold=threshold) for threshold in THRESHOLDS]
    bits = [result.bits(grid) / weight.numel() for result in results]
    return [
        (b, output_error(weight, r.decode(), inputs, inputs), r) for b, r in zip(bits, results, strict=True)
    ]


def print_tables(columns: dict[str, list[float]], single: dict[int, Any]) -> None:
    """Print error by columns kept, and error and bits by weights kept."""
    print(f"QUIK: relative squared output error in %, by columns kept ({LARGE} inputs are large)\n")
    print(f"{'columns kept':22}" + "".join(f"{count:8d}" for count in KEPT))
    for name, errors in columns.items():
        print(f"{name:22}" + "".join(f"{100 * error:8.3f}" for error in errors))
    print("\nSpQR, by threshold: a weight stays in float if its error costs more than this share of what it")
    print("costs on average to replace a weight by the mean of its column\n")
    print(f"{'threshold':27}" + "".join(f"{threshold:>8}" for threshold in THRESHOLDS))
    for bits, found in single.items():
        kept = [0 if result.outliers is None else len(result.outliers) for _, _, result in found]
        lines = {
            "weights kept, %": [f"{100 * n / ROWS / COLUMNS:.1f}" for n in kept],
            "stored bits per weight": [f"{size:.2f}" for size, _, _ in found],
            "squared output error, %": [f"{100 * error:.3f}" for _, error, _ in found],
        }
        for name, cells in lines.items():
            print(f"w{bits} {name:24}" + "".join(f"{cell:>8}" for cell in cells))


# %% The pictures
def draw_map(axes: Any, weight: Tensor, result: QuantizedWeight) -> None:
    """Draw which weights SpQR keeps, and the odd ones that it does not."""
    kept = torch.zeros(weight.numel(), dtype=torch.bool)
    kept[result.outliers] = True
    odd = (weight.abs() > 4).flatten() & ~kept
    for mask, color, name in ((odd, GREY, "large, but rounded"), (kept, ORANGE, "kept")):
        row, column = mask.view(ROWS, COLUMNS).nonzero().T
        axes.scatter(column, row, s=7, color=color, label=name)
    axes.set(title="What SpQR keeps", xlabel="input (column of W)", ylabel="output (row of W)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncol=2)


def main() -> None:
    """Print two tables, draw one picture."""
    # %% 1. Columns kept apart, and single weights
    inputs, weight = problem()
    columns = columns_kept(weight, inputs)
    single = {bits: weights_kept(weight, inputs, Grid(bits, group=16)) for bits in (2, 3, 4)}
    print_tables(columns, single)
    # %% 2. The cliff, error against stored bits, and which weights are kept
    figure = canvas(14, 4)
    left, middle, right = figure.subplots(1, 3)
    for (name, errors), color in zip(columns.items(), (BLUE, ORANGE), strict=True):
        left.plot(KEPT, errors, "o-", color=color, label=name)
    left.set(title="Inputs kept apart", xlabel="columns in float", yscale="log")
    left.set_ylabel("relative squared error")
    for (bits, found), color in zip(single.items(), (ORANGE, GREEN, BLUE), strict=True):
        middle.plot(*zip(*(each[:2] for each in found), strict=True), "o-", color=color, label=f"{bits} bits")
    middle.set(title="Weights kept apart", xlabel="stored bits per weight", yscale="log", xlim=(2, 7))
    left.legend()
    middle.legend()
    draw_map(right, weight, single[3][THRESHOLDS.index(0.2)][2])
    save(figure, "09_outliers_kept_apart")


# %% Try this: predict first, then run
# 1. LARGE = 8: at how many columns is the cliff? And with INPUT_BITS = 8?
# 2. ODD = 0.05: at equal stored bits, does keeping weights still beat a further bit?
# 3. Groups of 64 for SpQR (`group=16` in `main`): does a threshold of 0.2 keep more or fewer weights?

if __name__ == "__main__":
    main()
