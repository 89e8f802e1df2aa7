"""Drafts for nothing, I: the longest suffix of the text that was written before, and what followed it there.

    ... the cat sat on the mat . Then the cat sat on   ->   the mat .
            [ match of 4       ] [ guess ]  [ suffix ]

Papers    Prompt lookup (Saxena 2023); SuffixDecoding (arXiv 2411.04975), whose suffix trees also hold earlier
          answers. Here: a list of tokens and an index of its pairs of tokens, which finds the same matches.
Rule      Of all earlier places where the last tokens stand, up to `LONGEST_MATCH`, take the one that agrees
          with the most tokens; of equals the latest. What follows there is the guess. After i right
          tokens the match is i longer, so token i is of the kind "match of length + i".
Shapes    Tokens are the target's. Memory: about 60 bytes a token.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch

from draftlib.drafting.guess import LONGEST, Guess, Source, token_ids
from draftlib.open_answers import of_answer
from draftlib.state import State
from qlib.errors import DraftError

if TYPE_CHECKING:
    from draftlib.round import Round

LONGEST_MATCH = 64  # tokens that are compared: a match of 64 is as good as a longer one
PLACES = 32  # of one pair of tokens that are looked at, the latest first: common pairs have hundreds
BOUNDARY = -1  # between two texts: no token of a model


class SuffixIndex:
    """Tokens, and where each pair of them stands.

    >>> index = SuffixIndex()
    >>> index.extend([1, 2, 3, 4, 5, 1, 2, 3])
    >>> index.longest([9, 2, 3])
    (3, 2)
    >>> list(index.tokens[3:5])
    [4, 5]
    """

    def __init__(self) -> None:
        self.tokens = array("i")
        self._places: dict[tuple[int, int], list[int]] = {}  # of a pair: where what follows it stands

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in tokens:
            self.tokens.append(token)
            at = len(self.tokens)
            if at >= 2 and token != BOUNDARY and self.tokens[at - 2] != BOUNDARY:
                self._places.setdefault((self.tokens[at - 2], token), []).append(at)

    def longest(self, text: Sequence[int]) -> tuple[int, int] | None:
        """Return where the continuation of the longest match begins, and its length; 2 tokens or more.

        A match that ends where the index ends has no continuation, and does not count.
        """
        best: tuple[int, int] | None = None
        for at in reversed(self._places.get((text[-2], text[-1]), [])[-PLACES:] if len(text) > 1 else []):
            if at == len(self.tokens):
                continue
            length = _agreement(self.tokens, at, text)
            if best is None or length > best[1]:
                best = at, length
        return best

    def following(self, at: int) -> tuple[int, ...]:
        """Return up to `LONGEST` tokens from a place on, up to the end of their text."""
        found = tuple(self.tokens[at : at + LONGEST])
        return found[: found.index(BOUNDARY)] if BOUNDARY in found else found


def _agreement(tokens: Sequence[int], at: int, text: Sequence[int]) -> int:
    """Return how many tokens in front of `at` are the last ones of a text."""
    length, most = 0, min(at, len(text), LONGEST_MATCH)
    while length < most and tokens[at - 1 - length] == text[-1 - length]:
        length += 1
    return length


class TextLookup(Source):
    """Looks the end of a text up in the text itself, prompt included."""

    name = "suffix"

    def __init__(self) -> None:
        self._index = SuffixIndex()
        self._text: list[int] = []  # what the index holds

    def guess(self, text: Sequence[int]) -> Guess:
        """Return what followed the longest earlier occurrence of the text's end."""
        known = len(self._text)
        if len(text) < known or list(text[:known]) != self._text:  # another answer
            self._index, self._text, known = SuffixIndex(), [], 0
        self._index.extend(text[known:])
        self._text += text[known:]
        return _guess(self.name, self._index, text)


class AnswerLookup(Source):
    """Looks the end of a text up in earlier answers of the target.

    Parameters
    ----------
    max_tokens : int
        Tokens of answers that are kept; when there are more, the older half goes.
    """

    name = "answers"

    def __init__(self, max_tokens: int = 100_000):
        self.max_tokens = max_tokens
        self._index = SuffixIndex()
        self._answers: dict[int, list[int]] = {}  # being written, by their number

    def guess(self, text: Sequence[int]) -> Guess:
        """Return what followed the longest match in an earlier answer."""
        return _guess(self.name, self._index, text)

    def learn(self, round: Round) -> None:
        """Keep what the target writes; an answer is looked up once it has ended."""
        # The last tokens of the prompt go with it, so that also the beginning of an answer is found.
        answer = of_answer(self._answers, round.answer, lambda: list(round.context[-2:]))
        answer += round.tokens
        if not round.ended:
            return
        self._index.extend([*self._answers.pop(round.answer), BOUNDARY])
        if len(self._index.tokens) > self.max_tokens:
            self._keep(self._index.tokens[-self.max_tokens // 2 :])

    def state(self) -> State:
        """Return the tokens of all answers that have ended, -1 after each."""
        return State({"tokens": torch.tensor(self._index.tokens, dtype=torch.int32)}, {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        tokens = token_ids(state, "tokens")
        if len(tokens) > self.max_tokens:
            raise DraftError(f"{len(tokens)} tokens of answers are more than the {self.max_tokens} kept.")
        self._keep(tokens)

    def _keep(self, tokens: Sequence[int]) -> None:
        self._index = SuffixIndex()
        self._index.extend(tokens)


def _guess(source: str, index: SuffixIndex, text: Sequence[int]) -> Guess:
    found = index.longest(text)
    if found is None:
        return Guess(source, (), ())
    at, length = found
    tokens = index.following(at)
    return Guess(source, tokens, tuple(_kind(source, length + i) for i in range(len(tokens))))


def _kind(source: str, length: int) -> Hashable:
    """Return the kind of a token after a match: lengths that are right about equally often are one kind."""
    return source, next(bound for bound in (2, 3, 4, 6, 8, 12, 16, 24, 32, 10**9) if length <= bound)
