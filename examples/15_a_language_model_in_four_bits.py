"""Lesson 15: a language model in four bits.

What you will learn
- perplexity, exp of the mean -log p of the tokens of a text, is what a language model is measured by;
- at 4 bits all methods are near, at 3 far apart (58 to 391), and their order is not that of the weight error;
- some inputs of a language model are enormous ("massive activations"): in some layers a single one carries up
  to 96 % of the energy (the sum of x^2). Nearly all weights that meet it are nearer to 0 than half a step. A
  whole zero point gives 0 a code, so these weights become 0 and err by their own small size. HQQ moves the
  zero point to where *all* weights of a group are met best; then 0 is no value of the grid, and they err as
  much as any;
- so a method that never sees the inputs can make the weights better and the model worse.

Papers: HQQ (Badri and Shaji 2023); massive activations (Sun et al. 2024, arXiv 2402.17762), section 2.
Page: docs/language_models.md, docs/methods/hqq.md    Source: qlib/likelihood.py, qlib/methods/hqq.py
Exercise: examples/exercises/ex06_hqq_zero.py
Run: python examples/15_a_language_model_in_four_bits.py     (three minutes with SmolLM2, if it was fetched)
"""

from __future__ import annotations

import copy
from typing import Any

from language_pictures import draw_language_model
from passages import passages
from torch import Tensor

import qlib
from qlib.calibrate import walk_blocks
from qlib.methods.contracts import Needs
from qlib.models.table import align
from qlib.text import text_batches

METHODS: dict[str, Any] = {"RTN": qlib.RTN(), "HQQ": qlib.HQQ(), "AWQ": qlib.AWQ(), "GPTQ": qlib.GPTQ()}
SYMMETRIC: tuple[str, ...] = ()  # names of METHODS whose grid is symmetric; the others have a zero point
LARGE = 0.05  # an input with more than this share of a layer's energy is one of the enormous ones


# %% 1. A model
def load() -> tuple[Any, bool]:
    """Return SmolLM2, or a small model of this repository where it was not fetched, and which of them."""
    try:
        return qlib.load_model("smollm2-135m-instruct"), True
    except qlib.ModelError:
        print("smollm2-135m-instruct is not here (python -m qlib.models fetch smollm2-135m-instruct).")
        print("Instead: drafter-7m, of this repository. No input of it has more than a third of the energy:")
        print("there HQQ at 3 bits is better than RTN.\n")
        return qlib.load_model("drafter-7m"), False


# %% 2. What each layer reads: the share of each input in the sum of x^2, from the diagonal of H = X^T X
def input_shares(model: Any, texts: list[str]) -> dict[str, Tensor]:
    """Return for each layer the share of each of its inputs, [inputs]."""
    shares = {}
    for block in walk_blocks(copy.deepcopy(model), text_batches(model, texts)):
        for name, stats in block.collect(Needs.HESSIAN).items():
            shares[name] = stats.hessian.diagonal() / stats.hessian.trace()
    return shares


def size(weights: Tensor) -> float:
    """Return the root mean square."""
    return float(weights.square().mean().sqrt())


# %% 3. A repair: take the columns that meet enormous inputs from another model
def with_columns(rounded: Any, source: Any, shares: dict[str, Tensor]) -> Any:
    """Return a copy of a rounded model whose columns at the enormous inputs are those of `source`."""
    repaired = copy.deepcopy(rounded)
    for name, share in shares.items():
        large = share > LARGE
        repaired.get_submodule(name).weight.data[:, large] = source.get_submodule(name).weight.data[:, large]
    return repaired


# %% 4. One row of each table
def measured(name: str, result: qlib.Result, found: qlib.Perplexity) -> tuple[str, ...]:
    """Return size, mean weight error and perplexity of a rounded model."""
    report, (low, high) = result.report, found.interval
    error = sum(layer.weight_error for layer in report.layers) / len(report.layers)
    figures = f"{report.bits_per_weight:.2f}", f"{error:.4f}", f"{found.value:.1f}"
    return (name, *figures, f"{low:.1f} to {high:.1f}")


