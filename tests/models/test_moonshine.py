"""Moonshine against transformers on miniatures; rotation, ragged batches. See also test_speech_models.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.moonshine import MIN_SAMPLES, Moonshine, count_frames
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration
from qlib.models.moonshine_rotary import rotary_angles, rotate
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
