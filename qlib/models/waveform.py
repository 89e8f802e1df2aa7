"""The sound that every recognizer here takes: 16 kHz mono, up to 30 s at once."""

from __future__ import annotations

from torch import Tensor

from qlib.errors import DataError

SAMPLE_RATE = 16_000  # samples per second
CHUNK_SECONDS = (
    30  # the longest window: Whisper was trained on 30 s at once, and a Moonshine is given no more
)


def check_waveform(audio: Tensor) -> None:
    """Refuse what is no tensor of samples.

    Raises
    ------
    DataError
        Not one dimension, or no floats.
    """
    if audio.dim() != 1 or not audio.is_floating_point():
        raise DataError(
            f"expected one waveform [samples] of floats, got {list(audio.shape)} {audio.dtype}. "
            "Average the channels and scale to [-1, 1], as read_audio does."
        )
