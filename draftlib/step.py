"""One round as the user sees it: what was proposed, what was accepted, and how long each phase took."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from time import perf_counter

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.writer import piece_of


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
        Draft tokens to target tokens.
    target : float
        The target's passes.
    verify : float
        Temperature, top-k and top-p, noise and the verdict.
    update : float
        Target tokens back to draft tokens; the n-gram cache.
    """

    prompt: float = 0.0
    draft: float = 0.0
    translate: float = 0.0
    target: float = 0.0
    verify: float = 0.0
    update: float = 0.0

    @property
    def decoding(self) -> float:
        """All but the prompt."""
        return self.draft + self.target + self.overhead

    @property
    def overhead(self) -> float:
        """What neither model needs: translation, verification, cache."""
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


@dataclass(frozen=True)
class Step:
    """One round: what was drafted, what it was translated to, what the target made of it.

    Attributes
    ----------
    number : int
        From 1.
    position : int
        Index in the target's text, prompt included, of the first token of this round.
    drafted : tuple of int
        Draft tokens.
    proposed : tuple of int
        Target tokens; the first `accepted` of them stand.
    spans : tuple of (int, int)
        The draft tokens, from and up to, that each proposed token stands for.
    accepted : int
        How many proposed tokens stand.
    tokens : tuple of int
        Target tokens added to the answer: the accepted ones and, unless these end it, the target's own.
    learned : int
        How many n-grams were found for the cache.
    seconds : Seconds
        Time of this round; that of the prompt is in the first one.
    """

    number: int
    position: int
    drafted: tuple[int, ...]
    proposed: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    accepted: int
    tokens: tuple[int, ...]
    learned: int
    seconds: Seconds
    vocabulary: VocabularyMap = field(repr=False, compare=False)

    def merged(self, index: int) -> bool:
        """Return whether a proposed token stands for several draft tokens."""
        start, stop = self.spans[index]
        return stop - start > 1

    @property
    def hits(self) -> int:
        """Accepted tokens that stand for several draft tokens."""
        return sum(self.merged(i) for i in range(self.accepted))

    def __str__(self) -> str:
        """Return draft tokens -> their translation, `[merged]` => accepted tokens | the target's own."""
        draft, target = self.vocabulary.draft_bytes, self.vocabulary.target_bytes
        drafted = " ".join(_show(draft, token) for token in self.drafted)
        proposed = " ".join(
            f"[{_show(target, token)}]" if self.merged(i) else _show(target, token)
            for i, token in enumerate(self.proposed)
        )
        stands = [_show(target, token) for token in self.tokens]
        kept, own = " ".join(stands[: self.accepted]), " ".join(stands[self.accepted :])
        return f"round {self.number}: {drafted or '-'} -> {proposed or '-'} => {kept or '-'} | {own or '-'}"


def _show(pieces: tuple[bytes | None, ...], token: int) -> str:
    piece = piece_of(pieces, token)
    return repr(piece.decode(errors="replace")) if piece else f"<{token}>"
