"""What is kept of answers that are being written: bounded, since a caller may leave one in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

MOST_OPEN = 64  # answers side by side; more than any caller writes at once

Kept = TypeVar("Kept")


def of_answer(kept: dict[int, Kept], answer: int, new: Callable[[], Kept]) -> Kept:
    """Return what is kept of an answer, made now if it is new.

    The one that was asked for least lately goes when there are too many: nobody continues it.

    >>> kept: dict[int, list[str]] = {}
    >>> for answer in range(MOST_OPEN + 1):
    ...     of_answer(kept, answer, list).append("a token")
    >>> 0 in kept, len(kept) == MOST_OPEN
    (False, True)
    """
    found = kept.pop(answer) if answer in kept else new()
    kept[answer] = found  # the last one of a dict is the newest
    if len(kept) > MOST_OPEN:
        del kept[next(iter(kept))]
    return found
