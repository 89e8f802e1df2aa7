"""The walk through the blocks: what is collected, what is left out, and that batching does not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from speech_fixtures import utterances
from torch import Tensor, nn

from qlib.asr import calibration
from qlib.asr.calibration import speech_batches
from qlib.calibrate import count_blocks, walk, watch_inputs
from qlib.errors import QuantError
from qlib.methods.contracts import LayerStats, Needs
from qlib.models.tiny import tiny_whisper
from qlib.models.whisper import SpeechBatch, Whisper

BLOCKS = [f"model.{side}.layers.{i}" for side in ("encoder", "decoder") for i in range(2)]


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=2)


@pytest.fixture(scope="module")
def batches(model: Whisper, tmp_path_factory: pytest.TempPathFactory) -> list[SpeechBatch]:
    return speech_batches(model, utterances(tmp_path_factory.mktemp("speech")))


def collect(model: Whisper, batches: list[SpeechBatch]) -> dict[str, LayerStats]:
    return {name: stats for _, found in walk(model, batches, Needs.HESSIAN) for name, stats in found.items()}


def test_every_layer_gets_the_statistics_of_its_input(model: Whisper, batches: list[SpeechBatch]) -> None:
    """Oracle: one ordinary pass over the whole model, inputs kept by hooks, padding cut off by hand."""
    (batch,) = batches
    names = [layer for group in model.groups() for layer in group.layers]
    seen: dict[str, Tensor] = {}
    with watch_inputs(
        {name: model.get_submodule(name) for name in names}, lambda name, x: seen.__setitem__(name, x)
    ):
        assert batch.features is not None
        model(batch.features, batch.tokens)
    stats = collect(model, batches)
    assert sorted(stats) == sorted(names)
    for name in names:
        cross = "encoder_attn.k" in name or "encoder_attn.v" in name
        mask = batch.frame_mask if cross or ".encoder." in name else batch.token_mask
        rows = seen[name][mask].double()
        assert stats[name].tokens == len(rows) == int(mask.sum())
        expected = rows.T @ rows
        torch.testing.assert_close(
            stats[name].hessian, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


def test_blocks_come_in_order_and_hooks_go(model: Whisper, batches: list[SpeechBatch]) -> None:
    assert [name for name, _ in walk(model, batches, Needs.NOTHING)] == BLOCKS
    assert count_blocks(model) == 4
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_split_into_batches_does_not_matter(
    model: Whisper, batches: list[SpeechBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BATCH_SIZE", 1)
    single = speech_batches(model, utterances(tmp_path))
    assert len(single) == 4
    together, apart = collect(model, batches), collect(model, single)
    for name, stats in together.items():
        assert stats.tokens == apart[name].tokens
        assert stats.hessian is not None
        torch.testing.assert_close(
            apart[name].hessian, stats.hessian, rtol=1e-4, atol=1e-4 * float(stats.hessian.abs().max())
        )


def test_later_blocks_see_what_earlier_ones_have_become(batches: list[SpeechBatch]) -> None:
    """The walk is a dialogue: the caller changes a block, and the next block's inputs show it."""
    model, changed = tiny_whisper(seed=2), {}
    plain = collect(model, batches)
    for block, stats in walk(model, batches, Needs.HESSIAN):
        changed |= stats
        if block == "model.encoder.layers.0":
            linear = model.get_submodule(f"{block}.fc2")
            assert isinstance(linear, nn.Linear)
            linear.weight.zero_()
    for name, stats in changed.items():
        unchanged = name.startswith(("model.encoder.layers.0.", "model.decoder.layers.0.self_attn."))
        unchanged = unchanged or name == "model.decoder.layers.0.encoder_attn.q_proj"
        same = torch.allclose(stats.hessian, plain[name].hessian, rtol=1e-5)  # type: ignore[arg-type]
        assert same == unchanged, name


def test_padding_counts_for_nothing(model: Whisper, batches: list[SpeechBatch]) -> None:
    """Other tokens behind the texts, same statistics: the causal mask and the token mask hide them."""
    (batch,) = batches
    padded = batch.tokens.clone()
    padded[~batch.token_mask] = 7
    other = SpeechBatch(batch.features, batch.frame_mask, padded, batch.token_mask)
    before, after = collect(model, batches), collect(model, [other])
    for name, stats in before.items():
        torch.testing.assert_close(after[name].hessian, stats.hessian)


def test_cross_attention_is_collected_once_for_all_layers(model: Whisper, batches: list[SpeechBatch]) -> None:
    stats = collect(model, batches)
    cross = [s for name, s in stats.items() if "encoder_attn.k" in name or "encoder_attn.v" in name]
    assert len(cross) == 4 and all(s is cross[0] for s in cross)
    assert cross[0].tokens == int(batches[0].frame_mask.sum())


def test_nothing_needed_nothing_kept(model: Whisper, batches: list[SpeechBatch]) -> None:
    assert all(s.hessian is None for _, found in walk(model, batches, Needs.NOTHING) for s in found.values())


def test_infinite_activations_name_layer_and_batch(batches: list[SpeechBatch]) -> None:
    model = tiny_whisper(seed=2)
    norm = model.get_submodule("model.encoder.layers.1.final_layer_norm")
    norm.weight[3] = torch.inf  # type: ignore[index, operator]
    with pytest.raises(
        QuantError, match=r"model\.encoder\.layers\.1\.fc1 is not finite in calibration batch 0"
    ):
        collect(model, batches)
