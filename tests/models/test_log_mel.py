"""Log-mel features: the reference, a direct Fourier sum, analytic tones, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qlib.asr.audio import read_audio
from qlib.errors import DataError
from qlib.models.log_mel import (
    CHUNK_SAMPLES,
    HOP,
    N_FFT,
    N_FRAMES,
    log_mel,
    log_mel_batch,
    log_mel_recording,
    mel_filters,
)
from qlib.models.waveform import SAMPLE_RATE


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE)


@pytest.fixture(scope="module", params=[80, 128])
def reference(request: pytest.FixtureRequest):
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperFeatureExtractor(feature_size=request.param)


@pytest.mark.parametrize(
    "samples",
    [0, 1, 159, 160, 161, 199, 200, 201, 16_000, 47_999, 479_799, 479_801, 479_999, CHUNK_SAMPLES],
)
def test_log_mel_equals_the_reference(reference, samples: int) -> None:
    audio = noise(samples, seed=samples)
    expected = reference(audio.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    features = log_mel(audio, reference.feature_size)
    assert features.dtype == torch.float32
    assert features.shape == (reference.feature_size, N_FRAMES)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_log_mel_equals_the_reference_on_speech(reference, speech: Path) -> None:
    audio = read_audio(speech / "prompt-dir-intro.flac")
    expected = reference(audio.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    torch.testing.assert_close(log_mel(audio, reference.feature_size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [201, 16_000, CHUNK_SAMPLES + 1, 2 * CHUNK_SAMPLES + 7_999])
def test_a_whole_recording_equals_the_reference(reference, samples: int) -> None:
    audio = noise(samples, seed=samples)
    audio[: samples // 2] *= 1e-5  # the maximum is in the second half, and cuts off the first
    options = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "truncation": False}
    expected = reference(audio.numpy(), padding="longest", **options).input_features[0]
    features = log_mel_recording(audio, reference.feature_size)
    assert features.shape == (reference.feature_size, samples // HOP)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_a_recording_too_short_to_be_reflected_is_refused() -> None:
    with pytest.raises(DataError, match=r"200 samples, expected more than 200\. Use log_mel, which pads"):
        log_mel_recording(noise(200))


def test_filters_equal_the_reference(reference) -> None:
    expected = torch.from_numpy(reference.mel_filters.T).float()
    torch.testing.assert_close(mel_filters(reference.feature_size), expected, rtol=0, atol=1e-7)


def test_log_mel_equals_a_direct_fourier_sum() -> None:
    audio = noise(4000).double()
    frame_at = 7  # centred on sample 1120, away from the reflected ends
    start = frame_at * HOP - N_FFT // 2
    time = torch.arange(N_FFT, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * time / N_FFT)
    frame = audio[start : start + N_FFT] * hann
    angles = 2 * math.pi * torch.outer(torch.arange(201, dtype=torch.float64), time) / N_FFT
    power = (angles.cos() @ frame).square() + (angles.sin() @ frame).square()
    expected = ((mel_filters(80).double() @ power).log10() + 4) / 4
    torch.testing.assert_close(log_mel(audio)[:, frame_at].double(), expected, rtol=0, atol=1e-5)


def test_silence_is_minus_one_and_a_half() -> None:
    # log10(1e-10) = -10, and (-10 + 4) / 4 = -1.5
    assert torch.equal(log_mel(torch.zeros(1000)), torch.full((80, N_FRAMES), -1.5))


def test_padding_is_two_below_the_peak() -> None:
    features = log_mel(noise(8000))
    # 8 powers of ten below the loudest band are 8 / 4 = 2 in the features
    assert features[:, 60:].unique().item() == pytest.approx(features.max().item() - 2)


@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_tone_sounds_in_its_own_band(hertz: float) -> None:
    band = int(log_mel(torch.from_numpy(tone(hertz)))[:, 20].argmax())
    assert band == int(mel_filters(80)[:, hertz // 40].argmax())


@pytest.mark.parametrize("bins", [8, 80, 128])
def test_each_band_has_area_one(bins: int) -> None:
    # Only exact for bands much wider than the 40 Hz between two lines.
    area = mel_filters(bins).sum(1) * SAMPLE_RATE / N_FFT
    assert area[-bins // 4 :].tolist() == pytest.approx([1] * len(area[-bins // 4 :]), abs=0.05)
    assert (mel_filters(bins).sum(1) > 0).all()


def test_a_batch_of_mixed_lengths_equals_each_alone() -> None:
    clips = [noise(n, seed=n) for n in (0, 5000, CHUNK_SAMPLES, 161)]
    batch = log_mel_batch(clips, 80)
    assert batch.shape == (4, 80, N_FRAMES)
    for clip, features in zip(clips, batch, strict=True):
        assert torch.equal(features, log_mel(clip))


def test_a_tensor_is_a_batch_too() -> None:
    pair = torch.stack([noise(3000, 1), noise(3000, 2)])
    assert torch.equal(log_mel_batch(pair), torch.stack([log_mel(clip) for clip in pair]))


def test_features_do_not_depend_on_the_default_type() -> None:
    audio = noise(3000)
    before = log_mel(audio)
    torch.set_default_dtype(torch.float64)
    try:
        after = log_mel(audio)
    finally:
        torch.set_default_dtype(torch.float32)
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_log_mel_leaves_the_audio_alone() -> None:
    audio = noise(CHUNK_SAMPLES)
    before = audio.clone()
    log_mel(audio)
    assert torch.equal(audio, before)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(CHUNK_SAMPLES + 16_000), r"lasts 31\.00 s.*reads 30.*split_windows"),
        (torch.zeros(2, 100), r"\[2, 100\].*Average the channels"),
        (torch.zeros(100, dtype=torch.int16), r"int16.*scale to \[-1, 1\]"),
        (torch.tensor([0.0, math.nan] * 100), "NaN or infinite"),
        (torch.tensor([0.0, math.inf] * 100), "NaN or infinite"),
    ],
)
def test_log_mel_refuses(audio: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        log_mel(audio)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(DataError, match="no waveform"):
        log_mel_batch([])


@pytest.mark.parametrize("bins", [0, 129])
def test_bins_out_of_range_are_refused(bins: int) -> None:
    with pytest.raises(DataError, match=f"bins={bins}.*1 to 128.*80"):
        mel_filters(bins)
