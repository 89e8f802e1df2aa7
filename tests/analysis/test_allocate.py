"""Mixed precision: the best plan against all plans, budgets kept to the byte, and what no plan can meet."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlib
from qlib.analysis.allocate import _most
from qlib.analysis.knapsack import least_loss
from qlib.errors import QuantError
from qlib.models.structure import Model
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper
from qlib.selection import choose_layers

GRIDS = (qlib.Grid(2, 8), qlib.Grid(4, 8), qlib.Grid(8, 16))
Case = tuple[list[list[int]], list[list[int]], int]


# --- the knapsack


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to five layers of up to four options, and a budget that some plan meets."""
    layers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    costs = [draw(st.lists(st.integers(0, 12), min_size=k, max_size=k)) for k in layers]
    losses = [draw(st.lists(st.integers(-3, 20), min_size=k, max_size=k)) for k in layers]
    return costs, losses, sum(map(min, costs)) + draw(st.integers(0, 20))


@given(cases())
def test_no_other_plan_is_better(case: Case) -> None:
    costs, losses, budget = case
    plans = [
        (sum(losses[i][o] for i, o in enumerate(plan)), sum(costs[i][o] for i, o in enumerate(plan)))
        for plan in itertools.product(*(range(len(each)) for each in costs))
    ]
    chosen = least_loss(costs, losses, budget)
    loss, cost = (sum(table[i][o] for i, o in enumerate(chosen)) for table in (losses, costs))
    assert cost <= budget
    assert (loss, cost) == min(plan for plan in plans if plan[1] <= budget)  # of equal loss, the cheapest


@given(cases(), st.integers(0, 10))
def test_a_larger_budget_never_hurts_and_units_do_not_matter(case: Case, more: int) -> None:
    costs, losses, budget = case

    def loss_of(plan: list[int]) -> int:
        return sum(losses[i][o] for i, o in enumerate(plan))

    plan = least_loss(costs, losses, budget)
    assert loss_of(least_loss(costs, losses, budget + more)) <= loss_of(plan)
    in_bits = [[8 * each for each in options] for options in costs]
    assert least_loss(in_bits, losses, 8 * budget + 7) == plan


def test_greedy_by_gain_would_fail() -> None:
    """The best ratio (6 for 3) fills the budget badly: 5 + 5 for 2 + 2 is better."""
    costs, losses = [[0, 3], [0, 2], [0, 2]], [[6.0, 0.0], [5.0, 1.0], [5.0, 1.0]]
    assert least_loss(costs, losses, 4) == [0, 1, 1]


@given(st.integers(0, 2**32 - 1))
def test_against_all_sums_of_costs(seed: int) -> None:
    """Twelve layers, losses that are no whole numbers: a table over all budgets, filled layer by layer."""
    random = np.random.default_rng(seed)
    costs = [random.integers(0, 9, 3).tolist() for _ in range(12)]
    losses = [(random.random(3) * 10.0 ** random.integers(-12, 6)).tolist() for _ in range(12)]
    budget = sum(map(min, costs)) + int(random.integers(0, 40))
    best = [0.0] * (budget + 1)  # the least loss within each budget
    for options, own in zip(costs, losses, strict=True):
        best = [
            min((best[room - c] + e for c, e in zip(options, own, strict=True) if c <= room), default=np.inf)
            for room in range(budget + 1)
        ]
    chosen = least_loss(costs, losses, budget)
    assert sum(costs[i][o] for i, o in enumerate(chosen)) <= budget
    assert sum(losses[i][o] for i, o in enumerate(chosen)) == pytest.approx(best[budget], rel=1e-12)


# --- plans


def losses_of(model: Model) -> dict[str, dict[qlib.Grid, float]]:
    """Made-up losses: the wider the layer and the earlier, the more it hurts."""
    layers = choose_layers(model, ())[0]
    return {
        name: {grid: layer.weight.numel() / (1 + number) * 4.0**-grid.bits for grid in GRIDS}
        for number, (name, layer) in enumerate(layers.items())
    }


def test_a_plan_is_what_quantize_takes_and_its_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    for model in (tiny_whisper(frames=50), tiny_moonshine(), tiny_llama()):
        losses = losses_of(model)
        plan = qlib.allocate(losses, model, bits_per_weight=7.0)
        assert plan.bits_per_weight <= 7.0
        assert len(set(plan.values())) > 1
        assert plan.loss == pytest.approx(sum(losses[name][grid] for name, grid in plan.items()))
        result = qlib.quantize(model, weight=plan, progress=False)
        assert {each.name: each.grid for each in result.report.layers} == {n: str(g) for n, g in plan.items()}
        assert result.report.bits_per_weight == pytest.approx(plan.bits_per_weight, rel=1e-12)
        content = (result.save(tmp_path / model.family) / "model.safetensors").read_bytes()
        assert plan.file_bytes == len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("activation", [None, qlib.PerToken(8), {"*": qlib.PerToken(6), "fc2": None}])
