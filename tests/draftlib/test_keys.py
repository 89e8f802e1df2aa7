"""The view that drawing and verifying take of map and cache, against a plain dictionary of the same keys."""

from __future__ import annotations

import itertools

import torch

from draftlib.dictionary import Snapshot
from draftlib.keys import RoundKeys
from draftlib.ngram_cache import NGramCache
from draftlib.vocab import VocabularyMap

PAIR = VocabularyMap.from_bytes([b"a", b"b", b"c"], [b"a", b"b", b"ab", b"abc", b"abca", b"ba", b"cc"])
WORDS = {(0, 1): 2, (0, 1, 2): 3, (0, 1, 2, 0): 4, (1, 0): 5, (2, 2): 6}


def same(keys: RoundKeys, cache: NGramCache | None) -> bool:
    """Whether all questions get the answers of a plain dictionary, for all prefixes of up to four tokens."""
    words = {each.draft_tokens: each.target_token for each in cache} if cache is not None else {}
    plain = Snapshot({(0,): 0, (1,): 1} | words, draft_size=3)
    prefixes = [way for n in range(5) for way in itertools.product(range(3), repeat=n)]
    return torch.equal(keys.direct, plain.direct) and all(
        (keys.target(way) if way else None) == plain.target(way)
        and keys.extends(way) == plain.extends(way)
        and sorted(keys.children(way)) == sorted(plain.children(way))
        and keys.missing(way) == plain.missing(way)
        for way in prefixes
    )


def test_without_a_cache_only_the_direct_map() -> None:
    assert same(RoundKeys(PAIR, None, 3, 7), None)


def test_it_follows_a_cache_that_grows_forgets_and_is_merged() -> None:
    cache, other = NGramCache(max_entries=4), NGramCache()
    for each in (cache, other):
        each.bind(PAIR)
    keys = RoundKeys(PAIR, cache, 3, 7)
    assert same(keys, cache)
    for number, (key, token) in enumerate(WORDS.items(), 1):
        cache.add(key, token)
        assert len(cache) == number - 1 and same(keys, cache)  # not before the end of the round
        cache.commit()
        assert same(keys, cache)
    assert cache.evicted == 1
    other.add((2, 2), 6)
    other.commit()
    cache.merge(other)
    assert (2, 2) in {each.draft_tokens for each in cache} and same(keys, cache)
