"""Grader of exercise 16."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from grading import close, true

pytestmark = [pytest.mark.exercises, pytest.mark.ex16]
WORDS = np.array([2, 10, 4, 30, 7])
A, B = np.array([1, 0, 2, 3, 0]), np.array([1, 2, 2, 4, 1])


def draws(count: int = 500) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, 5, (count, 5))


def test_one_draw_of_all_clips_is_the_difference_itself(answer: ModuleType) -> None:
    low, high = answer.interval(A, B, WORDS, np.arange(5)[None])
    hint = "(10 - 6) / 53 words, in percentage points: errors over words of all clips, no mean of rates"
    close(low, 100 * 4 / 53, hint)
    close(high, 100 * 4 / 53, hint)


def test_by_brute_force(answer: ModuleType) -> None:
    rates = []
    for draw in draws():
        words = sum(int(WORDS[k]) for k in draw)
        rates.append(100 * sum(int(B[k]) - int(A[k]) for k in draw) / words)
    right = np.percentile(rates, [2.5, 97.5])
    low, high = answer.interval(A, B, WORDS, draws())
    close(low, right[0], "the lower end: the 2.5th percentile; words are those of the drawn clips")
    close(high, right[1], "the upper end: the 97.5th percentile")


def test_what_is_hard_for_both_cancels_out(answer: ModuleType) -> None:
    hard = np.array([0, 0, 0, 0, 7])
    low, high = answer.interval(A + hard, A + hard, WORDS, draws())
    close(
        low,
        0.0,
        "the same errors on each clip: the difference is 0 in each draw, if both have the same clips",
    )
    close(high, 0.0, "the same errors on each clip: the difference is 0 in each draw")


def test_the_order_of_the_systems(answer: ModuleType) -> None:
    low, high = answer.interval(B, A, WORDS, draws())
    true(
        low <= high <= 0,
        f"a makes more errors here, so b minus a is below 0; yours is {low:.2f} to {high:.2f}",
    )
