"""What may be handed in as a recording, and the messages for what may not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from speech_fixtures import noise, utterances

from qlib.asr.audio_file import SAMPLE_RATE
from qlib.asr.comparison import compare
from qlib.asr.datasets import Utterance
from qlib.asr.recordings import as_source, as_sources
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.wer import score
from qlib.errors import DataError, ModelError, QlibError
from qlib.models.tiny import tiny_whisper
from qlib.models.whisper import Whisper


def sound(recording: Any) -> torch.Tensor:
    return torch.cat(list(as_source(recording, "recording 1").blocks()))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_numpy_waveforms_are_samples(kind: Any) -> None:
    array = noise(0.1).numpy().astype(kind)
    assert torch.equal(sound(array), torch.from_numpy(array.astype(np.float32)))
    array.flags.writeable = False
    assert sound(array[::-1]).tolist() == array[::-1].astype(np.float32).tolist()


def test_16_bit_integers_are_scaled_as_in_a_file(tmp_path: Path) -> None:
    array = np.array([-32768, -1, 0, 1, 16384, 32767], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", array, SAMPLE_RATE)
    assert torch.equal(sound(array), sound(tmp_path / "a.wav"))


@pytest.mark.parametrize("key", ["array", "raw"])
def test_a_dict_with_a_rate_is_resampled_like_a_file(tmp_path: Path, key: str) -> None:
    array = noise(0.5).numpy()
    soundfile.write(tmp_path / "a.wav", array, 8000, subtype="FLOAT")
    found = sound({key: array, "sampling_rate": np.int64(8000), "path": None})
    assert torch.equal(found, sound(tmp_path / "a.wav"))
    assert torch.equal(sound({key: array.tolist(), "sampling_rate": 8000}), found)


def test_rows_of_data_sets(tmp_path: Path) -> None:
    array = noise(0.5).numpy()
    soundfile.write(tmp_path / "a.wav", array, SAMPLE_RATE, subtype="FLOAT")
    file = str(tmp_path / "a.wav")
    audio = {"array": array, "sampling_rate": SAMPLE_RATE}
    for row in (
        {"path": file},
        {"audio": file},
        {"audio": Path(file)},
        {"audio": audio},
        {"audio": {"path": file}},
    ):
        assert torch.equal(sound(row), torch.from_numpy(array))
    assert as_source({"audio": audio, "locale": "de", "sentence": "ja"}, "").language == "de"
    part = {"audio_filepath": file, "offset": 0.25, "duration": 0.125, "text": "x", "lang": "fr"}
    assert torch.equal(sound(part), torch.from_numpy(array[4000:6000]))
    assert as_source(part, "").language == "fr"


def test_a_tensor_is_passed_on_as_it_is() -> None:
    audio = noise(0.1)
    assert next(iter(as_source(audio, "").blocks())) is audio


def test_a_generator_is_read_as_it_goes() -> None:
    def recordings() -> Any:
        yield noise(0.1)
        raise KeyError("reached")

    sources = iter(as_sources(recordings(), "transcribe"))
    next(sources)
    with pytest.raises(KeyError):
        next(sources)


AUDIO = noise(0.1)
BAD_RECORDINGS = [
    (7, r"recording 2 of 2 is the int 7, not a recording\. Pass a path"),
    (None, r"recording 2 of 2 is None"),
    ([0.0, 0.1], r"recording 2 of 2 is a list of 2 float"),
    ((AUDIO.numpy(), 16_000), r"recording 2 of 2 is a tuple.*sampling_rate"),
    (torch.zeros(2, 100), r"recording 2 of 2 is a Tensor \[2, 100\] of float32, not one waveform.*mean"),
    (np.zeros((100, 2)), r"recording 2 of 2 is a ndarray \[100, 2\] of float64, not one waveform"),
    (np.float32(1.0), r"recording 2 of 2 is .*not a recording"),
    (torch.zeros(100, dtype=torch.int16), r"recording 2 of 2 is a Tensor \[100\] of int16.*32768"),
    (torch.zeros(100, dtype=torch.long), r"recording 2 of 2 is a Tensor \[100\] of int64"),
    (np.zeros(100, np.int32), r"recording 2 of 2 is a ndarray \[100\] of int32.*Divide"),
    (np.zeros(100, bool), r"recording 2 of 2 is a ndarray \[100\] of bool"),
    (np.zeros(100, complex), r"recording 2 of 2 is a ndarray \[100\] of complex128"),
    (torch.tensor([0.0, math.nan, 0.0]), r"recording 2 of 2: 1 of 3 samples are NaN or infinite"),
    (np.array([0.0, math.inf, -math.inf]), r"recording 2 of 2: 2 of 3 samples are NaN or infinite"),
    (32767 * AUDIO, r"recording 2 of 2: samples reach \d+.*full scale is 1"),
    ({"array": AUDIO}, r"recording 2 of 2: a dict with samples and without their rate"),
    ({"array": AUDIO, "sampling_rate": "16k"}, r"sampling_rate is the str '16k', not a whole number"),
    ({"array": AUDIO, "sampling_rate": 16}, r"recording 2 of 2: a sampling rate of 16 Hz"),
    ({"file": "a.wav"}, r"recording 2 of 2: a dict with 'file', not a recording"),
    ({}, r"recording 2 of 2: a dict with nothing"),
    ("gone.wav", r"gone\.wav: there is no such audio file"),
    (Utterance("gone.wav", where="l.csv, line 4"), r"l\.csv, line 4: gone\.wav: there is no such"),
    (Utterance("gone.wav", language="germn"), r"gone"),
]


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=5)


@pytest.mark.parametrize(("bad", "message"), BAD_RECORDINGS, ids=lambda value: str(value)[:30])
def test_a_bad_entry_is_named_before_any_work(
    model: Whisper, monkeypatch: pytest.MonkeyPatch, bad: Any, message: str
) -> None:
    monkeypatch.setattr(model, "encode", None)  # nothing may be heard
    with pytest.raises(DataError, match=message):
        transcribe(model, [AUDIO, bad], progress=False)


@pytest.mark.parametrize(
    "single",
    ["a.wav", Path("a.wav"), AUDIO, AUDIO.numpy(), Utterance("a.wav"), {"array": AUDIO}, b"RIFF", None, 3],
    ids=lambda value: type(value).__name__,
)
def test_a_single_recording_is_no_list(model: Whisper, single: Any) -> None:
    with pytest.raises(DataError, match=r"transcribe takes a list of recordings, and got .*into a list"):
        transcribe(model, single, progress=False)


def test_arrays_dicts_paths_and_generators_give_the_same_text(model: Whisper, tmp_path: Path) -> None:
    (first, *_) = utterances(tmp_path)
    array = first.read().numpy()
    forms = [
        first,
        str(first.audio),
        array,
        torch.from_numpy(array),
        {"array": array, "sampling_rate": 16_000},
    ]
    texts = [each.tokens for each in transcribe(model, forms, progress=False)]
    assert len(set(texts)) == 1 and texts[0]
    assert [each.tokens for each in transcribe(model, (form for form in forms), progress=False)] == texts


SCORED = score(["a"], ["a"])
UTTERANCE = Utterance("gone.wav", "the cat")
MISTAKES: list[tuple[str, Any, str]] = [
    ("paths", lambda m: evaluate_wer(m, ["a.wav"]), r"entry 1 of 1 is the str 'a\.wav'.*qlib\.Utterance"),
    ("mixed", lambda m: evaluate_wer(m, [UTTERANCE, 3]), r"entry 2 of 2 is the int 3, not an utterance"),
    ("one utterance", lambda m: evaluate_wer(m, UTTERANCE), r"Put a single utterance into a list"),
    ("a manifest's path", lambda m: evaluate_wer(m, "l.jsonl"), r"'l\.jsonl'\. Read a manifest first"),
    ("empty", lambda m: evaluate_wer(m, []), r"list of utterances is empty"),
    ("none", lambda m: evaluate_wer(m, None), r"utterances is None, not a list"),
    ("no text", lambda m: evaluate_wer(m, [Utterance("gone.wav")]), r"gone: no transcript"),
    ("a model's name", lambda m: transcribe("whisper-tiny.en", []), r"str 'whisper-tiny\.en' .*load_model"),
    ("no model", lambda m: transcribe(None, [AUDIO]), r"None does not transcribe speech"),
    ("batch of 2.5", lambda m: transcribe(m, [AUDIO], batch_size=2.5), r"batch_size is the float 2\.5"),
    ("batch True", lambda m: transcribe(m, [AUDIO], batch_size=True), r"batch_size is the bool True"),
    ("batch -1", lambda m: transcribe(m, [AUDIO], batch_size=-1), r"batch_size=-1 is not 1 or more"),
    ("language", lambda m: transcribe(m, [AUDIO], language="germna"), r"'germna'\. Did you mean 'german'"),
    ("language 3", lambda m: transcribe(m, [AUDIO], language=3), r"language is the int 3"),
    ("English only", lambda m: transcribe(m, [AUDIO], language="German"), r"only transcribes English"),
    ("task", lambda m: transcribe(m, [AUDIO], language="en", task="sing"), r"task='sing'"),
    ("score texts", lambda m: score("a b", "a b"), r"references is the str 'a b', not a list"),
    ("score language", lambda m: score(["a"], ["a"], languages="xyz"), r"unknown language 'xyz'"),
    ("score languages", lambda m: score(["a"], ["a"], languages=["en", "de"]), r"2 languages, 1 references"),
    ("score ids", lambda m: score(["a"], ["a"], ids=[]), r"0 ids, 1 references"),
    ("compare numbers", lambda m: compare(SCORED, 3.4), r"the float 3\.4 is no WerResult"),
    ("audio of an utterance", lambda m: Utterance(3, "x"), r"audio is the int 3"),
    ("offset of an utterance", lambda m: Utterance("a.wav", offset=-1), r"offset -1 is no length of time"),
    ("duration of one", lambda m: Utterance("a.wav", duration="long"), r"duration .long. is not a number"),
    ("text of an utterance", lambda m: Utterance("a.wav", 3), r"text is the int 3"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call", "message"), MISTAKES, ids=[each[0] for each in MISTAKES])
def test_mistakes_and_their_messages(model: Whisper, name: str, call: Any, message: str) -> None:
    with pytest.raises(QlibError, match=message):
        call(model)


def test_a_result_names_its_model(model: Whisper) -> None:
    class Result:
        def __init__(self) -> None:
            self.model = model

    with pytest.raises(ModelError, match=r"A Result does not transcribe speech\. Pass its \.model"):
        evaluate_wer(Result(), [UTTERANCE])  # type: ignore[arg-type]
