"""Real checkpoints on real speech: parity with transformers, known words, quantization that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qlib
from qlib.asr.wer import score
from qlib.models.hub.load import load_model
from qlib.models.log_mel import log_mel_batch, log_mel_recording
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper

pytestmark = pytest.mark.weights
NAMES = ("whisper-tiny.en", "whisper-base")


@pytest.fixture(scope="module")
def clips() -> list[qlib.Utterance]:
    return qlib.read_manifest(Path(__file__).parents[1] / "examples/data/speech/manifest.jsonl")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Whisper:
    return load_model(checkpoint(request.param))


@pytest.fixture(scope="module")
def tiny_en(checkpoint: Callable[[str], Path]) -> Whisper:
    return load_model(checkpoint("whisper-tiny.en"))


def folder_of(model: Whisper, checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(NAMES[1] if model.generation.languages else NAMES[0])


def test_tokens_equal_those_of_transformers(
    model: Whisper, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path]
) -> None:
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    short = [clip for clip in clips if clip.source != "moonshine-voice" and (clip.duration or 99) < 12][::3]
    theirs = WhisperForConditionalGeneration.from_pretrained(
        folder_of(model, checkpoint), dtype=torch.float32
    )
    options = {"language": "en", "task": "transcribe"} if model.generation.languages else {}
    rows = theirs.generate(log_mel_batch([clip.read() for clip in short]), **options).tolist()
    expected = [[token for token in row if token < model.generation.end] for row in rows]
    assert [list(each.tokens) for each in qlib.transcribe(model, short, batch_size=3)] == expected


def test_segments_and_languages_equal_those_of_transformers(
    model: Whisper, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path]
) -> None:
    """On short clips and on 44 s, whose windows depend on the segments before."""
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    theirs = WhisperForConditionalGeneration.from_pretrained(
        folder_of(model, checkpoint), dtype=torch.float32
    )
    theirs.generation_config.max_initial_timestamp_index = 50
    options = {"language": "en", "task": "transcribe"} if model.generation.languages else {}
    short = [clip for clip in clips if clip.source != "moonshine-voice" and (clip.duration or 99) < 12][::5]
    (long,) = (clip for clip in clips if (clip.duration or 0) > 30)
    audios = [clip.read() for clip in (*short, long)]
    features = [*(log_mel_batch([audio]) for audio in audios[:-1]), log_mel_recording(audios[-1])[None]]
    found = qlib.transcribe(model, audios, timestamps=True, language="en")
    assert model.tokenizer is not None
    for audio, sound, ours in zip(audios, features, found, strict=True):
        heard = theirs.generate(sound, return_timestamps=True, return_segments=True, **options)
        expected = []
        for each in heard["segments"][0]:
            tokens = [token for token in each["tokens"].tolist() if token < model.generation.no_timestamps]
            text = model.tokenizer.decode(tokens).strip()
            if text and each["start"] < len(audio) / SAMPLE_RATE:  # it goes on in the padding
                expected.append((round(float(each["start"]), 2), round(float(each["end"]), 2), text))
        assert [(each.start, each.end, each.text) for each in ours.segments or ()] == expected
    if model.generation.languages:
        ids = [int(theirs.detect_language(log_mel_batch([clip.read()]))) for clip in short]
        languages = [each.language for each in qlib.transcribe(model, short)]
        assert [dict(model.generation.languages)[f"<|{name}|>"] for name in languages] == ids


def test_a_list_of_end_tokens_changes_no_text(
    model: Whisper, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in folder_of(model, checkpoint).iterdir():
        (tmp_path / path.name).symlink_to(path)
    steering = tmp_path / "generation_config.json"
    values = json.loads(steering.read_text())
    steering.unlink()
    end = model.generation.end
    steering.write_text(json.dumps(values | {"eos_token_id": [end, end + 1, end]}))
    short = [clip for clip in clips if (clip.duration or 99) < 8][:4]
    assert qlib.transcribe(load_model(tmp_path), short) == qlib.transcribe(model, short)


def test_files_of_2022_have_no_special_ids_and_change_no_text(
    model: Whisper, clips: list[qlib.Utterance], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in folder_of(model, checkpoint).iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            (tmp_path / path.name).symlink_to(path)
    source = folder_of(model, checkpoint)
    steering = json.loads((source / "generation_config.json").read_text())
    kept = {key: steering[key] for key in ("suppress_tokens", "begin_suppress_tokens")}
    values = json.loads((source / "config.json").read_text())
    values = {key: value for key, value in values.items() if not key.endswith("_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(values | kept))
    short = [clip for clip in clips if (clip.duration or 99) < 8][:4]
    again = load_model(tmp_path)
    assert isinstance(again, Whisper)
    assert dict(again.generation.languages) == dict(model.generation.languages)
    assert qlib.transcribe(again, short) == qlib.transcribe(model, short)


def test_audio_longer_than_a_window_is_heard_to_the_end(
    tiny_en: Whisper, clips: list[qlib.Utterance]
) -> None:
    """44 s at 48 kHz: resampled, cut at a pause, joined. The model makes no mistake in this recording."""
    (long,) = (clip for clip in clips if (clip.duration or 0) > 30)
    heard = qlib.transcribe(tiny_en, [long])[0]
    assert heard.seconds == pytest.approx(44.37, abs=0.01)
    assert score([long.text or ""], [heard.text]).wer < 3


def test_silence_is_no_crash(tiny_en: Whisper) -> None:
    silence, nothing = qlib.transcribe(tiny_en, [torch.zeros(16_000), torch.zeros(0)])
    assert len(silence.tokens) < 20 and nothing.text == ""


def test_eight_bits_change_almost_nothing_and_survive_a_save(
    tiny_en: Whisper, clips: list[qlib.Utterance], tmp_path: Path
) -> None:
    result = qlib.quantize(tiny_en, [], weight=qlib.Grid(8, 64), activation=qlib.PerToken(8), progress=False)
    again = qlib.load_quantized(result.save(tmp_path / "w8a8"))
    features = log_mel_batch([clips[0].read()])
    tokens = torch.tensor([tiny_en.generation.prompt()])
    with torch.inference_mode():
        assert torch.equal(again(features, tokens), result.model(features, tokens))
    some = clips[:6]
    texts = [[each.text for each in qlib.transcribe(model, some)] for model in (tiny_en, again)]
    assert score(*texts).wer < 5


def test_four_bits_take_at_most_4_6_bits_a_weight_on_disk(tiny_en: Whisper, tmp_path: Path) -> None:
    result = qlib.quantize(tiny_en, [], weight=qlib.Grid(4, 64), progress=False)
    saved = result.save(tmp_path / "w4")
    layers = json.loads((saved / "manifest.json").read_text())["layers"]
    weights = sum(about["shape"][0] * about["shape"][1] for about in layers.values())
    with torch.no_grad():
        from safetensors import safe_open

        with safe_open(saved / "model.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.rpartition(".")[0] in layers]  # noqa: SIM118
            stored = sum(file.get_tensor(name).nbytes for name in names if not name.endswith(".bias"))
    assert 8 * stored / weights <= 4.6
    assert 8 * stored / weights == pytest.approx(result.report.bits_per_weight)


@pytest.mark.slow
def test_gptq_keeps_the_words_better_than_rounding_at_3_bits(
    tiny_en: Whisper, clips: list[qlib.Utterance]
) -> None:
    calib = [clip for clip in clips if clip.split == "calibration"]
    test = [clip for clip in clips if clip.split == "test"]
    grid = qlib.Grid(3, 64)
    rounded = qlib.quantize(tiny_en, [], weight=grid, progress=False).model
    result = qlib.quantize(tiny_en, [qlib.GPTQ(0.3, fit="mse")], weight=grid, calib=calib, progress=False)
    worse, better = (qlib.evaluate_wer(model, test) for model in (rounded, result.model))
    assert better.wer < worse.wer
    assert all(layer.output_error is not None and layer.output_error < 0.3 for layer in result.report.layers)
