"""Which draft tokens stand for which target tokens, in a text that both have spelled.

    target    " tra" "veled"  " on"             spans   None, None, (2, 3)
    draft     " travel" "ed"  " on"

The spans of the first two are None: " travel" ends inside of "veled".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftlib.vocabulary.mapping import VocabularyMap


@dataclass(frozen=True)
class Aligned:
    """Where a target token stands among draft tokens.

    Attributes
    ----------
    start : int
        Index of the draft token that begins where it begins.
    stop : int or None
        Index behind the last one of its draft tokens; None where none of them ends with it.
    """

    start: int
    stop: int | None


def align(draft: Sequence[int], target: Sequence[int], vocabulary: VocabularyMap) -> list[Aligned | None]:
    """Return for each of the last target tokens of a text where it stands in the drafter's spelling.

    Parameters
    ----------
    draft : sequence of int
        Draft tokens of the whole text, what stands before the target tokens included.
    target : sequence of int
        Target tokens at the end of the text.
    vocabulary : VocabularyMap
        The pair.

    Returns
    -------
    list of (Aligned or None)
        None for a token that begins inside of a draft token, or has no place in the drafter's text.
    """
    sizes = [_target_size(token, vocabulary) for token in target]
    edges = _edges(draft, sum(sizes), vocabulary)
    found: list[Aligned | None] = []
    behind = sum(sizes)
    for size in sizes:
        start, behind = edges.get(behind), behind - size
        found.append(None if start is None or not size else Aligned(start, edges.get(behind)))
    return found


def _edges(draft: Sequence[int], most: int, vocabulary: VocabularyMap) -> dict[int, int]:
    """Return for each number of bytes before the end at which a draft token begins its index."""
    edges, behind = {0: len(draft)}, 0
    for i in range(len(draft) - 1, -1, -1):
        piece = vocabulary.draft_bytes[draft[i]]
        behind += 1 if piece is None else len(piece)  # a special token takes one unit
        if behind > most:
            break
        edges[behind] = i
    return edges


def _target_size(token: int, vocabulary: VocabularyMap) -> int:
    """Return the bytes of a target token; 1 for a special one, 0 where the drafter lacks that."""
    piece = vocabulary.target_bytes[token] if token < len(vocabulary.target_bytes) else None
    return int(token in vocabulary.special_to_draft) if piece is None else len(piece)
