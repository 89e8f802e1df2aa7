"""Loops: repeated phrases, against trying every place, length and number of times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib.asr.loops import find_loop


def most_covered(words: list[str], repeats: int) -> int:
    """Words of the longest stretch that is one phrase again and again, by trying all."""
    covered = 0
    for start in range(len(words)):
        for size in range(1, len(words) + 1):
            for times in range(repeats, len(words) // size + 1):
                if words[start : start + size * times] == words[start : start + size] * times:
                    covered = max(covered, size * times)
    return covered


@pytest.mark.parametrize(
    ("text", "phrase", "times", "start"),
    [
        ("a a a", "a", 3, 0),
        ("so a b a b a b a", "a b", 3, 1),
        ("x y y y z z z z", "z", 4, 4),
        ("a a a a a a", "a", 6, 0),  # and not "a a" three times: the shortest phrase
        ("a a a b b b", "a", 3, 0),  # the first of two that cover equally much
        ("you you you thank you so thank you so thank you so", "thank you so", 3, 3),
    ],
)
def test_loops_by_hand(text: str, phrase: str, times: int, start: int) -> None:
    loop = find_loop(text.split())
    assert loop is not None
    assert (" ".join(loop.phrase), loop.times, loop.start) == (phrase, times, start)
    assert loop.words == times * len(phrase.split())


@pytest.mark.parametrize("text", ["", "a", "a a", "a b a b", "no no it is not so", "a b a c a b"])
def test_no_loop(text: str) -> None:
    assert find_loop(text.split()) is None


def test_how_often_is_chosen() -> None:
    assert str(find_loop(["a", "b", "a", "b"], repeats=2)) == "'a b' 2 times"


@given(st.lists(st.sampled_from("ab"), max_size=14), st.integers(2, 4))
def test_the_most_words_are_covered(words: list[str], repeats: int) -> None:
    loop, covered = find_loop(words, repeats), most_covered(words, repeats)
    assert (loop is None) == (covered == 0)
    if loop is not None:
        assert loop.words == covered and loop.times >= repeats
        assert words[loop.start : loop.start + loop.words] == list(loop.phrase) * loop.times
