"""Loops: a phrase that a recognizer writes over and over, the commonest way in which a decoder breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REPEATS = 3  # people say a word twice; three times in a row is rarely speech


@dataclass(frozen=True)
class Loop:
    """A phrase that follows itself."""

    phrase: tuple[str, ...]
    times: int  # how often it stands there, complete
    start: int  # of the first one, in words from 0

    @property
    def words(self) -> int:
        """Words that it covers."""
        return self.times * len(self.phrase)

    def __str__(self) -> str:
        return f"{' '.join(self.phrase)!r} {self.times} times"


def find_loop(words: Sequence[str], repeats: int = REPEATS) -> Loop | None:
    """Return the phrase that covers most words by following itself, or None where none does so often enough.

    Of phrases that cover equally many words the shortest is returned, and of these the first.

    Parameters
    ----------
    words : sequence of str
        A text.
    repeats : int
        Times that a phrase must stand in a row, 2 or more.

    >>> print(find_loop("so thank you thank you thank you so much".split()))
    'thank you' 3 times
    """
    best = None
    for size in range(1, len(words) // repeats + 1):
        equal = 0  # words in a row that are the same as `size` words before
        for i in range(size, len(words)):
            equal = equal + 1 if words[i] == words[i - size] else 0
            times = 1 + equal // size
            if times >= repeats and (best is None or times * size > best.words):
                start = i - equal + 1 - size
                best = Loop(tuple(words[start : start + size]), times, start)
    return best
