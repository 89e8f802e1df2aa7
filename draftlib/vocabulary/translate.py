"""Draft tokens to target tokens, for verification; the way back is in `reverse.py`.

    drafted     "Snow" "f" "la" "ke" "is"   --translate-->   "Snow" "flake" "is"

The bytes stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache


@dataclass(frozen=True)
class Translation:
    """Target tokens proposed for a draft.

    Attributes
    ----------
    tokens : tuple of int
        Target tokens.
    starts, stops : tuple of int
        Token `i` stands for the draft tokens from `starts[i]` up to, not including, `stops[i]`.
    """

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]


def translate(
    draft_tokens: Sequence[int], vocabulary_map: VocabularyMap, cache: NGramCache | None = None
) -> Translation:
    """Translate by greedy longest match: an n-gram of the cache where one fits, else the direct counterpart.

    Stops before the first token that has neither, and after a token that ends the text.

    Parameters
    ----------
    draft_tokens : sequence of int
        What the drafter drew.
    vocabulary_map : VocabularyMap
        The direct counterparts.
    cache : NGramCache, optional
        The n-grams.

    Returns
    -------
    Translation
        It may hold no token.
    """
    tokens: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    at = 0
    while at < len(draft_tokens):
        drawn = draft_tokens[at]
        found = cache.longest(draft_tokens, at) if cache is not None else None
        length, token = found or (1, vocabulary_map.target_of(drawn))
        if token < 0:  # no direct counterpart
            break
        tokens.append(token)
        starts.append(at)
        at += length
        stops.append(at)
        if drawn in vocabulary_map.ends:
            break
    return Translation(tuple(tokens), tuple(starts), tuple(stops))
