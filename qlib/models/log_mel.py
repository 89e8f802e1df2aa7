"""Log-mel features: what Whisper's encoder reads of a waveform.

A window of up to 30 s becomes 3000 frames of `bins` log energies (`log_mel`), in this order:

1. pad with zeros to 30 s, reflect 200 samples at either end, cut into frames of 25 ms every 10 ms;
2. Hann window, Fourier transform, squared magnitude: power [201, 3000] (the 3001st frame is dropped);
3. `mel_filters` sums it into triangular bands that are even in pitch: [bins, 3000];
4. log10, nothing below 8 under the window's own maximum, then (x + 4) / 4.

Paper: Radford et al. 2022, arXiv 2212.04356, section 2.2. Equal to the reference features to 1e-6.

Frames that contain padding only are known without a Fourier transform (their power is exactly zero), so a
3-second clip costs a tenth of a full window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import DataError
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE, check_waveform

N_FFT = 400  # samples per frame: 25 ms
HOP = 160  # samples from frame to frame: 10 ms
CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE  # 480,000
N_FRAMES = CHUNK_SAMPLES // HOP  # 3,000 frames per window
FRAMES_PER_SECOND = SAMPLE_RATE // HOP  # 100
N_FREQUENCIES = N_FFT // 2 + 1  # 201 lines, 40 Hz apart, up to 8 kHz
MAX_BINS = 128  # finer bands than this fall between the lines of the Fourier transform

POWER_FLOOR = 1e-10  # log10 of silence is -10
LOG_RANGE = 8.0  # powers of ten kept below the loudest band of a window


@lru_cache(maxsize=4)
def mel_filters(bins: int = 80) -> Tensor:
    """Weights that sum a power spectrum into bands even in pitch (Slaney's mel scale and norm).

    The scale: 200/3 Hz per mel up to 1 kHz, from there 27 mels for each factor of 6.4. Band k is a triangle
    over the edges k, k+1, k+2 of bins + 2 edges evenly spaced in mel from 0 to 8 kHz; its area in Hz is 1.

    Parameters
    ----------
    bins : int
        Number of bands: 80, or 128 for large-v3 and later; 1 to 128.

    Returns
    -------
    Tensor
        ``[bins, 201]`` float32. Shared by all callers: do not write into it.
    """
    if not 1 <= bins <= MAX_BINS:
        raise DataError(
            f"mel_filters: bins={bins} is not in 1 to {MAX_BINS}. Whisper uses 80 (large-v3: 128)."
        )
    break_mel, log_step = 15.0, math.log(6.4) / 27  # 1 kHz = 15 mels
    top = break_mel + math.log(SAMPLE_RATE / 2 / 1000) / log_step
    mels = torch.linspace(0, top, bins + 2, dtype=torch.float64)
    linear, curved = mels * (200 / 3), 1000 * torch.exp((mels - break_mel) * log_step)
    edges = torch.where(mels < break_mel, linear, curved)  # Hz, [bins + 2]
    lines = torch.linspace(0, SAMPLE_RATE / 2, N_FREQUENCIES, dtype=torch.float64)  # Hz, [201]
    width = edges.diff()[:, None]
    distance = lines - edges[:, None]  # [bins + 2, 201]
    rising, falling = distance[:-2] / width[:-1], -distance[2:] / width[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def log_mel(audio: Tensor, bins: int = 80) -> Tensor:
    """Whisper's input features of one window.

    Parameters
    ----------
    audio : Tensor
        ``[samples]`` at 16 kHz, at most 30 s, 0 samples allowed (silence).
    bins : int
        Mel bands, as the checkpoint wants: 80 or 128.

    Returns
    -------
    Tensor
        ``[bins, 3000]`` float32 on the device of `audio`.

    Raises
    ------
    DataError
        Not a waveform, longer than 30 s (cut it by `split_windows`), or not finite.
    """
    return log_mel_batch([audio], bins)[0]


def log_mel_batch(audios: Sequence[Tensor] | Tensor, bins: int = 80, frames: int = N_FRAMES) -> Tensor:
    """Whisper's input features of several windows of any lengths, each exactly as `log_mel` gives it alone.

    Parameters
    ----------
    audios : sequence of Tensor, or Tensor
        B waveforms ``[samples]``, or one tensor ``[B, samples]``; each at most 30 s.
    bins : int
        Mel bands: 80 or 128.
    frames : int
        Frames of 10 ms that the encoder reads at once; other checkpoints than OpenAI's may differ.

    Returns
    -------
    Tensor
        ``[B, bins, frames]`` float32 on the device of the audio.

    Raises
    ------
    DataError
        No waveform at all, or one that `log_mel` refuses.
    """
    if not len(audios):
        raise DataError("log_mel_batch: no waveform was given. Pass at least one.")
    features = torch.empty(len(audios), bins, frames, dtype=torch.float32, device=audios[0].device)
    for audio, out in zip(audios, features, strict=True):
        # One at a time: the cost follows each clip's own length, and no clip changes another's last bit.
        _write_log_mel(audio, out)
    return features


def log_mel_recording(audio: Tensor, bins: int = 80) -> Tensor:
    """Whisper's features of a recording of any length, all its frames at once.

    They differ from those of its windows: nothing is padded, so a frame at a cut contains the sound on both
    sides of it, and step 4 looks at the maximum of the whole recording.

    Parameters
    ----------
    audio : Tensor
        ``[samples]`` at 16 kHz, more than 200 samples.
    bins : int
        Mel bands: 80 or 128.

    Returns
    -------
    Tensor
        ``[bins, samples // 160]`` float32 on the device of `audio`: 115 MB an hour with 80 bins.

    Raises
    ------
    DataError
        Not a waveform, too short to be reflected, or not finite.
    """
    check_waveform(audio)
    if len(audio) <= N_FFT // 2:
        raise DataError(
            f"log_mel_recording: {len(audio)} samples, expected more than {N_FFT // 2}. Use log_mel, which "
            "pads."
        )
    features = torch.empty(bins, len(audio) // HOP, dtype=torch.float32, device=audio.device)
    _write_bands(audio, features)
    return _scale(features)


def _write_log_mel(audio: Tensor, out: Tensor) -> None:
    """Write the features of one window into `out [bins, frames]`."""
    check_waveform(audio)
    frames = out.shape[1]
    if len(audio) > frames * HOP:
        raise DataError(
            f"log_mel: the audio lasts {len(audio) / SAMPLE_RATE:.2f} s, the encoder reads "
            f"{frames / FRAMES_PER_SECOND:g}. "
            "Cut it by split_windows first."
        )
    # Frames centred more than half a frame after the audio's end contain zeros only.
    with_sound = min(-(-(len(audio) + N_FFT) // HOP), frames)
    _write_bands(pad(audio, (0, with_sound * HOP - len(audio))), out[:, :with_sound])
    out[:, with_sound:] = math.log10(POWER_FLOOR)
    _scale(out)


def _write_bands(audio: Tensor, out: Tensor) -> None:
    """Write the log energies of a waveform's first frames into `out [bins, frames]`."""
    # 1. Frames, so many at a time that the spectrum of an hour does not fill the memory.
    padded = pad(audio.float()[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0]
    for start in range(0, out.shape[1], N_FRAMES):
        part = out[:, start : start + N_FRAMES]
        cut = padded[start * HOP :].unfold(0, N_FFT, HOP)[: part.shape[1]]
        # 2. Power [frames, 201]; in half the time of torch.stft.
        spectrum = torch.fft.rfft(cut * torch.hann_window(N_FFT, dtype=torch.float32, device=audio.device))
        power = spectrum.real.square() + spectrum.imag.square()
        # 3. Bands [bins, frames].
        mel = mel_filters(len(out)).to(audio.device) @ power.T
        # 4. Logarithm.
        part.copy_(mel.clamp(min=POWER_FLOOR).log10())


def _scale(bands: Tensor) -> Tensor:
    """Cut log energies off below their maximum and scale them, in place: the rest of step 4."""
    peak = bands.max()
    if not math.isfinite(peak.item()):
        raise DataError(
            "log_mel: the audio has NaN or infinite samples. Read it by read_audio, which names the file."
        )
    return bands.clamp_(min=peak.item() - LOG_RANGE).add_(4.0).div_(4.0)
