"""How many tokens a round drafts: a fixed number, or until the drafter is no longer sure.

Problem   A drafted token that is rejected was drafted in vain, and takes all later ones with it. A token that
          would have been accepted and was not drafted is a saved pass of the target that is lost.
Rule      After each drafted token, `Length.stop` looks at all drafted so far and decides whether that was the
          last one. `Length.learn` gets every finished round, for rules that improve by experience.
Paper     `Entropy` after SVIP (arXiv 2411.18462).
Lossless  Any rule is lossless that looks only at what was drafted. The newest token is kept: to drop a token
          *because of what it is* changes the distribution of those that remain (see `propose`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qlib.errors import DraftError, describe, real_number, settle, whole_number

if TYPE_CHECKING:
    from draftlib.round import Round


_NO_LOGITS = torch.empty(0)


class Drafted(NamedTuple):
    """One drafted token, and what the drafter knew when it chose it.

    Attributes
    ----------
    token : int
        The draft token.
    logprobs : Tensor
        [D]; the log-probabilities that it was drawn from.
    confidence : float
        The drafter's own probability of the token at temperature 1, whatever it was drawn from.
    hidden : Tensor
        [width]; the state of the drafter's last layer from which the token was predicted.
    logits : Tensor
        [D]; what the drafter computed, before temperature and masks.
    """

    token: int
    logprobs: Tensor
    confidence: float
    hidden: Tensor
    logits: Tensor = _NO_LOGITS


class Length:
    """Decides how many tokens a round drafts. Inherit from it for a rule of your own.

    A rule that also has `state()` and `restore(state)`, as in `Source`, is saved with its decoder.

    Attributes
    ----------
    max_tokens : int
        Most tokens of a round, 1 or more. Set it in the class or in `__init__`.
    optional : bool
        Whether rounds may go without a draft where that is quicker (`choice.py`); False if not set.
    """

    max_tokens: int
    optional: bool = False

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return whether the newest token is the last one, given all tokens of this round so far."""
        raise NotImplementedError

    def learn(self, round: Round) -> None:
        """Take notice of a finished round. By default nothing is learned from it."""
        return None


@dataclass(frozen=True)
class FixedLength(Length):
    """Always draft the same number of tokens.

    >>> FixedLength(5).stop([])
    False
    """

    max_tokens: int = 5

    def __post_init__(self) -> None:
        settle(self, max_tokens=whole_length(self.max_tokens, "FixedLength: max_tokens"))

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return False: only `max_tokens` ends the draft."""
        return False


@dataclass(frozen=True)
class Confidence(Length):
    """Stop when the drafter no longer believes that the whole draft will be accepted.

    Its belief is the product of its probabilities so far: one rejected token takes all later ones with it.
    With c the time of a drafter's step over that of a target's step, about 4 c is a good threshold, because
    drafters are more confident than they should be. `drafter-7m` has c = 0.1, and 0.4, the default, did best
    (docs/drafting/speed.md).

    >>> sure, unsure = (Drafted(0, Tensor(), confidence, Tensor()) for confidence in (0.9, 0.5))
    >>> rule = Confidence(threshold=0.3, max_tokens=8)
    >>> rule.stop([sure, unsure]), rule.stop([sure, unsure, unsure])
    (False, True)
    """

    threshold: float = 0.4
    max_tokens: int = 8

    def __post_init__(self) -> None:
        length = whole_length(self.max_tokens, "Confidence: max_tokens")
        threshold = real_number(self.threshold, "Confidence: threshold", DraftError, "It is a probability.")
        settle(self, max_tokens=length, threshold=float(threshold))  # a frozen class
        if not 0 <= self.threshold <= 1:
            raise DraftError(
                f"Confidence(threshold={self.threshold}): a probability is between 0 (never stop early) and "
                "1 (stop after the first doubt). Values from 0.1 to 0.5 are usual."
            )

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return whether the product of the confidences has fallen below the threshold."""
        return math.prod(each.confidence for each in drafted) < self.threshold


