"""Whisper against transformers on miniatures; prompts and errors. See also test_speech_models.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.tiny import tiny_whisper, write_folder
from qlib.models.whisper import Whisper
from qlib.models.whisper_config import WhisperConfig, WhisperGeneration

FRAMES = 20


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=1, frames=FRAMES)


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, 80, 2 * FRAMES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("width", "heads", "layers"), [(16, 2, 2), (24, 4, 1)])
def test_logits_equal_those_of_transformers(
    tmp_path: Path,
    features: Tensor,
    tokens: Tensor,
    dtype: torch.dtype,
    tolerance: float,
    width: int,
    heads: int,
    layers: int,
) -> None:
    from transformers import WhisperForConditionalGeneration

    folder = write_folder(tiny_whisper(3, width, layers, heads, frames=FRAMES), tmp_path)
    ours = load_model(folder, dtype=dtype)
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        expected = theirs(input_features=features.to(dtype), decoder_input_ids=tokens).logits
        found = ours(features.to(dtype), tokens)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    ("language", "task", "expected"),
    [("en", "transcribe", [50, 3, 7, 9]), ("de", "translate", [50, 4, 8, 9])],
)
def test_multilingual_prompt(language: str, task: str, expected: list[int]) -> None:
    generation = WhisperGeneration(
        50, 51, 9, languages=(("<|en|>", 3), ("<|de|>", 4)), tasks=(("transcribe", 7), ("translate", 8))
    )
    assert generation.prompt(language, task) == expected
    with pytest.raises(ModelError, match=r"Unknown language 'fr'. Known: de, en"):
        generation.prompt("fr")
    with pytest.raises(ModelError, match=r"Unknown task 'sing'\. Known: transcribe, translate"):
        generation.prompt("en", "sing")
    assert WhisperGeneration.from_dict(generation.to_dict()) == generation


def test_english_only_prompt() -> None:
    assert WhisperGeneration(50, 51, 9).prompt() == [50, 9]
    with pytest.raises(ModelError, match="only transcribes English"):
        WhisperGeneration(50, 51, 9).prompt("de")


@pytest.mark.parametrize("shape", [(1, 80, 39), (1, 79, 40), (80, 40)])
def test_features_of_another_shape_are_refused(model: Whisper, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"\[batch, 80, 40\]: pad or cut"):
        model.encode(torch.zeros(shape))


def test_cache_errors_say_the_numbers(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(features), capacity=4)
    with pytest.raises(ModelError, match="holds 4 positions and 9 are needed"):
        model.decode(tokens, cache)
    with pytest.raises(ModelError, match="Cannot truncate a cache of 0 positions to 2"):
        cache.truncate(2)
    with pytest.raises(ModelError, match="Row 3 is not one of the 3"):
        cache.drop(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ({"d_model": None}, "lacks d_model"),
    ],
)
def test_config_that_cannot_be_honoured(change: dict[str, object], message: str) -> None:
    values = {**tiny_whisper(frames=FRAMES).config.to_dict(), **change}
    with pytest.raises(ModelError, match=message):
        WhisperConfig.from_dict({key: value for key, value in values.items() if value is not None})


def test_generation_config_without_a_needed_token() -> None:
    with pytest.raises(ModelError, match="lacks 'eos_token_id'"):
        WhisperGeneration.from_dict({"decoder_start_token_id": 1})
