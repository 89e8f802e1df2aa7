"""The target's distribution carried into the drafter's vocabulary by spelling, and losses on it.

Problem   The drafter learns to be accepted: its next token should be what the target's next token begins with
          in the drafter's spelling. The paper compares the two in the target's vocabulary, where a draft
          token that is a beginning only ("tra" of "traveled") counts as an error, or is left out.
Rule      At a position where a target token begins, with p the target's distribution there,

              p~(d) = sum of p(t) over the target tokens t whose draft spelling begins with d

          and after the pieces w of a target token the same among those that begin with w,

              p~(d | w) = sum of p(t), spelling begins with w d  /  sum of p(t), spelling begins with w

          This is the distribution of the drafter's next token if the target were to write on, exactly, for
          single tokens and for n-grams alike. No mass is unmapped.
Losses    acceptance   1 - sum over d of min(p~(d), q(d)): the probability that the two, coupled as well as
                       possible, differ. It is what is to be small.
          forward KL   sum over d of p~(d) log(p~(d) / q(d))
Shapes    N positions, D draft tokens, K kept target tokens and so at most K first pieces.
Left out  Target tokens that are not among the K most probable ones: their mass is missing in p~, which sums
          to 1 less that (K = 16 leaves out 3 % on GSM8K with SmolLM2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draftlib.learning.alignment import Aligned
from draftlib.vocabulary.mapping import VocabularyMap

Spell = Callable[[int], tuple[int, ...]]
"""From a target token to its draft spelling; empty where it has none."""

LEAST = 0.3  # of p: after pieces that the target hardly meant, little is known of what would follow


class Soft(NamedTuple):
    """Distributions over draft tokens at N positions, the most probable tokens only.

    Attributes
    ----------
    tokens : Tensor
        int64 [N, K], draft tokens; 0 where there are fewer than K.
    probabilities : Tensor
        float32 [N, K]; 0 where there are fewer than K.
    """

    tokens: Tensor
    probabilities: Tensor


def speller_of(vocabulary: VocabularyMap) -> Spell:
    """Return a function that spells target tokens with draft tokens, and remembers."""
    known: dict[int, tuple[int, ...]] = {}

    def spell(token: int) -> tuple[int, ...]:
        if token not in known:
            piece = vocabulary.target_bytes[token] if token < len(vocabulary.target_bytes) else None
            special = vocabulary.special_to_draft.get(token)
            known[token] = (
                tuple(vocabulary.speller.spell(piece)[0])
                if piece is not None
                else ()
                if special is None
                else (special,)
            )
        return known[token]

    return spell


def next_pieces(
    tokens: Sequence[int], probabilities: Sequence[float], pieces: Sequence[int], spell: Spell
) -> tuple[dict[int, float], float]:
    """Return p~(. | pieces) with the sum of p over the target tokens whose spelling goes on after them.

    Parameters
    ----------
    tokens, probabilities : sequences
        The K most probable target tokens and their p.
    pieces : sequence of int
        Draft tokens since the target token began, w; empty at its beginning.
    spell : Spell
        Spells target tokens.

    >>> spelling = {7: (1,), 8: (2, 3), 9: (2, 4)}
    >>> next_pieces([7, 8, 9], [0.5, 0.25, 0.125], [], spelling.get)
    ({1: 0.5, 2: 0.375}, 0.875)
    >>> next_pieces([7, 8, 9], [0.5, 0.25, 0.125], [2], spelling.get)[1]
    0.375
    """
    n, start = len(pieces), tuple(pieces)
    found: dict[int, float] = {}
    total = 0.0
    for token, p in zip(tokens, probabilities, strict=True):
        spelling = spell(token)
        if len(spelling) > n and spelling[:n] == start:
            found[spelling[n]] = found.get(spelling[n], 0.0) + p
            total += p
    if n and total:
        found = {piece: p / total for piece, p in found.items()}
    return found, total


def spelled_positions(
    draft: Sequence[int],
    aligned: Sequence[Aligned | None],
    tokens: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    spell: Spell,
) -> dict[int, dict[int, float]]:
    """Return p~ at every position of a text where it is known, by the index of the draft token there.

    Parameters
    ----------
    draft : sequence of int
        Draft tokens of the text.
    aligned : sequence of (Aligned or None)
        From `align`, one for each target token of the answer.
    tokens, probabilities : sequences
        [target tokens, K]; what the target found most probable in the place of each of them.
    spell : Spell
        Spells target tokens.
    """
    found: dict[int, dict[int, float]] = {}
    for place, some, p in zip(aligned, tokens, probabilities, strict=True):
        if place is None:
            continue
        stop = place.start + 1 if place.stop is None else place.stop
        for i in range(place.start, stop):
            distribution, total = next_pieces(some, p, draft[place.start : i], spell)
            if total < (LEAST if i > place.start else 1e-6):
                break
            found[i] = distribution
    return found


# --- losses: draft logits [N, D] -> [N]


def acceptance_loss(draft_logits: Tensor, soft: Soft) -> Tensor:
    """Return 1 - sum over d of min(p~(d), q(d)), the total variation distance where p~ sums to 1."""
    q = draft_logits.float().log_softmax(-1).gather(1, soft.tokens).exp()
    return 1 - torch.minimum(q, soft.probabilities).sum(1)


def forward_kl(draft_logits: Tensor, soft: Soft) -> Tensor:
    """Return sum over d of p~(d) log(p~(d) / q(d))."""
    logq = draft_logits.float().log_softmax(-1).gather(1, soft.tokens)
    p = soft.probabilities
    return (p * (p.clamp(min=1e-12).log() - logq)).sum(1)
