"""Low-rank adapters: worked by hand, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learners import draft
from torch import nn

from draftlib.learning.lora import LoRALinear, add_lora


def layer(bias: bool = True, alpha: float | None = 2.0) -> LoRALinear:
    """W = [[1, 2], [3, 4]], A = [[1, -1]], B = [[0], [5]]."""
    linear = nn.Linear(2, 2, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        if bias:
            linear.bias.copy_(torch.tensor([10.0, 20.0]))
    found = LoRALinear(linear, 1, torch.Generator(), alpha)
    with torch.no_grad():
        found.a.copy_(torch.tensor([[1.0, -1.0]]))
        found.b.copy_(torch.tensor([[0.0], [5.0]]))
    return found


def test_worked_by_hand() -> None:
    """B A = [[0, 0], [5, -5]], times alpha / r = 2."""
    found = layer()
    assert found(torch.tensor([1.0, 0.0])).tolist() == [11.0, 33.0]
    assert found.folded().weight.tolist() == [[1.0, 2.0], [13.0, -6.0]]
    assert found.folded().bias.tolist() == [10.0, 20.0]
    assert layer(alpha=None).folded().weight.tolist() == [[1.0, 2.0], [8.0, -1.0]]
    assert layer(bias=False).folded().bias is None


@given(st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_folded_computes_the_same(rank: int, seed: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = LoRALinear(nn.Linear(7, 6, bias=bias).double(), rank, generator, alpha=3.0)
    with torch.no_grad():
        found.b.copy_(torch.randn(found.b.shape, generator=generator))
    x = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    assert torch.allclose(found(x), found.folded().double()(x), rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_adapter_only() -> None:
    found = layer()
    found(torch.tensor([1.0, 0.0])).sum().backward()
    assert found.linear.weight.grad is None
    assert found.a.grad is not None and found.a.grad.tolist() == [[10.0, 0.0]]
    assert found.b.grad is not None and found.b.grad.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("rank", [1, 4])
def test_the_same_seed_begins_with_the_same_adapter(rank: int) -> None:
    one, two, other = (add_lora(draft(), rank, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
    assert len(one) == 2 * 2 * 7 and all(not bool(b.any()) for b in one[1::2])  # 2 blocks of 7 layers
