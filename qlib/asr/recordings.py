"""What people hand in as a recording, and what is made of it: sound in blocks, under a name for messages.

A path, an utterance, a waveform at 16 kHz (tensor or NumPy array), or a dict as data sets have it:
``{"array": ..., "sampling_rate": ...}``, ``{"path": ...}``, or a row with one of these under ``"audio"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qlib.asr.audio_file import check_rate
from qlib.asr.datasets import AUDIO_KEYS, LANGUAGE_KEYS, as_utterance
from qlib.asr.samples import Waveform, as_waveform
from qlib.asr.utterance import Utterance
from qlib.errors import DataError, describe, whole_number
from qlib.models.waveform import SAMPLE_RATE

Recording = str | Path | Tensor | np.ndarray[Any, Any] | Mapping[str, Any] | Utterance

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
        if isinstance(each, Utterance) and isinstance(each.audio, Path) and not each.audio.is_file():
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
    return as_waveform(recording, SAMPLE_RATE, place)


def _of_mapping(row: Mapping[str, Any], place: str) -> Source:
    array = next((row[name] for name in ("array", "raw") if row.get(name) is not None), None)
    if array is not None:
        if row.get("sampling_rate") is None:
            raise DataError(
                f'{place}: a dict with samples and without their rate. Add "sampling_rate", in Hz.'
            )
        rate = whole_number(row["sampling_rate"], f"{place}: sampling_rate", DataError, 1)
        check_rate(rate, place)
        return as_waveform(np.asarray(array) if isinstance(array, list | tuple) else array, rate, place)
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
