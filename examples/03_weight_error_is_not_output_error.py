"""Lesson 3: the error of the weights is not the error of the outputs.

What you will learn
- a layer is judged by its outputs X W^T, and the squared error there is d H d^T for each row, with
  d = W - W^ and H = X^T X: an error counts by the direction it points in;
- real inputs repeat one another, so most directions hardly count, and a few count for everything;
- GPTQ (how it works is lesson 4) makes a *larger* error in the weights than rounding to nearest, and a
  smaller one in the outputs.

Paper: GPTQ (Frantar et al. 2022, arXiv 2210.17323), equation 1. Page: docs/methods/gptq.md
Source: qlib/methods/hessian.py, output_error.py    Exercise: examples/exercises/ex03_output_error_from_h.py
Run: python examples/03_weight_error_is_not_output_error.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREY, INK, ORANGE, canvas, save
from torch import Tensor

from qlib.grid import Grid
from qlib.methods.gptq import gptq, hessian
from qlib.methods.rtn import rtn

COLUMNS, TOKENS = 128, 2000
BITS = [2, 3, 4, 6, 8]


# %% What is computed
def inputs(seed: int) -> Tensor:
    """Return X [TOKENS, COLUMNS], a row for each token, mostly in a few directions, as activations are."""
    mixing = torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0))
    strength = torch.logspace(0, -2, COLUMNS)[:, None]
    return torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(seed)) @ (strength * mixing)


def weight_error(weight: Tensor, other: Tensor) -> float:
    """Return |W - W^|^2 / |W|^2."""
    return float((other - weight).square().sum() / weight.square().sum())


def output_error(weight: Tensor, other: Tensor, tokens: Tensor) -> float:
    """Return |X W^T - X W^^T|^2 / |X W^T|^2."""
    return float((tokens @ (other - weight).T).square().sum() / (tokens @ weight.T).square().sum())


def random_errors(weight: Tensor, tokens: Tensor, count: int = 300) -> list[float]:
    """Return output errors of changes that all have one size, 1 % of |W|^2, but point anywhere.

    Each is drawn along a random handful of the principal directions of the inputs.
    """
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.eigh(hessian(tokens)).eigenvectors.float()
    found = []
    for _ in range(count):
        first = int(torch.randint(0, COLUMNS - 8, (), generator=generator))
        change = torch.randn(len(weight), 8, generator=generator) @ directions[:, first : first + 8].T
        change *= (0.01 * weight.square().sum() / change.square().sum()).sqrt()
        found.append(output_error(weight, weight + change, tokens))
    return found


def print_table(weight: Tensor, seen: Tensor, unseen: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Print both errors for both methods; return them for the picture."""
    print("Relative squared errors in %, group of 64\n")
    print("               error of the weights    error of the outputs    on tokens not seen")
    print("bits             nearest       GPTQ      nearest       GPTQ      nearest       GPTQ")
    points: dict[str, list[tuple[float, float]]] = {"nearest": [], "GPTQ": []}
    for bits in BITS:
        grid = Grid(bits, group=64)
        both = {"nearest": rtn(weight, grid).decode(), "GPTQ": gptq(weight, hessian(seen), grid).decode()}
        columns = [[weight_error(weight, other) for other in both.values()]]
        columns += [[output_error(weight, other, x) for other in both.values()] for x in (seen, unseen)]
        print(f"{bits:4d}      " + "  ".join(f"{100 * a:11.4f}{100 * b:11.4f}" for a, b in columns))
        for name, error, result in zip(both, columns[0], columns[1], strict=True):
            points[name].append((error, result))
    return points


# %% The pictures
def draw_points(axes: Any, points: dict[str, list[tuple[float, float]]], cloud: list[float]) -> None:
    """Draw output error against weight error: the cloud has one weight error and every output error."""
    axes.plot([0.01] * len(cloud), cloud, ".", color=GREY, markersize=4, label="300 changes of one size")
    for (name, line), color in zip(points.items(), (ORANGE, BLUE), strict=True):
        axes.plot(*zip(*line, strict=True), "o-", color=color, label=f"{name}, 2 to 8 bits")
        for bits, place in zip(BITS, line, strict=True):
            axes.annotate(str(bits), place, (7, -11), textcoords="offset points", fontsize=9, color=color)
    axes.set_title("Same weight error, any output error")
    axes.set(xlabel="squared error of the weights, relative", ylabel="squared error of the outputs, relative")
    axes.set(xscale="log", yscale="log")
    axes.legend(loc="upper left")


def draw_directions(axes: Any, weight: Tensor, tokens: Tensor) -> None:
    """Draw how the error is spread over the principal directions of the inputs."""
    values, directions = torch.linalg.eigh(hessian(tokens))
    order, grid = range(1, COLUMNS + 1), Grid(3, group=64)
    axes.plot(order, values.flip(0) / values.max(), "--", color=INK, lw=1, label="how much the inputs vary")
    results = {"nearest": rtn(weight, grid), "GPTQ": gptq(weight, hessian(tokens), grid)}
    for (name, result), color in zip(results.items(), (ORANGE, BLUE), strict=True):
        energy = ((result.decode() - weight) @ directions.float()).square().sum(0).flip(0)
        share = energy / weight.square().sum() * COLUMNS
        axes.plot(order, share, color=color, label=f"error of {name}, 3 bits")
        axes.plot(
            order, share * values.flip(0) / values.max(), ":", color=color, label="... as the outputs see it"
        )
    axes.set_title("GPTQ hides its error where no input looks")
    axes.set(xlabel="principal direction of the inputs, strongest first", yscale="log")
    axes.set_ylabel("share of the inputs (dashed), error, product (dotted)")
    axes.legend(loc="lower left")


def main() -> None:
    """Print one table, draw one picture."""
    # %% 1. Both errors of both methods, on tokens that were seen and others
    weight = torch.randn(96, COLUMNS, generator=torch.Generator().manual_seed(2)) * 0.05
    seen, unseen = inputs(seed=3), inputs(seed=4)
    points = print_table(weight, seen, unseen)
    # %% 2. Changes of one size in many directions, and where each method puts its error
    figure = canvas(12, 4.6)
    left, right = figure.subplots(1, 2)
    draw_points(left, points, random_errors(weight, seen))
    draw_directions(right, weight, seen)
    save(figure, "03_weight_error_is_not_output_error")


# %% Try this: predict first, then run
# 1. Inputs that do not repeat one another (`return` without `@ (strength * mixing)`): does GPTQ still gain?
#    And with `strength` all 1, which leaves the mixing?
# 2. TOKENS = 100, fewer than columns: what happens to the errors on tokens not seen?
# 3. damping=1 in both calls of `gptq`: does it come nearer to rounding to nearest, and why?

if __name__ == "__main__":
    main()
