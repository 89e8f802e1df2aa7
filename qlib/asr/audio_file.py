"""Audio files, block by block: 16 kHz mono out of whatever libsndfile reads, in bounded memory.

Files that are not what their header says are common, and libsndfile is silent about most of them:

- a wav whose recorder was stopped: its header says 0 bytes, or fewer than there are. The samples are there,
  so they are read (`unfinished_wav`);
- a file that broke off: wav, mp3, ogg, aiff or au. What is there is read, and a warning says how much is
  missing; where the decoder cannot go on (flac), it is an error;
- a file without a header: nothing says its rate, so it is an error that says what to do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from qlib.asr.audio_header import TOLERANCE, check_end, unfinished_wav, warn_cut
from qlib.errors import DataError, require_extra
from qlib.models.waveform import SAMPLE_RATE

MAX_PEAK = 4.0  # full scale is 1; resampling and lossy formats overshoot a little, never by 12 dB
BLOCK_SECONDS = 60  # read at once
RATES = (1_000, 1_000_000)  # Hz; what lies outside is a damaged header

HEADERLESS = {".raw", ".pcm", ".sln", ".sln16", ".gsm", ".ulaw", ".ul", ".alaw", ".al", ".vox", ".g722"}

Samples = npt.NDArray[np.float32]


def audio_blocks(path: Path, offset: float | None = None, duration: float | None = None) -> Iterator[Tensor]:
    """Yield a recording, or a segment of it, in blocks of up to 60 s of 16 kHz mono.

    Channels are averaged; another rate is resampled by soxr, to the same samples as in one piece.

    Parameters
    ----------
    path : Path
        Any format that libsndfile reads: wav, flac, ogg, mp3, ...
    offset : float, optional
        Seconds from the file's beginning to the segment's.
    duration : float, optional
        Seconds. Without an offset it is the file's length as a list has it: if shorter by more than 0.1 s,
        the file is cut there.

    Yields
    ------
    Tensor
        ``[samples]`` float32, full scale [-1, 1]; at least one block, none of them empty.

    Raises
    ------
    DataError
        The file is missing, unreadable, empty, not finite, not scaled to [-1, 1], or shorter than the
        segment.
    MissingExtraError
        The rate is not 16 kHz and soxr is not installed.
    """
    with _open(path) as file:
        yield from _blocks_of(file, path, offset, duration)


def encoded_blocks(
    data: bytes, name: str, offset: float | None = None, duration: float | None = None
) -> Iterator[Tensor]:
    """Yield a recording whose file is in memory, as `audio_blocks` does; `name` is for messages.

    Headers are believed: whoever puts files into a data set has finished them.

    Raises
    ------
    DataError, MissingExtraError
        As for `audio_blocks`.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, name)
            yield from _blocks_of(file, name, offset, duration)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a format without a header
        raise DataError(
            f"{name}: {len(data)} bytes cannot be decoded as audio ({error}). They are damaged, or of a "
            "format that libsndfile does not read: fetch them again, or store wav or flac."
        ) from error


def _blocks_of(
    file: soundfile.SoundFile, path: Path | str, offset: float | None, duration: float | None
) -> Iterator[Tensor]:
    """Yield what `audio_blocks` does, of an open file."""
    rate = file.samplerate
    wanted = segment_seconds(path, file.frames / rate, offset, duration)
    first = round((offset or 0) * rate)
    left = file.frames - first
    frames = left if wanted is None else min(left, round(wanted * rate))
    if first:
        file.seek(first)
    resampler = None if rate == SAMPLE_RATE else _Resampler(path, rate)
    done = 0
    while done < frames:  # or until the file ends earlier than its header says
        block_frames = min(BLOCK_SECONDS * rate, frames - done)
        block: Samples = file.read(block_frames, dtype="float32", always_2d=True).mean(axis=1)
        check_samples(block, str(path), f" from {(first + done) / rate:.0f} s on" if first + done else "")
        done += len(block)
        last = done == frames or len(block) < block_frames
        out = block if resampler is None else resampler(block, last)
        if len(out):  # a resampler keeps some samples back
            yield torch.from_numpy(out)
        if last:
            break
    if not done:
        raise DataError(f"{path}: the recording is empty, it has 0 samples. Remove it from the list.")
    if frames - done > TOLERANCE * rate:
        warn_cut(path, (first + done) / rate, f"{(first + frames) / rate:.2f} s")


def audio_seconds(path: Path) -> float:
    """Return how long a file is by its header, without reading the sound."""
    with _open(path, warn=False) as file:
        return float(file.frames / file.samplerate)


