"""Toy drafters and targets as tables, all outcomes of chance, and the exact distribution of their texts.

Nothing here is sampled: `first_tokens` runs the library's own drafting and verification once for every
outcome of every random decision and adds up the probabilities.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from draftlib.drafting.length import FixedLength, Length
from draftlib.drafting.propose import Draft, draw_independent, propose
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import splitmix
from draftlib.verification.sampling import warp
from draftlib.verification.verify import Verdict
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import Tokens

T = TypeVar("T")
S = TypeVar("S", bound="Script")
Distribution = dict[Tokens, float]
NO_HIDDEN = torch.empty(0)  # a table has no hidden states
Span = tuple[int, int]


def table(seed: int, context: Sequence[int], size: int) -> Tensor:
    """Logits that look random and depend on the whole context, float64 [size]."""
    key = splitmix(seed)
    for token in context:
        key = splitmix(key ^ (token + 1))
    generator = torch.Generator().manual_seed(key >> 1)
    return torch.randn(size, generator=generator, dtype=torch.float64) * 1.2


@dataclass
class Toy:
    """A drafter and a target; the drafter's context is the target's text, whatever its own tokens are."""

    seed: int
    draft_size: int = 3
    target_size: int = 6
    temperature: float = 1.0
    top_k: int | None = None
    calls: dict[tuple[str, Tokens, Tokens], Tensor] = field(default_factory=dict)

    def draft_logits(self, text: Tokens, drafted: Tokens) -> Tensor:
        key = ("draft", text, drafted)
        if key not in self.calls:
            self.calls[key] = table(self.seed, (*text, 1000, *drafted), self.draft_size)
        return self.calls[key]

    def target_logits(self, text: Tokens) -> Tensor:
        key = ("target", text, ())
        if key not in self.calls:
            self.calls[key] = table(self.seed + 77, text, self.target_size)
        return self.calls[key]

    def step(self, text: Tokens) -> Callable[[Sequence[int]], tuple[Tensor, Tensor]]:
        """The drafter as `propose` sees it; the first call brings a pending token, no part of the draft."""
        fed: list[int] = []

        def step(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
            fed.extend(tokens)
            return self.draft_logits(text, tuple(fed[1:])), NO_HIDDEN

        return step

    def draft_logprobs(self, logits: Tensor) -> Tensor:
        return warp(logits, self.temperature)

    def target_logprobs(self, logits: Tensor) -> Tensor:
        return warp(logits, self.temperature, top_k=self.top_k)

    def target_rows(self, text: Tokens, proposed: Sequence[int]) -> Tensor:
        """Log-probabilities after the text and after each proposed token, [m + 1, V]."""
        rows = [self.target_logits((*text, *proposed[:i])) for i in range(len(proposed) + 1)]
        return torch.stack([self.target_logprobs(row) for row in rows])


def translate_plainly(tokens: Tokens, keys: dict[Tokens, int]) -> tuple[list[int], list[Span]]:
    """Greedy longest match by trying all lengths; ends at what nothing translates."""
    translated: list[int] = []
    spans: list[Span] = []
    start = 0
    while start < len(tokens):
        fits = [n for n in range(1, len(tokens) - start + 1) if tokens[start : start + n] in keys]
        if not fits:
            break
        stop = start + max(fits)
        translated.append(keys[tokens[start:stop]])
        spans.append((start, stop))
        start = stop
    return translated, spans


# --- all outcomes of chance


class Script(RandomDraws):
    """Follows a list of decisions; beyond its end it takes the first of the noted options."""

    def __init__(self, decisions: list[int]) -> None:
        self.decisions = decisions
        self.options: list[list[tuple[int, float]]] = []

    def _decide(self, options: list[tuple[int, float]]) -> int:
        options = [(value, probability) for value, probability in options if probability > 0]
        index = len(self.options)
        self.options.append(options)
        if index == len(self.decisions):
            self.decisions.append(0)
        return options[self.decisions[index]][0]

    def bernoulli(self, probability: float) -> bool:
        probability = min(1.0, probability)
        return bool(self._decide([(1, probability), (0, 1 - probability)]))

    def categorical(self, weights: Tensor) -> int:
        return self._decide(list(enumerate((weights / weights.sum()).tolist())))

    @property
    def probability(self) -> float:
        result = 1.0
        for decision, options in zip(self.decisions, self.options, strict=True):
            result *= options[decision][1]
        return result


def every_way(run: Callable[[RandomDraws], T]) -> Iterator[tuple[float, T]]:
    """Run once for every outcome of every decision: (probability, result)."""
    for script, result in _scripts(run, Script):
        yield script.probability, result


def _scripts(run: Callable[[RandomDraws], T], kind: type[S]) -> Iterator[tuple[S, T]]:
    decisions: list[int] = []
    while True:
        script = kind(decisions)
        yield script, run(script)
        while decisions and decisions[-1] + 1 == len(script.options[len(decisions) - 1]):
            decisions.pop()
        if not decisions:
            return
        decisions[-1] += 1


@dataclass(frozen=True)
class DrawsLast:
    """Marks a judge whose only draw comes last and is its token: no need to run it for every outcome."""

    judge: Callable[[RandomDraws], Verdict]


class _AllDraws(Script):
    """Draws nothing: keeps the weights, and returns a token that is none."""

    weights: Tensor

    def categorical(self, weights: Tensor) -> int:
        self.weights = weights / weights.sum()
        return -1


def every_verdict(judge: Callable[[RandomDraws], Verdict] | DrawsLast) -> Iterator[tuple[float, Verdict]]:
    """Like `every_way`, sooner."""
    if not isinstance(judge, DrawsLast):
        yield from every_way(judge)
        return
    for script, verdict in _scripts(judge.judge, _AllDraws):
        assert verdict.token == -1
        for token, weight in enumerate(script.weights.tolist()):
            yield script.probability * weight, Verdict(verdict.accepted, token)


# --- a whole decoder on a toy


@dataclass(frozen=True)
class Round:
    """All that a verification rule may look at."""

    toy: Toy
    text: Tokens
    draft: Draft
    keys: NGramTable
    proposed: list[int]
    spans: list[Span]
    rows: Tensor


Rule = Callable[[Round], Callable[[RandomDraws], Verdict] | DrawsLast]
"""What does not depend on chance is computed once for a round, the rest once for every outcome."""

Grow = Callable[[dict[Tokens, int], Tokens], dict[Tokens, int]]


def same_keys(keys: dict[Tokens, int], emitted: Tokens) -> dict[Tokens, int]:
    return keys


@dataclass
class Enumeration:
    """The exact distribution of the first tokens of a speculative decoder with this rule."""

    toy: Toy
    keys: dict[Tokens, int]
    rule: Rule
    length: Length
    grow: Grow = same_keys
    ended: Callable[[Sequence[int]], bool] | None = None
    accepted: float = 0.0  # expected number of accepted tokens in the first round

    def first_tokens(
        self, count: int, text: Tokens = (), keys: dict[Tokens, int] | None = None
    ) -> Distribution:
        if count == 0:
            return {(): 1.0}
        keys = self.keys if keys is None else keys
        distribution: Distribution = defaultdict(float)
        for emitted, probability in self.round_distribution(text, keys).items():
            head = emitted[:count]
            after = (*text, *emitted)
            rest = self.first_tokens(count - len(head), after, self.grow(keys, emitted))
            for tail, conditional in rest.items():
                distribution[head + tail] += probability * conditional
        return distribution

    def round_distribution(self, text: Tokens, keys: dict[Tokens, int]) -> Distribution:
        table_of_keys = NGramTable.of(keys, self.toy.draft_size)
        distribution: Distribution = defaultdict(float)

        def draft(draws: RandomDraws) -> Draft:
            step, draw = self.toy.step(text), draw_independent(draws)
            return propose(step, [0], self.length, self.toy.draft_logprobs, draw, self.ended)

        for probability, drafted in every_way(draft):
            proposed, spans = translate_plainly(drafted.tokens, keys)
            rows = self.toy.target_rows(text, proposed)
            seen = Round(self.toy, text, drafted, table_of_keys, proposed, spans, rows)
            for share, verdict in every_verdict(self.rule(seen)):
                emitted = (*proposed[: verdict.accepted], verdict.token)
                distribution[emitted] += probability * share
                self.accepted += (not text) * probability * share * verdict.accepted
        return distribution


def target_first_tokens(toy: Toy, count: int, text: Tokens = ()) -> Distribution:
    """The exact distribution of the first tokens that the target writes alone."""
    distribution: Distribution = {}
    for tokens in itertools.product(range(toy.target_size), repeat=count):
        probability = 1.0
        for i, token in enumerate(tokens):
            probability *= float(toy.target_logprobs(toy.target_logits((*text, *tokens[:i])))[token].exp())
        distribution[tokens] = probability
    return distribution


def total_variation(one: Distribution, other: Distribution) -> float:
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) / 2


def distance(
    toy: Toy, keys: dict[Tokens, int], rule: Rule, k: int, count: int = 2, grow: Grow = same_keys
) -> float:
    """Total variation between speculative and plain decoding over the first tokens."""
    enumeration = Enumeration(toy, keys, rule, FixedLength(k), grow)
    return total_variation(enumeration.first_tokens(count), target_first_tokens(toy, count))
