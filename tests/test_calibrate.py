"""The walk through the blocks: what is collected, what is left out, and that batching does not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_fixtures import utterances
from torch import Tensor, nn
from torch.nn.functional import pad

from qlib import calibrate
from qlib.asr.calibration import speech_batches
from qlib.calibrate import InputStatistics, count_blocks, walk_blocks, watch_inputs
from qlib.errors import QuantError
from qlib.methods.contracts import LayerStats, Needs
from qlib.models.speech_structure import SpeechBatch
from qlib.models.tiny import tiny_whisper
from qlib.models.whisper import Whisper

BLOCKS = [f"model.{side}.layers.{i}" for side in ("encoder", "decoder") for i in range(2)]
ALL = Needs.HESSIAN | Needs.RANGE | Needs.MAGNITUDE


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=2)


@pytest.fixture(scope="module")
def batch(model: Whisper, tmp_path_factory: pytest.TempPathFactory) -> SpeechBatch:
    """Four utterances side by side, padded at the end of their texts."""
    single = speech_batches(model, utterances(tmp_path_factory.mktemp("speech")))
    length = max(each.tokens.shape[1] for each in single)
    return SpeechBatch(
        features=torch.cat([each.features for each in single if each.features is not None]),
        frame_mask=torch.cat([each.frame_mask for each in single]),
        tokens=torch.cat([pad(each.tokens, (0, length - each.tokens.shape[1]), value=3) for each in single]),
        token_mask=torch.cat([pad(each.token_mask, (0, length - each.tokens.shape[1])) for each in single]),
        where="all four",
    )


def collect(model: Whisper, batches: list[SpeechBatch], needs: Needs = ALL) -> dict[str, LayerStats]:
    return {
        name: stats for visit in walk_blocks(model, batches) for name, stats in visit.collect(needs).items()
    }


def seen_by_hooks(model: Whisper, batch: SpeechBatch) -> dict[str, Tensor]:
    """Oracle: one ordinary pass over the whole model, inputs kept by hooks, padding cut off by hand."""
    names = [layer for group in model.groups() for layer in group.layers]
    seen: dict[str, Tensor] = {}
    with watch_inputs(
        {name: model.get_submodule(name) for name in names}, lambda name, x: seen.__setitem__(name, x)
    ):
        assert batch.features is not None
        model(batch.features, batch.tokens)
    cross = ("encoder_attn.k", "encoder_attn.v", ".encoder.")
    return {
        name: x[batch.frame_mask if any(part in name for part in cross) else batch.token_mask]
        for name, x in seen.items()
    }


def test_every_layer_gets_the_statistics_of_its_input(model: Whisper, batch: SpeechBatch) -> None:
    stats, seen = collect(model, [batch]), seen_by_hooks(model, batch)
    assert sorted(stats) == sorted(seen)
    for name, rows in seen.items():
        found = stats[name]
        assert found.tokens == len(rows)
        expected = rows.double().T @ rows.double()
        torch.testing.assert_close(
            found.hessian, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )
        torch.testing.assert_close(found.low, rows.amin(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.high, rows.amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.absmax, rows.abs().amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.magnitude, rows.double().abs().mean(0), rtol=1e-4, atol=1e-5)


def test_histograms_hold_every_value_but_those_of_columns_left_out(
    model: Whisper, batch: SpeechBatch
) -> None:
    layer = "model.encoder.layers.0.fc1"
    rows = seen_by_hooks(model, batch)[layer]
    extremes = [int(rows.amin(0).argmin()), int(rows.amax(0).argmax())]
    for columns in ([], [0, 3], extremes):
        visit = next(walk_blocks(model, [batch]))
        histogram = visit.histograms({layer: torch.tensor(columns, dtype=torch.long)})[layer]
        left = [column for column in range(rows.shape[1]) if column not in columns]
        low, high = rows[:, left].min(), rows[:, left].max()
        assert histogram.minmax() == pytest.approx((float(low), float(high)), rel=1e-5)


def test_blocks_come_in_order_and_hooks_go(model: Whisper, batch: SpeechBatch) -> None:
    assert [visit.name for visit in walk_blocks(model, [batch])] == BLOCKS
    assert count_blocks(model) == 4
    collect(model, [batch])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_batches_blocks_come_without_data(model: Whisper) -> None:
    visits = list(walk_blocks(model, []))
    assert [visit.name for visit in visits] == BLOCKS
    assert all(not visit.inputs for visit in visits)


def test_split_into_batches_does_not_matter(model: Whisper, batch: SpeechBatch, tmp_path: Path) -> None:
    single = speech_batches(model, utterances(tmp_path))
    assert len(single) == 4
    together, apart = collect(model, [batch]), collect(model, single)
    for name, stats in together.items():
        assert stats.tokens == apart[name].tokens
        assert stats.hessian is not None
        torch.testing.assert_close(
            apart[name].hessian, stats.hessian, rtol=1e-4, atol=1e-4 * float(stats.hessian.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_of_what_was_added_whatever_happens_to_it_later(dtype: torch.dtype) -> None:
    """Models write in place, `x += layer(x)`, while fewer than 2,048 vectors wait."""
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = rows.double().T @ rows.double()
    statistics = InputStatistics(ALL)
    for part in (rows[:2], rows[2:]):
        statistics.add(part)
        part.zero_()
    torch.testing.assert_close(statistics.finish().hessian, expected, rtol=1e-5, atol=1e-5)


def test_a_block_may_write_into_what_a_layer_has_read(model: Whisper, tmp_path: Path) -> None:
    visit = next(walk_blocks(model, speech_batches(model, utterances(tmp_path))))
    expected, fc1 = visit.collect(ALL), model.get_submodule(f"{visit.name}.fc1")
    written = fc1.register_forward_hook(lambda _, inputs, output: (inputs[0].zero_(), output)[1])
    found = visit.collect(ALL)
    written.remove()
    for name, stats in expected.items():
        assert torch.equal(found[name].hessian, stats.hessian), name


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_sums_do_not_depend_on_the_split_at_all(sizes: list[int]) -> None:
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(len(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "ROWS", 4)
        whole, split = InputStatistics(ALL), InputStatistics(ALL)
        whole.add(rows)
        for part in rows.split(sizes):
            split.add(part)
        a, b = whole.finish(), split.finish()
    assert a.tokens == b.tokens == len(rows)
    for name in ("hessian", "low", "high", "absolute"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.hessian, rows.double().T @ rows.double(), rtol=1e-5, atol=1e-5)


def test_a_pass_ends_where_the_last_input_is_seen(model: Whisper, batch: SpeechBatch) -> None:
    visit = next(walk_blocks(model, [batch]))
    seen = []
    handle = model.get_submodule(f"{visit.name}.fc2").register_forward_hook(lambda *_: seen.append(1))
    visit.collect(Needs.HESSIAN)
    handle.remove()
    assert not seen


def test_statistics_of_a_scaled_input(model: Whisper, batch: SpeechBatch) -> None:
    rows = seen_by_hooks(model, batch)["model.encoder.layers.0.fc1"]
    scale = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
    plain, scaled = InputStatistics(ALL), InputStatistics(ALL)
    plain.add(rows)
    scaled.add(rows / scale)
    expected, found = scaled.finish(), plain.finish().scaled(scale)
    for name in ("hessian", "low", "high", "absolute", "absmax", "magnitude"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-3)
    assert LayerStats(3).scaled(scale) == LayerStats(3)


def test_later_blocks_see_what_earlier_ones_have_become(batch: SpeechBatch) -> None:
    """The walk is a dialogue: the caller changes a block, and the next block's inputs show it."""
    model, changed = tiny_whisper(seed=2), {}
    plain = collect(model, [batch])
    for visit in walk_blocks(model, [batch]):
        changed |= visit.collect(Needs.HESSIAN)
        if visit.name == "model.encoder.layers.0":
            linear = model.get_submodule(f"{visit.name}.fc2")
            assert isinstance(linear, nn.Linear)
            linear.weight.zero_()
    for name, stats in changed.items():
        unchanged = name.startswith(("model.encoder.layers.0.", "model.decoder.layers.0.self_attn."))
        unchanged = unchanged or name == "model.decoder.layers.0.encoder_attn.q_proj"
        same = torch.allclose(stats.hessian, plain[name].hessian, rtol=1e-5)  # type: ignore[arg-type]
        assert same == unchanged, name


