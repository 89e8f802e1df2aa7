"""Linear layers that compute in another layout for a while: the same numbers, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qlib
from qlib.methods.rtn import rtn
from qlib.models.fast import laid_out as module
from qlib.models.fast.laid_out import laid_out

GRID = qlib.Grid(4, 8)


class Doubled(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    plain = nn.Linear(16, 24)
    rounded = qlib.FakeQuantLinear.from_linear(second := nn.Linear(24, 16), rtn(second.weight, GRID), GRID)
    inputs = qlib.FakeQuantLinear.from_linear(
        third := nn.Linear(16, 8, bias=False), rtn(third.weight, GRID), GRID, qlib.PerToken(8)
    )
    return nn.Sequential(plain, nn.GELU(), rounded, inputs, Doubled(8, 4))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 3))
def test_outputs_are_those_of_the_plain_layers(rows: int, batch: int) -> None:
    model = layers()
    x = torch.randn(batch, rows, 16, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        expected = model(x)
        with laid_out(model):
            found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_it_does_compute_by_other_means_and_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            used.append(len(weight))
            return nn.functional.linear(x, weight, bias)

        return run

    monkeypatch.setattr(module, "reordered_product", product)
    model = layers()
    with pytest.raises(ZeroDivisionError), laid_out(model):
        model(torch.ones(2, 16))
        assert used == [24, 16, 8], "a subclass with a `forward` of its own computes that"
        raise ZeroDivisionError
    model(torch.ones(2, 16))
    assert len(used) == 3
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_inside_of_itself_and_beside_a_forward_of_somebody_else() -> None:
    model = layers()
    model[0].forward = lambda x: torch.zeros(len(x), 24)  # type: ignore[method-assign, assignment]
    with laid_out(model):
        with laid_out(model):
            pass
        assert "forward" in vars(model[2]), "the outer one goes on"
        assert not model[0](torch.ones(2, 16)).any()
    assert "forward" not in vars(model[2]) and "forward" in vars(model[0])


def test_hooks_see_inputs_and_outputs() -> None:
    model, seen = layers(), []
    model[2].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape))
    with laid_out(model):
        model(torch.ones(2, 16))
    assert seen == [(2, 24)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_as_they_are(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 8)).to(dtype)
    with laid_out(model):
        assert "forward" not in vars(model[0])
