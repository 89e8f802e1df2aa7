"""Lesson 17: which layers hurt, and a plan of bits.

What you will learn
- the error of a layer says little about what it does to the text; the gradient of the log-probabilities says
  how much the text depends on it: KL = 1/2 mean of (g . E)^2 for a small change E of its weight;
- with a loss for each layer on each grid, the best plan within a budget is a knapsack: one option of each
  layer, costs within the budget, the sum of losses smallest;
- at the same size, bits put where they count beat the same bits everywhere.

Paper: Theis et al. 2018 (arXiv 1801.05787). Page: docs/explain.md, docs/cost.md
Source: qlib/analysis/fisher.py, knapsack.py, allocate.py
Exercise: examples/exercises/ex03_output_error_from_h.py
Run: python examples/17_which_layers_hurt.py                            a random miniature (seconds)
     python examples/17_which_layers_hurt.py --model whisper-tiny.en    real words (some minutes)
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from drawing import BLUE, ORANGE, canvas, save
from recognizer import chosen_recognizer

import qlib
from qlib.analysis.knapsack import least_loss
from qlib.asr.calibration import speech_batches
from qlib.models.table import align

GRIDS = [qlib.Grid(bits, 32, scale_bits=16) for bits in (2, 3, 4, 5, 6)]


# %% 1. A knapsack by hand: three layers, three options each, at most BUDGET bits together
BUDGET = 10
COSTS = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
LOSSES = [[9.0, 3.0, 1.0], [2.0, 1.9, 1.8], [5.0, 2.5, 0.5]]


def by_hand(budget: int) -> tuple[int, ...]:
    """Try all plans; return the option of each layer in the best one."""
    plans = list(product(range(3), repeat=3))
    allowed = [plan for plan in plans if sum(COSTS[i][o] for i, o in enumerate(plan)) <= budget]
    return min(allowed, key=lambda plan: sum(LOSSES[i][o] for i, o in enumerate(plan)))


# %% 2. What is lost in the end: the KL divergence of the logits on recordings of which nothing was known
@torch.no_grad()
def logprobs(model: Any, batches: list[Any]) -> torch.Tensor:
    """Return log p of all true tokens' positions, given the true tokens before them."""
    found = [model(batch.features, batch.tokens)[batch.token_mask] for batch in batches]
    return torch.cat(found).log_softmax(-1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Return the mean KL(p || q) over positions, in nats."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def main() -> None:
    """Print tables, draw one picture."""
    # %% 3. By hand, and the layers of a model
    tried, fast = by_hand(BUDGET), least_loss(COSTS, LOSSES, BUDGET)
    print(f"three layers, at most {BUDGET} bits: options {tried} by trying all, {fast}")
    model, calib, test, real = chosen_recognizer()
    found = qlib.sensitivity(model, GRIDS, calib[:6], measure="fisher", progress=False)
    rows = [("layer", *(f"w{grid.bits}" for grid in GRIDS))]
    rows += [(name, *(f"{found.losses[name][grid]:.2g}" for grid in GRIDS)) for name in found.worst(GRIDS[1])]
    print(f"\nthe layers that hurt most at 3 bits, each rounded alone: {found.unit}\n\n{align(rows)}")
    batches = speech_batches(model, test[:8])
    reference = logprobs(model, batches)

    def measure(weight: Any) -> tuple[float, float]:
        result = qlib.quantize(model, [], weight=weight, progress=False)
        return result.report.bits_per_weight, divergence(reference, logprobs(result.model, batches))

    # %% 4. A plan for each budget, and the same bits everywhere
    ends, curves = (GRIDS[0], GRIDS[-1]), []
    names = [f"{grid.bits}-bit layers" for grid in ends]
    rows = [("bits per weight", "uniform KL", "planned KL", *names)]
    for grid in GRIDS[1:4]:
        bits, uniform = measure(grid)
        plan = qlib.allocate(found.losses, model, bits_per_weight=bits)
        planned_bits, planned = measure(plan)
        counts = [sum(each.grid == chosen for each in plan.layers) for chosen in ends]
        rows.append((f"{bits:.2f}", f"{uniform:.4f}", f"{planned:.4f}", *map(str, counts)))
        curves.append((bits, uniform, planned_bits, planned))
    print(f"\n{len(test[:8])} other recordings, rounded to nearest; KL in nats per token\n\n{align(rows)}")
    if not real:
        print("\nThe miniature's weights are random and few: a plan gains little there, and may lose. "
              "See --model.")  # fmt: skip

    # %% 5. The same in a picture
    figure = canvas(7, 4)
    axes = figure.subplots()
    axes.plot(
        [c[0] for c in curves], [c[1] for c in curves], "o-", color=ORANGE, label="the same bits everywhere"
    )
    axes.plot([c[2] for c in curves], [c[3] for c in curves], "o-", color=BLUE, label="bits where they count")
    title = "At the same size, a plan loses less" if real else "A miniature: how it is measured"
    axes.set(title=title, xlabel="bits per weight, scales counted", ylabel="KL, nats a token", yscale="log")
    axes.legend()
    save(figure, "17_which_layers_hurt")


# %% Try this: predict first, then run
# 1. BUDGET = 8: two bits less. Which layers give them up, and why does not one layer give up both?
# 2. measure="output" in place of "fisher": at which budgets does the plan beat uniform bits, now and before?
# 3. Offer 8 bits as well, behind the 6 in GRIDS. Does any layer take them in the plan of the smallest budget?

if __name__ == "__main__":
    main()
