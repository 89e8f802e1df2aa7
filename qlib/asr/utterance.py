"""An utterance: one recording in a file, in memory or in a data set, or a segment of it, and what is said."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qlib.asr.audio_file import audio_blocks, encoded_blocks, segment_seconds
from qlib.asr.parquet import StoredSound
from qlib.asr.samples import as_waveform
from qlib.errors import DataError, describe
from qlib.models.waveform import SAMPLE_RATE

HASHED_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True, eq=False)  # tensors have no equality that is true or false: see __eq__
class Utterance:
    """One recording or a segment of one, and what is said in it."""

    # The file, or a file inside a data set's, or [samples] float32 at 16 kHz; NumPy arrays become a tensor.
    audio: Path | StoredSound | Tensor
    text: str | None = None  # what is said; None where the list does not tell
    id: str = ""  # as the list has it, else the file's name without its ending or a hash, and the segment
    source: str = ""  # where the recording comes from
    split: str = ""  # what it is for, such as "calibration" or "test"
    duration: float | None = None  # seconds, as the list has it
    where: str = ""  # file and line of the list, for error messages
    offset: float | None = None  # seconds from the recording's beginning; None for the whole of it
    language: str = ""  # as the list has it: a code, a name or a locale; empty where it does not tell

    def __post_init__(self) -> None:
        object.__setattr__(self, "audio", _as_audio(self.audio, self.where))
        if not isinstance(self.text, str | None):
            raise DataError(f"Utterance: text is {describe(self.text)}. Give what is said, or None.")
        for name in ("offset", "duration"):
            object.__setattr__(self, name, as_seconds(getattr(self, name), name, "Utterance"))
        if not self.id:
            name = self.sound_hash()[:8] if isinstance(self.audio, Tensor) else self.audio.stem
            object.__setattr__(self, "id", f"{name}{self._segment()}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Utterance) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[object, ...]:
        """Return all fields, a hash in place of samples."""
        audio = self.sound_hash() if isinstance(self.audio, Tensor) else self.audio
        return audio, *(getattr(self, field.name) for field in fields(self)[1:])

    def sound_hash(self) -> str:
        """Return a sha256 of the file or of the samples; nothing for a file that is not there.

        Of a segment, it is that of the whole recording.
        """
        digest = hashlib.sha256()
        if isinstance(self.audio, Tensor):
            digest.update(self.audio.numpy().tobytes())
            return digest.hexdigest()
        if isinstance(self.audio, StoredSound):
            return self.audio.sha256()
        if not self.audio.is_file():
            return ""
        with self.audio.open("rb") as file:
            while block := file.read(HASHED_AT_ONCE):
                digest.update(block)
        return digest.hexdigest()

    def _segment(self) -> str:
        """Return what tells the segments of one recording apart."""
        if self.offset is None:
            return ""
        return f"@{self.offset:.3f}" + ("" if self.duration is None else f"+{self.duration:.3f}")

    @property
    def path(self) -> Path:
        """The file; a `DataError` where the sound is in memory."""
        if isinstance(self.audio, Path):
            return self.audio
        where = "in memory" if isinstance(self.audio, Tensor) else "inside a data set"
        raise DataError(f"{self.place}: the sound is {where}, so there is no file. Read its audio.")

    @property
    def place(self) -> str:
        """Where it stands, for messages: file and line of the list, or else its id."""
        return self.where or self.id

    def blocks(self) -> Iterator[Tensor]:
        """Yield the sound in blocks of up to 60 s: ``[samples]`` float32 at 16 kHz.

        Raises
        ------
        DataError
            As `qlib.asr.audio_file.audio_blocks`, with file and line of the list in front.
        """
        try:
            if isinstance(self.audio, Path):
                yield from audio_blocks(self.audio, self.offset, self.duration)
            elif isinstance(self.audio, StoredSound):
                # A data set's duration describes the sound; in a list without an offset, it may cut it.
                seconds = None if self.offset is None else self.duration
                yield from encoded_blocks(self.audio.read(), "its sound", self.offset, seconds)
            else:
                yield _segment_of(self.audio, self.id, self.offset, self.duration)
        except DataError as error:
            raise DataError(f"{self.where}: {error}" if self.where else str(error)) from error

    def read(self) -> Tensor:
        """Read all of it: ``[samples]`` float32 at 16 kHz; errors are those of `blocks`."""
        blocks = list(self.blocks())
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _as_audio(audio: object, where: str) -> Path | StoredSound | Tensor:
    """Return a path or a data set's sound, or samples in memory as a tensor."""
    if isinstance(audio, StoredSound):
        return audio
    if isinstance(audio, Tensor | np.ndarray):
        waveform = as_waveform(audio, SAMPLE_RATE, where or "Utterance: audio")
        (samples,) = waveform.blocks()
        if not len(samples):
            raise DataError(f"{waveform.place}: the recording is empty, it has 0 samples. Leave it out.")
        return samples.detach().to("cpu", torch.float32)
    if not isinstance(audio, str | Path) or not str(audio):
        raise DataError(
            f"Utterance: audio is {describe(audio)}. Give the path of an audio file, or samples as a tensor "
            "or NumPy array at 16 kHz."
        )
    return Path(audio)


def _segment_of(samples: Tensor, name: str, offset: float | None, duration: float | None) -> Tensor:
    """Return a segment of samples in memory, by the rules for files."""
    seconds = segment_seconds(name, len(samples) / SAMPLE_RATE, offset, duration)
    first = round((offset or 0) * SAMPLE_RATE)
    return samples[first:] if seconds is None else samples[first : first + round(seconds * SAMPLE_RATE)]


def as_seconds(value: object, name: str, where: str) -> float | None:
    """Return a number of seconds, 0 allowed for the offset only; None where there is none."""
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise DataError(f"{where}: {name} {value!r} is not a number. Give seconds, or leave it out.")
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and not seconds):
        raise DataError(
            f"{where}: {name} {value!r} is no length of time. Give seconds"
            f"{' above 0' if name == 'duration' else ', 0 or more'}, or leave it out."
        )
    return seconds
