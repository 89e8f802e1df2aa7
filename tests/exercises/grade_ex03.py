"""Grader of exercise 3."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close

pytestmark = [pytest.mark.exercises, pytest.mark.ex03]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hessian_by_hand(answer: ModuleType) -> None:
    X = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    close(
        answer.hessian(X), [[10, 2], [2, 5]], "H_ij is the sum over the tokens of x_i x_j: [inputs, inputs]"
    )


def test_batches_add_up(answer: ModuleType) -> None:
    one, two = numbers(30, 5), numbers(9, 5, seed=1)
    both = answer.hessian(torch.cat([one, two]))
    close(answer.hessian(one) + answer.hessian(two), both, "H is a sum over tokens, not a mean")


def test_error_is_that_of_the_outputs(answer: ModuleType) -> None:
    X, D = numbers(40, 6), numbers(3, 6, seed=1)
    right = (X @ D.T).square().sum()
    close(answer.output_error(D, X.T @ X), right, "tr (D H D^T) is the sum of the squares of X D^T")
