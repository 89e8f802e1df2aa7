"""The trie and the table of n-grams against a plain dictionary, searched from end to end."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import NGramTrie, Tokens
from qlib.errors import DraftError
from qlib.models import Tokenizer

# --- the same questions, answered by looking at every n-gram


def slow_children(ngrams: Mapping[Tokens, int], prefix: Tokens) -> dict[int, int]:
    longer = [key for key in ngrams if len(key) > max(1, len(prefix)) and key[: len(prefix)] == prefix]
    ways = {(*prefix, key[len(prefix)]) for key in longer}
    return {
        way[-1]: min(
            (len(key) - len(way) for key in longer if key[: len(way)] == way and key != way), default=0
        )
        for way in ways
    }


def slow_longest(ngrams: Mapping[Tokens, int], tokens: Tokens) -> tuple[int, int] | None:
    fits = [(n, ngrams[tokens[:n]]) for n in range(1, len(tokens) + 1) if tokens[:n] in ngrams]
    return max(fits, default=None)


# --- the trie

STEPS = st.lists(
    st.tuples(
        st.booleans(), st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), st.integers(0, 9)
    )
)


@given(steps=STEPS)
@settings(deadline=None)
def test_the_trie_against_a_dict(steps: list[tuple[bool, Tokens, int]]) -> None:
    """Questions after every change, so that no answer may be one of before."""
    trie, slow = NGramTrie(), dict[Tokens, int]()
    for insert, tokens, target in steps:
        if insert:
            assert trie.insert(tokens, target).target == target
            slow[tokens] = target
        elif tokens in slow:
            trie.remove(tokens)
            del slow[tokens]
        assert len(trie) == len(slow)
        assert {key: node.target for key, node in trie} == slow
        prefixes = {key[:n] for key in slow for n in range(len(key) + 1)}
        for prefix in {(), tokens, tokens[:-1], (*tokens, 0), *prefixes}:
            under = [key for key in slow if key[: len(prefix)] == prefix and key != prefix]
            assert trie.extends(prefix) == bool(under)
            # The trie may hold single tokens as well, which `slow_children` takes for direct counterparts.
            if prefix or not any(len(key) == 1 for key in slow):
                assert trie.children(prefix) == slow_children(slow, prefix)
            found = trie.get(prefix)
            assert (None if found is None else found.target) == slow.get(prefix)
            assert trie.longest((9, *prefix), 1) == slow_longest(slow, prefix)


def test_numbers_go_with_their_n_gram() -> None:
    """Also where its node stays, as the prefix of another one."""
    trie = NGramTrie()
    trie.insert((1, 2), 5).count = 7
    trie.insert((1, 2, 3), 6)
    found = trie.insert((1, 2), 8)
    assert (found.count, found.target) == (7, 8)
    trie.remove((1, 2))
    assert trie.get((1, 2)) is None
    again = trie.insert((1, 2), 5)
    assert (again.count, again.last, again.aged) == (0, 0, 0)


def test_a_trie_of_many_n_grams_shrinks_and_grows() -> None:
    generator = random.Random(0)
    keys = list({tuple(generator.choices(range(50_000), k=generator.randint(1, 4))) for _ in range(2000)})
    trie = NGramTrie()
    for number, key in enumerate(keys):
        trie.insert(key, number)
    memory = trie.memory_bytes
    for key in keys[1000:]:
        trie.remove(key)
    targets = {key: node.target for key, node in trie}
    assert targets == {key: number for number, key in enumerate(keys[:1000])}
    assert trie.memory_bytes < 0.6 * memory
    for number, key in enumerate(keys[1000:], 1000):
        trie.insert(key, number)
    assert len(trie) == len(keys)
    assert trie.memory_bytes <= 1.2 * memory
    for key in keys:
        trie.remove(key)
    assert (len(trie), trie.children(()), trie.extends(())) == (0, {}, False)


def test_a_look_up_walks_no_further_than_the_n_grams_go() -> None:
    class Watched(list[int]):
        seen = 0

        def __getitem__(self, index: object) -> object:  # type: ignore[override]
            assert isinstance(index, int)
            Watched.seen = max(Watched.seen, index)
            return super().__getitem__(index)

    trie = NGramTrie()
    for key in ((0, 1), (0, 1, 0)):
        trie.insert(key, 1)
    trie.longest(Watched([0, 1, 1, *[0] * 1000]), 0)
    assert Watched.seen == 2


# --- tables of a few n-grams


def same(table: NGramTable, ngrams: Mapping[Tokens, int], size: int = 3, length: int = 4) -> bool:
    """Whether all questions get the answers of a plain dictionary, for all prefixes up to a length."""
    prefixes = [way for n in range(length + 1) for way in itertools.product(range(size), repeat=n)]
    return table.direct.tolist() == [ngrams.get((token,), -1) for token in range(size)] and all(
        table.target(way) == ngrams.get(way)
        and table.extends(way) == bool(slow_children(ngrams, way))
        and table.children(way) == slow_children(ngrams, way)
        and table.longest(way) == slow_longest(ngrams, way)
        for way in prefixes
    )


def test_a_table_answers_like_a_search_through_all_n_grams() -> None:
    generator = random.Random(0)
    for _ in range(50):
        keys = {
            tuple(generator.choices(range(3), k=generator.randint(1, 4))): generator.randrange(9)
            for _ in range(8)
        }
        assert same(NGramTable.of(keys, 3), keys)


@pytest.mark.parametrize("key", [(), (3,), (0, -1)])
def test_an_n_gram_of_another_vocabulary_is_refused(key: Tokens) -> None:
    with pytest.raises(DraftError, match=r"n-gram .* from 0 to 2.*another drafter"):
        NGramTable.of({key: 0}, 3)


def test_what_nothing_can_follow() -> None:
    """Draft token 2 ends the text, and 1 has no target token but begins the n-gram (1, 0)."""
    pair = VocabularyMap.from_bytes([b"a", b"b", None], [b"a", b"ba", None], {2: 2}, ends=[2])
    table = NGramTable.of_pair(pair, None, 3, 3)
    assert [table.ended(drafted) for drafted in ([], [0], [0, 2], [1], [0, 1])] == [
        False,
        False,
        True,
        True,
        True,
    ]
    cache = NGramCache()
    cache.bind(pair)
    cache.add((1, 0), 1)
    cache.commit()
    table = NGramTable.of_pair(pair, cache.ngrams, 3, 3)
    assert [table.ended(drafted) for drafted in ([1], [0, 1], [1, 0], [1, 1])] == [False, False, False, True]


# --- tables of a pair of models

PAIR = VocabularyMap.from_bytes([b"a", b"b", b"c"], [b"a", b"b", b"ab", b"abc", b"abca", b"ba", b"cc"])
WORDS = {(0, 1): 2, (0, 1, 2): 3, (0, 1, 2, 0): 4, (1, 0): 5, (2, 2): 6}


def follows(table: NGramTable, cache: NGramCache | None) -> bool:
    longer = {each.draft_tokens: each.target_token for each in cache} if cache is not None else {}
    return same(table, {(0,): 0, (1,): 1} | longer)


def test_without_a_cache_only_direct_counterparts() -> None:
    assert follows(NGramTable.of_pair(PAIR, None, 3, 7), None)


def test_a_model_may_have_other_sizes_than_its_tokenizer() -> None:
    """Outputs beyond the drafter's tokens have no counterpart, nor have those beyond the target's outputs."""
    table = NGramTable.of_pair(PAIR, None, 5, 1)
    assert table.direct.tolist() == [0, -1, -1, -1, -1]
    assert [table.target((token,)) for token in range(5)] == [0, None, None, None, None]
    assert NGramTable.of_pair(PAIR, None, 1, 7).direct.tolist() == [0]
    assert torch.equal(NGramTable.of_pair(PAIR, None, 3, 7).direct, PAIR.direct)


def test_it_follows_a_cache_that_grows_forgets_and_is_merged() -> None:
    cache, other = NGramCache(max_entries=4), NGramCache()
    for each in (cache, other):
        each.bind(PAIR)
    table = NGramTable.of_pair(PAIR, cache.ngrams, 3, 7)
    assert follows(table, cache)
    for number, (key, token) in enumerate(WORDS.items(), 1):
        cache.add(key, token)
        assert len(cache) == number - 1 and follows(table, cache)  # not before the end of the round
        cache.commit()
        assert follows(table, cache)
    assert cache.evicted == 1
    other.add((2, 2), 6)
    other.commit()
    cache.merge(other)
    assert (2, 2) in {each.draft_tokens for each in cache} and follows(table, cache)


def filled(*keys: Tokens) -> NGramCache:
    cache = NGramCache()
    cache.bind(PAIR)
    for key in keys:
        cache.add(key, WORDS[key])
    cache.commit()
    return cache


def test_it_follows_a_merge_that_adds_nothing_new() -> None:
    cache = filled((0, 1), (1, 0), (2, 2))
    table = NGramTable.of_pair(PAIR, cache.ngrams, 3, 7)
    assert follows(table, cache)
    cache.merge(filled((0, 1), (0, 1)))
    assert len(cache) == 3 and follows(table, cache)


@pytest.mark.parametrize("seed", range(20))
def test_it_follows_whatever_happens_to_the_cache(seed: int, tmp_path: Path) -> None:
    """Additions, evictions, merges with new keys and without, warm starts: after each the right answers."""
    generator = random.Random(seed)
    cache = NGramCache(max_entries=generator.choice([2, 3, 50]), policy=generator.choice(["lfu", "lru"]))
    cache.bind(PAIR)
    table = NGramTable.of_pair(PAIR, cache.ngrams, 3, 7)
    for _ in range(25):
        some = generator.choices([*WORDS], k=generator.randint(1, 3))
        action = generator.choice(["add", "add", "merge", "merge itself", "merge saved", "warm"])
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
        assert follows(table, cache), action


# --- real tokenizers


@pytest.mark.weights
def test_a_real_table(checkpoint: Callable[[str], Path]) -> None:
    """All n-grams of a warm start: the nearest one after each prefix, against one pass over all of them."""
    pair = VocabularyMap.of(
        *(Tokenizer.from_folder(checkpoint(name)) for name in ("drafter-7m", "smollm2-135m-instruct"))
    )
    cache = NGramCache()
    cache.warm_start(pair)
    table = NGramTable.of_pair(pair, cache.ngrams, len(pair.draft_bytes), len(pair.target_bytes))
    nearest: dict[Tokens, dict[int, int]] = {}
    for each in cache:
        key = each.draft_tokens
        for n in range(len(key)):
            further = nearest.setdefault(key[:n], {})
            left = len(key) - n - 1
            further[key[n]] = min(left or 99, further.get(key[n], 99))
    for prefix, further in nearest.items():
        assert table.children(prefix) == {token: left % 99 for token, left in further.items()}
