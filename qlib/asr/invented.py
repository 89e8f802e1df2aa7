"""Invented text: what a recognizer writes where nobody speaks.

A word error rate does not see it: recordings without a word are left out of the score. The sounds are made by
`sounds.py`; all that a model writes on them, after normalization, is invented. The normalizer removes
punctuation and anything in brackets, such as "[music]", and a broken byte counts as a word, as in `wer.py`;
dots do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from qlib.asr.bootstrap import ClipCounts, percentile_interval, resampled_rates
from qlib.asr.datasets import check_utterances
from qlib.asr.loops import Loop, find_loop
from qlib.asr.normalizers import Normalizer, normalizers_of
from qlib.asr.prompts import language_of, told
from qlib.asr.signature import short, signature
from qlib.asr.sounds import sounds_without_speech
from qlib.asr.transcribe import transcribe
from qlib.asr.transcript import Transcript
from qlib.asr.utterance import Utterance
from qlib.errors import DataError
from qlib.models.structure import Model
from qlib.models.waveform import SAMPLE_RATE

MINUTE = 60.0 * SAMPLE_RATE  # samples
DOTS = frozenset(".")
WIDTH = 80  # characters of a printed text
SHOWN = 5  # texts in the printed result


@dataclass(frozen=True)
class InventedClip:
    """What was written on one sound without speech."""

    id: str
    seconds: float
    text: str  # as the model wrote it
    words: int  # of it, normalized
    loop: Loop | None  # a phrase that repeats itself

    def __str__(self) -> str:
        loop = f", loop: {self.loop}" if self.loop else ""
        text = self.text if len(self.text) <= WIDTH else f"{self.text[:WIDTH]}..."
        return f"{self.id}: {text!r} ({self.words} words{loop})"


@dataclass(frozen=True)
class InventedText:
    """Words that a model wrote on sounds without speech."""

    words_per_minute: float
    interval: tuple[float, float]  # 95 %, bootstrap over sounds
    words: int
    seconds: float  # of all sounds
    loops: int  # sounds on which a phrase repeats itself
    clips: tuple[InventedClip, ...] = field(repr=False)  # in the order of the sounds
    sounds_sha256: str = field(repr=False)
    rule: str = field(repr=False)  # how words are counted, for `compare`
    signature: str = ""

    @property
    def clip_counts(self) -> ClipCounts:
        """What `compare` reads: each word is an insertion."""
        return ClipCounts(
            measure="invented words per minute",
            errors=np.array([each.words for each in self.clips]),
            amounts=np.array([round(each.seconds * SAMPLE_RATE) for each in self.clips]),
            per=MINUTE,
            kinds=(0, 0, self.words),
            listed="sounds",
            listed_sha256=self.sounds_sha256,
            rule=self.rule,
        )

    def __str__(self) -> str:
        low, high = self.interval
        wordy = sorted((each for each in self.clips if each.words), key=lambda each: -each.words)
        more = [f"({len(wordy) - SHOWN} more)"] if len(wordy) > SHOWN else []
        lines = [
            f"{self.words_per_minute:.2f} invented words per minute [{low:.2f}, {high:.2f}]: {self.words} "
            f"words on {len(wordy)} of {len(self.clips)} sounds without speech ({self.seconds:.0f} s), "
            f"{self.loops} loops",
            *map(str, wordy[:SHOWN]),
            *more,
            self.signature,
        ]
        return "\n".join(lines)


def invented_text(
    model: Model,
    sounds: Iterable[Utterance] | None = None,
    *,
    language: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> InventedText:
    """Measure how much a model writes where nobody speaks.

    Parameters
    ----------
    model : Model
        A Whisper or Moonshine with its tokenizer, float or quantized.
    sounds : iterable of Utterance, optional
        Recordings without speech, their texts empty; `sounds_without_speech(seed)` if not given.
    language : str, optional
        As for `evaluate_wer`; it also decides the normalizer.
    batch_size, progress
        As for `transcribe`.
    seed : int
        Of the sounds that are made here, and of the bootstrap.

    Raises
    ------
    DataError
        A sound has a text, so that something is said, or cannot be read.
    ModelError
        The model is no speech recognizer, has no tokenizer, or does not know the language.
    """
    listed = sounds_without_speech(seed) if sounds is None else check_utterances(sounds, "invented_text")
    for each in listed:
        if each.text:
            raise DataError(
                f"invented_text: {each.place} has the text {each.text!r}, so there is speech in it. "
                "Pass recordings without speech, or none, and speech to evaluate_wer."
            )
    normalizers = normalizers_of([language_of(each, language) for each in listed], len(listed))
    sounding = [told(each, language) for each in listed]
    heard = transcribe(model, sounding, batch_size=batch_size, language=language, progress=progress)
    clips = tuple(map(_clip, listed, heard, normalizers))
    words = np.array([each.words for each in clips])
    samples = np.array([round(each.seconds * SAMPLE_RATE) for each in clips])
    places = repr([(each.sound_hash(), each.offset, each.duration) for each in listed])
    sha256 = hashlib.sha256(places.encode()).hexdigest()
    names = " and ".join(dict.fromkeys(map(str, normalizers)))
    settings = {
        "norm": names.replace(" ", "-"),
        "dec": "greedy",
        "clips": len(clips),
        "sounds": short(sha256),
        "seed": seed,
    }
    return InventedText(
        words_per_minute=float(MINUTE * words.sum() / samples.sum()),
        interval=percentile_interval(resampled_rates(words, samples, 1000, seed, MINUTE)),
        words=int(words.sum()),
        seconds=float(samples.sum() / SAMPLE_RATE),
        loops=sum(each.loop is not None for each in clips),
        clips=clips,
        sounds_sha256=sha256,
        rule=f"normalizer {names}",
        signature=signature("invented", settings),
    )


def _clip(sound: Utterance, heard: Transcript, normalize: Normalizer) -> InventedClip:
    # Of "...", which a model may write for noise, the English normalizer leaves a dot.
    words = [word for word in normalize.hypothesis(heard.text).split() if not DOTS.issuperset(word)]
    return InventedClip(sound.id, heard.seconds, heard.text, len(words), find_loop(words))
