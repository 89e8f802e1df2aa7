"""Answers that a caller leaves in the middle are forgotten in the end."""

from __future__ import annotations

from learners import decoder, learner

from draftlib import CostAware
from draftlib.drafting.lookup import AnswerLookup
from draftlib.open_answers import MOST_OPEN, of_answer


def test_the_one_asked_for_least_lately_goes() -> None:
    kept: dict[int, list[int]] = {}
    for answer in range(MOST_OPEN):
        of_answer(kept, answer, list)
    of_answer(kept, 0, list).append(7)  # is gone on with
    of_answer(kept, MOST_OPEN, list)
    assert 1 not in kept and kept[0] == [7] and len(kept) == MOST_OPEN


def test_answers_left_after_a_round_take_bounded_memory() -> None:
    answers, adapter = AnswerLookup(), learner()
    one = decoder(adapter, length=CostAware(), sources=(answers,))
    for _ in range(MOST_OPEN + 3):
        next(iter(one.steps("the heat at a", max_new_tokens=24)))
    assert len(adapter.buffer._writing) == len(answers._answers) == MOST_OPEN
    assert len(one._choice._accounts) <= MOST_OPEN
