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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from draftlib.state import State
from qlib.errors import DraftError, describe, whole_number

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
        Target tokens, `LONGEST` at most; may be empty. One that is not in the target's vocabulary ends it.
    kinds : tuple
        One for each token: tokens of one kind are right about equally often.
    """

    source: str
    tokens: tuple[int, ...]
    kinds: tuple[Hashable, ...]


class Source:
    """Guesses what a target writes next. Inherit from it for a source of your own.

    Attributes
    ----------
    name : str
        The name under which statistics and saved states know it; each source of a decoder has another one.
        Set it in the class or in `__init__`.
    """

    name: str

    def guess(self, text: Sequence[int]) -> Guess:
        """Return what may follow a text of target tokens, prompt included; no tokens where nothing is known.

        Texts grow by a few tokens from call to call, and another answer may come between.
        """
        raise NotImplementedError

    def learn(self, round: Round) -> None:
        """Take notice of a finished round."""
        return None

    def state(self) -> State:
        """Return what was learned beyond one answer."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave. Raises DraftError where it cannot be that."""
        return None


def checked_guess(guess: Guess, name: str) -> Guess:
    """Return what the source of a name guessed, its tokens and kinds as tuples; runs in every round.

    Raises
    ------
    DraftError
        It is no guess of this source, a token is no token id, or a token has no kind.
    """
    if not isinstance(guess, Guess):
        raise DraftError(
            f"The source {name!r} guessed {describe(guess)}. Return a Guess; where nothing is known, "
            "Guess(self.name, (), ())."
        )
    if guess.source != name:
        raise DraftError(
            f"The source {name!r} returned a Guess of {guess.source!r}, and statistics would count it there. "
            "Return Guess(self.name, tokens, kinds)."
        )
    if not type(guess.tokens) is type(guess.kinds) is tuple or not {*map(type, guess.tokens)} <= {int}:
        remedy = "Tokens are token ids of the target."
        tokens = (
            whole_number(each, f"The source {name!r}: token {i} of its guess", DraftError, 0, remedy=remedy)
            for i, each in enumerate(_each(guess.tokens, "tokens", name))
        )
        guess = replace(guess, tokens=tuple(tokens), kinds=tuple(_each(guess.kinds, "kinds", name)))
    if len(guess.tokens) != len(guess.kinds):
        raise DraftError(
            f"The source {name!r} guessed tokens and kinds of different length: {len(guess.tokens)} and "
            f"{len(guess.kinds)}. Return one kind for each token."
        )
    if min(guess.tokens, default=0) < 0:
        raise DraftError(f"The source {name!r} guessed {guess.tokens}: a token id is 0 or more.")
    try:
        hash(guess.kinds)
    except TypeError as error:
        raise DraftError(
            f"The source {name!r}: {error}, and each kind is a key under which tokens are counted. Use a "
            "str, a number or a tuple of them."
        ) from error
    return guess


def _each(values: Any, what: str, name: str) -> list[Any]:
    """Return the tokens or kinds of a guess that are no plain tuple."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) != 1:
        raise DraftError(f"The source {name!r}: the {what} of its guess are {describe(values)}, not a tuple.")
    return list(values)


class Rates:
    """How often tokens of each kind were right lately; kinds of guesses count for each source by itself.

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
            self.seen((guess.source, kind), token == actual)
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