def column_errors(name: str, share: Tensor, exact: Any, rtn: Any, hqq: Any) -> tuple[str, ...]:
    """Return how both methods round the column that meets a layer's largest input, and all columns."""
    top, W = int(share.argmax()), exact.get_submodule(name).weight.detach()
    values = [model.get_submodule(name).weight for model in (rtn, hqq)]
    near = float((values[0][:, top] == 0).float().mean())  # nearer to 0 than half a step: RTN makes them 0
    errors = [size((each - W)[:, top]) / size(W) for each in values]
    errors += [size(each - W) / size(W) for each in values]
    return (name, str(top), f"{share[top]:.2f}", f"{near:.0%}", *(f"{each:.2f}" for each in errors))


def main() -> None:
    """Print three tables, draw one picture."""
    # %% 5. Four methods, two widths
    model, real = load()
    calib, test = passages()
    exact = qlib.perplexity(model, test, progress=False)
    print(f"float: {exact}\n")
    rows, points, rounded = [("", "bits per weight", "weight error", "perplexity", "95 % interval")], {}, {}
    for name, method in METHODS.items():
        points[name] = []
        for bits in (3, 4):
            few = calib if method.needs else None  # RTN and HQQ look at no inputs
            grid = qlib.Grid(bits, 64, symmetric=name in SYMMETRIC)
            result = qlib.quantize(model, method, weight=grid, calib=few, progress=False)
            found = qlib.perplexity(result.model, test, progress=False)
            rounded[name, bits] = result.model
            rows.append(measured(f"{name} w{bits}", result, found))
            points[name].append((result.report.bits_per_weight, found.value))
    print(align(rows))

    # %% 6. Where HQQ goes wrong: the layers whose input is nearly one number
    shares, rtn, hqq = input_shares(model, calib), rounded["RTN", 3], rounded["HQQ", 3]
    worst = sorted(shares, key=lambda name: -float(shares[name].max()))[:8]
    rows = [
        ("layer", "input", "its share", "near 0", "RTN's error there", "HQQ's", "in all columns", "HQQ's")
    ]
    rows += [column_errors(name, shares[name], model, rtn, hqq) for name in worst]
    print(f"\n3 bits; errors as root mean squares, divided by that of the weights\n\n{align(rows)}")

    # %% 7. The test: exchange these columns, and nothing else
    large = sum(int((share > LARGE).sum()) for share in shares.values())
    trials = {
        "HQQ": hqq,
        "HQQ, these columns in float": with_columns(hqq, model, shares),
        "HQQ, these columns from RTN": with_columns(hqq, rtn, shares),
        "RTN": rtn,
        "RTN, these columns from HQQ": with_columns(rtn, hqq, shares),
    }
    rows = [("w3", "perplexity")]
    rows += [
        (name, f"{qlib.perplexity(each, test, progress=False).value:.1f}") for name, each in trials.items()
    ]
    print(f"\n{large} columns of {len(shares)} layers meet an enormous input\n\n{align(rows)}")
    if not real:
        print("\nRun it with SmolLM2 to see the opposite.")
    name, W = worst[0], model.get_submodule(worst[0]).weight.detach()
    values = {"RTN": rtn.get_submodule(name).weight, "HQQ": hqq.get_submodule(name).weight}
    errors = {each: (value - W).square().mean(0).sqrt() / size(W) for each, value in values.items()}
    draw_language_model(exact.value, points, shares[name], errors)


# %% Try this: predict first, then run
# 1. "HQQ 0": qlib.HQQ(iterations=0) in METHODS, a float zero without any iteration: better or worse than HQQ,
#    than RTN?
# 2. "QUIK": qlib.QUIK(columns=8) in METHODS keeps the columns of the largest inputs in float. What perplexity
#    at w3?
# 3. SYMMETRIC = ("RTN",), a grid without zero points: 0 has a code as well. Where does it land?

if __name__ == "__main__":
    main()
