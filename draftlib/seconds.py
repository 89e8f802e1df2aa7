"""Where the time of a round goes, phase by phase, and the clock that measures it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from time import perf_counter


@dataclass(frozen=True)
class Seconds:
    """Time by phase.

    Attributes
    ----------
    prompt : float
        Both models read the prompt.
    draft : float
        The drafter's passes, and drawing.
    translate : float
        Guesses of the sources, the choice of who proposes; draft tokens to target tokens.
    target : float
        The target's passes.
    verify : float
        Temperature, top-k and top-p, noise and the verdict.
    update : float
        Target tokens back to draft tokens; the n-gram cache.
    learn : float
        What sources, length rule and observers take from a round; updates of the drafter, and reading the
        text again after each.
    """

    prompt: float = 0.0
    draft: float = 0.0
    translate: float = 0.0
    target: float = 0.0
    verify: float = 0.0
    update: float = 0.0
    learn: float = 0.0

    @property
    def decoding(self) -> float:
        """All but the prompt."""
        return self.draft + self.target + self.overhead + self.learn

    @property
    def overhead(self) -> float:
        """What neither model needs: sources, translation, verification, cache."""
        return self.translate + self.verify + self.update

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class Clock:
    """Measures the phases of a round, each from the end of the one before it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget all times; the first phase of the next round begins now."""
        self._seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """End a phase: the time since the last lap belongs to it."""
        now = perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def read(self) -> Seconds:
        """Return the time by phase."""
        return Seconds(**self._seconds)
