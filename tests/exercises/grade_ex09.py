"""Grader of exercise 9."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

from qlib.grid import Grid
from qlib.methods.omniquant import fake_quant_plain

pytestmark = [pytest.mark.exercises, pytest.mark.ex09]


def gradients(answer: ModuleType) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients for w and u of the answer, and of the library."""
    generator = torch.Generator().manual_seed(0)
    w, by = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    u = torch.tensor([[-0.5], [0.5], [1.0], [3.0]], dtype=torch.float64)
    found = []
    for function in (
        lambda w, u: answer.fake_quant(w, u, 3),
        lambda w, u: fake_quant_plain(w, Grid(3, symmetric=True), u),
    ):
        w, u = w.detach().requires_grad_(), u.detach().requires_grad_()
        values = function(w, u)
        true(values.requires_grad, "no gradient leads from the values to w or u: where was it detached?")
        grads = torch.autograd.grad((values * by).sum(), (w, u), allow_unused=True)
        true(grads[1] is not None, "no gradient reaches u: m and scale both depend on it")
        true(grads[0] is not None, "no gradient reaches w")
        found += grads
    return found[0], found[1], found[2], found[3]


def test_round_keeps_its_value_and_has_the_gradient_one(answer: ModuleType) -> None:
    x = torch.tensor([-1.4, 0.4, 0.6, 2.0], requires_grad=True)
    y = answer.round_ste(x)
    close(y, [-1.0, 0.0, 1.0, 2.0], "the value is round(x)")
    true(y.requires_grad, "the result has no gradient: detach only what is added to x")
    (grad,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), x)
    close(grad, [1.0, 2.0, 3.0, 4.0], "the gradient of round_ste(x) is that of x itself, 1 (and not 0 or 2)")


def test_values(answer: ModuleType) -> None:
    w, u = torch.tensor([[-4.0, 0.3, 1.2, 2.0]]), torch.zeros(1, 1)
    close(
        answer.fake_quant(w, u, 3),
        [[-2.0, 0.0, 4 / 3, 2.0]],
        "u = 0 halves the range: m = 2, scale 2/3; -4 is cut to -2",
    )


def test_gradients_as_the_library(answer: ModuleType) -> None:
    of_w, of_u, right_w, right_u = gradients(answer)
    close(of_u, right_u, "the gradient for u: by the scale, and by the weights that are cut off")
    close(of_w, right_w, "the gradient for w: 1 inside of the range; max|w| passes one too")