def segment_seconds(
    path: Path | str, length: float, offset: float | None, duration: float | None
) -> float | None:
    """Check that a segment lies in a recording; return how many seconds to read, None for all left.

    `path` is the recording's name, for messages, and `length` its seconds.

    Raises
    ------
    DataError
        The segment is empty, or goes beyond the file's end.
    """
    start = offset or 0.0
    if start and start >= length:
        raise DataError(
            f"{path}: offset {start:g} s is not before the end, the file has {length:.2f} s. "
            "Give seconds, and check that they belong to this file."
        )
    if duration is None:
        return None
    if start + duration > length + TOLERANCE:
        segment = (
            f"offset {start:g} s and duration {duration:g} s are" if start else f"duration {duration:g} s is"
        )
        raise DataError(
            f"{path}: {segment} more than the file has, {length:.2f} s. Give seconds that belong to this "
            "file, or leave the duration out."
        )
    whole = offset is None and duration > length - TOLERANCE
    return None if whole else duration


def resample(samples: Samples, rate: int, where: str) -> Tensor:
    """Return a waveform ``[samples]`` at 16 kHz."""
    check_rate(rate, where)
    if rate == SAMPLE_RATE or not len(samples):
        return torch.from_numpy(samples)
    return torch.from_numpy(_Resampler(where, rate)(samples, last=True))


def check_rate(rate: int, where: str) -> None:
    """Refuse a sampling rate at which there is no speech."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(
            f"{where}: a sampling rate of {rate} Hz is none of speech ({RATES[0]} to {RATES[1]} Hz). "
            "Is the header damaged? Export the recording again."
        )


def check_samples(samples: Samples, where: str, part: str = "") -> None:
    """Refuse samples that are not finite, or not scaled to [-1, 1]."""
    peak = float(np.abs(samples).max(initial=0))
    if not math.isfinite(peak):
        bad = int((~np.isfinite(samples)).sum())
        raise DataError(
            f"{where}: {bad} of {len(samples)} samples{part} are NaN or infinite. Export it again."
        )
    if peak > MAX_PEAK:
        raise DataError(
            f"{where}: samples reach {peak:g}, full scale is 1. Divide a float file by its range."
        )


class _Resampler:
    """soxr as a stream: the samples do not depend on the blocks."""

    def __init__(self, where: object, rate: int) -> None:
        soxr = require_extra("soxr", "asr", f"{where}: resampling from {rate} Hz to {SAMPLE_RATE} Hz")
        self.stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self.written = 0

    def __call__(self, block: Samples, last: bool) -> Samples:
        out: Samples = self.stream.resample_chunk(block, last=last)
        self.written += len(out)
        # One sample at 48 kHz is a third of one at 16 kHz: rounded to none, it would be no recording.
        return block[:1] if last and not self.written else out


@contextmanager
def _open(path: Path, warn: bool = True) -> Iterator[soundfile.SoundFile]:
    """Open a file, its header mended in memory where a recorder was stopped."""
    if path.is_dir():
        raise DataError(f"{path}: a folder, not an audio file. Name the files in it.")
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such audio file. Check the path, or the folder it is relative to."
        )
    try:
        with path.open("rb") as raw:
            file = soundfile.SoundFile(unfinished_wav(raw, path, warn) or path)
        with file:
            _check_header(file, path)
            if warn:
                check_end(file, path)
            yield file
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a format without a header
        raise DataError(f"{path}: cannot be read as audio ({error}). {_remedy(path)}") from error


def _check_header(file: soundfile.SoundFile, path: Path | str) -> None:
    check_rate(file.samplerate, str(path))
    if file.frames >= 1 << 62:
        raise DataError(
            f"{path}: its header does not say how long it is, as when it was written to a pipe. "
            "Write it anew, for example: ffmpeg -i OLD NEW.flac"
        )


def _remedy(path: Path) -> str:
    """Say what to do about a file that cannot be opened."""
    if not path.stat().st_size:
        return "The file has 0 bytes. Copy it again, or remove it from the list."
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "It is a pointer of Git LFS, not the recording. Run: git lfs pull"
    if path.suffix.lower() in HEADERLESS:
        return (
            "Such a file has no header: nothing says its rate, width and channels. Say them once, for "
            "example: ffmpeg -f s16le -ar 16000 -ac 1 -i OLD NEW.wav"
        )
    return "Convert it to wav or flac, for example: ffmpeg -i OLD NEW.flac. Or it is damaged: copy it again."
