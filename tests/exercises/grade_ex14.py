"""Grader of exercise 14."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from grading import close, true

pytestmark = [pytest.mark.exercises, pytest.mark.ex14]
P, Q = [0.6, 0.1, 0.3], [0.3, 0.5, 0.2]  # target and drafter, the same at each position


def script(*draws: tuple[int, float]) -> tuple[Callable[[list[int]], tuple[int, float]], list[list[int]]]:
    """A drafter that draws what it is told, and the texts it was given."""
    given: list[list[int]] = []

    def draw(tokens: list[int]) -> tuple[int, float]:
        given.append(list(tokens))
        true(
            len(given) <= len(draws),
            f"the belief is small enough, but one more token was drawn after {tokens}",
        )
        return draws[len(given) - 1]

    return draw, given


class NeedsOneMore(Exception):  # noqa: N818
    """The path of draws is too short."""


def outcomes(answer: ModuleType, least: float, most: int) -> Iterator[tuple[float, list[int]]]:
    """Every draft of a three-token drafter, with its probability."""
    paths: list[list[int]] = [[]]
    while paths:
        path = paths.pop()
        drawn = iter(path)

        def draw(_: list[int], drawn: Iterator[int] = drawn) -> tuple[int, float]:
            for token in drawn:
                return token, Q[token]
            raise NeedsOneMore

        try:
            kept = answer.draft(draw, least, most)
        except NeedsOneMore:
            paths += [[*path, token] for token in range(3)]
            continue
        yield torch.tensor([Q[token] for token in path]).prod().item(), kept


def first_token(answer: ModuleType, least: float, most: int) -> list[float]:
    """The distribution of the first token of the text, by the rule of exercise 11."""
    accept = [min(1, p / q) for p, q in zip(P, Q, strict=True)]
    left = [max(p - q, 0) for p, q in zip(P, Q, strict=True)]
    out = [0.0] * 3
    for probability, kept in outcomes(answer, least, most):
        for y in range(3):
            if not kept:  # the target writes the token itself
                out[y] += probability * P[y]
            else:
                out[y] += probability * (accept[y] if kept[0] == y else 0)
                out[y] += probability * (1 - accept[kept[0]]) * left[y] / sum(left)
    return out


def test_the_belief_is_a_product(answer: ModuleType) -> None:
    draw, given = script((7, 0.9), (8, 0.7), (9, 0.6), (5, 0.9))
    found = answer.draft(draw, 0.5, 8)
    hint = (
        "0.9, 0.9 x 0.7 = 0.63, 0.63 x 0.6 = 0.378: the third token makes it fall below 0.5, and is the last"
    )
    true(found == [7, 8, 9], f"{hint}\n  yours: {found}")
    true(given == [[], [7], [7, 8]], f"draw gets all tokens so far: [], [7], [7, 8]; it got {given}")


def test_at_most_so_many(answer: ModuleType) -> None:
    draw, given = script(*[(1, 1.0)] * 9)
    found = answer.draft(draw, 0.5, 3)
    true(found == [1, 1, 1], f"a drafter that is certain drafts `most` = 3 tokens\n  yours: {found}")
    true(len(given) == 3, f"it was asked for {len(given)} tokens: none may be drawn in vain")


def test_at_least_one(answer: ModuleType) -> None:
    found = answer.draft(script((4, 0.1), (4, 0.1))[0], 0.5, 3)
    true(found == [4], f"the first token is kept, however unsure the drafter is of it\n  yours: {found}")


@pytest.mark.parametrize("least", [0.1, 0.25, 0.4, 0.9])
def test_lossless(answer: ModuleType, least: float) -> None:
    found = first_token(answer, least, 3)
    close(
        torch.tensor(found),
        P,
        "the first token of the text has not the target's distribution: was a drawn token dropped?",
    )
