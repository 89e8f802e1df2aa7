"""Grader of exercise 7."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

pytestmark = [pytest.mark.exercises, pytest.mark.ex07]


def test_scale_by_hand(answer: ModuleType) -> None:
    max_x, W = torch.tensor([16.0, 1.0]), torch.tensor([[0.25, -1.0], [0.1, 0.5]])
    close(
        answer.smoothing_scale(max_x, W, 0.5),
        [8.0, 1.0],
        "sqrt(16) / sqrt(0.25), and 1 / 1: |W_j| is a column's largest",
    )
    close(
        answer.smoothing_scale(max_x, W, 1.0),
        [16.0, 1.0],
        "alpha = 1 moves all of max|x|: every input then has the range 1",
    )
    close(
        answer.smoothing_scale(max_x, W, 0.0),
        [4.0, 1.0],
        "alpha = 0: 1 / max|W_j|, so that all columns have the range 1",
    )


def test_an_input_that_is_always_zero(answer: ModuleType) -> None:
    found = answer.smoothing_scale(torch.tensor([4.0, 0.0]), torch.tensor([[1.0, 1.0]]), 0.5)
    close(found, [2.0, 1.0], "max|x| = 0 keeps the scale 1: otherwise the norm would divide by 0")


def test_the_function_stays(answer: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    n, W = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((50, 6), (4, 6)))
    g, b = torch.linspace(1, 30, 6).double(), torch.linspace(-1, 1, 6).double()
    x = g * n + b
    s = answer.smoothing_scale(x.abs().amax(0), W, 0.5)
    new_g, new_b, new_W = answer.fold(g, b, W, s)
    smooth = new_g * n + new_b
    close(
        smooth @ new_W.T,
        x @ W.T,
        "the outputs have changed: gain and bias are divided by s, the columns of W times s",
    )
    close(smooth, x / s, "the inputs of the layer should now be x / s")
    ranges = smooth.abs().amax(0) / new_W.abs().amax(0)
    true(
        bool(ranges.allclose(torch.ones(6).double())),
        "at alpha = 0.5 each input has the range of its column of W",
    )