@dataclass(frozen=True)
class Entropy(Length):
    """Stop when the drafter hesitates between many tokens, whichever of them it took.

    Looks at H = -sum q log q of the newest token's distribution, in nats, at temperature 1. The probability
    that the target accepts is about 1 - sqrt(0.15 H); the default stops where that falls below 0.7.
    `Confidence` asks how likely the drafted token is and multiplies over the draft; `Entropy` looks at the
    newest position alone.

    The default is the paper's. `drafter-7m` hesitates more: with SmolLM2-135M, greedy, on 16 prompts of four
    kinds, a threshold of 0.6 drafted 1.5 tokens per round (1.72 times the speed of the target alone, by the
    counts), 2.0 drafted 3.0 (1.95).

    >>> torn = Drafted(0, Tensor(), 0.5, Tensor(), torch.zeros(2))  # H = ln 2 = 0.69
    >>> Entropy(threshold=0.6).stop([torn]), Entropy(threshold=0.7).stop([torn])
    (True, False)
    """

    threshold: float = 0.6
    max_tokens: int = 8

    def __post_init__(self) -> None:
        length = whole_length(self.max_tokens, "Entropy: max_tokens")
        threshold = real_number(self.threshold, "Entropy: threshold", DraftError, "It is an entropy in nats.")
        settle(self, max_tokens=length, threshold=float(threshold))  # a frozen class
        if not self.threshold >= 0:  # NaN as well
            raise DraftError(
                f"Entropy(threshold={self.threshold}): an entropy is 0 (the drafter is certain) or more; a "
                "choice between n equal tokens has ln n nats. Values from 0.3 to 2 are usual."
            )

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return whether the entropy at the newest token is above the threshold."""
        return bool(drafted) and entropy(drafted[-1].logits) > self.threshold


def entropy(logits: Tensor) -> float:
    """Return the entropy of softmax(logits [D]) in nats; a token with the logit -inf adds nothing.

    >>> round(entropy(torch.tensor([0.0, 0.0, -torch.inf])), 4)
    0.6931
    """
    return float(torch.special.entr(logits.float().softmax(-1)).sum())


def as_length(length: Any) -> Length:
    """Return a rule for the length of drafts; a whole number is `FixedLength`.

    Raises
    ------
    DraftError
        It is no such rule, does not say when to stop, or allows no token.
    """
    remedy = (
        "Pass a whole number, CostAware(), FixedLength(5), Confidence(0.4), or an object that inherits from "
        "draftlib.Length."
    )
    if isinstance(length, type):
        raise DraftError(f"length is {describe(length)}. Make one of it, {length.__name__}(), or: {remedy}")
    if isinstance(length, Length):
        most_tokens(length)
        if type(length).stop is Length.stop:
            raise DraftError(
                f"length: {type(length).__name__} has no stop(drafted) of its own. Write one that returns "
                "True after the last token to draft, or pass FixedLength(5), which never stops early."
            )
        return length
    return FixedLength(whole_number(length, "length", DraftError, 1, remedy=remedy))


def most_tokens(length: Length) -> int:
    """Return the most tokens that a round may draft now: a rule may change its `max_tokens`.

    Raises
    ------
    DraftError
        It is no whole number of 1 or more.
    """
    tokens: Any = getattr(length, "max_tokens", None)
    return whole_length(tokens, f"length: {type(length).__name__}.max_tokens")


def is_last(length: Length, drafted: Sequence[Drafted]) -> bool:
    """Return whether a rule ends the draft here.

    Raises
    ------
    DraftError
        Its `stop` returns nothing, or several values.
    """
    said: Any = length.stop(drafted)
    if said is None or getattr(said, "ndim", 0) > 0:
        raise DraftError(
            f"length: {type(length).__name__}.stop returned {describe(said)}. Return True after the last "
            "token to draft, and False before."
        )
    return bool(said)


def whole_length(tokens: Any, name: str) -> int:
    """Return a number of draft tokens as an int, or raise the error that names it."""
    remedy = "A draft has at least 1 token. To decode without drafting, use the target alone."
    return whole_number(tokens, name, DraftError, 1, remedy=remedy)
