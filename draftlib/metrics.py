"""Counts and times of many rounds, and the figures made of them; one round is a `Step` (`step.py`).

    tokens          emitted by the target: accepted ones and one of its own per round
    accepted        proposed target tokens that become part of the text; never the target's own one
    proposed        target tokens that were verified: translations of drafts, and guesses of sources
    acceptance rate accepted / proposed of a round, averaged over the rounds that drafted anything (the
                    paper's metric; a draft that nothing translates counts as 0)
    n-gram hit      an accepted token that stands for several draft tokens
    acceptance length  1 + accepted / rounds that proposed anything: what vLLM reports
    target call     one pass of the target over the last token and the proposed ones; reading the prompt is
                    not counted
    speed-up        seconds a token of the target alone / seconds a token with drafting, prompts left out

Predicted speed-up: (accepted + 1) / (k c + v), per round, with k drafted tokens, c the cost of a drafter's
step and v that of a target's call, both in steps of the target alone. It counts the time of the two models
only; the measured speed-up includes translation, verification and the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import zip_longest
from typing import Any

from draftlib.seconds import Seconds
from draftlib.step import Step


@dataclass(frozen=True)
class Counts:
    """What became of proposed tokens.

    Attributes
    ----------
    rounds : int
        Rounds that proposed any.
    proposed, accepted : int
        Target tokens.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def acceptance_length(self) -> float:
        """1 + accepted / rounds, as vLLM defines it; 1 where nothing was proposed."""
        return 1 + _ratio(self.accepted, self.rounds)