def test_the_float_stream_is_that_of_the_original(batch: SpeechBatch) -> None:
    """Inputs follow the changed model; targets follow the one that nobody changes."""
    original, model = tiny_whisper(seed=2), tiny_whisper(seed=2)
    for visit in walk_blocks(model, [batch], original):
        for parameter in model.get_submodule(visit.name).parameters():
            parameter.data.mul_(1.1)
    assert batch.features is not None
    logits = original.proj_out(original.model.decoder.layer_norm(visit.targets[0]))
    torch.testing.assert_close(logits, original(batch.features, batch.tokens), rtol=1e-4, atol=1e-5)


def test_padding_counts_for_nothing(model: Whisper, batch: SpeechBatch) -> None:
    """Other tokens after the texts, same statistics: the causal mask and the token mask hide them."""
    padded = batch.tokens.clone()
    padded[~batch.token_mask] = 7
    before, after = collect(model, [batch]), collect(model, [replace(batch, tokens=padded)])
    for name, stats in before.items():
        torch.testing.assert_close(after[name].hessian, stats.hessian)


def test_layers_that_share_an_input_share_its_statistics(model: Whisper, batch: SpeechBatch) -> None:
    stats = collect(model, [batch])
    own = "model.decoder.layers.1.self_attn"
    assert stats[f"{own}.q_proj"] is stats[f"{own}.k_proj"] is stats[f"{own}.v_proj"]
    cross = [s for name, s in stats.items() if "encoder_attn.k" in name or "encoder_attn.v" in name]
    assert len(cross) == 4
    assert all(torch.equal(s.hessian, cross[0].hessian) for s in cross)  # type: ignore[arg-type]
    assert cross[0].tokens == int(batch.frame_mask.sum())


def test_nothing_needed_nothing_kept(model: Whisper, batch: SpeechBatch) -> None:
    for stats in collect(model, [batch], Needs.NOTHING).values():
        assert stats == LayerStats(stats.tokens)


def test_infinite_activations_name_layer_and_utterance(model: Whisper, tmp_path: Path) -> None:
    batches = speech_batches(model, utterances(tmp_path))
    assert batches[2].features is not None
    batches[2] = replace(batches[2], features=batches[2].features * torch.inf)
    with pytest.raises(
        QuantError, match=r"self_attn\.q_proj is not finite for list\.jsonl, line 3: \d+ of \d+ vectors"
    ):
        collect(model, batches)
