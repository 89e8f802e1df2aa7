"""Transcription with timestamps: against transformers on miniatures, and at its edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import noise, timed_whisper
from torch import Tensor

from qlib.asr.transcribe import transcribe
from qlib.asr.transcript import Segment
from qlib.errors import ModelError
from qlib.models.log_mel import HOP, log_mel_batch, log_mel_recording
from qlib.models.tiny import tiny_moonshine, tiny_whisper, write_folder
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper

Times = list[tuple[float, float, list[int]]]  # start, end, text tokens


def of_transformers(model: Whisper, folder: Path, audios: list[Tensor]) -> list[Times]:
    """Return the segments with a text of `WhisperForConditionalGeneration.generate`."""
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(write_folder(model, folder)).eval()
    theirs.generation_config.max_initial_timestamp_index = 50
    theirs.generation_config.max_length = model.positions
    results = []
    for audio in audios:
        short = len(audio) <= model.frames * HOP
        features = log_mel_batch([audio], 80, model.frames)[0] if short else log_mel_recording(audio)
        options = {"language": "en", "task": "transcribe", "return_segments": True}
        found = theirs.generate(features[None], return_timestamps=True, **options)["segments"][0]
        results.append([(float(s["start"]), float(s["end"]), text_tokens(model, s["tokens"])) for s in found])
    return [[each for each in result if text_of(model, each[2])] for result in results]


def text_tokens(model: Whisper, tokens: Any) -> list[int]:
    return [int(token) for token in tokens if token < model.generation.no_timestamps]


def text_of(model: Whisper, tokens: list[int]) -> str:
    assert model.tokenizer is not None
    return model.tokenizer.decode(tokens).strip()


def ours(model: Whisper, audios: list[Tensor], batch_size: int = 2) -> list[Times]:
    found = transcribe(model, audios, batch_size=batch_size, language="en", timestamps=True, progress=False)
    return [[(s.start, s.end, text_tokens(model, s.tokens)) for s in each.segments or ()] for each in found]


def assert_same(found: Times, expected: Times) -> None:
    assert [tokens for *_, tokens in found] == [tokens for *_, tokens in expected]
    assert [times[:2] for times in found] == [pytest.approx(times[:2], abs=1e-9) for times in expected]


@pytest.mark.parametrize("seed", [2, 4, 8])
def test_segments_equal_those_of_transformers(seed: int, tmp_path: Path) -> None:
    """Windows of 2 s. In padding transformers goes on, and what it hears there is left out here."""
    model = timed_whisper(seed)
    whole, padded, long = noise(2, seed), noise(1, seed + 1), noise(5.3, seed + 2)
    expected = of_transformers(model, tmp_path, [whole, padded, long])
    found = ours(model, [whole, padded, long])
    assert len(expected[0]) > 2 and len(expected[2]) > 4 and expected[2][-1][0] > 4, "several windows"
    assert_same(found[0], expected[0])
    assert found[1] and len(found[1]) <= len(expected[1])
    assert_same(found[1], expected[1][: len(found[1])])
    assert all(start >= 1 for start, *_ in expected[1][len(found[1]) :])
    assert_same(found[2], expected[2])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_change_nothing(batch_size: int) -> None:
    model = timed_whisper(4)
    audios = [noise(seconds, i) for i, seconds in enumerate((5, 0.5, 3, 2, 0, 7))]
    assert ours(model, audios, batch_size) == [ours(model, [audio])[0] for audio in audios]


def test_a_transcript_is_its_segments() -> None:
    model = timed_whisper(3)  # some of its segments are only a space
    (found,) = transcribe(model, [noise(5)], language="en", timestamps=True, progress=False)
    assert found.segments and all(segment.text for segment in found.segments)
    assert found.tokens == tuple(token for segment in found.segments for token in segment.tokens)
    assert found.text == text_of(model, text_tokens(model, found.tokens))
    assert found.seconds == 5
    assert str(Segment(0.5, 61.25, "a b", ())) == "[0.50 --> 61.25] a b"
    assert transcribe(model, [noise(1)], language="en", progress=False)[0].segments is None


def test_silence_is_skipped_and_what_follows_keeps_its_time() -> None:
    model = timed_whisper(8)
    speech = noise(2, 1)
    silent = torch.zeros(4 * SAMPLE_RATE)
    silence, nothing, late = transcribe(
        model, [silent, torch.zeros(0), torch.cat([silent, speech])], language="en", timestamps=True
    )
    assert (silence.text, silence.segments, silence.seconds) == ("", (), 4)
    assert (nothing.text, nothing.segments, nothing.seconds) == ("", (), 0)
    assert late.segments and all(segment.start >= 4 for segment in late.segments)


def test_less_than_a_frame_of_sound_is_one_window() -> None:
    (blip,) = transcribe(timed_whisper(8), [noise(100 / SAMPLE_RATE)], language="en", timestamps=True)
    assert blip.segments is not None and len(blip.segments) < 20


def test_a_text_without_an_end_lasts_as_long_as_the_sound() -> None:
    model = timed_whisper(8)
    later = range(model.generation.no_timestamps + 2, model.config.vocab_size)  # than 0.00
    model.generation = replace(model.generation, suppress=(*model.generation.suppress, *later))
    (found,) = ours(model, [noise(1.5)])
    assert [times[:2] for times in found] == [(0, 1.5)]


def test_models_without_timestamps_are_refused_before_any_work() -> None:
    with pytest.raises(ModelError, match=r"a Moonshine writes no timestamps\. Take a Whisper checkpoint"):
        transcribe(tiny_moonshine(), [noise(1)], timestamps=True)
    with pytest.raises(ModelError, match=r"has 0 tokens after <\|notimestamps\|> \(261\).* window are 101"):
        transcribe(tiny_whisper(frames=100), [noise(1)], timestamps=True)


def test_each_recording_is_heard_in_its_language() -> None:
    model = timed_whisper(8)
    audios = [noise(3, seed) for seed in range(3)]
    rows = [
        {"audio": {"array": audios[0], "sampling_rate": SAMPLE_RATE}, "language": n} for n in ("en", "de")
    ]
    english, german, _ = transcribe(model, [*rows, audios[0]], timestamps=True, batch_size=3)
    assert (english.language, english.language_probability) == ("en", None)
    assert (german.language, german.language_probability) == ("de", None)
    assert english.tokens != german.tokens
    found = transcribe(model, audios, timestamps=True, batch_size=2)
    for audio, each in zip(audios, found, strict=True):
        assert each.language in ("en", "de") and each.language_probability is not None
        again = transcribe(model, [audio], language=each.language, timestamps=True)[0]
        assert (again.tokens, again.segments) == (each.tokens, each.segments)
