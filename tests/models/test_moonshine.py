"""Moonshine against transformers on miniatures, and against itself: cache, truncation, ragged batches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.load import load_model
from qlib.models.moonshine import (
    MIN_SAMPLES,
    Moonshine,
    MoonshineConfig,
    MoonshineGeneration,
    count_frames,
    rotary_angles,
    rotate,
)
from qlib.models.speech import SpeechBatch
from qlib.models.tiny import tiny_moonshine, write_folder

SAMPLES = 5000  # 11 frames


@pytest.fixture(scope="module")
def model() -> Moonshine:
    return tiny_moonshine(seed=1)


@pytest.fixture(scope="module")
def waveforms() -> Tensor:
    return 0.1 * torch.randn(3, SAMPLES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("width", "heads", "layers"),
    [(16, 2, 2), (8, 2, 1), (24, 2, 1), (288, 8, 1)],
    ids=["3 pairs of 8 channels", "all channels turn", "odd rotary width", "width of the smallest model"],
)
def test_logits_equal_those_of_transformers(
    tmp_path: Path,
    waveforms: Tensor,
    tokens: Tensor,
    dtype: torch.dtype,
    tolerance: float,
    width: int,
    heads: int,
    layers: int,
) -> None:
    from transformers import MoonshineForConditionalGeneration

    folder = write_folder(tiny_moonshine(3, width, layers, heads), tmp_path)
    ours = load_model(folder, dtype=dtype)
    # The eager implementation computes the softmax in float32; this one stays in float64.
    theirs = MoonshineForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        expected = theirs(input_values=waveforms.to(dtype), decoder_input_ids=tokens).logits
        found = ours(waveforms.to(dtype), tokens)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < tolerance


def test_rotation_by_hand() -> None:
    config = MoonshineConfig(9, 8, 8, 1, 2, 1, 2, partial_rotary_factor=0.5, rope_theta=100.0)
    x = torch.tensor([1.0, 0.0, 2.0, 3.0])
    assert config.rotary_pairs(2) == 1
    cos, sin = rotary_angles(config, 2, 5, 6, x)
    turned = rotate(x.view(1, 1, 1, 4), (cos, sin)).flatten().tolist()
    assert turned == pytest.approx([math.cos(5), math.sin(5), 2, 3], abs=1e-6)
    cos, _ = rotary_angles(MoonshineConfig(9, 8, 8, 1, 2, 1, 2, 512, 1.0, 100.0), 2, 0, 3, x)
    assert cos[2].tolist() == pytest.approx([math.cos(2), math.cos(0.2)], abs=1e-6)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (894, 0), (895, 1), (1278, 1), (1279, 2)])
def test_frames_follow_the_length(model: Moonshine, samples: int, frames: int) -> None:
    assert count_frames(samples) == frames
    if frames:
        assert model.encode(torch.zeros(2, samples)).shape == (2, frames, 16)
    else:
        with pytest.raises(ModelError, match=rf"\[2, {samples}\].*at least 895 samples.*Append silence"):
            model.encode(torch.zeros(2, samples))
    assert count_frames(MIN_SAMPLES) == 1


def test_waveforms_without_a_batch_are_refused(model: Moonshine) -> None:
    with pytest.raises(ModelError, match=r"reads \[batch, samples\]"):
        model.encode(torch.zeros(SAMPLES))


@pytest.mark.parametrize("split", [1, 4, 8])
def test_cached_decoding_equals_one_pass(
    model: Moonshine, waveforms: Tensor, tokens: Tensor, split: int
) -> None:
    cache = model.start(model.encode(waveforms), capacity=9)
    parts = [model.decode(tokens[:, :split], cache)]
    parts += [model.decode(tokens[:, i : i + 1], cache) for i in range(split, 9)]
    logits = model.proj_out(torch.cat(parts, dim=1))
    torch.testing.assert_close(logits, model(waveforms, tokens), rtol=0, atol=1e-5)


def test_truncated_cache_forgets_what_was_written(
    model: Moonshine, waveforms: Tensor, tokens: Tensor
) -> None:
    cache = model.start(model.encode(waveforms))
    model.decode(tokens[:, :4], cache)
    model.decode(tokens.flip(0)[:, :5], cache)  # wrong tokens, to be forgotten
    cache.truncate(4)
    again = model.decode(tokens[:, 4:], cache)
    torch.testing.assert_close(model.proj_out(again), model(waveforms, tokens)[:, 4:], rtol=0, atol=1e-5)


def test_ragged_rows_equal_each_recording_alone(model: Moonshine, waveforms: Tensor, tokens: Tensor) -> None:
    alone = [model.encode(waveforms[row : row + 1, :end]) for row, end in enumerate((2000, SAMPLES, 895))]
    lengths = [states.shape[1] for states in alone]
    assert lengths == [3, 11, 1]
    states = torch.full((3, 11, 16), 7.0)  # what fills up is not zero: the mask must hide it
    mask = torch.zeros(3, 11, dtype=torch.bool)
    for row, each in enumerate(alone):
        states[row, : each.shape[1]] = each
        mask[row, : each.shape[1]] = True
    cache = model.start(states, state_mask=mask)
    before = model.decode(tokens[:, :5], cache)
    cache.drop(0)  # rows are now 2, 1
    after = model.decode(tokens[[2, 1], 5:], cache)
    assert mask.sum(1).tolist() == lengths, "the caller's mask is left as it was"
    for row, each in enumerate(alone):
        expected = model.decode(tokens[row : row + 1], model.start(each))[0]
        torch.testing.assert_close(before[row], expected[:5], rtol=0, atol=1e-5)
        if row:
            torch.testing.assert_close(after[2 - row], expected[5:], rtol=0, atol=1e-5)
    bare = model.decode(tokens[:, :5], model.start(states))
    assert (bare[0] - before[0]).abs().max() > 1e-2, "without the mask the result is another"


def test_dropped_row_gives_its_place_to_the_last(model: Moonshine, waveforms: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(waveforms))
    model.decode(tokens[:, :4], cache)
    cache.drop(0)  # rows are now 2, 1
    hidden = model.decode(tokens[[2, 1], 4:], cache)
    torch.testing.assert_close(
        model.proj_out(hidden), model(waveforms, tokens)[[2, 1], 4:], rtol=0, atol=1e-5
    )


def test_several_new_tokens_do_not_see_the_future(
    model: Moonshine, waveforms: Tensor, tokens: Tensor
) -> None:
    changed = tokens.clone()
    changed[:, 6] += 1
    torch.testing.assert_close(model(waveforms, tokens)[:, :6], model(waveforms, changed)[:, :6])
    assert not torch.equal(model(waveforms, tokens)[:, 6:], model(waveforms, changed)[:, 6:])


def test_head_is_tied_and_a_folder_keeps_every_weight(model: Moonshine, tmp_path: Path) -> None:
    again = load_model(write_folder(model, tmp_path))
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight
    assert again.config == model.config and again.generation == model.generation
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.tokenizer.encode("the heart") == model.tokenizer.encode("the heart")


def run_stages(model: Moonshine, waveforms: Tensor, tokens: Tensor) -> Tensor:
    frames = torch.ones(3, count_frames(SAMPLES), dtype=torch.bool)
    batch = SpeechBatch(waveforms, frames, tokens, torch.ones_like(tokens, dtype=torch.bool))
    for stage in model.stages():
        hidden = stage.enter(batch)
        for name in stage.blocks:
            hidden = stage.run(model.get_submodule(name), hidden, batch)
        batch = stage.leave(hidden, batch)
        assert stage.valid(batch, "encoder").shape == frames.shape
        assert stage.valid(batch, "hidden").shape == hidden.shape[:2]
    assert batch.features is None, "the encoder's input is not needed any more"
    with pytest.raises(ModelError, match="through the encoder"):
        model.stages()[0].enter(batch)
    return model.proj_out(model.model.decoder.norm(hidden))


def test_stages_reproduce_the_forward_pass(model: Moonshine, waveforms: Tensor, tokens: Tensor) -> None:
    logits = run_stages(model, waveforms, tokens)
    torch.testing.assert_close(logits, model(waveforms, tokens), rtol=0, atol=1e-5)


def test_groups_list_every_linear_once_and_share_their_input(
    model: Moonshine, waveforms: Tensor, tokens: Tensor
) -> None:
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    listed = [layer for group in model.groups() for layer in group.layers]
    assert sorted(listed) == sorted(linears - {"proj_out"})
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda m, x, name=name: seen.__setitem__(name, x[0])
        )
        for name in listed
    ]
    try:
        model(waveforms, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    for group in model.groups():
        first, *others = (seen[name] for name in group.layers)
        assert all(torch.equal(first, other) for other in others)
        assert (group.before is None) == bool(group.reason)
        assert group.before is None or model.get_submodule(group.before)
        assert not group.shift
    stages = dict(zip(("encoder", "decoder"), model.stages(), strict=True))
    frames = torch.ones(3, count_frames(SAMPLES), dtype=torch.bool)
    batch = SpeechBatch(None, frames, tokens, torch.ones_like(tokens, dtype=torch.bool))
    for group in model.groups():
        counted = stages[group.layers[0].split(".")[1]].valid(batch, group.source)
        assert counted.shape == seen[group.layers[0]].shape[:2], "each input has the mask of its stream"
    inputs = [seen[group.layers[0]] for group in model.groups()]
    alike = [
        (i, j)
        for i, a in enumerate(inputs)
        for j, b in enumerate(inputs[:i])
        if a.shape == b.shape and torch.equal(a, b)
    ]
    assert not alike, "two groups that read the same tensor should be one"


def test_more_tokens_than_positions_are_refused(model: Moonshine, waveforms: Tensor) -> None:
    with pytest.raises(ModelError, match="65 tokens are more than the decoder's 64 positions"):
        model(waveforms[:1], torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_hidden_act": "gelu"}, "decoder_hidden_act='gelu' is not supported, only 'silu'"),
        ({"decoder_num_key_value_heads": 1}, "decoder_num_key_value_heads=1 is not supported, only 2"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_config_that_cannot_be_honoured(change: dict[str, object], message: str) -> None:
    values = {**tiny_moonshine().config.to_dict(), **change}
    with pytest.raises(ModelError, match=message):
        MoonshineConfig.from_dict(values)


def test_config_of_older_and_newer_files() -> None:
    config = tiny_moonshine().config
    newer = {**config.to_dict(), "rope_scaling": None, "pad_head_dim_to_multiple_of": 8}
    older = {**newer, "rope_parameters": None}
    newer = {key: value for key, value in newer.items() if key not in ("rope_theta", "partial_rotary_factor")}
    assert MoonshineConfig.from_dict(older) == MoonshineConfig.from_dict(newer) == config


def test_prompt_and_token_ids() -> None:
    generation = MoonshineGeneration.from_dict({"decoder_start_token_id": 1, "eos_token_id": 2})
    assert generation.prompt() == [1] and MoonshineGeneration.from_dict(generation.to_dict()) == generation
    with pytest.raises(ModelError, match=r"language='de', task='transcribe'.*whisper-base"):
        generation.prompt("de")
    with pytest.raises(ModelError, match="lacks 'eos_token_id'"):
        MoonshineGeneration.from_dict({"decoder_start_token_id": 1})
