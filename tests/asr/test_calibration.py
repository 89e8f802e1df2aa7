"""Teacher-forced batches: prompt, text, masks, and what cannot be one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from speech_fixtures import utterances

from qlib.asr import calibration
from qlib.asr.audio import split_windows
from qlib.asr.calibration import SILENCE_STRIDE, fingerprint, pad_rows, speech_batches
from qlib.asr.transcribe import transcribe
from qlib.errors import DataError, ModelError
from qlib.models.tiny import tiny_whisper
from qlib.models.whisper import Whisper


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper()


def test_tokens_are_prompt_and_text_and_padding_is_masked(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    (batch,) = speech_batches(model, listed)
    assert model.tokenizer is not None and batch.features is not None
    for row, each in enumerate(listed):
        text = batch.tokens[row][batch.token_mask[row]].tolist()
        assert text == [*model.generation.prompt(), *model.tokenizer.encode(f" {each.text}")]
        assert model.tokenizer.decode(text) == f" {each.text}"
    assert batch.token_mask[3].all() and not batch.token_mask[0].all()
    heard = [25, 50, 15, 100]  # 20 ms a frame
    assert [int(mask.long().argmin()) for mask in batch.frame_mask] == [25, 50, 15, 101]
    assert batch.frame_mask[:, ::SILENCE_STRIDE].all(), "one silent frame in four counts"
    counted = [frames + sum(i % SILENCE_STRIDE == 0 for i in range(frames, 1500)) for frames in heard]
    assert batch.frame_mask.sum(1).tolist() == counted
    assert batch.features.shape == (4, 80, 3000)


def test_batches_are_cut_in_order(model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BATCH_SIZE", 3)
    listed = utterances(tmp_path)
    first, second = speech_batches(model, listed)
    assert (len(first.tokens), len(second.tokens)) == (3, 1)
    assert torch.equal(second.frame_mask[0, :100], torch.ones(100, dtype=torch.bool))


def test_missing_text_is_what_the_model_writes(model: Whisper, tmp_path: Path) -> None:
    each = replace(utterances(tmp_path)[1], text=None)
    (batch,) = speech_batches(model, [each])
    assert batch.tokens[0, 2:].tolist() == list(transcribe(model, [each])[0].tokens)


def test_long_audio_is_cut_and_each_window_transcribed(model: Whisper, tmp_path: Path) -> None:
    short, long = utterances(tmp_path, (0.5, 40.0, 1.0, 1.0))[:2]
    windows = split_windows(long.read())
    (batch,) = speech_batches(model, [short, long])
    assert len(windows) == 2 and len(batch.tokens) == 3
    for row, heard in zip((1, 2), transcribe(model, windows), strict=True):
        assert batch.tokens[row][batch.token_mask[row]].tolist() == [
            *model.generation.prompt(),
            *heard.tokens,
        ]


def test_padding_of_rows_by_hand() -> None:
    tokens, mask = pad_rows([[1, 2, 3], [4]], filler=9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


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
