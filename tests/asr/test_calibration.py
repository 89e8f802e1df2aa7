"""Teacher-forced batches: prompt, text, masks, and what cannot be one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from speech_fixtures import utterances

from qlib.asr.audio import split_windows
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.recognizer import SILENCE_STRIDE
from qlib.asr.transcribe import transcribe
from qlib.errors import DataError, ModelError
from qlib.models.structure import Model
from qlib.models.tiny import tiny_moonshine, tiny_whisper
from qlib.models.whisper import Whisper


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper()


def test_one_batch_an_utterance_with_prompt_and_text(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    batches = speech_batches(model, listed)
    assert [batch.where for batch in batches] == [f"list.jsonl, line {i}" for i in (1, 2, 3, 4)]
    assert model.tokenizer is not None
    for batch, each in zip(batches, listed, strict=True):
        (text,) = batch.tokens.tolist()
        assert text == [*model.generation.prompt(), *model.tokenizer.encode(f" {each.text}")]
        assert model.tokenizer.decode(text) == f" {each.text}"
        assert batch.token_mask.shape == batch.tokens.shape and batch.token_mask.all()
        assert batch.features is not None and batch.features.shape == (1, 80, 3000)
        assert not batch.features.is_inference(), "methods that learn need it in autograd"
    heard = [25, 50, 15, 100]  # 20 ms a frame
    masks = [batch.frame_mask[0] for batch in batches]
    assert [int(mask.long().argmin()) for mask in masks] == [25, 50, 15, 101]
    assert all(mask[::SILENCE_STRIDE].all() for mask in masks), "one silent frame in four counts"
    counted = [frames + sum(i % SILENCE_STRIDE == 0 for i in range(frames, 1500)) for frames in heard]
    assert [int(mask.sum()) for mask in masks] == counted


def test_moonshine_hears_the_waveform_and_all_its_frames_count(tmp_path: Path) -> None:
    model = tiny_moonshine()
    listed = utterances(tmp_path, (0.5, 1.0, 0.03, 2.0))
    batches = speech_batches(model, listed)
    assert model.tokenizer is not None
    for batch, each in zip(batches, listed, strict=True):
        audio = each.read()
        assert batch.features is not None
        assert torch.equal(batch.features[0, : len(audio)], audio), "as it is"
        assert batch.features.shape[1] == max(len(audio), 895), "56 ms at least"
        assert batch.frame_mask.shape == model.encode(batch.features).shape[:2]
        assert batch.frame_mask.all()
        assert batch.tokens[0].tolist() == [1, *model.tokenizer.encode(each.text or "")]
    untold = replace(listed[0], text=None)
    (batch,) = speech_batches(model, [untold])
    assert batch.tokens[0, 1:].tolist() == list(transcribe(model, [untold])[0].tokens)


def test_missing_text_is_what_the_model_writes(model: Whisper, tmp_path: Path) -> None:
    each = replace(utterances(tmp_path)[1], text=None)
    (batch,) = speech_batches(model, [each])
    assert batch.tokens[0, 2:].tolist() == list(transcribe(model, [each])[0].tokens)


def test_long_audio_is_cut_and_each_window_transcribed(model: Whisper, tmp_path: Path) -> None:
    short, long = utterances(tmp_path, (0.5, 40.0, 1.0, 1.0))[:2]
    windows = split_windows(long.read())
    first, *rest = speech_batches(model, [replace(short, where=""), replace(long, where="")])
    assert (len(windows), len(rest)) == (2, 2)
    assert [batch.where for batch in (first, *rest)] == ["noise0", "noise1, window 1", "noise1, window 2"]
    for batch, heard in zip(rest, transcribe(model, windows), strict=True):
        assert batch.tokens[0].tolist() == [*model.generation.prompt(), *heard.tokens]


def test_fingerprint_knows_order_and_text(tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    prints = {
        fingerprint(listed),
        fingerprint(listed[::-1]),
        fingerprint([replace(listed[0], text="x"), *listed[1:]]),
    }
    assert len(prints) == 3 and fingerprint(listed) == fingerprint(list(listed))


def test_errors_name_the_line(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    with pytest.raises(DataError, match="calibration list is empty"):
        speech_batches(model, [])
    soundfile.write(tmp_path / "empty.wav", torch.zeros(0).numpy(), 16_000)
    with pytest.raises(DataError, match=r"line 1: .*empty"):
        speech_batches(model, [replace(listed[0], audio=tmp_path / "empty.wav")])
    with pytest.raises(DataError, match=r"line 1: the text has \d+ tokens.*room for 62"):
        speech_batches(model, [replace(listed[0], text="word " * 100)])
    with pytest.raises(ModelError, match="no tokenizer"):
        speech_batches(Whisper(model.config, model.generation), listed)
    with pytest.raises(ModelError, match="A Model does not transcribe speech"):
        speech_batches(Model(), listed)
