"""Loops and invented text in transcripts, by worked examples; loops themselves: tests/asr/test_loops.py."""

from __future__ import annotations

import pytest

from qlib.analysis.made_up import made_up
from qlib.asr.wer import score


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
    assert str(found[0].loop) in ("'on and' 3 times", "'and on' 3 times")
    assert found[1].loop is None


@pytest.mark.parametrize("written", ["the cat sat", "the dog sat on it", ""])
def test_ordinary_errors_are_not_made_up(written: str) -> None:
    assert made_up(score(["the cat sat"], [written])) == []
