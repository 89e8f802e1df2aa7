"""The drafter's side of a round: draw tokens one by one, remember how, and know when to stop.

Rule      d_i ~ q(. | context, d_<i) for i = 1..k, k fixed or decided after each token by the drafter's
          confidence.
Lossless  Verification must know the law that each token was really drawn from (after temperature, masks,
          top-k), so the law is kept, and not computed again later. A rule that stops early keeps the newest
          token: to drop a drawn token *because of what it is* changes the law of those that remain. Smallest
          example: q = (.9, .1), p = (.5, .5), drop a token with q < .5, verify the others with q: the output
          is (.55, .45).
Coupled   With verification by shared noise the drafter draws with the target's noise: y = argmax(log q + g).
          The closer q and p, the more often both take the same token. `coupled_noise` says which g belongs to
          a draft token.
Shapes    D: drafter's vocabulary, V: target's vocabulary, k: drafted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from draftlib.verification.noise import GumbelNoise, RandomDraws
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import Tokens
from qlib.errors import DraftError, describe, real_number, settle, whole_number

Step = Callable[[Sequence[int]], Tensor]
"""Feeds draft tokens to the drafter; returns its logits [D] after the last of them."""

Draw = Callable[[Tensor, Sequence[int]], int]
"""Chooses a token from log-probabilities [D], given the tokens drafted before it in this round."""


@dataclass(frozen=True)
class Draft:
    """What one round drafted, and how.

    Attributes
    ----------
    tokens : tuple of int
        Draft tokens, k of them.
    logprobs : Tensor
        [k, D]; row i is the law that token i was really drawn from.
    confidences : tuple of float
        The drafter's own probability of each token at temperature 1, whatever the sampling law.
    horizon : int
        The most tokens that the round could have had, k or more. Verification counts with it and not with k:
        a k that depends on the tokens gives them away.
    """

    tokens: tuple[int, ...]
    logprobs: Tensor
    confidences: tuple[float, ...]
    horizon: int


class Length(Protocol):
    """Decides how many tokens a round drafts. May look at what was drafted, and at nothing later."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a round."""
        ...

    def stop(self, confidences: Sequence[float]) -> bool:
        """Return whether the newest token is the last one, given the confidences of all so far."""
        ...


@dataclass(frozen=True)
class FixedLength:
    """Always draft the same number of tokens.

    >>> FixedLength(5).stop([0.01])
    False
    """

    max_tokens: int = 5

    def __post_init__(self) -> None:
        settle(self, max_tokens=_whole_length(self.max_tokens, "FixedLength: max_tokens"))

    def stop(self, confidences: Sequence[float]) -> bool:
        """Return False: only `max_tokens` ends the draft."""
        return False


@dataclass(frozen=True)
class Confidence:
    """Stop when the drafter no longer believes that the whole draft holds; the newest token is kept.

    Its belief is the product of its probabilities so far: one rejected token takes all later ones with it. A
    good threshold is several times the cost of a drafter's step in steps of the target, for drafters believe
    too much: 0.4, the default, did best with `drafter-7m`, whose step costs a tenth (docs/drafting/speed.md).

    >>> rule = Confidence(threshold=0.3, max_tokens=8)
    >>> rule.stop([0.9, 0.5]), rule.stop([0.9, 0.5, 0.5])
    (False, True)
    """

    threshold: float = 0.4
    max_tokens: int = 8

    def __post_init__(self) -> None:
        length = _whole_length(self.max_tokens, "Confidence: max_tokens")
        belief = real_number(self.threshold, "Confidence: threshold", DraftError, "It is a probability.")
        settle(self, max_tokens=length, threshold=float(belief))
        if not 0 <= self.threshold <= 1:
            raise DraftError(
                f"Confidence(threshold={self.threshold}): a probability is between 0 (never stop early) and "
                "1 (stop after the first doubt). Values from 0.1 to 0.5 are usual."
            )

    def stop(self, confidences: Sequence[float]) -> bool:
        """Return whether the product of the confidences has fallen below the threshold."""
        return math.prod(confidences) < self.threshold


def as_length(length: Any) -> Length:
    """Return a rule for the length of drafts; a whole number is `FixedLength`.

    Raises
    ------
    DraftError
        It is no such rule, or allows no token.
    """
    remedy = "Pass a whole number, FixedLength(5), or Confidence(0.4)."
    if isinstance(length, type):
        raise DraftError(f"length is {describe(length)}. Make one of it, {length.__name__}(), or: {remedy}")
    if hasattr(length, "max_tokens") and callable(getattr(length, "stop", None)):
        _whole_length(length.max_tokens, "length: max_tokens")
        return length  # type: ignore[no-any-return]
    return FixedLength(whole_number(length, "length", DraftError, 1, remedy=remedy))


