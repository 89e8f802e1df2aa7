"""Recordings become windows at 16 kHz: cuts at pauses, other rates and channels, broken files."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlib.asr.audio import read_audio, split_windows
from qlib.errors import DataError, MissingExtraError
from qlib.models.log_mel import CHUNK_SAMPLES
from qlib.models.waveform import SAMPLE_RATE


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def tone(hertz: float, rate: int = SAMPLE_RATE, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


# --- windows


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12 * SAMPLE_RATE), st.sampled_from([1.0, 2.5, 5.0]), st.integers(0, 99))
def test_windows_join_to_the_original(samples: int, seconds: float, seed: int) -> None:
    audio = noise(samples, seed)
    windows = split_windows(audio, seconds)
    assert torch.equal(torch.cat(windows), audio)
    assert all(len(window) <= seconds * SAMPLE_RATE for window in windows)
    assert all(len(window) > seconds * SAMPLE_RATE * 0.66 for window in windows[:-1])
    assert samples == 0 or all(len(window) for window in windows)


@pytest.mark.parametrize("samples", [0, 1, CHUNK_SAMPLES])
def test_what_fits_is_one_window(samples: int) -> None:
    audio = noise(samples)
    windows = split_windows(audio)
    assert len(windows) == 1
    assert torch.equal(windows[0], audio)


def test_the_cut_is_in_the_middle_of_the_pause() -> None:
    audio = noise(40 * SAMPLE_RATE)
    pause = slice(int(24.0 * SAMPLE_RATE), int(24.25 * SAMPLE_RATE))
    audio[pause] = 0
    assert len(split_windows(audio)[0]) == pytest.approx(24.125 * SAMPLE_RATE, abs=1)


def test_a_pause_before_the_last_third_is_not_taken() -> None:
    audio = noise(40 * SAMPLE_RATE)
    audio[5 * SAMPLE_RATE : 19 * SAMPLE_RATE] = 0
    assert len(split_windows(audio)[0]) > 20 * SAMPLE_RATE


def test_of_equally_quiet_stretches_the_last_is_taken() -> None:
    first = split_windows(torch.zeros(40 * SAMPLE_RATE))[0]
    assert len(first) == pytest.approx((30 - 0.125) * SAMPLE_RATE, abs=1)


def test_quiet_for_a_moment_is_not_a_pause() -> None:
    audio = noise(40 * SAMPLE_RATE)
    audio[22 * SAMPLE_RATE : int(22.05 * SAMPLE_RATE)] = 0  # silent, but short: the closure of a "p"
    audio[27 * SAMPLE_RATE : int(27.3 * SAMPLE_RATE)] *= 0.1
    assert 27 * SAMPLE_RATE < len(split_windows(audio)[0]) < 27.3 * SAMPLE_RATE


def test_a_real_reading_is_cut_between_sentences(speech: Path) -> None:
    windows = split_windows(read_audio(speech / "two-cities.flac"))
    assert len(windows) == 2
    # "we had nothing before us, | we were all going direct to Heaven"
    edge = torch.cat([windows[0][-1600:], windows[1][:1600]])
    assert edge.square().mean() < 0.01 * windows[0].square().mean()


@pytest.mark.parametrize("seconds", [0.5, 0, -1])
def test_windows_shorter_than_a_word_are_refused(seconds: float) -> None:
    with pytest.raises(DataError, match=r"seconds=.*Use 1 or more"):
        split_windows(noise(100), seconds)


def test_windows_of_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match="one waveform"):
        split_windows(torch.zeros(2, 100))


# --- files


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_16_khz_is_read_as_it_is(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)  # not needed for this rate
    codes = np.array([-32768, -1, 0, 1, 16384, 32767], dtype=np.int16)
    audio = read_audio(write(tmp_path / name, codes))
    assert audio.dtype == torch.float32
    assert audio.tolist() == (codes / 32768).tolist()


def test_channels_are_averaged(tmp_path: Path) -> None:
    audio = read_audio(write(tmp_path / "a.wav", np.array([[0.5, -0.25], [0.25, 0.25]])))
    assert audio.tolist() == [0.125, 0.25]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_become_16_khz(tmp_path: Path, rate: int, channels: int) -> None:
    wave = np.stack([tone(440, rate)] * channels, axis=1)
    audio = read_audio(write(tmp_path / "a.wav", wave, rate, "FLOAT"))
    assert len(audio) == pytest.approx(SAMPLE_RATE / 2, abs=1)
    middle = slice(1000, 7000)  # the filter rings at the ends
    torch.testing.assert_close(audio[middle], torch.from_numpy(tone(440))[middle].float(), rtol=0, atol=2e-4)


def test_what_16_khz_cannot_carry_is_gone(tmp_path: Path) -> None:
    audio = read_audio(write(tmp_path / "a.wav", tone(11_000, 48_000), 48_000, "FLOAT"))
    assert audio[1000:7000].abs().max() < 1e-3


def test_a_rate_without_soxr_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    path = write(tmp_path / "phone.wav", tone(440, 8000), 8000)
    with pytest.raises(MissingExtraError, match=r"phone\.wav.*8000 Hz to 16000 Hz.*quantdraft\[asr\]"):
        read_audio(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.flac.*Check the path"):
        read_audio(tmp_path / "gone.flac")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder, not an audio file"):
        read_audio(tmp_path)


def test_a_file_that_is_no_audio_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("not audio")
    with pytest.raises(DataError, match=r"notes\.wav: cannot be read as audio \(.+\)\. Convert"):
        read_audio(path)


def test_an_empty_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty\.wav.*0 samples"):
        read_audio(write(tmp_path / "empty.wav", np.zeros(0)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 48_000])
def test_samples_that_are_no_numbers_are_counted(tmp_path: Path, value: float, rate: int) -> None:
    wave = tone(440)
    wave[[10, 20]] = value
    with pytest.raises(DataError, match=r"bad\.wav: 2 of 8000 samples are NaN or infinite"):
        read_audio(write(tmp_path / "bad.wav", wave, rate, "FLOAT"))


def test_integers_stored_as_floats_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "loud.wav", 32767 * tone(440), subtype="FLOAT")
    with pytest.raises(DataError, match=r"loud\.wav: samples reach 16383.*full scale is 1"):
        read_audio(path)


def test_a_small_overshoot_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2.4 * tone(440), subtype="FLOAT")
    assert read_audio(path).max() == pytest.approx(1.2, abs=0.01)
