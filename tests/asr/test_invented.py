"""Sounds without speech, and what a model writes on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from speech_fixtures import noise

import qlib
from qlib.asr import invented, sounds
from qlib.asr.comparison import compare
from qlib.asr.invented import InventedClip, InventedText, invented_text
from qlib.asr.sounds import at_level, sounds_without_speech
from qlib.asr.transcribe import Transcript
from qlib.asr.utterance import Utterance
from qlib.errors import DataError
from qlib.models.tiny import tiny_whisper

SECOND = 16_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- sounds


def octave_power(sound: torch.Tensor, low: int, high: int) -> float:
    """Power between two frequencies (Hz) of one second."""
    return float(torch.fft.rfft(sound)[low:high].abs().square().sum())


def test_white_noise_doubles_its_power_by_octave_and_pink_noise_keeps_it() -> None:
    for make, ratio in ((sounds.white, 2), (sounds.pink, 1)):
        sound = make(SECOND, generator())
        assert octave_power(sound, 2000, 4000) / octave_power(sound, 1000, 2000) == pytest.approx(
            ratio, rel=0.15
        )


def test_hum_has_its_power_at_multiples_of_50_hertz() -> None:
    power = torch.fft.rfft(sounds.hum(SECOND, generator())).abs().square()
    assert float(power[[50, 100, 150, 200, 250]].sum() / power.sum()) == pytest.approx(1, abs=1e-6)
    assert float(power[50] / power[100]) == pytest.approx(4, rel=1e-3), "half the amplitude"


def test_clicks_are_short_and_few() -> None:
    sound = sounds.clicks(10 * SECOND, generator())
    assert 0 < float((sound != 0).float().mean()) <= 20 * 32 / (10 * SECOND)


def test_chords_have_three_notes_and_die_away() -> None:
    for make in (sounds.melody, sounds.chords):
        beat = make(SECOND, generator())[: SECOND // 2]
        early, late = beat[800:1600].square().mean(), beat[-800:].square().mean()
        assert late < 0.01 * early
    starts = []
    for make in (sounds.melody, sounds.chords):
        spectrum = torch.fft.rfft(make(SECOND, generator())[: SECOND // 2]).abs()
        peak = spectrum[100:225] > 0.3 * spectrum.max()
        starts.append(int((peak[1:] & ~peak[:-1]).sum()))
    assert starts[0] == 1 and starts[1] > 1, "fundamentals between 200 and 450 Hz"


@pytest.mark.parametrize("decibels", [-96.0, -40.0, -20.0])
def test_levels_are_root_mean_squares(decibels: float) -> None:
    sound = at_level(noise(1), decibels)
    assert 20 * torch.log10(sound.square().mean().sqrt()) == pytest.approx(decibels, abs=1e-3)


def test_peaks_stay_below_full_scale() -> None:
    sound = torch.zeros(SECOND)
    sound[5] = 1
    assert float(at_level(sound, -20).abs().max()) == pytest.approx(0.99)


def test_the_list_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, again, other = (sounds_without_speech(seed, (1, 2)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert len({each.id for each in first}) == len(first)
    assert [len(each.read()) / SECOND for each in first[:4]] == [1, 2, 1, 2]
    assert first[0].id == "digital silence, 1 s" and not first[0].read().any()
    assert all(each.text == "" and each.read().abs().max() <= 0.99 for each in first)
    assert {each.id.partition(",")[0] for each in first} >= {
        "pink noise -20 dB",
        "chords -20 dB",
        "hum -40 dB",
    }


@pytest.mark.parametrize("seconds", [(), (0,), (31,), (1.5,)])
def test_lengths_that_are_none(seconds: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="sounds_without_speech"):
        sounds_without_speech(0, seconds)


# --- what is written on them


def heard(monkeypatch: pytest.MonkeyPatch, listed: list[Utterance], texts: list[str]) -> InventedText:
    """Return what comes of a model that writes these texts."""

    def write(model: object, recordings: list[Utterance], **_: object) -> list[Transcript]:
        return [Transcript(t, (), len(r.read()) / SECOND) for t, r in zip(texts, recordings, strict=True)]

    monkeypatch.setattr(invented, "transcribe", write)
    return invented_text(tiny_whisper(), listed)


def three_sounds() -> list[Utterance]:
    return [Utterance(noise(seconds, seed), "", f"s{seed}") for seed, seconds in enumerate((10, 30, 20))]


def test_a_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" Thank you. Thank you! thank you", "[music] (applause) ...", "\N{REPLACEMENT CHARACTER} okay"]
    result = heard(monkeypatch, three_sounds(), texts)
    assert [each.words for each in result.clips] == [6, 0, 2]
    assert (result.words, result.seconds, result.words_per_minute, result.loops) == (8, 60, 8, 1)
    lines = str(result).split("\n")
    assert lines[0].startswith("8.00 invented words per minute [0.00, ")
    assert "8 words on 2 of 3 sounds without speech (60 s), 1 loops" in lines[0]
    assert lines[1] == "s0: ' Thank you. Thank you! thank you' (6 words, loop: 'thank you' 3 times)"
    assert lines[-1] == result.signature
    long = InventedClip("s", 1.0, "so " * 100, 100, None)
    assert str(long) == f"s: {('so ' * 27)[:80] + '...'!r} (100 words)"
    low, high = result.interval
    assert low == 0 and high == pytest.approx(36), "all draws are of the second, or of the first, sound"


def test_two_models_are_compared_on_the_same_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = three_sounds()
    before, after = (
        heard(monkeypatch, listed, ["", "so", ""]),
        heard(monkeypatch, listed, ["you", "", "la la la"]),
    )
    comparison = compare(before, after)
    assert comparison.difference == pytest.approx(3)
    assert (comparison.insertions, comparison.deletions, comparison.utterances) == (3, 0, 3)
    assert comparison.interval == pytest.approx((-2, 9), abs=1), (
        "all draws of the second, or of the third, sound"
    )
    assert comparison.no_regression == pytest.approx(100 / 3)
    assert str(comparison).startswith("invented words per minute difference +3.00")
    with pytest.raises(DataError, match="different sounds"):
        compare(before, heard(monkeypatch, listed[:2], ["", ""]))


def test_equal_settings_give_an_equal_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = three_sounds()
    one, two, other = (heard(monkeypatch, each, [""] * 3) for each in (listed, listed, listed[::-1]))
    assert one.signature == two.signature != other.signature
    assert one.signature.startswith("invented|norm:whisper-english-") and "|clips:3|" in one.signature


def test_a_sound_with_a_text_is_refused() -> None:
    listed = [*three_sounds(), Utterance(noise(1), "the cat", "speech")]
    with pytest.raises(DataError, match=r"speech has the text 'the cat'.*evaluate_wer"):
        invented_text(tiny_whisper(), listed)


def test_a_miniature_writes_nothing_on_digital_silence() -> None:
    result = invented_text(tiny_whisper(), sounds_without_speech(0, (1,)), progress=False)
    assert result.clips[0].words == 0
    assert len(result.clips) == 12 and result.seconds == 12


@pytest.mark.weights
def test_a_real_model_and_its_rounded_copy(checkpoint: Callable[[str], Path], speech: Path) -> None:
    model = qlib.load_model(checkpoint("whisper-tiny.en"))
    rounded = qlib.quantize(model, [], weight=qlib.Grid(4, 64), progress=False).model
    quiet = sounds_without_speech(0, (3,))
    before, after = (invented_text(each, quiet, progress=False) for each in (model, rounded))
    assert before.clips[0].text == "" and len(before.clips) == 12
    assert compare(before, after).utterances == 12
    test = qlib.read_manifest(speech / "manifest.jsonl")[:4]
    exact, worse = (qlib.evaluate_wer(each, test, progress=False) for each in (model, rounded))
    assert "|dec:greedy|clips:4|" in exact.signature and exact.signature == worse.signature
    assert 0 <= compare(exact, worse).no_regression <= 100
    assert compare(exact, exact).no_regression == 100
    assert qlib.rare_words(exact).words <= exact.words
