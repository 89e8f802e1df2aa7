"""Lesson 4: GPTQ, column by column.

What you will learn
- GPTQ rounds one column, and at once moves all later columns so that the outputs hardly change;
- how far each column moves is written in one row of a triangular matrix U, with U^T U = H^-1;
- the columns still free can absorb almost everything; the last ones have nobody left to help them;
- so the order matters: columns with large inputs should come first (act-order).

Paper: GPTQ (Frantar et al. 2022, arXiv 2210.17323), equations 2 to 4, algorithm 1. Page: docs/methods/gptq.md
Source: qlib/methods/gptq.py, compensate.py
Exercises: examples/exercises/ex04_gptq.py, ex05_u_from_cholesky.py
Run: python examples/04_gptq_column_by_column.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREEN, INK, ORANGE, canvas, save
from torch import Tensor

from qlib.grid import Grid
from qlib.methods.gptq import gptq, gptq_plain, gptq_steps, hessian, inverse_factor
from qlib.methods.rtn import rtn

ROWS, COLUMNS, TOKENS = 24, 48, 1000
GRID = Grid(bits=3)
SNAPSHOTS = [0, 11, 23, 35, 47]


# %% What is computed
def inputs() -> Tensor:
    """Return tokens whose features repeat one another; the later ones are larger."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * torch.logspace(0, -1.5, COLUMNS)[:, None]
    return torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing * torch.linspace(0.5, 2, COLUMNS)


def output_error(weight: Tensor, other: Tensor, tokens: Tensor) -> float:
    """Return |X W^T - X W^^T|^2 / |X W^T|^2."""
    return float((tokens @ (other - weight).T).square().sum() / (tokens @ weight.T).square().sum())


def errors_of_gptq(weight: Tensor, tokens: Tensor, **switches: bool) -> tuple[list[float], list[Tensor]]:
    """Return the output error after each column, and the snapshots, in the order of the visit."""
    steps = gptq_steps(weight, hessian(tokens), GRID, **switches)
    visited = [(step.column, step.weight.float()) for step in steps]  # .float() copies the running weight
    order = [column for column, _ in visited]
    errors = [output_error(weight[:, order], state, tokens[:, order]) for _, state in visited]
    return errors, [visited[k][1] for k in SNAPSHOTS]


def errors_of_rtn(weight: Tensor, tokens: Tensor) -> list[float]:
    """Return the output error after each column when nobody compensates."""
    rounded, errors = rtn(weight, GRID).decode(), []
    for column in range(1, COLUMNS + 1):
        errors.append(output_error(weight, torch.cat([rounded[:, :column], weight[:, column:]], 1), tokens))
    return errors


def print_table(curves: dict[str, list[float]]) -> None:
    """Print the output error along the way."""
    print(f"Relative squared output error in % after rounding so many of {COLUMNS} columns ({GRID})\n")
    print(f"{'columns':22}" + "".join(f"{k + 1:9d}" for k in SNAPSHOTS))
    for name, errors in curves.items():
        print(f"{name:22}" + "".join(f"{100 * errors[k]:9.3f}" for k in SNAPSHOTS))


def by_hand() -> None:
    """Round three weights on whole numbers, and print what each column passes on."""
    w = torch.tensor([2.4, 1.3, 0.7])
    H = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.5], [0.2, 0.5, 1.0]], dtype=torch.float64)
    U = inverse_factor(H, damping=0)
    print("Three weights on whole numbers. H says that neighbours are alike; an error of 1 in column j takes")
    print("U_jk / U_jj off each later column k.\n")
    start, nearest = w.clone(), w.round()
    for j in range(3):
        q = w[j].round()
        moves = -(w[j] - q) * U[j, j:] / U[j, j]
        shares = " ".join(f"{float(each):6.2f}" for each in U[j, j:] / U[j, j])
        print(f"column {j + 1}: {w[j]:5.2f} -> {q:3.0f}    U_j/U_jj {'':{7 * j}}{shares}")
        w[j:] += moves
    for name, found in (("nearest", nearest), ("GPTQ", w)):
        d = (start - found).double()
        print(f"{name:8} {found.tolist()}   d H d^T = {float(d @ H @ d):.3f}")
    print()


# %% The pictures
def draw_factor(axes: Any, U: Tensor) -> None:
    """Draw row j of U divided by U_jj: how far column k moves for an error of 1 in column j."""
    axes.imshow((U / U.diagonal()[:, None]).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(title="Who makes up for whom", xlabel="column k that moves", ylabel="column j that is rounded")
    axes.grid(visible=False)


def draw_heat(axes: Any, states: list[Tensor], weight: Tensor) -> Any:
    """Draw how far each weight has moved; left of the line it is rounded, right of it compensated."""
    for axis, state, k in zip(axes, states[1:4], SNAPSHOTS[1:4], strict=True):
        moved = (state - weight).numpy()
        image = axis.imshow(moved, cmap="RdBu_r", vmin=-0.8, vmax=0.8, aspect="auto", interpolation="nearest")
        axis.axvline(k + 0.5, color=INK, linewidth=1.5)
        axis.set(title=f"after column {k + 1}", xlabel="rounded | compensated", xticks=[0, 23, 47])
        axis.set_xticklabels(["1", "24", "48"])
        axis.set_yticks([])
        axis.grid(visible=False)
    axes[0].set_ylabel("output (row of W)")
    return image


def draw_curves(axes: Any, curves: dict[str, list[float]]) -> None:
    """Draw the output error against the number of columns done."""
    for (name, errors), color in zip(curves.items(), (ORANGE, BLUE, GREEN), strict=True):
        axes.plot(range(1, COLUMNS + 1), errors, color=color, label=name)
    axes.set(
        title="The bill comes at the end",
        xlabel="columns rounded",
        ylabel="relative squared output error",
        yscale="log",
    )
    axes.legend(loc="lower right")


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. Three columns by hand
    by_hand()

    # %% 2. The output error after each column, in three ways
    tokens = inputs()
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    left_to_right, states = errors_of_gptq(weight, tokens, act_order=False)
    largest_first, _ = errors_of_gptq(weight, tokens, act_order=True)
    curves = {"nearest": errors_of_rtn(weight, tokens), "GPTQ, left to right": left_to_right,
              "GPTQ, largest first": largest_first}  # fmt: skip
    print_table(curves)
    # %% 3. The fast form is the same
    H = hessian(tokens)
    same = torch.equal(gptq(weight, H, GRID).codes, gptq_plain(weight, H, GRID).codes)
    print(f"\nThe fast form in blocks gives the same codes as the one above: {same}")
    # %% 4. U, and how far each weight has moved, at three moments
    U = inverse_factor(H)
    print(f"An error of 1 in column 1 takes {float(U[0, 23] / U[0, 0]):.3f} off column 24.")
    figure = canvas(15, 4)
    axes = figure.subplots(1, 5, width_ratios=[1.5, 1, 1, 1, 1.7])
    draw_factor(axes[0], U)
    image = draw_heat(axes[1:4], states, weight)
    figure.colorbar(image, ax=axes[3], label="moved by")
    draw_curves(axes[4], curves)
    save(figure, "04_gptq_column_by_column")


# %% Try this: predict first, then run
# 1. Largest inputs first (`torch.linspace(2, 0.5, COLUMNS)`): what does act-order gain now?
# 2. Uncorrelated inputs (`mixing = torch.eye(COLUMNS)`): how far does column 1 still move column 24?
# 3. GRID = Grid(bits=2): does the curve of GPTQ end below that of rounding to nearest?

if __name__ == "__main__":
    main()
