"""Loops and invented text: brute force, properties, worked examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib.analysis.loops import LONGEST, REPEATS, find_loop, made_up
from qlib.asr.wer import score


def longest_by_force(words: list[str]) -> int:
    """Return how many words the longest repetition covers, trying every place and every length."""
    most = 0
    for n in range(1, LONGEST + 1):
        for start in range(len(words)):
            times = 1
            while words[start : start + n] == words[start + times * n : start + (times + 1) * n] != []:
                times += 1
            if times >= REPEATS:
                most = max(most, n * times)
    return most


@given(st.lists(st.sampled_from("ab"), max_size=20))
def test_the_longest_repetition_is_found(words: list[str]) -> None:
    loop = find_loop(words)
    assert (0 if loop is None else len(loop.words) * loop.times) == longest_by_force(words)
    if loop is not None:
        assert " ".join(loop.words * loop.times) in " ".join(words)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True), st.integers(3, 9))
def test_a_planted_loop_is_found_with_its_shortest_phrase(phrase: list[str], times: int) -> None:
    loop = find_loop(["x", *phrase * times, "y"])
    assert loop is not None
    assert (list(loop.words), loop.times) == (phrase, times)


def test_clips_are_named_and_what_people_said_is_no_loop() -> None:
    said = ["we go on", "no no no", "the end", "a heath"]
    written = [
        "we go on and on and on and on",
        "no no no",
        "the end thanks for watching this video",
        "a heath",
    ]
    found = made_up(score(said, written, ids=["a", "b", "c", "d"]))
    assert [(each.utterance, each.words) for each in found] == [("a", 6), ("c", 5)]
    assert str(found[0].loop) in ("'on and' 3 times in a row", "'and on' 3 times in a row")
    assert found[1].loop is None


@pytest.mark.parametrize("written", ["the cat sat", "the dog sat on it", ""])
def test_ordinary_errors_are_not_made_up(written: str) -> None:
    assert made_up(score(["the cat sat"], [written])) == []
