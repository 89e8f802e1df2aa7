"""`Step`: what happened in one round. `Stats`: counts and times of many rounds, and the figures made of them.

    tokens          emitted by the target: accepted ones and one of its own per round
    accepted        proposed target tokens that stand; never the target's own one
    proposed        target tokens that a draft was translated to; at most as many as `drafted`
    acceptance rate accepted / proposed of a round, averaged over the rounds that drafted anything (the
                    paper's metric; a draft that nothing translates counts as 0)
    n-gram hit      an accepted token that stands for several draft tokens
    target call     one pass of the target over the last token and the proposed ones; reading the prompt is
                    not counted
    speed-up        seconds a token of the target alone / seconds a token with drafting, prompts left out

Predicted speed-up: (accepted + 1) / (k c + v), per round, with k drafted tokens, c the cost of a drafter's
step and v that of a target's call, both in steps of the target alone. It counts the time of the two models
only; the measured speed-up includes translation, verification and the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
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


@dataclass(frozen=True)
class Stats:
    """Counts and times of one answer, or of many added up.

    Attributes
    ----------
    responses, rounds, tokens, drafted, proposed, accepted : int
        See the top of this file; `rounds` are also the target's calls.
    merged, hits : int
        Proposed tokens that stand for several draft tokens; those of them that were accepted.
    drafting_rounds : int
        Rounds that drafted anything.
    rates : float
        Sum of accepted / proposed over them.
    seconds : Seconds
        By phase.
    plain : float or None
        Seconds a token of the target alone, where it was measured (`generate_target_only`).
    """

    responses: int = 0
    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    proposed: int = 0
    accepted: int = 0
    merged: int = 0
    hits: int = 0
    drafting_rounds: int = 0
    rates: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)
    plain: float | None = None

    @classmethod
    def of(cls, steps: Iterable[Step], plain: float | None = None) -> Stats:
        """Add up the rounds of one answer."""
        total = cls(responses=1, plain=plain)
        for step in steps:
            total += cls(
                rounds=1,
                tokens=len(step.tokens),
                drafted=len(step.drafted),
                proposed=len(step.proposed),
                accepted=step.accepted,
                merged=sum(map(step.merged, range(len(step.proposed)))),
                hits=step.hits,
                drafting_rounds=int(bool(step.drafted)),
                rates=step.accepted / len(step.proposed) if step.proposed else 0.0,
                seconds=step.seconds,
            )
        return total

    def __add__(self, other: Stats) -> Stats:
        """Add up; of two measurements of the target alone the later one holds."""
        names = [each.name for each in fields(self) if each.name != "plain"]
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(self, **counts, plain=self.plain if other.plain is None else other.plain)

    @property
    def accepted_per_round(self) -> float:
        """Accepted tokens a round."""
        return _ratio(self.accepted, self.rounds)

    @property
    def tokens_per_target_call(self) -> float:
        """Tokens that one pass of the target yields: accepted ones and its own."""
        return _ratio(self.tokens, self.rounds)

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed tokens that stand, averaged over the rounds that drafted."""
        return _ratio(self.rates, self.drafting_rounds)

    @property
    def hits_per_round(self) -> float:
        """Accepted n-grams a round."""
        return _ratio(self.hits, self.rounds)

    @property
    def hits_per_response(self) -> float:
        """Accepted n-grams an answer."""
        return _ratio(self.hits, self.responses)

    @property
    def tokens_per_second(self) -> float:
        """Speed without the reading of the prompt."""
        return _ratio(self.tokens, self.seconds.decoding)

    @property
    def measured_speedup(self) -> float | None:
        """Speed against the target alone; None while that was not measured."""
        return None if self.plain is None or not self.rounds else self.plain * self.tokens_per_second

    @property
    def predicted_speedup(self) -> float | None:
        """Speed-up that the cost of the two models' passes allows; None while the target alone is unknown."""
        models = self.seconds.draft + self.seconds.target
        return None if self.plain is None or not models else self.tokens * self.plain / models

    @property
    def warning(self) -> str | None:
        """Why drafting made it slower, where it did."""
        speedup = self.measured_speedup
        if self.plain is None or speedup is None or speedup >= 1 or not self.drafted:
            return None
        draft, target, rest = (
            part / self.rounds / self.plain
            for part in (self.seconds.draft, self.seconds.target, self.seconds.overhead)
        )
        return (
            f"Drafting is slower than the target alone ({speedup:.2f} times its speed): a round takes "
            f"{draft + target + rest:.2f} steps of the target (drafting {draft:.2f}, verifying pass "
            f"{target:.2f}, the rest {rest:.2f}) and yields {self.tokens_per_target_call:.2f} tokens. "
            f"{_remedy(draft, target - 1, rest, self)}"
        )

    def __str__(self) -> str:
        phases = ", ".join(
            f"{each.name} {getattr(self.seconds, each.name):.2f}" for each in fields(self.seconds)
        )
        speed = f"{self.tokens_per_second:.1f} tokens/s; seconds: {phases}"
        if not self.drafted:
            return f"{self.tokens} tokens in {self.rounds} target calls, nothing drafted\n{speed}"
        lines = [
            f"{self.tokens} tokens in {self.rounds} target calls: {self.tokens_per_target_call:.2f} a call, "
            f"{self.accepted_per_round:.2f} accepted a round",
            f"acceptance rate {self.acceptance_rate:.1%} ({self.accepted} of {self.proposed} proposed, "
            f"{self.drafted} drafted); n-gram hits {self.hits_per_round:.2f} a round, "
            f"{self.hits_per_response:.1f} a response",
            speed,
        ]
        if self.measured_speedup is not None and self.predicted_speedup is not None:
            lines.append(f"speed-up {self.measured_speedup:.2f} (models alone: {self.predicted_speedup:.2f})")
        return "\n".join([*lines, *filter(None, [self.warning])])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _remedy(draft: float, extra: float, rest: float, stats: Stats) -> str:
    """Name the largest part of what drafting costs beyond a plain step."""
    if stats.accepted_per_round < 0.3:
        return (
            f"Too little is accepted ({stats.accepted_per_round:.2f} tokens a round): the drafter does not "
            "know this kind of text. Take another drafter, or draft fewer tokens."
        )
    if draft >= max(extra, rest):
        return (
            f"Drafting costs most ({stats.drafted / stats.rounds:.1f} tokens a round): draft fewer tokens, "
            "or take a smaller drafter or bfloat16 for it."
        )
    if extra >= rest:
        return "Verifying several tokens costs much more than one step here: draft fewer tokens."
    return "Translation and verification cost most: the target is too small to gain from drafting."
