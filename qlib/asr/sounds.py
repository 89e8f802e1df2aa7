"""Sounds without a word in them, made here: silence, noise, hum, clicks, tones and chords.

All are ``[samples]`` float32 at 16 kHz. Levels are of the root mean square, in decibels below a constant 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from qlib.asr.utterance import Utterance
from qlib.errors import DataError, whole_number
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE

SECONDS = (1, 3, 10, 30)
BEAT = 0.5  # seconds of a note or chord
A_MINOR_PENTATONIC = (220.0, 261.63, 293.66, 329.63, 392.0, 440.0)  # Hz
HARMONICS = 4  # of a note, each half as strong as the one below
CLICK_SECONDS = 0.002
PEAK = 0.99  # clicks are short, so their peaks would exceed full scale at a common level

Maker = Callable[[int, Generator], Tensor]  # from samples to a sound of any level


def white(samples: int, generator: Generator) -> Tensor:
    """Return noise of equal power at all frequencies."""
    return torch.randn(samples, generator=generator)


def pink(samples: int, generator: Generator) -> Tensor:
    """Return noise of equal power in each octave, power falling with 1 / frequency, as of wind or traffic."""
    spectrum = torch.fft.rfft(white(samples, generator))
    bins = torch.arange(len(spectrum))
    scale = bins.clamp(min=1).rsqrt() * (bins > 0)  # no constant part
    noise: Tensor = torch.fft.irfft(spectrum * scale, n=samples)
    return noise


def hum(samples: int, generator: Generator) -> Tensor:
    """Return the hum of the mains at 50 Hz with its first harmonics, at phases that are drawn."""
    return torch.stack([_tone(samples, 50.0 * k, generator) / k for k in range(1, 6)]).sum(0)


def clicks(samples: int, generator: Generator) -> Tensor:
    """Return two clicks a second at times that are drawn: short bursts of noise, and nothing between."""
    sound, width = torch.zeros(samples), int(CLICK_SECONDS * SAMPLE_RATE)
    count = max(1, round(2 * samples / SAMPLE_RATE))
    for start in torch.randint(samples - width, (count,), generator=generator).tolist():
        sound[start : start + width] += white(width, generator)
    return sound


def melody(samples: int, generator: Generator) -> Tensor:
    """Return notes of half a second that are drawn from a scale, struck and dying away."""
    return _music(samples, generator, 1)


def chords(samples: int, generator: Generator) -> Tensor:
    """Return chords of three such notes."""
    return _music(samples, generator, 3)


def at_level(sound: Tensor, decibels: float) -> Tensor:
    """Return a sound with the given root mean square, and peaks of at most 0.99."""
    scaled = sound * (10 ** (decibels / 20) / sound.square().mean().sqrt())
    return scaled * min(1.0, PEAK / float(scaled.abs().max()))


KINDS: dict[str, tuple[Maker, tuple[float, ...]]] = {
    # -96 dB is one step of 16-bit samples: what a good recorder writes when nobody speaks
    "white noise": (white, (-96, -60, -40, -20)),
    "pink noise": (pink, (-60, -40, -20)),
    "hum": (hum, (-40,)),
    "clicks": (clicks, (-40,)),
    "melody": (melody, (-20,)),
    "chords": (chords, (-20,)),
}


def sounds_without_speech(seed: int = 0, seconds: tuple[int, ...] = SECONDS) -> list[Utterance]:
    """Return all sounds of this module, each in all lengths, with an empty text.

    Parameters
    ----------
    seed : int
        Of all that is drawn.
    seconds : tuple of int
        Lengths, 1 to 30: a sound fits into one window.

    Returns
    -------
    list of Utterance
        Kind by kind, digital silence first; the id says kind, level and length.

    Raises
    ------
    DataError
        No length, or one that is not 1 to 30 s.
    """
    if not seconds:
        raise DataError("sounds_without_speech: no length. Give one or more, in seconds: seconds=(1, 10).")
    for each in seconds:
        whole_number(each, "sounds_without_speech: seconds", DataError, 1, CHUNK_SECONDS)
    generator = Generator().manual_seed(seed)
    found = [Utterance(torch.zeros(n * SAMPLE_RATE), "", f"digital silence, {n} s") for n in seconds]
    for name, (make, levels) in KINDS.items():
        for level in levels:
            for n in seconds:
                sound = at_level(make(n * SAMPLE_RATE, generator), level)
                found.append(Utterance(sound, "", f"{name} {level:g} dB, {n} s"))
    return found


def _tone(samples: int, hertz: float, generator: Generator) -> Tensor:
    """Return a sine with a phase that is drawn."""
    phase = 2 * math.pi * float(torch.rand(1, generator=generator))
    time = torch.arange(samples, dtype=torch.float64) / SAMPLE_RATE
    return (2 * math.pi * hertz * time + phase).sin().float()


def _music(samples: int, generator: Generator, notes: int) -> Tensor:
    """Return beats of `notes` drawn notes each."""
    beat = int(BEAT * SAMPLE_RATE)
    time = torch.arange(beat) / SAMPLE_RATE
    envelope = (time / 0.01).clamp(max=1) * (-4 * time / BEAT).exp()  # 10 ms attack, then decay
    beats = []
    for _ in range(math.ceil(samples / beat)):
        chosen = torch.randperm(len(A_MINOR_PENTATONIC), generator=generator)[:notes].tolist()
        tones = [
            _tone(beat, k * A_MINOR_PENTATONIC[i], generator) / 2 ** (k - 1)
            for i in chosen
            for k in range(1, HARMONICS + 1)
        ]
        beats.append(torch.stack(tones).sum(0) * envelope)
    return torch.cat(beats)[:samples]
