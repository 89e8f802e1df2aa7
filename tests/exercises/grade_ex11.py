"""Grader of exercise 11."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

pytestmark = [pytest.mark.exercises, pytest.mark.ex11]


def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    return p, q


def test_accept_by_hand(answer: ModuleType) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.25, 0.6, 0.0, 0.15])
    hint = "0.5 / 0.25 is above 1, and a probability is not; 0.3 / 0.6; never drawn: 1; never wanted: 0"
    close(answer.accept_probability(p, q), [1.0, 0.5, 1.0, 0.0], hint)
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    close(answer.accept_probability(p, q), [1.0, 1.0], "p and q both 0 for the second token: 1, not 0 / 0")


def test_residual_by_hand(answer: ModuleType) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.7, 0.1])
    close(answer.residual(p, q), [0.75, 0.0, 0.25], "max(p - q, 0) is 0.3, 0, 0.1; divided by its sum 0.4")


def test_nothing_is_left_where_both_agree(answer: ModuleType) -> None:
    p, _ = pair(0)
    close(answer.residual(p, p), p, "p = q: nothing is ever rejected; return p, not 0 / 0")


@pytest.mark.parametrize("seed", range(4))
def test_both_together_give_p(answer: ModuleType, seed: int) -> None:
    p, q = pair(seed)
    accept, left = answer.accept_probability(p, q), answer.residual(p, q)
    out = q * accept + (1 - (q * accept).sum()) * left
    close(out, p, "q accept + P(rejected) residual is what comes out: it must be p, token for token")
    true(bool((left >= 0).all()), "a distribution has no number below 0")
