"""The sound that every speech model here takes: 16 kHz mono, up to 30 s at once."""

from __future__ import annotations

from torch import Tensor

from qlib.errors import DataError

SAMPLE_RATE = 16_000  # samples per second
# The longest window: Whisper was trained on 30 s at once, and a Moonshine is given no more.
CHUNK_SECONDS = 30


def check_waveform(audio: Tensor) -> None:
    """Refuse what is not a tensor of samples, `[samples]`.

    Raises
    ------
    DataError
        More or fewer than one dimension, or not floats.
    """
    if audio.dim() != 1 or not audio.is_floating_point():
        raise DataError(
            f"expected one waveform [samples] of floats, got {list(audio.shape)} {audio.dtype}. "
            "Average the channels and scale to [-1, 1], as read_audio does."
        )
