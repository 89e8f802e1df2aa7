"""Grader of exercise 8."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true
from torch import Tensor

from qlib.grid import Grid, round_to_nearest
from qlib.methods.awq import awq_scale

pytestmark = [pytest.mark.exercises, pytest.mark.ex08]


def layer() -> tuple[Tensor, Tensor]:
    """A weight, and inputs two of which are 20 times larger."""
    generator = torch.Generator().manual_seed(0)
    W, X = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (12, 200))
    X[:, [2, 9]] *= 20
    X[0, 5] = 60.0  # one large value: the mean hardly sees it
    return W, X


def test_alpha_zero_is_rounding_to_nearest(answer: ModuleType) -> None:
    W, X = layer()
    right = (X @ (round_to_nearest(W, Grid(3)) - W).T).square().sum()
    close(
        answer.best_alpha(W, X, 3)[1][0],
        right,
        "alpha = 0 means s = 1: the loss is that of rounding to nearest",
    )


def test_losses_as_the_library(answer: ModuleType) -> None:
    W, X = layer()
    _, right = awq_scale([W], X.T @ X, X.abs().mean(0), Grid(3))
    close(
        answer.best_alpha(W, X, 3)[1],
        right,
        "a is the mean of |x|; what is scaled up must be scaled back; outputs count",
    )


def test_the_smallest_loss_wins(answer: ModuleType) -> None:
    W, X = layer()
    alpha, losses = answer.best_alpha(W, X, 3, 10)
    true(len(losses) == 10, f"10 points, and {len(losses)} losses")
    close(alpha, int(losses.argmin()) / 10, "point k is alpha = k / points")
    true(bool(losses.min() < losses[0]), "with two large inputs some alpha is better than 0")
