"""Grader of exercise 4."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true
from torch import Tensor

from qlib.grid import Grid, fit_minmax, round_to_nearest
from qlib.methods.hessian import inverse_factor
from qlib.testing import gptq_column_by_column

pytestmark = [pytest.mark.exercises, pytest.mark.ex04]
BITS = 3


def layer(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that repeat one another."""
    generator = torch.Generator().manual_seed(seed)
    W, mixing = (torch.randn(8, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    more = torch.randn(100, 12, generator=generator, dtype=torch.float64)
    return W, torch.randn(100, 8, generator=generator, dtype=torch.float64) @ mixing + 0.3 * more


def run(answer: ModuleType, W: Tensor, U: Tensor) -> Tensor:
    params = fit_minmax(W, Grid(BITS))
    assert params.zero is not None
    found: Tensor = answer.gptq(W, U, params.scale[:, 0], params.zero[:, 0].to(W), BITS)
    return found


def test_without_correlation_it_is_rounding_to_nearest(answer: ModuleType) -> None:
    W, _ = layer()
    found = run(answer, W, torch.eye(12, dtype=torch.float64))
    close(found, round_to_nearest(W, Grid(BITS)), "with U = I no column moves: each is rounded as it is")


def test_one_column_moves_the_next(answer: ModuleType) -> None:
    U = torch.tensor([[2.0, 6.0], [0.0, 1.0]])
    found = answer.gptq(torch.tensor([[0.75, 1.0]]), U, torch.tensor([0.5]), torch.tensor([0.0]), 4)
    hint = (
        "w_0 = 0.75 becomes 1 (0.75 / 0.5 = 1.5, to even: 2), e = -0.25 / 2, w_1 = 1 + 6/8 = 1.75, that is 2"
    )
    close(found, [[1.0, 2.0]], hint)


@pytest.mark.parametrize("seed", range(3))
def test_as_gptq(answer: ModuleType, seed: int) -> None:
    W, X = layer(seed)
    H = X.T @ X
    found = run(answer, W, inverse_factor(H))
    close(
        found,
        gptq_column_by_column(W, H, Grid(BITS)),
        "an oracle that inverts H anew for each column has other values",
    )
    errors = [
        float((X @ (values - W).T).square().sum()) for values in (found, round_to_nearest(W, Grid(BITS)))
    ]
    true(
        errors[0] < errors[1],
        f"the output error {errors[0]:.4g} is not below that of rounding to nearest, {errors[1]:.4g}",
    )


def test_the_weight_stays(answer: ModuleType) -> None:
    W, X = layer()
    before = W.clone()
    run(answer, W, inverse_factor(X.T @ X))
    close(W, before, "W was changed: begin with W = W.clone()")
