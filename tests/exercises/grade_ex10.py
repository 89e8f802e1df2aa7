"""Grader of exercise 10."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true
from torch import Tensor

from qlib.grid import Grid, round_to_nearest

pytestmark = [pytest.mark.exercises, pytest.mark.ex10]


def layer() -> tuple[Tensor, Tensor]:
    """A weight with a few large entries, and inputs of different sizes."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    X = torch.randn(200, 64, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 64).double()
    W.view(-1)[::41] *= 12
    return W, X


def test_how_many_at_equal_bits(answer: ModuleType) -> None:
    close(answer.outliers_for(32, 64, 4, 3), 64, "32 x 64 weights save 2048 bits, and an outlier takes 32")
    close(answer.outliers_for(10, 10, 4, 3), 3, "100 bits are 3 outliers and 4 bits left over: round down")
    close(answer.outliers_for(32, 64, 4, 2), 128, "two bits less per code are twice as many outliers")


def test_the_most_costly_are_kept(answer: ModuleType) -> None:
    W, h = torch.tensor([[3.0, -1.0, 0.5], [0.1, 2.0, -4.0]]), torch.tensor([1.0, 16.0, 1.0])
    found = answer.pick(W, h, 3)
    right = [[False, True, False], [False, True, True]]
    close(
        found, right, "w^2 H_jj are 9, 16, 0.25 / 0.01, 64, 16: the 3 largest of the matrix, not of each row"
    )


def test_the_others_have_the_grid_to_themselves(answer: ModuleType) -> None:
    W, kept = torch.tensor([[1.0, -0.4, 30.03]]), torch.tensor([[False, False, True]])
    found = answer.rounded(W, kept, 2)
    close(found[:, :2], [[0.933333, -0.466667]], "the range is -0.4 to 1: the 30 must not stretch it", 1e-5)
    close(found[:, 2:], [[30.03125]], "what is kept is stored in float16: 30.03 becomes 30.03125")


def test_better_at_equal_bits(answer: ModuleType) -> None:
    W, X = layer()
    kept = answer.pick(W, X.square().sum(0), answer.outliers_for(*W.shape, 4, 3))
    found = [
        float((X @ (each - W).T).square().sum())
        for each in (answer.rounded(W, kept, 3), round_to_nearest(W, Grid(4)))
    ]
    true(
        found[0] < found[1],
        f"3 bits and outliers have the error {found[0]:.4g}, 4 bits without {found[1]:.4g}: not better",
    )