@dataclass(frozen=True)
class Stats:
    """Counts and times of one answer, or of many added up.

    Attributes
    ----------
    responses, rounds, tokens, drafted, proposed, accepted : int
        As docs/drafting/metrics.md defines them; `rounds` are also the target's calls.
    merged, hits : int
        Proposed tokens that stand for several draft tokens; those of them that were accepted.
    drafting_rounds : int
        Rounds that drafted anything.
    rates : float
        Sum of accepted / proposed over them.
    seconds : Seconds
        By phase.
    sources : dict of str to Counts
        By who proposed: "draft", or the name of a source.
    positions : tuple of Counts
        By the place of a token in its proposal: how often one was proposed there, and accepted.
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
    sources: dict[str, Counts] = field(default_factory=dict)
    positions: tuple[Counts, ...] = ()
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
                rates=step.accepted / len(step.proposed) if step.drafted and step.proposed else 0.0,
                seconds=step.seconds,
                sources={step.source: Counts(1, len(step.proposed), step.accepted)} if step.proposed else {},
                positions=tuple(Counts(1, 1, i < step.accepted) for i in range(len(step.proposed))),
            )
        return total

    def __add__(self, other: Stats) -> Stats:
        """Add up; of two measurements of the target alone the later one holds."""
        names = [each.name for each in fields(self) if each.name not in ("plain", "sources", "positions")]
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        counts["sources"] = {
            name: self.sources.get(name, Counts()) + other.sources.get(name, Counts())
            for name in (*self.sources, *(each for each in other.sources if each not in self.sources))
        }
        places = zip_longest(self.positions, other.positions, fillvalue=Counts())
        counts["positions"] = tuple(mine + theirs for mine, theirs in places)
        return replace(self, **counts, plain=self.plain if other.plain is None else other.plain)

    @property
    def accepted_per_round(self) -> float:
        """Accepted tokens per round."""
        return _ratio(self.accepted, self.rounds)

    @property
    def tokens_per_target_call(self) -> float:
        """Tokens that one pass of the target yields: accepted ones and its own."""
        return _ratio(self.tokens, self.rounds)

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed tokens that are accepted, averaged over the rounds that drafted."""
        return _ratio(self.rates, self.drafting_rounds)

    @property
    def acceptance_length(self) -> float:
        """1 + accepted tokens / rounds that proposed any, as vLLM defines it."""
        return sum(self.sources.values(), Counts()).acceptance_length

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
    def tokens_per_second_without_learning(self) -> float:
        """Speed without the reading of the prompt and without updates of the drafter."""
        return _ratio(self.tokens, self.seconds.decoding - self.seconds.learn)

    @property
    def measured_speedup(self) -> float | None:
        """Speed against the target alone; None while that was not measured."""
        return None if self.plain is None or not self.rounds else self.plain * self.tokens_per_second

    @property
    def predicted_speedup(self) -> float | None:
        """Speed-up that the cost of the two models' passes allows; None while the target alone is unknown."""
        models = self.seconds.draft + self.seconds.target
        return None if self.plain is None or not models else self.tokens * self.plain / models

    def record(self) -> dict[str, Any]:
        """Return all of it as a JSON object, the derived figures too."""
        derived = [name for name, value in vars(Stats).items() if isinstance(value, property)]
        return asdict(self) | {name: getattr(self, name) for name in derived}

    @property
    def warning(self) -> str | None:
        """Why drafting made it slower, where it did."""
        speedup = self.measured_speedup
        if self.plain is None or speedup is None or speedup >= 1 or not self.proposed:
            return None
        draft, target, rest = (
            part / self.rounds / self.plain
            for part in (self.seconds.draft, self.seconds.target, self.seconds.overhead + self.seconds.learn)
        )
        return (
            f"Drafting is slower than the target alone ({speedup:.2f} times its speed): a round takes "
            f"{draft + target + rest:.2f} steps of the target (drafting {draft:.2f}, verifying pass "
            f"{target:.2f}, the rest {rest:.2f}) and yields {self.tokens_per_target_call:.2f} tokens. "
            f"{_remedy(draft, target - 1, rest, self)}"
        )

    def __str__(self) -> str:
        phases = ", ".join(
            f"{each.name} {spent:.2f}"
            for each in fields(self.seconds)
            if (spent := getattr(self.seconds, each.name)) >= 0.005 or each.name != "learn"
        )
        apart = self.tokens_per_second_without_learning
        learning = f" ({apart:.1f} without learning)" if self.seconds.learn >= 0.005 else ""
        speed = f"{self.tokens_per_second:.1f} tokens/s{learning}; seconds: {phases}"
        if not self.drafted and not self.proposed:
            return f"{self.tokens} tokens in {self.rounds} target calls, nothing drafted\n{speed}"
        by_source = ", ".join(
            f"{name} {each.rounds} times, {each.accepted} of {each.proposed} accepted"
            for name, each in self.sources.items()
        )
        own = self.sources.get("draft", Counts())
        places = " ".join(f"{each.accepted / each.proposed:.0%}" for each in self.positions[:8])
        placed = f"; accepted by position in the proposal: {places}" if places else ""
        drafter = (
            f"acceptance rate {self.acceptance_rate:.1%} ({own.accepted} of {own.proposed} proposed, "
            f"{self.drafted} drafted); n-gram hits {self.hits_per_round:.2f} per round, "
            f"{self.hits_per_response:.1f} per response"
        )
        lines = [
            f"{self.tokens} tokens in {self.rounds} target calls: {self.tokens_per_target_call:.2f} per "
            f"call, {self.accepted_per_round:.2f} accepted per round",
            *([drafter] if self.drafted else []),
            f"acceptance length {self.acceptance_length:.2f}{placed}",
            *([f"proposed by: {by_source}"] if set(self.sources) - {"draft"} else []),
            speed,
        ]
        if self.measured_speedup is not None and self.predicted_speedup is not None:
            lines.append(f"speed-up {self.measured_speedup:.2f} (models alone: {self.predicted_speedup:.2f})")
        return "\n".join([*lines, *filter(None, [self.warning])])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _remedy(draft: float, extra: float, rest: float, stats: Stats) -> str:
    """Name the largest part of what drafting costs beyond a plain step."""
    if stats.seconds.learn > max(stats.seconds.draft, stats.seconds.overhead):
        return "Learning costs most: give it a smaller `share`, or set `frozen` once it has learned enough."
    if stats.accepted_per_round < 0.3 and not stats.drafted:
        return (
            f"Too few guesses of the sources are accepted ({stats.accepted_per_round:.2f} tokens per round): "
            "this kind of text does not repeat itself. Take a draft model."
        )
    if stats.accepted_per_round < 0.3:
        return (
            f"Too little is accepted ({stats.accepted_per_round:.2f} tokens per round): the drafter does not "
            "know this kind of text. Take another drafter, or draft fewer tokens."
        )
    if draft >= max(extra, rest):
        return (
            f"Drafting costs most ({stats.drafted / stats.rounds:.1f} tokens per round): draft fewer tokens, "
            "or take a smaller drafter or bfloat16 for it."
        )
    if extra >= rest:
        return "Verifying several tokens costs much more than one step here: draft fewer tokens."
    return "Translation and verification cost most: the target is too small to gain from drafting."