def test_bit_operations_are_those_of_the_cost_model(activation: Any) -> None:
    model = tiny_moonshine()
    settings: dict[str, Any] = {"audio_seconds": 3, "tokens": 12}
    whole = qlib.cost(model, **settings).total.bit_operations
    budget = 0.93 * whole if activation is None else 0.9 * whole
    plan = qlib.allocate(losses_of(model), model, bit_operations=budget, activation=activation, **settings)
    assert plan.bit_operations is not None and plan.bit_operations <= budget
    quantized = qlib.quantize(model, weight=plan, activation=activation, progress=False).model
    assert qlib.cost(quantized, **settings).total.bit_operations == plan.bit_operations


def test_the_budget_of_a_plan_gives_that_plan_again() -> None:
    model = tiny_llama()
    losses = losses_of(model)
    plan = qlib.allocate(losses, model, bits_per_weight=7.3)
    for budget in ({"bits_per_weight": plan.bits_per_weight}, {"file_bytes": plan.file_bytes}):
        assert dict(qlib.allocate(losses, model, **budget)) == dict(plan)  # type: ignore[arg-type]
    assert dict(qlib.allocate(losses, model, file_bytes=plan.file_bytes - 1)) != dict(plan)


@given(st.integers(1, 10**10), st.integers(2, 10**9))
def test_an_average_stands_for_the_bits_that_it_was_computed_from(bits: int, weights: int) -> None:
    assert _most("bits_per_weight", bits / weights, weights, 0) == bits


def test_the_best_of_all_plans_of_a_small_model() -> None:
    model = tiny_llama(layers=1)
    names = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.k_proj")
    losses = {name: options for name, options in losses_of(model).items() if name in names}
    plan = qlib.allocate(losses, model, bits_per_weight=6.5)
    best = min(
        sum(losses[name][grid] for name, grid in zip(losses, grids, strict=True))
        for grids in itertools.product(GRIDS, repeat=3)
        if _average(model, dict(zip(losses, grids, strict=True))) <= 6.5
    )
    assert plan.loss == pytest.approx(best)


def _average(model: Model, grids: dict[str, qlib.Grid]) -> float:
    """By the formula of docs/checkpoints.md, groups that divide."""
    sizes = {name: model.get_submodule(name).weight.numel() for name in grids}  # type: ignore[union-attr,operator]
    bits = sum(sizes[name] * (g.bits + (32 + g.bits) / (g.group or 1)) for name, g in grids.items())
    return float(bits / sum(sizes.values()))


def test_the_table_of_a_plan() -> None:
    text = str(qlib.allocate(losses_of(tiny_llama()), tiny_llama(), bits_per_weight=7))
    assert text.startswith("14 layers within bits_per_weight=7: loss ")
    assert re.search(r"model\.layers\.1\.mlp\.down_proj +16x32 +w\d g\d+ asymmetric +\d+\.\d\d +\S+", text)


# --- errors


@pytest.mark.parametrize("budget", ["bits_per_weight", "file_bytes", "bit_operations"])
def test_a_budget_that_is_too_small_names_the_smallest_that_is_not(budget: str) -> None:
    model = tiny_llama()
    losses = losses_of(model)
    with pytest.raises(QuantError, match=rf"{budget}=1 cannot be met.*offer coarser grids") as error:
        qlib.allocate(losses, model, **{budget: 1})  # type: ignore[arg-type]
    found = re.search(rf"Pass {budget}=([\d.]+[\d])", str(error.value))
    assert found is not None
    plan = qlib.allocate(losses, model, **{budget: float(found[1])})  # type: ignore[arg-type]
    assert set(plan.values()) == {GRIDS[0]}
    with pytest.raises(QuantError, match="cannot be met"):
        less = 0.9999 * float(found[1])
        qlib.allocate(losses, model, **{budget: less})  # type: ignore[arg-type]


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("losses", "budget", "message"),
    [
        ({}, {"bits_per_weight": 4}, r"losses is a dict of 0\. Pass \{layer: \{Grid: loss\}\}"),
        ([1], {"bits_per_weight": 4}, r"losses is a list"),
        ({"up_porj": {GRIDS[0]: 1}}, {"bits_per_weight": 4}, r"'up_porj', which is no linear layer"),
        ({UP: {4: 1.0}}, {"bits_per_weight": 4}, rf"the losses of {UP} are a dict"),
        ({UP: {}}, {"bits_per_weight": 4}, rf"the losses of {UP} are a dict of 0"),
        ({UP: {GRIDS[0]: float("nan")}}, {"bits_per_weight": 4}, rf"the loss of {UP} on w2 g8 .* is nan"),
        ({UP: {qlib.Grid(4, 512): 1.0}}, {"bits_per_weight": 4}, rf"group=512 .*{UP}"),
        ({UP: {GRIDS[0]: 1.0}}, {}, r"got no budget\. Pass one of bits_per_weight"),
        ({UP: {GRIDS[0]: 1.0}}, {"bits_per_weight": 4, "file_bytes": 9}, r"bits_per_weight and file_bytes"),
        ({UP: {GRIDS[0]: 1.0}}, {"bits_per_weight": -1}, r"bits_per_weight=-1 is no budget"),
        ({UP: {GRIDS[0]: 1.0}}, {"bits_per_weight": "4"}, r"bits_per_weight is the str '4', not a number"),
    ],
)
def test_what_cannot_be_planned_is_refused(losses: Any, budget: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantError, match=message):
        qlib.allocate(losses, tiny_llama(), **budget)
