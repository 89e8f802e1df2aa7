"""`quantize_matrix`: bit for bit what the functions of the methods give, done by hand; what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qlib
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.awq import awq_clip, awq_scale
from qlib.methods.contracts import BlockTask, LayerStats, Needs
from qlib.methods.gptq import gptq, hessian
from qlib.methods.hessian import statistics
from qlib.methods.hqq import hqq
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.methods.spqr import spqr
from qlib.models.tiny import tiny_llama
from qlib.one_matrix import quantize_matrix
from qlib.quantized_weight import QuantizedWeight
from qlib.testing.problems import layer

GRID = Grid(3, 8)
W, X = layer().weight, layer().inputs
STATS = statistics(X)
H = hessian(X)


def same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    tensors = one.tensors(), other.tensors()
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]
    )


def output_error(values: Tensor) -> float:
    return float((X @ (values - W).T).double().square().sum())


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        (qlib.RTN("mse"), lambda: rtn(W, GRID, fit="mse")),
        (qlib.HQQ(), lambda: hqq(W, GRID)),
        (qlib.GPTQ(damping=0.1, act_order=False), lambda: gptq(W, H, GRID, damping=0.1, fit="mse")),
        (qlib.SpQR(), lambda: spqr(W, H, GRID)),
        (qlib.QUIK(columns=2), lambda: quik(W, STATS, GRID, columns=2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_rounds(method: Any, by_hand: Any) -> None:
    result = quantize_matrix(W, STATS, GRID, method)
    assert same(result.quantized, by_hand())
    assert torch.equal(result.scale, torch.ones(24))
    assert torch.equal(result.decode(), by_hand().decode())


def test_smoothquant_then_gptq() -> None:
    s = smoothing_scale(X.abs().amax(0), [W], 0.4)
    right = gptq(W * s, H / s.double() / s.double()[:, None], GRID, damping=0.3, act_order=True, fit="mse")
    result = quantize_matrix(W, STATS, GRID, [qlib.SmoothQuant(0.4), qlib.GPTQ()])
    assert torch.equal(result.scale, s)
    assert same(result.quantized, right)
    assert torch.equal(result.decode(), right.decode() / s)


def test_awq_scales_clips_and_rounds() -> None:
    s, _ = awq_scale([W], H, X.double().abs().sum(0) / len(X), GRID)
    right = rtn(awq_clip(W * s, H / s.double() / s.double()[:, None], GRID), GRID)
    result = quantize_matrix(W, STATS, GRID, qlib.AWQ())
    assert torch.equal(result.scale, s)
    assert same(result.quantized, right)


@pytest.mark.parametrize("let", [False, True])
def test_omniquant_is_better_than_nearest_and_its_scale_is_given(let: bool) -> None:
    result = quantize_matrix(W, STATS, GRID, qlib.OmniQuant(epochs=4, let=let))
    assert output_error(result.decode()) < output_error(rtn(W, GRID).decode())
    assert torch.equal(result.scale, torch.ones(24)) is not let


def test_omniquant_without_learning_is_nearest() -> None:
    """A range of 98 % that is not better is not taken: the smaller one of two losses, both from H."""
    fine = Grid(8)
    result = quantize_matrix(W, STATS, fine, qlib.OmniQuant(epochs=0, let=False))
    assert same(result.quantized, rtn(W, fine))


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(0, 2**16))
def test_what_is_learned_has_the_error_of_all_tokens(tokens: int, seed: int) -> None:
    """The loss that a method sees is |X D^T|^2, also with fewer tokens than inputs: H has no inverse then."""
    inputs = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seen = []

    class Watches(qlib.OmniQuant):
        def fit(self, task: Any, grid: Grid) -> Any:
            D = torch.ones(2, 6, dtype=torch.float64)
            moved = {"layer.weight": task.parameters["layer.weight"] + D}
            seen.extend((task.output(moved, k) - task.target(k)).square().sum() for k in range(task.samples))
            return {}

    quantize_matrix(torch.zeros(2, 6, dtype=torch.float64), statistics(inputs), Grid(4), Watches())
    assert float(sum(seen)) == pytest.approx(2 * float(inputs.sum(1).square().sum()), rel=1e-9)


@pytest.mark.parametrize("model", [False, True], ids=["matrix", "model"])
def test_an_object_may_learn_scale_and_clip(model: bool) -> None:
    """All calls of one object are made, in the order of the page; a fit finds the grid of each layer."""
    calls: list[str] = []

    class All:
        name, paper, needs = "all", "none", Needs.BLOCK

        def fit(self, task: BlockTask, grid: Grid) -> dict[str, Tensor]:
            assert set(task.grids) == set(task.layers) and set(task.grids.values()) == {grid}
            calls.append("fit")
            return {}

        def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
            calls.append("scale")
            return torch.ones(weights[0].shape[1])

        def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
            calls.append("clip")
            return weight

    if model:
        qlib.quantize(tiny_llama(), [All()], weight=Grid(4, 8), calib=["a tea"], progress=False)
    else:
        quantize_matrix(W, STATS, GRID, All())
    assert list(dict.fromkeys(calls)) == ["fit", "scale", "clip"]


def test_a_scale_leaves_the_outputs() -> None:
    """At 8 bits what stands in for W is W, whatever was scaled: decode divides by s."""
    for methods in ([qlib.SmoothQuant()], [qlib.AWQ()], [qlib.OmniQuant(epochs=1, let=True), qlib.QUIK()]):
        values = quantize_matrix(W, STATS, Grid(8, 8), methods).decode()
        assert output_error(values) < 1e-3 * float((X @ W.T).square().sum())


def test_arguments_are_left_alone() -> None:
    weight, stats = W.clone(), statistics(X)
    quantize_matrix(weight, stats, GRID, [qlib.OmniQuant(epochs=1), qlib.AWQ(), qlib.GPTQ()])
    assert torch.equal(weight, W)
    assert stats.hessian is not None and torch.equal(stats.hessian, H)


def test_float64_stays() -> None:
    wide = statistics(X.double())
    for methods in (qlib.AWQ(), qlib.OmniQuant(epochs=1)):
        assert quantize_matrix(W.double(), wide, GRID, methods).decode().dtype == torch.float64


def test_statistics() -> None:
    stats = statistics(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    assert stats.tokens == 2
    assert stats.hessian is not None and stats.hessian.tolist() == [[10, -2], [-2, 4]]
    assert stats.absmax is not None and stats.absmax.tolist() == [3, 2]
    assert stats.magnitude is not None and stats.magnitude.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_matrix(W, X, GRID), r"Tensor \[240, 24\].* for statistics"),
        (lambda: quantize_matrix(W, STATS, Grid(3, 48)), r"group=48 is larger than the 24 columns"),
        (lambda: quantize_matrix(W, STATS, GRID, "gptq"), r"Did you mean qlib\.GPTQ"),
        (lambda: quantize_matrix(W, STATS, Grid(3, symmetric=True), qlib.HQQ()), r"asymmetric"),
        (lambda: quantize_matrix(W, LayerStats(), GRID, qlib.GPTQ()), r"without a Hessian"),
        (lambda: quantize_matrix(W, LayerStats(), GRID, qlib.OmniQuant()), r"statistics\(X\)"),
        (lambda: quantize_matrix(W[:, :9], STATS, GRID, qlib.GPTQ()), r"another layer.*9 inputs"),
        (lambda: quantize_matrix(W[:, :9], STATS, GRID, qlib.OmniQuant()), r"\(24, 24\) for 9 inputs"),
        (lambda: statistics(X[0]), r"shape \[24\].*flatten"),
        (lambda: statistics(X / 0), r"finite"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        call()


def test_statistics_stand_in_for_their_hessian() -> None:
    for method in (gptq, spqr):
        assert same(method(W, STATS, GRID), method(W, H, GRID))
