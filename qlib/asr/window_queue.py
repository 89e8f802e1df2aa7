"""Windows of sound wait until enough are there, and are then sorted by length and decoded in batches.

Windows of like length stand in one batch, because a batch runs until its longest text ends. The windows wait
until `SECONDS_TOGETHER` of sound are there, so the memory grows neither with the number of recordings nor
with their length. A recording whose language is to be heard is decoded from its first window on, which tells
the prompt of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

from qlib.asr.greedy import decoding_head, greedy
from qlib.asr.prompts import Language, Prompts, row_languages
from qlib.models.speech import SpeechModel
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE

SECONDS_TOGETHER = 1800  # of sound in memory at once, 115 MB, whose windows are sorted by length


@dataclass
class _Window:
    """A piece of a recording that waits to be decoded, and then its text."""

    recording: int
    samples: Tensor
    tells_language: bool  # the first of a recording whose language is to be heard
    tokens: list[int] = field(default_factory=list)


class WindowQueue:
    """Windows that wait until enough are there to be sorted by length."""

    def __init__(self, model: SpeechModel, prompts: Prompts, batch_size: int, bar: tqdm[object]) -> None:
        self.model, self.prompts, self.batch_size, self.bar = model, prompts, batch_size, bar
        self.head = decoding_head(model)
        self.languages: dict[int, Language] = {}  # of each recording, once it is known
        self.texts: dict[int, list[list[int]]] = {}  # of each recording, one for each of its windows
        self._waiting: list[_Window] = []
        self._held = 0  # samples
        self._room = SAMPLE_RATE * max(SECONDS_TOGETHER, batch_size * CHUNK_SECONDS)
        self._open: Counter[int] = Counter()  # of each recording: its windows here, and 1 while it is read
        self._unheard: set[int] = set()  # recordings whose language is to be heard, without a window so far

    def begin(self, recording: int, language: Language | None) -> None:
        """Note that a recording's windows are to come; without a language, the first tells it."""
        self._open[recording] += 1
        if language is None:
            self._unheard.add(recording)
        else:
            self.languages[recording] = language

    def add(self, recording: int, window: Tensor) -> None:
        """Take the next window of a recording; decode all that wait if there is no room for more."""
        self._waiting.append(_Window(recording, window, recording in self._unheard))
        self._unheard.discard(recording)
        self._open[recording] += 1
        self._held += len(window)
        if self._held >= self._room:
            self.decode()

    def finish(self, recording: int) -> None:
        """Count one window of a recording as decoded, or its reading as done; the bar counts recordings."""
        self._open[recording] -= 1
        if not self._open[recording]:
            self.bar.update()

    def decode(self) -> None:
        """Decode all windows that wait, those that tell a language first; like lengths go together."""
        order = sorted(self._waiting, key=lambda each: (each.tells_language, len(each.samples)), reverse=True)
        for start in range(0, len(order), self.batch_size):
            self._decode_batch(order[start : start + self.batch_size])
        for window in self._waiting:
            self.texts.setdefault(window.recording, []).append(window.tokens)
        self._waiting, self._held = [], 0

    def _decode_batch(self, batch: Sequence[_Window]) -> None:
        waveforms = [each.samples for each in batch]
        limits = self.model.token_limits(waveforms, self.prompts.length)
        states, mask = self.model.encode_speech(waveforms)
        cache = self.model.start(states, self.prompts.length + max(limits), mask)
        known = [self.languages.get(each.recording) for each in batch]
        for window, language in zip(batch, row_languages(self.model, self.head, cache, known), strict=True):
            if window.tells_language:
                self.languages[window.recording] = language
        prompts = [self.prompts.of(self.languages[each.recording].code) for each in batch]
        texts = greedy(self.model, self.head, cache, prompts, limits)
        for window, window.tokens in zip(batch, texts, strict=True):
            self.finish(window.recording)
