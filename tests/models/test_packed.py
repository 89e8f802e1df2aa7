"""The prepacked map against F.linear, with and without the operators."""

from __future__ import annotations

import pytest
import torch

from qlib.models import packed
from qlib.models.packed import can_pack, packed_linear


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
def test_equals_the_ordinary_product(rows: int) -> None:
    weight, x = torch.randn(100, 48), torch.randn(rows, 48)
    torch.testing.assert_close(packed_linear(weight, 8)(x), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_ordinary_product(dtype: torch.dtype) -> None:
    weight, x = torch.randn(10, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    assert torch.equal(packed_linear(weight, 3)(x), torch.nn.functional.linear(x, weight))


def test_without_the_operators_the_ordinary_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOperators:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    can_pack.cache_clear()
    weight, x = torch.randn(10, 4), torch.randn(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(packed.torch, "ops", NoOperators())
        assert not can_pack()
        assert torch.equal(packed_linear(weight, 3)(x), torch.nn.functional.linear(x, weight))
    can_pack.cache_clear()
