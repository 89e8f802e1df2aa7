"""Grader of exercise 6."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close

from qlib.grid import Grid, fit_float_zero, to_codes_float_zero, to_values
from qlib.methods.hqq import hqq_steps

pytestmark = [pytest.mark.exercises, pytest.mark.ex06]


def test_shrink_by_hand(answer: ModuleType) -> None:
    found = answer.shrink(torch.tensor([-2.0, 0.1, 0.5, 3.0]), 1.0, 2.0)
    close(
        found,
        [-1.5, 0.0, 0.0, 2.5],
        "p = 1, beta = 2: 1/2 nearer to 0, and 0 where |R| is below 1/2; the sign stays",
    )


def test_shrink_of_nothing_is_nothing(answer: ModuleType) -> None:
    close(
        answer.shrink(torch.zeros(3), 0.7, 10.0),
        [0.0, 0.0, 0.0],
        "R = 0 gives 0, not NaN: |0|^(p-1) is infinite",
    )


def test_zero_by_hand(answer: ModuleType) -> None:
    W, q = torch.tensor([[1.0, 3.0], [4.0, 8.0]]), torch.tensor([[2.0, 3.0], [1.0, 3.0]])
    E, s = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    hint = "row 1: mean of 2 - 1/1 and 3 - (3 - 1)/1; row 2: mean of 1 - 4/2 and 3 - 8/2"
    close(answer.new_zero(W, q, E, s), [[1.0], [-1.0]], hint)


def test_one_iteration_of_hqq(answer: ModuleType) -> None:
    W = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    params = fit_float_zero(W, Grid(3))
    s, z = params.per_column()
    assert z is not None
    q = to_codes_float_zero(W, s, z, Grid(3))
    E = answer.shrink(W - to_values(q, s, z), 0.7, 10.0)
    steps = list(hqq_steps(W, Grid(3)))
    close(
        answer.new_zero(W, q, E, s),
        steps[1].zero,
        "the zero points after one iteration of qlib.methods.hqq.hqq_steps",
    )
