"""Grader of exercise 5."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close
from torch import Tensor

from qlib.methods.hessian import inverse_factor

pytestmark = [pytest.mark.exercises, pytest.mark.ex05]


def matrix(scale: float = 1.0) -> Tensor:
    X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * X.T @ X


def test_it_is_upper_triangular(answer: ModuleType) -> None:
    U = answer.upper_factor(matrix())
    close(U, U.triu(), "below the diagonal of an upper triangular matrix all numbers are 0")


def test_its_square_is_the_inverse(answer: ModuleType) -> None:
    U = answer.upper_factor(matrix(), 0.0)
    close(U.T @ U @ matrix(), torch.eye(8), "without damping U^T U H = I (not U U^T, and not H itself)")


def test_damping_is_a_share_of_the_mean(answer: ModuleType) -> None:
    for scale in (1.0, 1000.0):
        H = matrix(scale)
        U = answer.upper_factor(H, 0.1)
        damped = H + 0.1 * H.diagonal().mean() * torch.eye(8)
        close(
            U.T @ U @ damped,
            torch.eye(8),
            "add d mean(diag H) to the diagonal: H times 1000 needs 1000 times as much",
        )


def test_it_works_with_fewer_tokens_than_inputs(answer: ModuleType) -> None:
    X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(
        answer.upper_factor(X.T @ X),
        inverse_factor(X.T @ X),
        "3 tokens for 8 inputs: only damping makes H regular",
    )
