"""A block as a function of its parameters: the right outputs, gradients that arrive, nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from blocks import DECODER, ENCODER, find_task, heard
from torch import Tensor, nn

from qlib.activation import PerToken
from qlib.block_task import block_task, rounded_inputs, straight_through
from qlib.calibrate import Visit, walk_blocks
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import Needs
from qlib.methods.rtn import rtn
from qlib.models.structure import fold
from qlib.models.text_structure import TextBatch
from qlib.models.tiny import tiny_llama, tiny_whisper
from qlib.models.whisper import Whisper

FLOAT64 = torch.float64
both_blocks = pytest.mark.parametrize("name", [ENCODER, DECODER])


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=3, layers=2, frames=20).double()


def visit_of(model: Whisper, name: str) -> Visit:
    for visit in walk_blocks(model, heard(3, dtype=FLOAT64), model):
        if visit.name == name:
            return replace(visit, inputs=list(visit.inputs))
    raise LookupError(name)


class TestOutput:
    @both_blocks
    def test_is_the_block_s_output_where_it_counts(self, model: Whisper, name: str) -> None:
        visit, task = visit_of(model, name), find_task(model, heard(3, dtype=FLOAT64), name)
        assert task.samples == 3
        for sample, batch in enumerate(visit.batches):
            whole = visit.stage.run(visit.block, visit.inputs[sample], batch)
            rows = batch.frame_mask if name == ENCODER else batch.token_mask
            assert 0 < int(rows.sum()) < rows.numel()
            counted = visit.stage.run(visit.block, visit.inputs[sample], batch, rows)
            assert torch.equal(task.output({}, sample), counted)
            assert name == ENCODER or torch.equal(counted, whole[rows])
            torch.testing.assert_close(counted, whole[rows], rtol=0, atol=1e-12)
            assert torch.equal(task.output(task.parameters, sample), task.output({}, sample))
            assert torch.equal(task.target(sample), whole[rows])

    @both_blocks
    def test_follows_the_parameters_and_leaves_the_block_alone(self, model: Whisper, name: str) -> None:
        task = find_task(model, heard(1, dtype=FLOAT64), name)
        before = {key: value.clone() for key, value in model.named_parameters()}
        block = model.get_submodule(name)
        assert set(task.parameters) == {f"{name}.{key}" for key, _ in block.named_parameters()}
        for key, value in task.parameters.items():
            # A bias adds the same number to a whole row of scores only in k_proj, which has none.
            assert (task.output({key: value * 1.5 + 0.1}, 0) - task.output({}, 0)).abs().max() > 1e-4, key
        assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
        assert not any(value.requires_grad for value in task.parameters.values())

    @both_blocks
    def test_a_change_in_place_reaches_neither_block_nor_output(self, model: Whisper, name: str) -> None:
        task = find_task(model, heard(1, dtype=FLOAT64), name)
        expected, before = task.output({}, 0), {key: each.clone() for key, each in model.named_parameters()}
        for value in task.parameters.values():
            value.mul_(2)
        assert torch.equal(task.output({}, 0), expected)
        assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())

    def test_a_model_that_wants_gradients_gets_none(self) -> None:
        """Only what is given is learned: gradients for all the rest would be work for nothing."""
        task = find_task(tiny_whisper(layers=1, frames=20).requires_grad_(), heard(1), ENCODER)
        assert not any(value.requires_grad for value in task.parameters.values())
        assert not task.output({}, 0).requires_grad

    def test_targets_may_come_from_elsewhere(self, model: Whisper) -> None:
        visit = visit_of(model, ENCODER)
        elsewhere = replace(visit, targets=[x + 1 for x in visit.targets])
        task = block_task(elsewhere, {f"{ENCODER}.fc1": Grid(4)}, {})
        torch.testing.assert_close(task.target(1), task.output({}, 1) + 1)

    def test_batches_of_several_utterances(self, model: Whisper) -> None:
        visit, task = visit_of(model, ENCODER), find_task(model, heard(3, dtype=FLOAT64), ENCODER)
        joined = replace(visit.batches[0], frame_mask=torch.cat([b.frame_mask for b in visit.batches]))
        all_three = replace(
            visit, inputs=[torch.cat(visit.inputs)], targets=[torch.cat(visit.targets)], batches=[joined]
        )
        together = block_task(all_three, dict.fromkeys(task.layers, Grid(4)), {})
        torch.testing.assert_close(together.output({}, 0), torch.cat([task.output({}, i) for i in range(3)]))


class TestGradients:
    @both_blocks
    @pytest.mark.parametrize("activation", [None, PerToken(bits=4)], ids=str)
    def test_reach_every_parameter(self, model: Whisper, name: str, activation: PerToken | None) -> None:
        task = find_task(model, heard(2, dtype=FLOAT64), name, activation)
        parameters = {key: value.clone().requires_grad_() for key, value in task.parameters.items()}
        torch.autograd.backward(task.output(parameters, 1).square().sum())
        for key, value in parameters.items():
            assert value.grad is not None and float(value.grad.abs().max()) > 0, key

    @both_blocks
    def test_equal_finite_differences(self, model: Whisper, name: str) -> None:
        task = find_task(model, heard(1, dtype=FLOAT64), name)
        for layer in task.layers:
            key = f"{layer}.weight"
            weight = task.parameters[key].clone().requires_grad_()
            direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
            torch.autograd.backward(task.output({key: weight}, 0).square().mean())
            assert weight.grad is not None
            moved = [
                float(task.output({key: weight.detach() + step * direction}, 0).square().mean())
                for step in (1e-5, -1e-5)
            ]
            torch.testing.assert_close(
                float((weight.grad * direction).sum()), (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-9
            )


class TestRoundedInputs:
    def test_the_output_is_that_of_the_quantized_layers(self, model: Whisper) -> None:
        """Swapped-in values and hooks do the same as `FakeQuantLinear` in the model."""
        activation, grid = PerToken(bits=4), Grid(3, 8)
        task = find_task(model, heard(2, dtype=FLOAT64), DECODER, activation)
        assert task.rounds_inputs
        codes = {layer: rtn(task.parameters[f"{layer}.weight"], grid) for layer in task.layers}
        swapped = {f"{layer}.weight": codes[layer].decode() for layer in task.layers}
        visit = visit_of(tiny_whisper(seed=3, layers=2, frames=20).double(), DECODER)
        for layer in task.layers:
            linear = visit.model.get_submodule(layer)
            assert isinstance(linear, nn.Linear)
            parent, _, child = layer.rpartition(".")
            replacement = FakeQuantLinear.from_linear(linear, codes[layer], grid, activation)
            setattr(visit.model.get_submodule(parent), child, replacement)
        batch = visit.batches[1]
        expected = visit.stage.run(visit.block, visit.inputs[1], batch)[batch.token_mask]
        assert torch.equal(task.output(swapped, 1), expected)
        assert not torch.equal(task.output({}, 1), expected)

    def test_only_the_given_layers(self, model: Whisper) -> None:
        visit = visit_of(model, ENCODER)
        seen = []

        def activation(x: Tensor) -> Tensor:
            seen.append(x.shape[-1])
            return x

        task = block_task(visit, {f"{ENCODER}.fc2": Grid(4)}, {}, {f"{ENCODER}.fc2": activation})
        task.output({}, 0)
        assert seen == [64]

    def test_straight_through_is_exact_and_has_gradient_one(self) -> None:
        x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        activation = PerToken(bits=3)
        rounded = straight_through(activation, x)
        assert torch.equal(rounded, activation(x.detach()))
        far = straight_through(lambda x: torch.full_like(x, 0.1), torch.full((3,), 1e8))
        assert torch.equal(far, torch.full((3,), 0.1))  # 1e8 + (0.1 - 1e8) is 0
        weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
        torch.autograd.backward((rounded * weight).sum())
        assert x.grad is not None and torch.equal(x.grad, weight)

    def test_hooks_are_gone_afterwards(self, model: Whisper) -> None:
        def broken(x: Tensor) -> Tensor:
            raise RuntimeError("broken")

        task = find_task(model, heard(1, dtype=FLOAT64), ENCODER, broken)
        with pytest.raises(RuntimeError, match="broken"):
            task.output({}, 0)
        assert not any(module._forward_pre_hooks for module in model.modules())
        layer = nn.Linear(2, 2)
        with rounded_inputs([(layer, torch.zeros_like)]):
            assert torch.equal(layer(torch.ones(1, 2))[0], layer.bias)
        assert not torch.equal(layer(torch.ones(1, 2))[0], layer.bias)


class TestGroups:
    def test_are_those_that_lie_inside(self, model: Whisper) -> None:
        found = {name: [group.layers[0] for group in find_task(model, heard(1, dtype=FLOAT64), name).groups]
                 for name in (ENCODER, DECODER)}  # fmt: skip
        own = ["self_attn.q_proj", "self_attn.out_proj"]
        cross = ["encoder_attn.q_proj", "encoder_attn.out_proj"]
        assert found == {
            ENCODER: [f"{ENCODER}.{name}" for name in (*own, "fc1")],
            DECODER: [f"{DECODER}.{name}" for name in (*own, *cross, "fc1")],
        }

    def test_without_a_layer_to_round_are_left_out(self, model: Whisper) -> None:
        visit = visit_of(model, ENCODER)
        layers = [f"{ENCODER}.self_attn.k_proj", f"{ENCODER}.fc2"]
        task = block_task(visit, dict.fromkeys(layers, Grid(4)), {})
        assert [group.layers[0] for group in task.groups] == [f"{ENCODER}.self_attn.q_proj"]

    def test_a_norm_outside_of_the_block_is_no_absorber(self) -> None:
        """With one decoder layer, keys and values of cross-attention all lie inside; the norm does not."""
        task = find_task(tiny_whisper(layers=1, frames=20), heard(1), DECODER)
        assert all(group.before is not None and group.before.startswith(DECODER) for group in task.groups)
        assert len(task.groups) == 5

    def test_names_that_begin_alike_are_told_apart(self) -> None:
        """Layers 1 and 10."""
        model = tiny_whisper(layers=11, frames=20)
        task = find_task(model, heard(1), "model.encoder.layers.1")
        assert {group.layers[0].split(".")[3] for group in task.groups} == {"1"}


def test_a_decoder_only_model(model: Whisper) -> None:
    """Grouped-query attention, RMS norms, a gated layer: folding changes nothing, in float."""
    llama = tiny_llama(seed=1).double()
    tokens = torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(0))
    batches: list[Any] = [TextBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))]
    for visit in walk_blocks(llama, batches, llama):
        stats = visit.collect(Needs.RANGE)
        task = block_task(visit, dict.fromkeys(stats, Grid(4)), stats)
        assert torch.equal(task.output({}, 0), task.target(0))
        assert len(task.groups) >= 3
        parameters = dict(task.parameters)
        for group in task.groups:
            columns = parameters[f"{group.layers[0]}.weight"].shape[1]
            scale = torch.linspace(0.3, 3, columns, dtype=FLOAT64)
            parameters |= fold(parameters, group, group.tie(scale))
        torch.testing.assert_close(task.output(parameters, 0), task.target(0), rtol=1e-5, atol=1e-5)
