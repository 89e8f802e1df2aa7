"""Real moonshine-tiny on real speech: parity with transformers, known words, limits, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from speech_fixtures import noise

import qlib
from qlib.asr.wer import score
from qlib.models.hub.load import load_model
from qlib.models.moonshine import Moonshine

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def clips() -> list[qlib.Utterance]:
    return qlib.read_manifest(Path(__file__).parents[1] / "examples/data/speech/manifest.jsonl")


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Moonshine:
    return load_model(checkpoint("moonshine-tiny"))


def test_tokens_equal_those_of_transformers(
    model: Moonshine, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path]
) -> None:
    from transformers import MoonshineForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    short = [clip for clip in clips if (clip.duration or 99) < 8][::4]
    assert len(short) >= 4
    theirs = MoonshineForConditionalGeneration.from_pretrained(
        checkpoint("moonshine-tiny"), dtype=torch.float32
    )
    expected = []
    for clip in short:
        audio = clip.read()
        ids = theirs.generate(audio[None], max_new_tokens=int(len(audio) * 6.5 / 16_000) + 1)[0].tolist()
        expected.append([token for token in ids if token not in (1, 2)])
    assert [list(each.tokens) for each in qlib.transcribe(model, short, batch_size=3)] == expected


def test_logits_equal_those_of_transformers(
    model: Moonshine, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path]
) -> None:
    from transformers import MoonshineForConditionalGeneration

    theirs = MoonshineForConditionalGeneration.from_pretrained(
        checkpoint("moonshine-tiny"), dtype=torch.float32, attn_implementation="sdpa"
    )
    audio, tokens = clips[1].read()[None], torch.arange(1, 1000, 40)[None]
    with torch.inference_mode():
        expected = theirs(input_values=audio, decoder_input_ids=tokens).logits
        torch.testing.assert_close(model(audio, tokens), expected, rtol=0, atol=1e-3)


def test_audio_longer_than_a_window_is_heard_to_the_end(
    model: Moonshine, clips: list[qlib.Utterance]
) -> None:
    (long,) = (clip for clip in clips if clip.source == "moonshine-voice")
    (heard,) = qlib.transcribe(model, [long])
    assert heard.text.startswith("It was the best of times, it was the worst of times.")
    assert heard.text.endswith("in the superlative degree of comparison only.")
    assert score([long.text or ""], [heard.text]).wer < 5


def test_words_of_short_clips(model: Moonshine, clips: list[qlib.Utterance]) -> None:
    short = [clip for clip in clips if (clip.duration or 99) < 30]
    result = qlib.evaluate_wer(model, short)
    assert result.wer < 25
    assert result.length_ratio < 1.2, "no repetition"


@pytest.mark.parametrize("audio", [torch.zeros(16_000), torch.zeros(80_000), noise(5), noise(0.1)])
def test_no_words_for_ever_where_nobody_speaks(model: Moonshine, audio: torch.Tensor) -> None:
    (heard,) = qlib.transcribe(model, [audio])
    assert len(heard.tokens) <= -(-len(audio) * 6.5 // 16_000)


def test_rows_of_a_batch_do_not_disturb_one_another(model: Moonshine, clips: list[qlib.Utterance]) -> None:
    short = [clip for clip in clips if (clip.duration or 99) < 6][:5]
    together, alone = (qlib.transcribe(model, short, batch_size=size) for size in (5, 1))
    assert [each.tokens for each in together] == [each.tokens for each in alone]


def test_texts_survive_the_tokenizer(model: Moonshine, clips: list[qlib.Utterance]) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    for text in (*(clip.text or "" for clip in clips), "Zürich 1984 - naïve", " two  spaces "):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text) / 2 + 8, "whole words are found, not letters only"
    assert tokenizer.vocab_size == model.config.vocab_size == 32_768
    assert tokenizer.encode("Hello, world!") == [15_043, 29_892, 3_186, 29_991], "ids of this table's family"
    assert len(tokenizer.special_ids) == 3 + 768
