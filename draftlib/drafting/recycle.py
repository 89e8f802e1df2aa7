"""Drafts for nothing, II: what the target found most probable the last time after the same token.

Paper     Token Recycling, arXiv 2408.08696: a table of each token's last seen most probable successors,
          filled from the logits of *all* verified positions, those after rejected tokens too, which the
          target computed anyway. The paper drafts a tree of 8 successors a token; a tree puts accepted
          tokens into other places of the key/value cache, and sums in another order, so here it is a chain
          of the most probable ones.
Rule      successor[token] = argmax of the target's row after that token, the last time. The guess follows
          it from the newest token on, as far as it is known and no token comes twice.
Shapes    V: target's vocabulary. Memory: 4 bytes a token of the vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from draftlib.drafting.guess import LONGEST, Guess, Source, token_ids
from draftlib.state import State
from qlib.errors import DraftError

if TYPE_CHECKING:
    from draftlib.round import Round

UNKNOWN = -1


def chain(successors: Sequence[int], token: int, most: int) -> tuple[int, ...]:
    """Return up to `most` successors of successors; a token that came before ends the chain.

    >>> chain([1, 2, 0, -1], 0, 9)
    (1, 2)
    """
    found: list[int] = []
    seen = {token}
    while len(found) < most and 0 <= token < len(successors):
        token = successors[token]
        if token == UNKNOWN or token in seen:
            break
        found.append(token)
        seen.add(token)
    return tuple(found)


class Recycling(Source):
    """Follows each token's last seen most probable successor."""

    name = "recycle"

    def __init__(self) -> None:
        self._successors = array("i")

    def guess(self, text: Sequence[int]) -> Guess:
        """Return the chain of successors of the newest token."""
        tokens = chain(self._successors, text[-1], LONGEST)
        return Guess(self.name, tokens, tuple((self.name, min(i, 4)) for i in range(len(tokens))))

    def learn(self, round: Round) -> None:
        """Take the most probable successor at every verified position."""
        if not self._successors:
            self._successors = array("i", [UNKNOWN]) * round.rows.shape[1]
        behind = (round.context[-1], *round.proposed)
        for token, successor in zip(behind, round.rows.argmax(-1).tolist(), strict=True):
            self._successors[token] = successor

    def state(self) -> State:
        """Return the table, -1 where no successor is known."""
        return State({"successors": torch.tensor(self._successors, dtype=torch.int32)}, {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        successors = token_ids(state, "successors")
        if any(each >= len(successors) for each in successors):
            raise DraftError("A successor in a source's state is no token of its table: it is damaged.")
        self._successors = array("i", successors)
