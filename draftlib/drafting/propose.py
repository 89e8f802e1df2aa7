"""The drafter's side of a round: draw tokens one by one, remember how, and know when to stop.

Rule      d_i ~ q(. | context, d_<i) for i = 1..k, k fixed or decided after each token (`length.py`).
Lossless  Verification must know the distribution that each token was really drawn from (after temperature,
          masks, top-k), so its log-probabilities are kept, and not computed again later. A rule that stops
          early keeps the newest token: to drop a drawn token *because of what it is* changes the distribution
          of those that remain. Smallest example: q = (.9, .1), p = (.5, .5), drop a token with q < .5, verify
          the others with q: the output is (.55, .45).
Shapes    D: drafter's vocabulary, V: target's vocabulary, k: drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftlib.drafting.length import Drafted, Length, is_last, most_tokens
from draftlib.verification.draws import RandomDraws
from qlib.errors import DraftError

Step = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Feeds draft tokens to the drafter; returns its logits [D] after the last of them, and the state [width] of
its last layer that they come from."""

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
        [k, D]; row i holds the log-probabilities that token i was really drawn from.
    confidences : tuple of float
        The drafter's own probability of each token at temperature 1, whatever it was drawn from.
    horizon : int
        The most tokens that the round could have had, k or more. Verification counts with it and not with k:
        a k that depends on the tokens gives them away.
    hidden : tuple of Tensor
        [width] each; the states of the drafter's last layer that the tokens were predicted from. Empty where
        there is no such drafter.
    """

    tokens: tuple[int, ...]
    logprobs: Tensor
    confidences: tuple[float, ...]
    horizon: int
    hidden: tuple[Tensor, ...] = ()


def propose(
    step: Step,
    pending: Sequence[int],
    length: Length,
    to_logprobs: Callable[[Tensor], Tensor],
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
    to_logprobs : callable
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
        `pending` is empty, or the rule for the length answers with something else than it should.
    """
    if not pending:
        raise DraftError(
            "the drafter has nothing to continue: pending is empty. Keep the last token of its context out "
            "of its cache (truncate by one) and pass it here."
        )
    drafted: list[Drafted] = []
    tokens: list[int] = []
    feed, most = pending, most_tokens(length)
    while len(tokens) < most:
        logits, hidden = step(feed)  # 1. one pass of the drafter: q_i
        logprobs = to_logprobs(logits)
        token = draw(logprobs, tokens)  # 2. d_i ~ q_i
        tokens.append(token)
        drafted.append(Drafted(token, logprobs, _probability(logits, token), hidden, logits))
        if is_last(length, drafted) or (ended is not None and ended(tokens)):  # 3. was it the last one?
            break
        feed = [token]
    return Draft(
        tuple(tokens),
        torch.stack([each.logprobs for each in drafted]),
        tuple(each.confidence for each in drafted),
        most,
        tuple(each.hidden for each in drafted),
    )


def _probability(logits: Tensor, token: int) -> float:
    return float(logits.softmax(-1)[token])


def draw_greedy(logprobs: Tensor, drafted: Sequence[int]) -> int:
    """Return the most probable token of [D]; the first of equals."""
    return int(logprobs.argmax())


def draw_independent(draws: RandomDraws) -> Draw:
    """Return a `Draw` that takes each token at random, for verification by rejection."""
    return lambda logprobs, drafted: draws.categorical(logprobs.exp())
