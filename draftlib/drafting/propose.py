"""The drafter's side of a round: draw tokens one by one, remember how, and know when to stop.

Rule      d_i ~ q(. | context, d_<i) for i = 1..k, k fixed or decided after each token (`length.py`).
Lossless  Verification must know the distribution that each token was really drawn from (after temperature,
          masks, top-k), so its log-probabilities are kept, and not computed again later. A rule that stops
          early keeps the newest token: to drop a drawn token *because of what it is* changes the distribution
          of those that remain. Smallest example: q = (.9, .1), p = (.5, .5), drop a token with q < .5, verify
          the others with q: the output is (.55, .45).
Coupled   With verification by shared noise the drafter draws with the target's noise: y = argmax(log q + g).
          The closer q and p, the more often both take the same token. `coupled_noise` says which g belongs to
          a draft token.
Shapes    D: drafter's vocabulary, V: target's vocabulary, k: drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftlib.drafting.length import Drafted, Length
from draftlib.verification.noise import GumbelNoise, RandomDraws
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import Tokens
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
        `pending` is empty.
    """
    if not pending:
        raise DraftError(
            "the drafter has nothing to continue: pending is empty. Keep the last token of its context out "
            "of its cache (truncate by one) and pass it here."
        )
    drafted: list[Drafted] = []
    tokens: list[int] = []
    feed = pending
    while len(tokens) < length.max_tokens:
        logits, hidden = step(feed)  # 1. one pass of the drafter: q_i
        logprobs = to_logprobs(logits)
        token = draw(logprobs, tokens)  # 2. d_i ~ q_i
        tokens.append(token)
        drafted.append(Drafted(token, logprobs, _probability(logits, token), hidden))
        if length.stop(drafted) or (ended is not None and ended(tokens)):  # 3. was it the last one?
            break
        feed = [token]
    return Draft(
        tuple(tokens),
        torch.stack([each.logprobs for each in drafted]),
        tuple(each.confidence for each in drafted),
        length.max_tokens,
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


@dataclass(frozen=True)
class Coupled:
    """A `Draw` with the target's own noise, for verification by shared noise.

    Attributes
    ----------
    position : int
        Position in the target's text of the first token of this round.
    table : NGramTable
        Direct counterparts and n-grams of this round.
    noise : GumbelNoise
        The target's noise, rows [V].
    own : GumbelNoise
        Other noise, rows [D], for the draft tokens that have no target token of their own.
    candidates : int
        How many of the likeliest tokens are looked up as the end of an n-gram. It changes only how often
        proposals are accepted. Over 20 prompts (SmolLM2-135M, drafter-7m, temperature 0.8, a warm cache) 2
        and 1024 gave the same accepted tokens, and with 1024 a draft token took a tenth longer than with 32.
    """

    position: int
    table: NGramTable
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
    match = coupled.table.longest(w)
    # Without a match nothing after w can be proposed, unless w becomes a key: any noise will do.
    rest = w[match[0] :] if match else ()
    noise = _noise_after(coupled, logprobs, rest, position + 1)
    if coupled.table.extends(w):
        for token in logprobs.topk(min(coupled.candidates, len(logprobs))).indices.tolist():
            merged = coupled.table.target((*w, token))
            if merged is not None:
                noise[token] = coupled.noise.row(position)[merged]
    return noise


def _fresh_noise(coupled: Coupled, position: int) -> Tensor:
    """Return the noise for tokens that begin a target token, [D], a new tensor."""
    direct = coupled.table.direct
    shared = coupled.noise.row(position)[direct.clamp(min=0)]
    return torch.where(direct >= 0, shared, coupled.own.row(position))
