"""Proposals that cost no drafter step: what a source guesses, and how sure it may be of each token.

Problem   Much of what a target writes was written before: in the prompt, in this answer, in earlier answers.
          To look it up takes microseconds, a step of a drafter milliseconds.
Rule      A source proposes *target* tokens, so there is nothing to translate. Each token comes with a kind,
          for example "after a match of 5 tokens". How often tokens of a kind were right lately is counted
          (`Rates`), whether or not they were proposed: the text that the target writes says it.
Lossless  A guess is a point mass: verification needs no probabilities of it, and accepts it exactly where the
          target writes the same by itself (see `draftlib.verification.verify`).
Sources   `lookup.py` (this text, earlier answers), `recycle.py` (successors of tokens), `tail.py` (what was
          left of a rejected draft). `choice.py` decides who proposes in a round.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from draftlib.state import State
from qlib.errors import DraftError

if TYPE_CHECKING:
    from draftlib.round import Round

LONGEST = 15  # tokens of a guess: with the target's own token 16 rows, as many as can be row-stable


@dataclass(frozen=True)
class Guess:
    """Target tokens that one source expects next.

    Attributes
    ----------
    source : str
        Name of the source.
    tokens : tuple of int
        Target tokens, `LONGEST` at most; may be empty.
    kinds : tuple
        One for each token: tokens of one kind are right about equally often.
    """

    source: str
    tokens: tuple[int, ...]
    kinds: tuple[Hashable, ...]


class Source(Protocol):
    """Guesses what a target writes next. Inherit from it for a source of your own."""

    @property
    def name(self) -> str:
        """Return the name under which statistics count it."""
        ...

    def guess(self, text: Sequence[int]) -> Guess:
        """Return what may follow a text of target tokens, prompt included; no tokens where nothing is known.

        Texts grow by a few tokens from call to call, and another answer may come between.
        """
        ...

    def learn(self, round: Round) -> None:
        """Take notice of a finished round."""
        return None

    def state(self) -> State:
        """Return what was learned beyond one answer."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave. Raises DraftError where it cannot be that."""
        return None


class Rates:
    """How often tokens of each kind were right lately.

    A kind's share is (right + prior) / (seen + `PRIOR`), and each newer token counts a little more than the
    one before: after `MEMORY` tokens of the kind an old one counts 1/e.

    >>> rates = Rates()
    >>> rates.of("new"), rates.seen("new", True), rates.of("new") > 0.5
    (0.5, None, True)
    """

    MEMORY = 200
    PRIOR = 2  # seen tokens that the first expectation is worth

    def __init__(self) -> None:
        self._counts: dict[Hashable, tuple[float, float]] = {}

    def of(self, kind: Hashable, expected: float = 0.5) -> float:
        """Return the share of a kind; `expected` before anything was seen of it."""
        right, seen = self._counts.get(kind, (0.0, 0.0))
        return (right + self.PRIOR * expected) / (seen + self.PRIOR)

    def seen(self, kind: Hashable, was_right: float) -> None:
        """Count a token whose fate is known: 1 for right, 0 for wrong, or a share."""
        right, seen = self._counts.get(kind, (0.0, 0.0))
        kept = 1 - 1 / self.MEMORY
        self._counts[kind] = right * kept + was_right, seen * kept + 1

    def learn(self, guess: Guess, written: Sequence[int]) -> None:
        """Count a guess against what the target wrote, up to the first token that was wrong."""
        for token, kind, actual in zip(guess.tokens, guess.kinds, written, strict=False):
            self.seen(kind, token == actual)
            if token != actual:
                return

    def __iter__(self) -> Iterator[tuple[Hashable, tuple[float, float]]]:
        """Yield kinds and their counts: right ones, and all."""
        return iter(self._counts.items())

    def put(self, kind: Hashable, right: float, seen: float) -> None:
        """Set the counts of a kind, as `__iter__` yields them."""
        self._counts[kind] = right, seen


def token_ids(state: State, name: str) -> list[int]:
    """Return a tensor of a state as token ids, -1 for none; raises the DraftError of a damaged state."""
    found = state.tensor(name)
    values: list[int] = found.tolist() if found.dtype == torch.int32 and found.dim() == 1 else [-2]
    if min(values, default=0) < -1:
        raise DraftError(f"The tensor {name!r} holds no token ids: the state is damaged.")
    return values
