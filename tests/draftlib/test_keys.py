"""The view that drawing and verifying take of map and cache, against a plain dictionary of the same keys."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from draftlib.vocabulary.dictionary import Snapshot
from draftlib.vocabulary.keys import RoundKeys
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache

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


def filled(*keys: tuple[int, ...]) -> NGramCache:
    cache = NGramCache()
    cache.bind(PAIR)
    for key in keys:
        cache.add(key, WORDS[key])
    cache.commit()
    return cache


def test_it_follows_a_merge_that_adds_nothing_new() -> None:
    """As many keys as before, in another order, so that the same node numbers mean other keys."""
    cache = filled((0, 1), (1, 0), (2, 2))
    keys = RoundKeys(PAIR, cache, 3, 7)
    assert same(keys, cache)
    cache.merge(filled((0, 1), (0, 1)))
    assert len(cache) == 3 and same(keys, cache)


@pytest.mark.parametrize("seed", range(20))
def test_it_follows_whatever_happens_to_the_cache(seed: int, tmp_path: Path) -> None:
    """Additions, evictions, merges with new keys and without, warm starts: after each the right answers."""
    dice = random.Random(seed)
    cache = NGramCache(max_entries=dice.choice([2, 3, 50]), policy=dice.choice(["lfu", "lru"]))
    cache.bind(PAIR)
    keys = RoundKeys(PAIR, cache, 3, 7)
    for _ in range(25):
        some = dice.choices([*WORDS], k=dice.randint(1, 3))
        action = dice.choice(["add", "add", "merge", "merge itself", "merge saved", "warm"])
        if action == "add":
            for key in some:
                cache.add(key, WORDS[key])
            cache.commit()
        elif action == "merge":
            cache.merge(filled(*some))
        elif action == "merge itself":
            cache.merge(cache)
        elif action == "merge saved":
            cache.save(tmp_path)
            cache.merge(NGramCache.load(tmp_path, PAIR))
        else:
            cache.warm_start(PAIR)
        assert same(keys, cache), action
