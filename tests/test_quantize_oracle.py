"""`quantize` against a loop of its own: fold, clip, round on two blocks, compared code for code.

The loop below knows a small Llama by its formulas (`folds_of`), runs its blocks as they are, and does all
else by the pure functions of the methods and a few lines on plain tensors. It also keeps the weights that the
user had, so the errors of the report are recomputed from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qlib
from qlib.activation import FixedRange
from qlib.grid import Grid
from qlib.kept_columns import KeepColumns
from qlib.methods.awq import awq_clip, awq_scale
from qlib.methods.gptq import gptq
from qlib.methods.hessian import statistics
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama
from qlib.quantized_weight import QuantizedWeight
from qlib.text import text_batches

TEXTS = [
    "the heart of the matter is at the heat",
    "at a heath there was a hat",
    "the cat sat at the hat, a tea",
]
GRID = Grid(3, 8)
DAMPING = 0.1
Range = tuple[float, float, list[int]]


def model() -> Llama:
    """Two blocks; some input channels are ten times larger, so that scales and order of columns matter."""
    found = tiny_llama(seed=5)
    with torch.no_grad():
        for layer in found.model.layers:
            layer.input_layernorm.weight[[1, 6]] *= 10
            layer.post_attention_layernorm.weight[[3, 9]] *= 10
            layer.self_attn.v_proj.weight[2] *= 10
            layer.mlp.up_proj.weight[5] *= 10
    return found


@dataclass
class Group:
    """Layers that read one input, and how a scale leaves it."""

    layers: list[str]
    divide: Callable[[nn.Module, Tensor], None]
    tie: Callable[[Tensor], Tensor] = lambda s: s


def folds_of(block: nn.Module) -> list[Group]:
    """The four inputs of a block. Two query heads read one value head of 4 channels: they share scales."""

    def heads(s: Tensor) -> Tensor:
        return s.view(-1, 2, 4)  # [value heads, query heads that read it, channels]

    def tie(s: Tensor) -> Tensor:
        return heads(s).log().mean(1, keepdim=True).exp().expand(-1, 2, 4).reshape(-1)

    def gain(norm: str) -> Callable[[nn.Module, Tensor], None]:
        return lambda block, s: block.get_submodule(norm).weight.div_(s)

    def values(block: nn.Module, s: Tensor) -> None:
        block.self_attn.v_proj.weight.div_(heads(s)[:, 0].reshape(-1, 1))

    def up(block: nn.Module, s: Tensor) -> None:
        block.mlp.up_proj.weight.div_(s[:, None])

    attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    return [
        Group(attention, gain("input_layernorm")),
        Group(["self_attn.o_proj"], values, tie),
        Group(["mlp.gate_proj", "mlp.up_proj"], gain("post_attention_layernorm")),
        Group(["mlp.down_proj"], up),
    ]


Run = Callable[[nn.Module], Any]


def read_by(block: nn.Module, run: Run) -> dict[str, Tensor]:
    """All inputs [tokens, inputs] of each linear layer of a block."""
    seen: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, n=name: seen.setdefault(n, []).append(inputs[0][0]))
        for name, layer in layers.items()
    ]
    run(block)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).float() for name, parts in seen.items()}


def move_scales(method: str, block: nn.Module, wanted: nn.Module, run: Run) -> None:
    """Fold the scales of a transformation into the block, and into the one that is never clipped."""
    for group in folds_of(block):
        X = read_by(block, run)[group.layers[0]]
        weights = [block.get_submodule(layer).weight for layer in group.layers]
        if method == "smoothquant":
            s = smoothing_scale(X.abs().amax(0), weights)
        else:
            s = awq_scale(weights, X.T @ X, X.abs().mean(0), GRID)[0]
        s = group.tie(s)
        for each in (block, wanted):
            group.divide(each, s)
            for layer in group.layers:
                each.get_submodule(layer).weight.mul_(s)


def clip(block: nn.Module, run: Run) -> None:
    """Clip all weights but those of queries and keys, with the inputs of one pass."""
    for layer, X in read_by(block, run).items():
        if "q_proj" not in layer and "k_proj" not in layer:
            weight = block.get_submodule(layer).weight
            weight.copy_(awq_clip(weight, X.T @ X, GRID))


def rounded(method: str, W: Tensor, X: Tensor) -> QuantizedWeight:
    """Round a weight by its inputs."""
    if method == "rtn":
        return rtn(W, GRID)
    if method == "gptq":
        return gptq(W, X.T @ X, GRID, damping=DAMPING, act_order=True, static_groups=True)
    return quik(W, statistics(X), GRID, columns=3, damping=0.01)


def errors_of(W: Tensor, values: Tensor, X: Tensor) -> tuple[float, float]:
    """Relative errors of a weight and of its outputs, from the inputs themselves."""
    D, W, X = (W - values).double(), W.double(), X.double()
    return float(D.norm() / W.norm()), float((X @ D.T).norm() / (X @ W.T).norm())


def put(block: nn.Module, layer: str, codes: QuantizedWeight, X: Tensor, static: bool) -> Range | None:
    """Put a layer in place; return the ends of its static range and the columns that it leaves in float."""
    activation, found = None, None
    if static:
        kept = [] if codes.columns is None else codes.columns.tolist()
        others = X[:, [column for column in range(X.shape[1]) if column not in kept]]
        found = (float(others.min()), float(others.max()), kept)
        activation = FixedRange(qlib.PerTensor(8), *found[:2])
        activation = KeepColumns(activation, kept) if kept else activation
    parent, _, child = layer.rpartition(".")
    setattr(block.get_submodule(parent), child, qlib.FakeQuantLinear(codes, GRID, activation=activation))
    return found


@dataclass
class ByHand:
    """Codes, errors and static range of each layer, and the model as it was changed."""

    model: Llama
    codes: dict[str, QuantizedWeight] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    ranges: dict[str, Range | None] = field(default_factory=dict)


@torch.no_grad()
def quantize_by_hand(methods: list[str], static: bool) -> ByHand:
    """Fold, clip and round one block after the other; each reads what the ones before it now write."""
    result = ByHand(model())
    (stage,), batches = result.model.stages(), text_batches(result.model, TEXTS)
    hidden = [stage.enter(batch) for batch in batches]
    for name in stage.blocks:
        block = result.model.get_submodule(name)

        def run(block: nn.Module, hidden: list[Tensor] = hidden) -> list[Tensor]:
            return [stage.run(block, each, batch) for each, batch in zip(hidden, batches, strict=True)]

        wanted = copy.deepcopy(block)  # folded, never clipped: its errors are counted
        for method in methods[:-1]:
            move_scales(method, block, wanted, run)
            if method == "awq" and methods[-1] == "rtn":  # GPTQ and QUIK get the whole weight
                clip(block, run)
        inputs = read_by(wanted, run)  # statistics are those of one pass in float: of no clipped layer
        now = read_by(block, run)  # static ranges are those of the block as it is when it is rounded
        for layer, X in inputs.items():
            codes = rounded(methods[-1], block.get_submodule(layer).weight, X)
            result.codes[f"{name}.{layer}"] = codes
            reference = wanted.get_submodule(layer).weight
            result.errors[f"{name}.{layer}"] = errors_of(reference, codes.decode(), X)
            result.ranges[f"{name}.{layer}"] = put(block, layer, codes, now[layer], static)
        hidden = run(block)
    return result


OBJECTS = {
    "smoothquant": qlib.SmoothQuant(),
    "awq": qlib.AWQ(),
    "rtn": qlib.RTN(),
    "gptq": qlib.GPTQ(damping=DAMPING, act_order=True, static_groups=True, fit="minmax"),
    "quik": qlib.QUIK(columns=3, damping=0.01),
}
CHAINS = [
    (["rtn"], False),
    (["gptq"], False),
    (["awq", "rtn"], False),
    (["awq", "gptq"], False),
    (["smoothquant", "rtn"], True),
    (["smoothquant", "awq", "gptq"], False),
    (["quik"], True),
    (["awq", "quik"], True),
]


@pytest.mark.parametrize(("methods", "static"), CHAINS, ids=str)
def test_quantize_is_the_loop(methods: list[str], static: bool) -> None:
    expected = quantize_by_hand(methods, static)
    result = qlib.quantize(
        model(), [OBJECTS[name] for name in methods], weight=GRID,
        calib=TEXTS if static or methods != ["rtn"] else None,
        activation=qlib.PerTensor(8) if static else None, progress=False,
    )  # fmt: skip
    assert {layer.name for layer in result.report.layers} == set(expected.codes)
    equal, total = 0, 0
    for layer in result.report.layers:
        found, codes = result.model.get_submodule(layer.name), expected.codes[layer.name]
        assert isinstance(found, qlib.FakeQuantLinear)
        equal += int((found.codes == codes.codes).sum())
        total += found.codes.numel()
        torch.testing.assert_close(found.scale, codes.scale, rtol=2e-3, atol=1e-4)
        weight_error, output_error = expected.errors[layer.name]
        assert layer.weight_error == pytest.approx(weight_error, rel=0.01)
        assert layer.output_error is None or layer.output_error == pytest.approx(output_error, rel=0.01)
        check_range(found.activation, expected.ranges[layer.name])
    # All but a few: the loop adds in another order, and a tie may fall to the other side.
    assert equal >= 0.998 * total
    for name, value in expected.model.named_parameters():  # norms with the scales folded in, embeddings
        torch.testing.assert_close(result.model.get_parameter(name), value, rtol=1e-4, atol=1e-5)


def check_range(activation: Any, expected: Range | None) -> None:
    """Compare a static range, and see that what calibration ran was not counted."""
    if expected is None:
        assert activation is None
        return
    low, high, kept = expected
    if kept:
        assert isinstance(activation, KeepColumns) and activation.columns.tolist() == kept
        activation = activation.inner
    assert isinstance(activation, FixedRange)
    assert (activation.seen, activation.exceeded) == (0, 0)
    assert (activation.low, activation.high) == pytest.approx((min(low, 0), max(high, 0)), rel=1e-4)
