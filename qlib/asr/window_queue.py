"""Windows of sound wait until enough are there, and are then sorted by length and decoded in batches.

Windows of like length stand in one batch, because a batch runs until its longest text ends. The windows wait
until `SECONDS_TOGETHER` of sound are there, so the memory grows neither with the number of recordings nor
with their length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from tqdm import tqdm

from qlib.asr.greedy import Head, greedy
from qlib.models.fast.products import reordered_product
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.speech import SpeechModel
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE

SECONDS_TOGETHER = 1800  # of sound in memory at once, 115 MB, whose windows are sorted by length


@dataclass
class _Window:
    """A piece of a recording that waits to be decoded, and then its text."""

    recording: int
    samples: Tensor
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)


class WindowQueue:
    """Windows that wait until enough are there to be sorted by length."""

    def __init__(self, model: SpeechModel, batch_size: int, bar: tqdm[object]) -> None:
        self.model, self.batch_size, self.bar = model, batch_size, bar
        # Every step runs through the large head. This layout takes no time to make, so any call profits.
        head = model.proj_out
        self.head: Head = head
        if isinstance(head, nn.Linear) or (isinstance(head, QuantizedLinear) and head.activation is None):
            self.head = reordered_product(head.weight, None) or head
        self.texts: dict[int, list[list[int]]] = {}  # of each recording, one for each of its windows
        self._waiting: list[_Window] = []
        self._held = 0  # samples
        self._room = SAMPLE_RATE * max(SECONDS_TOGETHER, batch_size * CHUNK_SECONDS)
        self._open: Counter[int] = Counter()  # of each recording: its windows here, and 1 while it is read

    def begin(self, recording: int) -> None:
        """Note that a recording's windows are to come."""
        self._open[recording] += 1

    def add(self, recording: int, window: Tensor, prompt: Sequence[int]) -> None:
        """Take the next window of a recording; decode all that wait if there is no room for more."""
        self._waiting.append(_Window(recording, window, prompt))
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
        """Decode all windows that wait; those of like length go together."""
        order = sorted(self._waiting, key=lambda window: len(window.samples), reverse=True)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            waveforms, prompts = [each.samples for each in batch], [each.prompt for each in batch]
            limits = self.model.token_limits(waveforms, len(prompts[0]))
            states, mask = self.model.encode_speech(waveforms)
            cache = self.model.start(states, len(prompts[0]) + max(limits), mask)
            for window, tokens in zip(
                batch, greedy(self.model, self.head, cache, prompts, limits), strict=True
            ):
                window.tokens = tokens
                self.finish(window.recording)
        for window in self._waiting:
            self.texts.setdefault(window.recording, []).append(window.tokens)
        self._waiting, self._held = [], 0
