"""Detected languages: against one pass of the model, and what they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speech_fixtures import multilingual_whisper, noise, utterances
from torch import Tensor

from qlib.asr.audio import split_windows
from qlib.asr.hypotheses import recognize
from qlib.asr.invented import invented_text
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.utterance import Utterance
from qlib.errors import ModelError
from qlib.models.log_mel import log_mel
from qlib.models.tiny import tiny_moonshine, tiny_whisper
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper


@pytest.fixture(scope="module")
def model() -> Whisper:
    """A miniature that takes noise for English and a long tone for Cantonese."""
    model = multilingual_whisper()
    names = ("<|en|>", 113), ("<|de|>", 4), ("<|yue|>", 158)
    model.generation = replace(model.generation, languages=names)
    return model


def heard(model: Whisper, audio: Tensor) -> tuple[str, float]:
    """Return the most probable language, in one pass without a cache."""
    logits = model(log_mel(audio)[None], torch.tensor([[model.generation.start]]))[0, -1]
    weights = {name.strip("<|>"): float(logits[i].double().exp()) for name, i in model.generation.languages}
    best = max(weights, key=lambda name: weights[name])
    return best, weights[best] / sum(weights.values())


def tone(seconds: float) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * 300 / SAMPLE_RATE * torch.arange(int(seconds * SAMPLE_RATE)))


AUDIOS = [noise(1), tone(29), noise(21, 1), tone(28.5), noise(0.4)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_most_probable_language_token(model: Whisper, batch_size: int) -> None:
    found = transcribe(model, AUDIOS, batch_size=batch_size)
    expected = [heard(model, audio) for audio in AUDIOS]
    assert len({name for name, _ in expected}) > 1, "must tell recordings apart"
    assert [each.language for each in found] == [name for name, _ in expected]
    probabilities = [each.language_probability for each in found]
    assert probabilities == pytest.approx([probability for _, probability in expected], rel=1e-4)


def test_a_detected_language_is_as_good_as_a_told_one(model: Whisper) -> None:
    found = transcribe(model, AUDIOS)
    told = [transcribe(model, [a], language=f.language)[0] for a, f in zip(AUDIOS, found, strict=True)]
    assert [each.tokens for each in told] == [each.tokens for each in found]
    assert {each.language_probability for each in told} == {None}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_first_window_tells_the_language_of_all(model: Whisper, batch_size: int) -> None:
    """The first window is the shorter one, so by length alone it would be decoded last."""
    long = torch.cat([noise(21), torch.zeros(SAMPLE_RATE), tone(29)])
    first, second = split_windows(long)
    assert len(first) < len(second) and (heard(model, first)[0], heard(model, second)[0]) == ("en", "yue")
    later = torch.cat([torch.zeros(30 * SAMPLE_RATE), long])
    found = transcribe(model, [long, tone(29.8), later], batch_size=batch_size)
    assert [each.language for each in found] == ["en", "yue", "en"]
    assert found[0].tokens == transcribe(model, [long], language="en")[0].tokens


def test_silence_has_no_language(model: Whisper) -> None:
    (silence,) = transcribe(model, [torch.zeros(SAMPLE_RATE)])
    assert (silence.language, silence.language_probability) == (None, None)
    assert transcribe(model, [torch.zeros(SAMPLE_RATE)], language="de")[0].language == "de"


@pytest.mark.parametrize("model", [tiny_whisper(), tiny_moonshine()], ids=["whisper", "moonshine"])
def test_a_model_of_one_language_detects_nothing(model: Whisper) -> None:
    (found,) = transcribe(model, [noise(1)])
    assert (found.language, found.language_probability) == ("en", None)


def test_a_checkpoint_without_english_needs_none(model: Whisper) -> None:
    german = multilingual_whisper()
    german.generation = replace(german.generation, languages=(("<|de|>", 4),))
    (found,) = transcribe(german, [noise(1)])
    assert (found.language, found.language_probability) == ("de", 1.0)
    with pytest.raises(ModelError, match=r"Unknown language 'en'\. Known: de"):
        transcribe(german, [noise(1)], language="en")
    with pytest.raises(ModelError, match=r"Unknown task 'sing'"):
        transcribe(german, [noise(1)], task="sing")


def test_word_errors_are_of_english_where_no_language_is_known(tmp_path: Path) -> None:
    """The score needs the language of the references, which is not what the model takes it for."""
    german = multilingual_whisper()
    german.generation = replace(german.generation, languages=(("<|en|>", 4), ("<|de|>", 3)))
    listed = utterances(tmp_path)
    assert {each.language for each in transcribe(german, listed)} == {"de"}
    assert evaluate_wer(german, listed) == evaluate_wer(german, listed, language="en")


def test_what_is_counted_is_read_in_the_language_that_it_is_counted_in(model: Whisper) -> None:
    """A language is detected where a recording is transcribed, and none where its words are counted."""
    listed = [Utterance(audio, "the cat", str(i)) for i, audio in enumerate(AUDIOS)]
    english = [each.text for each in transcribe(model, listed, language="en")]
    assert [each.text for each in transcribe(model, listed)] != english, "must sound otherwise"
    assert list(evaluate_wer(model, listed).hypotheses) == english
    assert list(evaluate_wer(model, iter(listed)).hypotheses) == english
    assert [each.pred_text for each in recognize(model, listed)] == english
    sounds = [replace(each, text="") for each in listed]
    assert [each.text for each in invented_text(model, sounds).clips] == english
