"""The cache against slow, obvious models; what is kept comes back; damage is noticed."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from draftlib.vocabulary.bounded_ngrams import Policy
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGram, NGramCache
from qlib.errors import DraftError
from qlib.models import Tokenizer
from qlib.models.disk.hashes import sealed

# Draft tokens 0 and 1 are letters, 2 both at once, 3 is special; the target's tokens are all words of up to
# four letters, so that every n-gram of letters has a target token, some have two, and one none.
WORDS = [
    format(number, f"0{n}b").replace("0", "a").replace("1", "b") for n in (2, 3, 4) for number in range(2**n)
]
TARGET: list[bytes | None] = [word.encode() for word in WORDS if word != "bbbb"]
PAIR = VocabularyMap.from_bytes(
    [b"a", b"b", b"ab", None], [*TARGET, b"ab", None], {3: len(TARGET) + 1}, ends=[3]
)
KEYS = (
    st.lists(st.sampled_from([0, 1]), min_size=2, max_size=4)
    .map(tuple)
    .filter(lambda key: key != (1, 1, 1, 1))
)


def target_of(key: tuple[int, ...]) -> int:
    return TARGET.index(b"".join(PAIR.draft_bytes[token] or b"" for token in key))


def filled(*keys: tuple[int, ...], **arguments: Any) -> NGramCache:
    cache = NGramCache(**arguments)
    cache.bind(PAIR)
    for key in keys:
        cache.add(key, target_of(key))
        cache.commit()
    return cache


def contents(cache: NGramCache) -> dict[tuple[int, ...], tuple[int, int]]:
    return {each.draft_tokens: (each.target_token, each.count) for each in cache}


# --- look-up


def test_worked_example() -> None:
    cache = filled((0, 1), (0, 1, 0))
    assert cache.longest([1, 0, 1, 0], 1) == (3, target_of((0, 1, 0)))
    assert cache.longest([1, 0, 1, 1], 1) == (2, target_of((0, 1)))
    assert cache.longest([1, 0, 1], 0) is None
    assert cache.longest([1, 0, 1], 2) is None
    assert (cache.lookups, cache.hits) == (4, 2)
    assert "50.0% of 4 look-ups" in str(cache)
    assert len(cache) == 2


@given(keys=st.sets(KEYS), draft=st.lists(st.sampled_from([0, 1, 2, 3]), max_size=12))
@settings(deadline=None)
def test_longest_match_against_a_scan(keys: set[tuple[int, ...]], draft: list[int]) -> None:
    cache = filled(*keys)
    for start in range(len(draft) + 1):
        fits = [key for key in keys if tuple(draft[start : start + len(key)]) == key]
        best = max(fits, key=len, default=None)
        assert cache.longest(draft, start) == (None if best is None else (len(best), target_of(best)))


def test_additions_wait_for_the_end_of_the_round() -> None:
    cache = filled()
    cache.add((0, 1), target_of((0, 1)))
    assert cache.longest([0, 1], 0) is None
    assert len(cache) == 0 and contents(cache) == {}
    cache.commit()
    assert cache.longest([0, 1], 0) == (2, target_of((0, 1)))
    assert contents(cache)[0, 1][1] == 1
    cache.commit()
    assert contents(cache)[0, 1][1] == 1


def test_of_two_target_tokens_with_the_same_bytes_the_newer_counts() -> None:
    cache = filled((0, 1))
    cache.add((0, 1), len(TARGET))
    cache.commit()
    assert list(cache) == [NGram((0, 1), len(TARGET), 2)]


def test_single_tokens_and_long_spellings_are_passed_over() -> None:
    cache = filled((0, 0, 0), max_length=2)
    cache.add((2,), target_of((2,)))
    cache.commit()
    assert len(cache) == 0
    assert contents(cache) == {}


# --- bounds


class Slow:
    """What the cache promises, with one dict and sorting: (worth, clock) decide who goes."""

    def __init__(self, most: int, policy: Policy):
        self.most, self.policy = most, policy
        self.entries: dict[tuple[int, ...], tuple[int, int]] = {}
        self.counts: dict[tuple[int, ...], int] = {}
        self.clock = self.age = 0

    def add(self, key: tuple[int, ...]) -> None:
        self.clock += 1
        self.counts[key] = self.counts.get(key, 0) + 1
        self.entries[key] = self.age + self.counts[key] if self.policy == "lfu" else 0, self.clock

    def commit(self) -> None:
        if len(self.entries) > self.most:
            by_use = sorted(self.entries, key=lambda key: self.entries[key])
            for key in by_use[: len(by_use) - (self.most - self.most // 16)]:
                self.age = max(self.age, self.entries.pop(key)[0])
                del self.counts[key]


@given(
    rounds=st.lists(st.lists(KEYS, max_size=6), max_size=20),
    most=st.sampled_from([1, 2, 5, 16, 18]),
    policy=st.sampled_from(["lfu", "lru"]),
)
@settings(deadline=None)
def test_eviction_against_a_slow_model(
    rounds: list[list[tuple[int, ...]]], most: int, policy: Policy
) -> None:
    cache, slow = filled(max_entries=most, policy=policy), Slow(most, policy)
    for keys in rounds:
        for key in keys:
            cache.add(key, target_of(key))
            slow.add(key)
        cache.commit()
        slow.commit()
        assert contents(cache) == {key: (target_of(key), count) for key, count in slow.counts.items()}
        assert len(cache) == len(slow.entries) <= most
        seen = {key for key in slow.entries if cache.longest(key, 0) == (len(key), target_of(key))}
        assert seen == {*slow.entries}


def test_least_often_or_least_recently() -> None:
    keys = [(0, 0), (0, 0), (0, 1), (1, 0)]
    assert {*contents(filled(*keys, max_entries=2))} == {(0, 0), (1, 0)}
    assert {*contents(filled(*keys, max_entries=2, policy="lru"))} == {(0, 1), (1, 0)}
    assert filled(*keys, max_entries=2).evicted == 1
    assert [each.draft_tokens for each in filled(*keys)] == [(0, 0), (1, 0), (0, 1)]


def said_often_and_then_other_things(policy: Policy) -> NGramCache:
    """Two favourites, ten times each; then three other n-grams in turn, where only four have room."""
    others = [(1, 0), (1, 1), (0, 0, 0)]
    return filled(*[(0, 0), (0, 1)] * 10, *others * 12, max_entries=4, policy=policy)


@pytest.mark.parametrize("policy", ["lfu", "lru"])
def test_old_favourites_leave(policy: Policy) -> None:
    """Without ageing the three others would push one another out for ever."""
    cache = said_often_and_then_other_things(policy)
    assert {(1, 0), (1, 1), (0, 0, 0)} <= {*contents(cache)}


def test_favourites_stay_for_a_while() -> None:
    """What was said ten times outlives other things said once; for the least recently said, it is gone."""
    once = [(1, 0), (1, 1), (0, 0, 0), (0, 0, 1), (0, 1, 0)]
    for policy, stays in (("lfu", True), ("lru", False)):
        cache = filled(*[(0, 0)] * 10, *once, max_entries=4, policy=policy)
        assert ((0, 0) in contents(cache)) == stays


def test_an_old_cache_takes_new_things_seriously() -> None:
    """The age of the cache counts for what comes now: a new n-gram is worth as much as an old favourite."""
    cache = said_often_and_then_other_things("lfu")
    cache.add((0, 1, 1), target_of((0, 1, 1)))
    cache.commit()
    assert (0, 1, 1) in contents(cache)
    assert contents(cache)[0, 1, 1][1] == 1  # counts are what they say


def test_a_warm_start_of_an_old_cache_is_still_first_to_go() -> None:
    cache = said_often_and_then_other_things("lfu")
    before = {*contents(cache)}
    cache.max_entries = 6
    assert cache.warm_start(PAIR) == 2
    cache.max_entries = 4
    cache.add((1, 0), target_of((1, 0)))  # one that is there
    cache.commit()
    assert (1, 0) in before and {*contents(cache)} == before


def test_memory_against_what_python_allocates() -> None:
    """n-grams of the lengths that real text gives: about 300 bytes each, 15 MB for 50,000."""
    pair = VocabularyMap.from_bytes([b"a"] * 8192, [b"a" * n for n in range(9)])
    generator = random.Random(0)
    first = [generator.sample(range(300, 8192), k=12) for _ in range(400)]  # what words begin with
    cache = NGramCache(5000)
    cache.bind(pair)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        while len(cache) < 4900:
            length = generator.choices([2, 3, 4, 8], [60, 30, 9, 1])[0]
            head = generator.choice(first)[: length - 1]
            cache.add([*head, generator.randrange(300, 8192)], length)
            cache.commit()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.memory_bytes == pytest.approx(held, rel=0.15)
    assert cache.memory_bytes / len(cache) < 400


def test_memory_stays_where_it_is_when_entries_come_and_go() -> None:
    pair = VocabularyMap.from_bytes([b"a"] * 1000, [b"a" * 3])
    generator, cache = random.Random(0), NGramCache(256)
    cache.bind(pair)
    sizes = []
    for _ in range(20):
        for _ in range(200):
            cache.add(generator.choices(range(1000), k=3), 0)
            cache.commit()
        sizes.append(cache.memory_bytes)
    assert sizes[-1] <= 1.1 * sizes[2]


# --- warm start, merge


def test_warm_start_is_first_to_go() -> None:
    cache = filled((0, 0, 1), max_entries=8)
    pair_spelling = {
        tuple(PAIR.speller.spell(piece)[0]): number for number, piece in enumerate(TARGET) if piece != b"ab"
    }
    assert cache.warm_start(PAIR) == 7
    assert contents(cache)[0, 0, 1][1] == 1
    warm = {key: value for key, value in contents(cache).items() if key != (0, 0, 1)}
    assert list(warm) == list(pair_spelling)[:7]  # early target tokens first
    assert all(value == (pair_spelling[key], 0) for key, value in warm.items())
    cache.add((1, 1, 0, 0), target_of((1, 1, 0, 0)))
    cache.commit()
    assert {*contents(cache)} == {(0, 0, 1), (1, 1, 0, 0), *list(warm)[:6]}


def test_merged_counts_add_up_and_the_other_is_newer() -> None:
    one, other = filled((0, 0), (0, 1), (0, 1)), filled((0, 0), (0, 0), (1, 1))
    other.add((1, 0), target_of((1, 0)))
    one.merge(other)
    assert [(each.draft_tokens, each.count) for each in one] == [((0, 0), 3), ((0, 1), 2), ((1, 1), 1)]
    assert len(other) == 2
    recent = filled((0, 0), (0, 1), policy="lru")
    recent.merge(filled((0, 0)))
    assert [each.draft_tokens for each in recent] == [(0, 0), (0, 1)]
    recent.merge(NGramCache())
    assert len(recent) == 2
    fresh = NGramCache()
    fresh.merge(one)
    assert contents(fresh) == contents(one)


def test_merging_keeps_the_bounds() -> None:
    cache = filled((0, 0), (0, 0), max_entries=2, max_length=3)
    cache.merge(filled((0, 1), (1, 0), (1, 1), (1, 1), (0, 0, 0, 0), (0, 0, 0, 0)))
    assert {*contents(cache)} == {(0, 0), (1, 1)}
    assert cache.evicted == 2
    cache.add((1, 0), target_of((1, 0)))  # as good as (0, 0) now, and newer
    cache.commit()
    assert {*contents(cache)} == {(1, 0), (1, 1)}


def test_a_warm_entry_does_not_make_another_one_newer() -> None:
    one = filled((0, 0), (0, 0, 1))
    other = filled()
    other.warm_start(PAIR)
    one.merge(other)
    assert [each.draft_tokens for each in one][:2] == [(0, 0, 1), (0, 0)]


# --- files


@given(keys=st.lists(KEYS, max_size=60), policy=st.sampled_from(["lfu", "lru"]))
@settings(deadline=None, max_examples=20)
def test_what_is_saved_comes_back(
    keys: list[tuple[int, ...]], policy: Policy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = filled(*keys, max_entries=8, policy=policy, max_length=4)
    cache.add((0, 1), target_of((0, 1)))
    cache.save(folder)
    again = NGramCache.load(folder, PAIR)
    assert list(again) == list(cache)
    assert (again.max_entries, again.policy, again.max_length) == (8, policy, 4)
    assert contents(again)[0, 1][1] >= 1
    later: list[tuple[int, ...]] = [(1, 1), (1, 0, 1), (0, 0), (0, 1, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]
    for key in later:  # they meet the same order of use, and push the same ones out
        for each in (cache, again):
            each.add(key, target_of(key))
            each.commit()
        assert list(again) == list(cache)
    assert sorted(path.name for path in folder.iterdir()) == ["ngrams.json", "ngrams.safetensors"]


def test_a_cache_of_before_ageing_is_read(tmp_path: Path) -> None:
    filled((0, 0), (0, 1), (0, 1)).save(tmp_path)
    path = tmp_path / "ngrams.safetensors"
    content = save({name: each for name, each in load(path.read_bytes()).items() if name != "aged"})
    path.write_bytes(content)
    change_json(tmp_path, sha256=sha256(content).hexdigest())
    assert list(NGramCache.load(tmp_path, PAIR)) == list(filled((0, 0), (0, 1), (0, 1)))


def change_json(folder: Path, **parts: Any) -> None:
    """Edit on purpose: the hash is mended too."""
    path = folder / "ngrams.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | parts)))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "ngrams.json").unlink(), "holds no n-gram cache"),
    (lambda folder: (folder / "ngrams.safetensors").unlink(), "holds no n-gram cache"),
    (lambda folder: (folder / "ngrams.json").write_text("{"), "holds no n-gram cache"),
    (lambda folder: (folder / "ngrams.json").write_text("[1, 2]"), "holds no n-gram cache"),
    (
        lambda folder: (folder / "ngrams.json").write_text("{}"),
        "check version, pair, clock, settings, sha256",
    ),
    (lambda folder: change_json(folder, clock="x"), "damaged: check clock"),
    (lambda folder: change_json(folder, settings={"policy": "lfu"}), "damaged: check settings"),
    (lambda folder: change_json(folder, version=3), "has version 3, this release reads 1, 2. Collect"),
    (
        lambda folder: (folder / "ngrams.json").write_text(
            (folder / "ngrams.json").read_text().replace("50000", "50001")
        ),
        "ngrams.json is damaged: it does not have the sha256 that it names. Delete",
    ),
    (lambda folder: (folder / "ngrams.safetensors").write_bytes(b"x" * 99), "its 99 bytes.*sha256.*Delete"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[each[1][:30] for each in DAMAGE])
def test_damage_is_noticed(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    filled((0, 0)).save(tmp_path / "a" / "b")
    damage(tmp_path / "a" / "b")
    with pytest.raises(DraftError, match=message):
        NGramCache.load(tmp_path / "a" / "b", PAIR)


def test_numbers_with_a_right_hash_and_wrong_content(tmp_path: Path) -> None:
    filled((0, 0), (0, 1)).save(tmp_path)
    path = tmp_path / "ngrams.safetensors"
    good = load(path.read_bytes())
    bad = {
        "ngrams.safetensors is damaged": save({"tokens": good["tokens"]}),
        "must not change text": save(good | {"targets": np.flip(good["targets"])}),
        "do not describe the same entries": save(good | {"counts": good["counts"][:1]}),
        "not describe": save(good | {"lengths": np.array([0, 4], dtype=np.int32)}),
        "adds? up to 5": save(good | {"lengths": np.array([2, 3], dtype=np.int32)}),
        "something else than whole numbers": save(good | {"targets": good["targets"].astype(np.float32)}),
        "safetensors is damaged: [^i]": b"\xff" * 64,
    }
    for message, content in bad.items():
        path.write_bytes(content)
        change_json(tmp_path, sha256=sha256(content).hexdigest())
        with pytest.raises(DraftError, match=message):
            NGramCache.load(tmp_path, PAIR)


@pytest.mark.parametrize("names", [["a.txt"], ["ngrams.json"], ["a.txt", "ngrams.json"]])
def test_a_foreign_folder_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(DraftError, match=r"holds .* and no n-gram cache\. Choose another folder"):
        filled((0, 0)).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (tmp_path / "file").touch()
    with pytest.raises(DraftError, match=r"is a file\. An n-gram cache is saved in a folder"):
        filled((0, 0)).save(tmp_path / "file")


def test_saving_again_replaces_damage_and_keeps_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    filled((0, 0)).save(folder)
    (folder / "ngrams.json").write_text("{")
    filled((0, 1)).save(folder)
    (folder / "notes.txt").write_text("mine")
    filled((1, 0)).save(folder)
    assert contents(NGramCache.load(folder, PAIR)) == contents(filled((1, 0)))
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_cache_of_the_first_format_loads(tmp_path: Path) -> None:
    filled((0, 0), (0, 1)).save(tmp_path)
    path = tmp_path / "ngrams.json"
    old = json.loads(path.read_text()) | {"version": 1}
    path.write_text(json.dumps(old))
    with pytest.raises(DraftError, match="does not have the sha256"):
        NGramCache.load(tmp_path, PAIR)
    del old["digest"]
    path.write_text(json.dumps(old))
    assert contents(NGramCache.load(tmp_path, PAIR)) == contents(filled((0, 0), (0, 1)))


def test_savers_and_readers_at_once(tmp_path: Path) -> None:
    caches = [filled((0, 0)), filled((0, 1), (1, 1), policy="lru")]
    folder, failed, stop = tmp_path / "cache", [], threading.Event()
    known = [contents(cache) for cache in caches]
    caches[0].save(folder)

    def save(cache: NGramCache) -> None:
        try:
            while not stop.is_set():
                cache.save(folder)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    try:
        found = [contents(NGramCache.load(folder, PAIR)) for _ in range(200)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failed == []
    assert all(each in known for each in found)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# --- errors


def test_a_cache_belongs_to_one_pair(tmp_path: Path) -> None:
    other = VocabularyMap.from_bytes([b"a"], [b"a", b"aa"])
    cache = filled((0, 0))
    cache.bind(PAIR)
    with pytest.raises(DraftError, match=r"cache of 1 entries belongs to another pair.*new NGramCache"):
        cache.bind(other)
    with pytest.raises(DraftError, match="another pair"):
        cache.warm_start(other)
    foreign = NGramCache()
    foreign.bind(other)
    with pytest.raises(DraftError, match="another pair"):
        cache.merge(foreign)
    cache.save(tmp_path)
    with pytest.raises(
        DraftError, match=r"another pair of vocabularies: 1 of 3 draft.*This pair: 1 of 1 draft"
    ):
        NGramCache.load(tmp_path, other)


def test_a_cache_must_be_bound(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"knows no vocabularies.*bind"):
        NGramCache().add((0, 1), 0)
    with pytest.raises(DraftError, match=r"knows no vocabularies.*bind"):
        NGramCache().save(tmp_path)


@pytest.mark.parametrize(
    ("key", "target", "message"),
    [
        ((0, 1), 0, r"\[0, 1\] stand for b'ab', target token 0 for b'aa'"),
        ((0, 3), 0, "special token or an unknown id"),
        ((0, 99), 0, "special token or an unknown id"),
        ((0, -1), 0, "special token or an unknown id"),
        ((3, 3), len(TARGET) + 1, "special token"),
        ((0, 1), len(TARGET) + 1, "for no text"),
        ((0, 1), -2, "for no text"),
        ((0, 1), 10_000, "for no text"),
    ],
)
def test_entries_never_change_text(key: tuple[int, ...], target: int, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        filled().add(key, target)


@pytest.mark.parametrize(
    "arguments",
    [{"max_entries": 0}, {"max_entries": 2.5}, {"max_entries": True}, {"max_length": 1}, {"policy": "fifo"}],
)
def test_settings_are_checked(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(DraftError, match=f"{name}.*{value}.*(or more|not a whole number|'lfu' or 'lru')"):
        NGramCache(**arguments)


# --- real tokenizers


@pytest.mark.weights
def test_real_warm_start(checkpoint: Callable[[str], Path]) -> None:
    pair = VocabularyMap.of(
        *(Tokenizer.from_folder(checkpoint(name)) for name in ("drafter-7m", "smollm2-135m-instruct"))
    )
    cache = NGramCache()
    assert cache.warm_start(pair) == len(cache) == 41_501
    assert cache.memory_bytes < 15e6
    for each in cache:
        key = each.draft_tokens
        assert (
            b"".join(pair.draft_bytes[token] or b"" for token in key) == pair.target_bytes[each.target_token]
        )
        assert cache.longest(key, 0) == (len(key), each.target_token)
