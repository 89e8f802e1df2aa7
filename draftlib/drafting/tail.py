"""Drafts for nothing, III: the rest of a draft that was rejected, where the text rejoins it.

    proposed     the old  red   house on the hill
    the target   the old  brown                          "red" was rejected, "brown" written instead
    guess                       house on the hill

Paper     SpecASR, arXiv 2507.18181, reuses rejected drafts of speech recognition.
Rule      The target's own token y stands where t_i was proposed. If y comes later in the proposal, the text
          has skipped to it, and goes on after it ("skipped"). Else y has replaced t_i ("replaced").
Lossless  What was rejected was drawn from the drafter; used again, it is a guess like any other: a point
          mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftlib.drafting.guess import LONGEST, Guess, Source

if TYPE_CHECKING:
    from draftlib.round import Round


def rejoin(rejected: Sequence[int], own: int) -> tuple[tuple[int, ...], str]:
    """Return what may follow `own`, written instead of the first rejected token, and how it rejoins.

    >>> rejoin([5, 6, 7, 8], 7), rejoin([5, 6, 7, 8], 1)
    (((8,), 'skipped'), ((6, 7, 8), 'replaced'))
    """
    rest = tuple(rejected[1:])
    if own in rest:
        return rest[rest.index(own) + 1 :], "skipped"
    return rest, "replaced"


class RejectedTail(Source):
    """Tries the rest of the last proposal again, once."""

    name = "tail"

    def __init__(self) -> None:
        self._guess = Guess(self.name, (), ())
        self._text: list[int] = []  # the text that it continues

    def guess(self, text: Sequence[int]) -> Guess:
        """Return the rest of the proposal that the last round of this very text rejected."""
        return self._guess if list(text) == self._text else Guess(self.name, (), ())

    def learn(self, round: Round) -> None:
        """Keep what a round rejected."""
        rejected = round.proposed[round.accepted :]
        tokens, how = rejoin(rejected, round.tokens[-1]) if len(rejected) > 1 else ((), "")
        kinds = tuple((self.name, how, min(i, 3)) for i in range(len(tokens)))
        self._guess = Guess(self.name, tokens[:LONGEST], kinds[:LONGEST])
        self._text = [*round.context, *round.tokens]
