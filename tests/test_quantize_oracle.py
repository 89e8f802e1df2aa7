"""`quantize` against a loop of its own: fold, clip, round on two blocks, compared code for code.

The loop below knows a small Llama by its formulas (`folds_of`), runs its blocks as they are, and does all else
by the pure functions of the methods and a few lines on plain tensors. It also keeps the weights that the user
had, so the errors of the report are recomputed from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qlib
from qlib.activation import FixedRange, KeepColumns
from qlib.grid import Grid, QuantizedWeight
from qlib.methods.awq import awq_clip, awq_scale
from qlib.methods.gptq import gptq
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama
from qlib.text import text_batches

TEXTS = [
    "the heart of the matter is at the heat",
    "at a heath there was a hat",
    "the cat sat at the hat, a tea",
]
GRID = Grid(3, 8)
DAMPING = 0.1


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
    """The four inputs of a block. Two query heads of 4 channels read one value head: they share its scales."""

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


def read_by(block: nn.Module, run: Callable[[nn.Module, int], Tensor], count: int) -> dict[str, Tensor]:
    """All inputs [tokens, inputs] of each linear layer of a block."""
    seen: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, n=name: seen.setdefault(n, []).append(inputs[0][0]))
        for name, layer in layers.items()
    ]
    for number in range(count):
        run(block, number)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def quantize_by_hand(
    methods: list[str], static: bool, columns: int = 3
) -> tuple[dict[str, QuantizedWeight], dict[str, tuple[float, float]], dict[str, Any], Llama]:
    """Codes of each layer, its errors, its static range, and the model as far as it was changed."""
    changed = model()
    stage = changed.stages()[0]
    batches = text_batches(changed, TEXTS)
    hidden = [stage.enter(batch) for batch in batches]
    codes, errors, ranges = {}, {}, {}
    for name in stage.blocks:
        block = changed.get_submodule(name)

        def run(module: nn.Module, number: int, hidden: list[Tensor] = hidden) -> Tensor:
            return stage.run(module, hidden[number], batches[number])

        wanted = copy.deepcopy(block)  # folded, never clipped
        for method in methods[:-1]:
            for group in folds_of(block):
                X = read_by(block, run, len(batches))[group.layers[0]].float()
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
            if method == "awq":
                # Clipping one layer must not be seen by the search of the next: statistics are of one pass.
                before = read_by(block, run, len(batches))
                for layer in (
                    "self_attn.v_proj",
                    "self_attn.o_proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.down_proj",
                ):
                    X = before[layer].float()
                    weight = block.get_submodule(layer).weight
                    weight.copy_(awq_clip(weight, X.T @ X, GRID))
                inputs = before
        if "awq" not in methods:
            inputs = read_by(block, run, len(batches))
        rounded = {}
        for layer, X in inputs.items():
            X, weight = X.float(), block.get_submodule(layer).weight
            H = (X.T @ X).double()
            rounded[layer] = {
                "rtn": lambda W=weight: rtn(W, GRID),
                "gptq": lambda W=weight, H=H: gptq(W, H, GRID, damping=DAMPING, act_order="static"),
                "quik": lambda W=weight, H=H, X=X: quik(W, H, X.abs().amax(0), GRID, columns=columns),
            }[methods[-1]]()
            W = wanted.get_submodule(layer).weight.double()
            D = W - rounded[layer].decode().double()
            out = ((D @ H) * D).sum().sqrt() / ((W @ H) * W).sum().sqrt()
            errors[f"{name}.{layer}"] = (float(D.norm() / W.norm()), float(out))
        # Static ranges are those of what the layers read once the block is transformed, kept columns left out.
        now = read_by(block, run, len(batches)) if static else {}
        for layer, quantized in rounded.items():
            codes[f"{name}.{layer}"] = quantized
            activation = None
            if static:
                kept = [] if quantized.columns is None else quantized.columns.tolist()
                others = [c for c in range(quantized.codes.shape[1]) if c not in kept]
                X = now[layer][:, others]
                ranges[f"{name}.{layer}"] = (float(X.min()), float(X.max()), kept)
                activation = FixedRange(qlib.PerTensor(8), float(X.min()), float(X.max()))
                activation = KeepColumns(activation, kept) if kept else activation
            parent, _, child = layer.rpartition(".")
            linear = qlib.FakeQuantLinear(quantized, GRID, activation=activation)
            setattr(block.get_submodule(parent), child, linear)
        hidden[:] = [run(block, number) for number in range(len(batches))]
    return codes, errors, ranges, changed


OBJECTS = {
    "smoothquant": qlib.SmoothQuant(),
    "awq": qlib.AWQ(),
    "rtn": qlib.RTN(),
    "gptq": qlib.GPTQ(damping=DAMPING, act_order="static"),
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
    expected, errors, ranges, by_hand = quantize_by_hand(methods, static)
    needs_calib = static or methods != ["rtn"]
    result = qlib.quantize(
        model(), [OBJECTS[name] for name in methods], weight=GRID, calib=TEXTS if needs_calib else None,
        activation=qlib.PerTensor(8) if static else None, progress=False,
    )  # fmt: skip
    assert {layer.name for layer in result.report.layers} == set(expected)
    equal, total = 0, 0
    for layer in result.report.layers:
        found = result.model.get_submodule(layer.name)
        assert isinstance(found, qlib.FakeQuantLinear)
        equal += int((found.codes == expected[layer.name].codes).sum())
        total += found.codes.numel()
        torch.testing.assert_close(found.scale, expected[layer.name].scale, rtol=2e-3, atol=1e-4)
        weight_error, output_error = errors[layer.name]
        assert layer.weight_error == pytest.approx(weight_error, rel=0.01)
        assert layer.output_error is None or layer.output_error == pytest.approx(output_error, rel=0.01)
        if static:
            activation, (low, high, kept) = found.activation, ranges[layer.name]
            if kept:
                assert isinstance(activation, KeepColumns) and activation.columns.tolist() == kept
                activation = activation.inner
            assert isinstance(activation, FixedRange)
            assert (activation.seen, activation.exceeded) == (0, 0), "what calibration ran does not count"
            assert (activation.low, activation.high) == pytest.approx((min(low, 0), max(high, 0)), rel=1e-4)
    # All but a few: the loop adds in another order, and a tie may fall to the other side.
    assert equal >= 0.998 * total
    for name, value in by_hand.named_parameters():  # norms with the scales folded in, heads, embeddings
        torch.testing.assert_close(result.model.get_parameter(name), value, rtol=1e-4, atol=1e-5)
