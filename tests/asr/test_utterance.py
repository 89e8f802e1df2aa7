"""Utterances whose sound is in memory: all that can be done with those in files."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from speech_fixtures import noise, utterances

import qlib
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.utterance import Utterance
from qlib.errors import DataError
from qlib.models.tiny import tiny_whisper

SOUND = noise(1)


def in_memory(listed: list[Utterance]) -> list[Utterance]:
    return [replace(each, audio=each.read()) for each in listed]


def test_tensors_and_arrays_become_float32() -> None:
    for audio in (SOUND, SOUND.double(), SOUND.numpy(), SOUND.numpy().astype(np.float64)):
        read = Utterance(audio, "the cat").read()
        assert read.dtype == torch.float32 and torch.equal(read, SOUND)
    integers = np.array([-32768, 0, 16384], dtype=np.int16)
    assert Utterance(integers).read().tolist() == [-1, 0, 0.5]
    assert not Utterance(SOUND.clone().requires_grad_()).read().requires_grad


def test_the_id_is_a_hash_of_the_samples() -> None:
    one, same, other = Utterance(SOUND), Utterance(SOUND.clone()), Utterance(noise(1, seed=1))
    assert one.id == same.id != other.id
    assert one.id == one.sound_hash()[:8]
    assert Utterance(SOUND, id="mine").id == "mine"
    assert Utterance(SOUND, offset=0.25).id == f"{one.id}@0.250"


def test_equal_sound_is_equal() -> None:
    one, same, other = Utterance(SOUND, "a"), Utterance(SOUND.clone(), "a"), Utterance(noise(1, seed=1), "a")
    assert one == same and hash(one) == hash(same)
    assert one != other and one != Utterance(SOUND, "b") and one != Utterance("a.wav", "a") and one != "a"
    assert Utterance("a.wav", "a") == Utterance(Path("a.wav"), "a")
    assert len({one, same, other}) == 2
    assert pickle.loads(pickle.dumps(one)) == one


def test_segments_are_those_of_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SOUND.numpy(), 16_000, subtype="FLOAT")
    for offset, duration in ((0.25, 0.5), (0.5, None), (None, 0.25), (None, 1.05), (0.0, 1.0)):
        stored, held = (Utterance(audio, None, "a", offset=offset, duration=duration)
                        for audio in (tmp_path / "a.wav", SOUND))  # fmt: skip
        assert torch.equal(held.read(), stored.read())
    with pytest.raises(DataError, match=r"l\.py, line 3: a: offset 2 s is not before the end.*1\.00 s"):
        Utterance(SOUND, None, "a", offset=2, where="l.py, line 3").read()


def test_models_take_it_as_they_take_files(tmp_path: Path) -> None:
    model, listed = tiny_whisper(), utterances(tmp_path)
    held = in_memory(listed)
    assert transcribe(model, held, progress=False) == transcribe(model, listed, progress=False)
    assert evaluate_wer(model, held, progress=False) == evaluate_wer(model, listed, progress=False)
    for mine, theirs in zip(speech_batches(model, held), speech_batches(model, listed), strict=True):
        assert torch.equal(mine.features, theirs.features) and torch.equal(mine.tokens, theirs.tokens)
    grid = qlib.Grid(4, 8)
    results = [
        qlib.quantize(model, [qlib.GPTQ()], weight=grid, calib=calib, progress=False)
        for calib in (held, listed)
    ]
    states = [result.model.state_dict() for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_fingerprint_sees_samples_and_segments() -> None:
    known = Utterance(SOUND, "the cat", "a")
    louder = replace(known, audio=2 * SOUND)
    assert fingerprint([known]) == fingerprint([replace(known, audio=SOUND.clone())])
    others = [louder, replace(known, offset=0.5), replace(known, text="the hat"), replace(known, id="b")]
    assert len({fingerprint([each]) for each in [known, *others]}) == 5
    assert fingerprint([known, louder]) != fingerprint([louder, known])


def test_there_is_no_path() -> None:
    assert Utterance("a.wav").path == Path("a.wav")
    with pytest.raises(DataError, match="a: the sound is in memory, so there is no file"):
        _ = Utterance(SOUND, None, "a").path


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(0), r"empty, it has 0 samples"),
        (torch.zeros(2, 5), r"not one waveform \[samples\]"),
        (torch.zeros(5, dtype=torch.int16), r"expected floats"),
        (torch.tensor([0.0, float("nan")]), r"1 of 2 samples are NaN"),
        (torch.tensor([0.0, 100.0]), r"samples reach 100, full scale is 1"),
        (None, r"audio is None.*path of an audio file, or samples"),
        ("", r"audio is the str ''"),
    ],
)
def test_what_is_no_sound_is_refused(audio: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Utterance(audio, "the cat")
