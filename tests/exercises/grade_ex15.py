"""Grader of exercise 15."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

from draftlib.learning.distill import compress
from draftlib.learning.distill import reverse_kl as library

pytestmark = [pytest.mark.exercises, pytest.mark.ex15]
DIRECT = torch.tensor([2, -1, 0, 2])  # two draft tokens become target token 2; nothing becomes 1 or 3


def test_lift(answer: ModuleType) -> None:
    found = answer.lift(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), DIRECT, 4)
    hint = (
        "token 2 gets 0.1 + 0.4 of two draft tokens, token 0 gets 0.3; 0.2 has no counterpart: the last event"
    )
    close(found, [[0.3, 0.0, 0.5, 0.0, 0.2]], hint)


def test_reachable(answer: ModuleType) -> None:
    found = answer.reachable(torch.tensor([[0.4, 0.3, 0.2, 0.1]]), DIRECT)
    close(found, [[0.4, 0.0, 0.2, 0.0, 0.4]], "no draft token becomes 1 or 3: their 0.4 are the last event")


def test_reverse_kl_by_hand(answer: ModuleType) -> None:
    q, p = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    hint = "0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75): weighted by q', and q' above p'"
    close(answer.reverse_kl(q, p, torch.tensor([0, 1])), [0.143841], hint, 1e-5)


def test_equal_is_zero(answer: ModuleType) -> None:
    q, p = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.3, 0.1, 0.5, 0.1]])
    close(
        answer.reverse_kl(q, p, DIRECT),
        [0.0],
        "q' = p' = 0.3, 0.5 and 0.2 for all others: the divergence is 0",
    )


def test_as_the_library(answer: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    right = library(logits, compress(target, 4), DIRECT, 4)
    found = answer.reverse_kl(logits.softmax(-1), target.softmax(-1), DIRECT)
    close(
        found, right, "draftlib.learning.distill.reverse_kl of random rows (its p is stored in float16)", 2e-3
    )
    true(bool((found >= 0).all()), "a divergence is never below 0")
