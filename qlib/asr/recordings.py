"""What people hand in as a recording, and what is made of it: sound in blocks, under a name for messages.

A path, an utterance, a waveform at 16 kHz (tensor or NumPy array), or a dict as data sets have it:
``{"array": ..., "sampling_rate": ...}``, ``{"path": ...}``, or a row with one of these under ``"audio"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlib.asr.audio_file import MAX_PEAK, check_rate, resample
from qlib.asr.datasets import AUDIO_KEYS, LANGUAGE_KEYS, Utterance, as_utterance
from qlib.errors import DataError, describe, whole_number
from qlib.models.waveform import SAMPLE_RATE

Recording = str | Path | Tensor | np.ndarray[Any, Any] | Mapping[str, Any] | Utterance

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


Source = Utterance | Waveform


def as_sources(recordings: Iterable[Recording], caller: str) -> Iterable[Source]:
    """Return recordings as sources of sound; of a list each is checked first, of a generator when it comes.

    Raises
    ------
    DataError
        Not a list, or an entry that is no recording: names its position, what it is and what to pass.
    """
    single = isinstance(recordings, str | bytes | Path | Tensor | np.ndarray | Mapping | Utterance)
    if single or not isinstance(recordings, Iterable):
        raise DataError(
            f"{caller} takes a list of recordings, and got {describe(recordings)}: put the single one into a "
            "list."
        )
    if isinstance(recordings, Iterator):
        return (as_source(each, f"recording {number}") for number, each in enumerate(recordings, 1))
    listed = list(recordings)
    sources = [as_source(each, f"recording {i} of {len(listed)}") for i, each in enumerate(listed, 1)]
    for each in sources:
        if isinstance(each, Utterance) and not each.audio.is_file():
            next(each.blocks())  # it says so, with the line of the list in front
    return sources


def as_source(recording: Any, place: str) -> Source:
    """Return one recording as a source of sound.

    Parameters
    ----------
    recording : Recording
        As the module's docstring says.
    place : str
        Its position in the list, for messages.
    """
    if isinstance(recording, Utterance):
        return recording
    if isinstance(recording, str | Path):
        return Utterance(Path(recording))
    if isinstance(recording, Mapping):
        return _of_mapping(recording, place)
    return _waveform(recording, SAMPLE_RATE, place)


def _of_mapping(row: Mapping[str, Any], place: str) -> Source:
    array = next((row[name] for name in ("array", "raw") if row.get(name) is not None), None)
    if array is not None:
        if row.get("sampling_rate") is None:
            raise DataError(
                f'{place}: a dict with samples and without their rate. Add "sampling_rate", in Hz.'
            )
        rate = whole_number(row["sampling_rate"], f"{place}: sampling_rate", DataError, 1)
        check_rate(rate, place)
        return _waveform(np.asarray(array) if isinstance(array, list | tuple) else array, rate, place)
    name = next((name for name in AUDIO_KEYS if row.get(name) is not None), "")
    if isinstance(inner := row.get(name), str | Path):
        return as_utterance({**row, name: str(inner)}, Path(), place)
    if isinstance(inner, Mapping | Tensor | np.ndarray):
        return _of_row(row, inner, place)
    raise DataError(
        f"{place}: a dict with {', '.join(map(repr, row)) or 'nothing'}, not a recording. "
        'Pass {"array": samples, "sampling_rate": 16000}, or {"path": "a.wav"}.'
    )


def _of_row(row: Mapping[str, Any], inner: Any, place: str) -> Source:
    """Return the sound of a data set's row, and the row's language."""
    source = as_source(inner, place)
    language = next((row[name] for name in LANGUAGE_KEYS if isinstance(row.get(name), str)), source.language)
    return replace(source, language=language)


def _waveform(samples: Any, rate: int, place: str) -> Waveform:
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
