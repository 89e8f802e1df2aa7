"""Grader of exercise 12."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true
from torch import Tensor

pytestmark = [pytest.mark.exercises, pytest.mark.ex12]
N = 40_000


def uniform(seed: int, V: int = 4) -> Tensor:
    return torch.rand(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(
        1e-12, 1 - 1e-12
    )


P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def test_noise(answer: ModuleType) -> None:
    close(
        answer.gumbel(torch.tensor([0.5])),
        [0.366513],
        "-log(-log 0.5) = 0.3665: two logarithms, two minus signs",
        1e-5,
    )
    mean = float(answer.gumbel(uniform(0)).mean())
    true(abs(mean - 0.5772) < 0.02, f"the mean of Gumbel noise is 0.577, yours is {mean:.3f}")


def test_each_token_is_drawn_as_often_as_p_says(answer: ModuleType) -> None:
    chosen = answer.choose(P.log().expand(N, 4), uniform(1))
    counts = torch.bincount(chosen, minlength=4) / N
    close(counts, P, "the shares of the four tokens in 40,000 draws: argmax (log p + g), not p + g", 0.012)


def test_one_token_for_each_row(answer: ModuleType) -> None:
    log_p = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)
    close(answer.choose(log_p, torch.full((2, 2), 0.5).double()), [0, 1], "each row has its own distribution")


def test_both_agree_more_often_than_by_chance(answer: ModuleType) -> None:
    u, log_p, log_q = uniform(2), P.log().expand(N, 4), Q.log().expand(N, 4)
    close(
        answer.agreement(log_p, log_p, u),
        1.0,
        "the same distribution and the same noise: always the same token",
    )
    share, apart = answer.agreement(log_p, log_q, u), float((P - Q).abs().sum()) / 2
    least, most = (1 - apart) / (1 + apart), 1 - apart
    true(
        least - 0.01 < share < most + 0.01,
        f"they agree in {share:.3f} of the draws; the same u gives {least:.3f} to {most:.3f}",
    )