def _whole_length(tokens: Any, name: str) -> int:
    remedy = "A draft has at least 1 token. To decode without drafting, use the target alone."
    return whole_number(tokens, name, DraftError, 1, remedy=remedy)


def propose(
    step: Step,
    pending: Sequence[int],
    length: Length,
    law: Callable[[Tensor], Tensor],
    draw: Draw,
    ended: Callable[[Sequence[int]], bool] | None = None,
) -> Draft:
    """Draft the tokens of one round.

    Parameters
    ----------
    step : Step
        The drafter. It is fed `pending` first, and then each drafted token but the last.
    pending : sequence of int
        Draft tokens of the context that the drafter has not seen yet, at least one.
    length : Length
        When to stop.
    law : callable
        From the drafter's logits [D] to the log-probabilities [D] to draw from, for example `sampling.warp`
        with a temperature.
    draw : Draw
        `draw_greedy`, `draw_independent` or `Coupled`.
    ended : callable, optional
        Says of the tokens so far that nothing after them could be proposed (end of text, a token that nothing
        translates): the round ends there. May depend on these tokens only.

    Raises
    ------
    DraftError
        `pending` is empty.
    """
    if not pending:
        raise DraftError(
            "the drafter has nothing to continue: pending is empty. Keep the last token of its context out "
            "of its cache (truncate by one) and pass it here."
        )
    tokens: list[int] = []
    laws: list[Tensor] = []
    confidences: list[float] = []
    feed = pending
    while len(tokens) < length.max_tokens:
        logits = step(feed)
        laws.append(law(logits))
        token = draw(laws[-1], tokens)
        tokens.append(token)
        confidences.append(_probability(logits, token))
        if length.stop(confidences) or (ended is not None and ended(tokens)):
            break
        feed = [token]
    return Draft(tuple(tokens), torch.stack(laws), tuple(confidences), length.max_tokens)


def _probability(logits: Tensor, token: int) -> float:
    return float(logits.softmax(-1)[token])


def draw_greedy(logprobs: Tensor, drafted: Sequence[int]) -> int:
    """Return the most probable token of [D]; the first of equals."""
    return int(logprobs.argmax())


def draw_independent(draws: RandomDraws) -> Draw:
    """Return a `Draw` that takes each token at random, for verification by rejection."""
    return lambda logprobs, drafted: draws.categorical(logprobs.exp())


@dataclass(frozen=True)
class Coupled:
    """A `Draw` with the target's own noise, for verification by shared noise.

    Attributes
    ----------
    position : int
        Position in the target's text of the first token of this round.
    keys : NGramTable
        Direct counterparts and n-grams of this round.
    noise : GumbelNoise
        The target's noise, rows [V].
    own : GumbelNoise
        Other noise, rows [D], for the draft tokens that have no target token of their own.
    candidates : int
        How many of the likeliest tokens are looked up as the end of an n-gram.
    """

    position: int
    keys: NGramTable
    noise: GumbelNoise
    own: GumbelNoise
    candidates: int = 32

    def __call__(self, logprobs: Tensor, drafted: Sequence[int]) -> int:
        """Return argmax(log q + g)."""
        return int((logprobs + coupled_noise(self, logprobs, drafted)).argmax())


def coupled_noise(coupled: Coupled, logprobs: Tensor, drafted: Sequence[int]) -> Tensor:
    """Return for every draft token the noise of the target token that it would bring about, [D].

    Positions are counted in target tokens. With w the drafted tokens whose translation is still open:

    1. w is empty: token x begins target position j, and takes g_j[direct(x)].
    2. w is not empty: a token that makes a key of w takes g_j[merged token]. Any other token leaves w to its
       longest match, and is looked up in what then remains of w, at position j + 1.
    3. A token without a target token of its own takes other noise, so that q is still what is drawn from.

    `logprobs` [D] says which tokens are worth the look-up.
    """
    return _noise_after(coupled, logprobs, tuple(drafted), coupled.position)


def _noise_after(coupled: Coupled, logprobs: Tensor, w: Tokens, position: int) -> Tensor:
    if not w:
        return _fresh_noise(coupled, position)
    match = coupled.keys.longest(w)
    # Without a match nothing after w can be proposed, unless w becomes a key: any noise will do.
    rest = w[match[0] :] if match else ()
    noise = _noise_after(coupled, logprobs, rest, position + 1)
    if coupled.keys.extends(w):
        for token in logprobs.topk(min(coupled.candidates, len(logprobs))).indices.tolist():
            merged = coupled.keys.target((*w, token))
            if merged is not None:
                noise[token] = coupled.noise.row(position)[merged]
    return noise


def _fresh_noise(coupled: Coupled, position: int) -> Tensor:
    """Return the noise for tokens that begin a target token, [D], a new tensor."""
    direct = coupled.keys.direct
    shared = coupled.noise.row(position)[direct.clamp(min=0)]
    return torch.where(direct >= 0, shared, coupled.own.row(position))
