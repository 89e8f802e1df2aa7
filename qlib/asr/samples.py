"""Samples in memory, as tensors or NumPy arrays: what is allowed, and how they become sound at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlib.asr.audio_file import MAX_PEAK, resample
from qlib.errors import DataError, describe
from qlib.models.waveform import SAMPLE_RATE

INT16_RANGE = 32_768  # of PCM samples of 16 bits


@dataclass(frozen=True)
class Waveform:
    """Samples in memory, checked."""

    samples: Tensor | np.ndarray[Any, Any]  # [samples]
    rate: int  # samples per second
    place: str  # for messages
    language: str = ""

    def blocks(self) -> Iterator[Tensor]:
        """Yield the sound: one block ``[samples]`` of floats at 16 kHz."""
        if isinstance(self.samples, Tensor) and self.rate == SAMPLE_RATE:
            yield self.samples
            return
        samples = self.samples.cpu().numpy() if isinstance(self.samples, Tensor) else self.samples
        scale = INT16_RANGE if samples.dtype == np.int16 else 1
        yield resample(samples.astype(np.float32) / np.float32(scale), self.rate, self.place)


def as_waveform(samples: Any, rate: int, place: str) -> Waveform:
    """Return samples in memory as a source of sound.

    Parameters
    ----------
    samples : Tensor or array
        ``[samples]``, floats in [-1, 1], or a NumPy array of int16.
    rate : int
        Samples per second.
    place : str
        What they are, for messages.

    Raises
    ------
    DataError
        They are of another kind or shape, not finite, or not scaled to [-1, 1].
    """
    if not isinstance(samples, Tensor | np.ndarray):
        raise DataError(
            f"{place} is {describe(samples)}, not a recording. Pass a path, an utterance, samples as a "
            'tensor or NumPy array at 16 kHz, or {"array": samples, "sampling_rate": rate}.'
        )
    if samples.ndim != 1:
        raise DataError(
            f"{place} is {describe(samples)}, not one waveform [samples]. Pass one channel, or the mean of "
            "several; a batch as a list of waveforms."
        )
    _check_kind(samples, place)
    if samples.shape[0]:
        _check_values(samples, place)
    return Waveform(samples, rate, place)


def _check_kind(samples: Tensor | np.ndarray[Any, Any], place: str) -> None:
    if isinstance(samples, Tensor):
        good = samples.is_floating_point()
    else:
        good = np.issubdtype(samples.dtype, np.floating) or samples.dtype == np.int16
    if not good:
        raise DataError(
            f"{place} is {describe(samples)}: expected floats in [-1, 1], or a NumPy array of int16. "
            "Divide integers by their range, 32768 for 16 bits."
        )


def _check_values(samples: Tensor | np.ndarray[Any, Any], place: str) -> None:
    if samples.dtype == np.int16:
        return
    values = samples if isinstance(samples, Tensor) else torch.from_numpy(samples.astype(np.float64))
    low, high = (float(value) for value in values.detach().aminmax())
    if not np.isfinite([low, high]).all():
        bad = int((~values.isfinite()).sum())
        raise DataError(f"{place}: {bad} of {len(values)} samples are NaN or infinite. Make it again.")
    if (peak := max(-low, high)) > MAX_PEAK:
        raise DataError(
            f"{place}: samples reach {peak:g}, full scale is 1. Divide them by their range, "
            "32768 if they were 16-bit integers."
        )
