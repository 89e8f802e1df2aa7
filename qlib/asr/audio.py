"""Recordings in, waveforms out: 16 kHz mono, cut into windows that a model can read at once.

A recording becomes 16 kHz mono float32 (`read_audio`) and is cut at pauses where it is longer than the
model's 30 seconds (`split_windows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from qlib.asr.audio_file import audio_blocks
from qlib.errors import DataError
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE, check_waveform

PAUSE_SECONDS = 0.25  # longer than the closure of a "p" or "t", shorter than the pause between two phrases


def read_audio(path: str | Path, offset: float | None = None, duration: float | None = None) -> Tensor:
    """Read a recording as 16 kHz mono.

    Channels are averaged; another rate is then resampled by soxr (the ``asr`` extra, not needed at 16 kHz).

    Parameters
    ----------
    path : str or Path
        Any format that libsndfile reads: wav, flac, ogg, mp3, ...
    offset, duration : float, optional
        Seconds, of a segment: see `qlib.asr.audio_file.audio_blocks`. No more than it is read.

    Returns
    -------
    Tensor
        ``[samples]`` float32 at 16,000 samples per second, full scale [-1, 1].

    Raises
    ------
    DataError
        The file is missing, unreadable, empty, not finite or not scaled to [-1, 1].
    MissingExtraError
        The rate is not 16 kHz and soxr is not installed.
    """
    blocks = list(audio_blocks(Path(path), offset, duration))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def split_windows(audio: Tensor, seconds: float = CHUNK_SECONDS) -> list[Tensor]:
    """Cut a recording into windows that the model can read at once, at pauses where there are any.

    Rule: as long as more than `seconds` are left, look at the last third of the next window (10 s of 30),
    find its quietest stretch of 0.25 s (least energy; of equals the last one) and cut in the middle of it.
    Where nobody pauses for 10 s, a word may be cut.

    Parameters
    ----------
    audio : Tensor
        ``[samples]`` at 16 kHz, any length, 0 included.
    seconds : float
        The longest window, 1 or more.

    Returns
    -------
    list of Tensor
        Views of `audio`, at least one, each at most `seconds` long; joined they are `audio` again.
    """
    return list(stream_windows([audio], seconds))


def stream_windows(blocks: Iterable[Tensor], seconds: float = CHUNK_SECONDS) -> Iterator[Tensor]:
    """Yield the windows of `split_windows` of a recording that comes in blocks.

    A cut needs only the samples of one window and the next block, so an hour takes no more memory than a
    minute.
    """
    if seconds < 1:
        raise DataError(
            f"split_windows: seconds={seconds:g} is too short for a word. Use 1 or more, 30 for Whisper."
        )
    rest = torch.zeros(0)
    for block in blocks:
        check_waveform(block)
        rest = torch.cat([rest, block]) if len(rest) else block
        while len(rest) > seconds * SAMPLE_RATE:
            cut = _pause(rest, int(seconds * SAMPLE_RATE))
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def _pause(audio: Tensor, window: int) -> int:
    """Return where the first `window` samples are cut."""
    first, pause = window - window // 3, int(PAUSE_SECONDS * SAMPLE_RATE)
    # Running sum of energy, float64: differences of it are the energies of all stretches at once.
    total = audio[first:window].double().square().cumsum(0)
    energy = total[pause:] - total[:-pause]
    quietest = len(energy) - 1 - int(energy.flip(0).argmin())
    return first + 1 + quietest + pause // 2


def is_silent(window: Tensor) -> bool:
    """Return whether a window has no sound at all: no sample, or the same value everywhere.

    That is what a muted microphone writes. A model makes up words for it, so it is not run on it.
    """
    return not len(window) or bool((window == window[0]).all())
