"""Teacher-forced batches: prompt, text, masks, and what cannot be one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from speech_fixtures import multilingual_whisper, utterances

import qlib
from qlib.asr.audio import split_windows
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.transcribe import transcribe
from qlib.errors import DataError, ModelError, QuantError
from qlib.models.structure import Model
from qlib.models.tiny import tiny_moonshine, tiny_whisper
from qlib.models.whisper import SILENCE_STRIDE, Whisper


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


def test_fingerprint_knows_all_that_calibration_depends_on(tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    lists = [listed, listed[::-1], listed[1:]]
    for change in ({"text": "x"}, {"language": "de"}, {"offset": 0.1}, {"duration": 0.2}, {"id": "x"}):
        lists.append([replace(listed[0], **change), *listed[1:]])
    prints = [fingerprint(each) for each in lists]
    assert len(set(prints)) == len(lists)
    assert prints[0] == fingerprint(list(listed))
    soundfile.write(listed[2].audio, 0.5 * listed[2].read().numpy(), 16_000)
    assert fingerprint(listed) not in prints, "the same names, another sound"
    listed[2].audio.unlink()
    assert fingerprint(listed) not in prints, "that it is gone is told by speech_batches"


def test_a_resumed_run_refuses_other_recordings_of_the_same_names(tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    model = tiny_whisper(layers=1)

    def run() -> qlib.Result:
        return qlib.quantize(
            model,
            [qlib.GPTQ()],
            weight=qlib.Grid(4, 8),
            calib=listed[:1],
            work=tmp_path / "w",
            progress=False,
        )

    run()
    run()
    soundfile.write(listed[0].audio, listed[1].read().numpy(), 16_000)
    with pytest.raises(QuantError, match="holds another run: calibration was"):
        run()


def test_each_utterance_is_prompted_in_its_own_language(tmp_path: Path) -> None:
    model = multilingual_whisper()
    listed = utterances(tmp_path)[:3]
    languages = ["", "German", "de-AT"]
    spoken = [replace(each, language=name) for each, name in zip(listed, languages, strict=True)]
    english, german = (model.generation.prompt(code) for code in ("en", "de"))
    found = [batch.tokens[0, :4].tolist() for batch in speech_batches(model, spoken)]
    assert found == [english, german, german] and english != german
    found = [batch.tokens[0, :4].tolist() for batch in speech_batches(model, spoken, "english")]
    assert found == [english] * 3
    (untold,) = speech_batches(model, [replace(spoken[1], text=None)])
    assert untold.tokens[0, 4:].tolist() == list(transcribe(model, [listed[1]], language="de")[0].tokens)


def test_a_segment_is_calibrated_with_its_own_sound(model: Whisper, tmp_path: Path) -> None:
    each = utterances(tmp_path)[3]
    (part,) = speech_batches(model, [replace(each, offset=0.5, duration=1.0)])
    soundfile.write(tmp_path / "part.wav", each.read()[8000:24_000].numpy(), 16_000)
    (same,) = speech_batches(model, [replace(each, audio=tmp_path / "part.wav")])
    assert part.features is not None and same.features is not None
    torch.testing.assert_close(part.features, same.features, rtol=0, atol=2e-3)  # 16 bits, twice


def test_a_whisper_that_hears_less_than_30_s(tmp_path: Path) -> None:
    model = tiny_whisper(frames=100)  # 2 s
    listed = utterances(tmp_path, (0.5, 1.0, 3.0, 2.0))
    batches = speech_batches(model, listed)
    ends = ["line 1", "line 2", "line 3, window 1", "line 3, window 2", "line 4"]
    assert [batch.where.partition(", ")[2] for batch in batches] == ends
    assert {tuple(batch.features.shape) for batch in batches if batch.features is not None} == {(1, 80, 200)}
    assert [int(batch.frame_mask.sum()) for batch in batches][:2] == [25 + 18, 50 + 12]
    with pytest.raises(ModelError, match=r"8 positions and reads 0\.16 s at once.*1500"):
        speech_batches(tiny_whisper(frames=8), listed)


def test_errors_name_the_line(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    with pytest.raises(DataError, match="calibration list is empty"):
        speech_batches(model, [])
    soundfile.write(tmp_path / "empty.wav", torch.zeros(0).numpy(), 16_000)
    with pytest.raises(DataError, match=r"line 1: .*empty"):
        speech_batches(model, [replace(listed[0], audio=tmp_path / "empty.wav")])
    with pytest.raises(DataError, match=r"line 1: the text has \d+ tokens.*room for 62"):
        speech_batches(model, [replace(listed[0], text="word " * 100)])
    with pytest.raises(DataError, match=r"line 1: unknown language 'klingon'"):
        speech_batches(model, [replace(listed[0], language="klingon")])
    with pytest.raises(ModelError, match=r"line 2: This checkpoint only transcribes English"):
        speech_batches(model, [listed[0], replace(listed[1], language="German")])
    with pytest.raises(ModelError, match="no tokenizer"):
        speech_batches(Whisper(model.config, model.generation), listed)
    with pytest.raises(ModelError, match="A Model does not transcribe speech"):
        speech_batches(Model(), listed)
