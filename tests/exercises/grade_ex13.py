"""Grader of exercise 13."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

pytestmark = [pytest.mark.exercises, pytest.mark.ex13]
DIRECT = {0: 10, 1: 11, 2: 12, 4: 14}  # draft token 3 has no counterpart
NGRAMS = {(1, 2): 20, (1, 2, 3): 21, (3, 4): 22}


@pytest.mark.parametrize(
    ("drafted", "right", "hint"),
    [
        ([0, 4], [(10, 1), (14, 1)], "no n-gram fits: each token has its direct counterpart"),
        ([0, 1, 2, 4], [(10, 1), (20, 2), (14, 1)], "1, 2 are one target token, 20"),
        ([1, 2, 3, 0], [(21, 3), (10, 1)], "both (1, 2) and (1, 2, 3) fit: the longest is taken"),
        ([1, 2, 3, 4], [(21, 3), (14, 1)], "from left to right: (1, 2, 3) comes before (3, 4)"),
        (
            [0, 3, 0],
            [(10, 1)],
            "3 has no counterpart and begins no n-gram here: the translation ends, nothing is skipped",
        ),
        ([0, 3, 4], [(10, 1), (22, 2)], "3 has no counterpart, but (3, 4) is an n-gram"),
        ([1], [(11, 1)], "the draft ends inside of an n-gram: that does not fit"),
        ([], [], "nothing was drafted"),
    ],
    ids=str,
)
def test_translation(answer: ModuleType, drafted: list[int], right: list[tuple[int, int]], hint: str) -> None:
    found = answer.translate(drafted, DIRECT, NGRAMS)
    true(found == right, f"{drafted}: {hint}\n  yours: {found}\n  right: {right}")


def test_mass_moves_from_the_first_piece_to_the_whole(answer: ModuleType) -> None:
    q = torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64)
    found = answer.merged(q, 1, 2, [0.3, 0.5, 0.4])
    close(found[2], 0.06, "q'(t) = 0.3 x 0.5 x 0.4: all pieces must be drawn")
    close(found[1], 0.24, "the first piece loses what the whole has won")
    close(found[[0, 3]], [0.5, 0.2], "all others are as they were")
    close(q, [0.5, 0.3, 0.0, 0.2], "q itself was changed: begin with q.clone()")


def test_a_token_that_has_mass_already(answer: ModuleType) -> None:
    found = answer.merged(torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64), 0, 2, [0.5, 0.2])
    close(found, [0.4, 0.4, 0.2], "t may be a direct counterpart too: q'(t) is then added to what it has")
