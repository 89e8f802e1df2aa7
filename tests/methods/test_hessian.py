"""The Hessian, its fast form, and its triangular factor in any order of the columns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.methods.hessian import factorize, gram, hessian, invert

COLUMNS = 12
ORDER = torch.tensor([3, 0, 11, 7, 1, 10, 2, 9, 4, 8, 6, 5])


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    return torch.randn(60, COLUMNS, generator=generator, dtype=torch.float64) @ mixing


class TestFastForm:
    @pytest.mark.parametrize("width", [1, 127, 129, 300, 2100])
    def test_agrees_with_the_plain_one(self, width: int) -> None:
        rows = torch.randn(9, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(gram(rows), hessian(rows), rtol=1e-12, atol=1e-12)
        single = gram(rows.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), hessian(rows), rtol=1e-4, atol=1e-4)

    def test_is_symmetric_to_the_last_bit(self) -> None:
        product = gram(torch.randn(50, 300, generator=torch.Generator().manual_seed(0)))
        below = product.tril(-1)
        assert torch.equal(below[256:, :256], product.T[256:, :256])


class TestFactor:
    @pytest.mark.parametrize("order", [torch.arange(COLUMNS), ORDER], ids=["natural", "shuffled"])
    def test_is_the_triangle_of_the_damped_hessian_in_order(self, order: Tensor) -> None:
        H = hessian(data())
        before = H.clone()
        R = factorize(H, order, 0.1)
        assert torch.equal(R, R.triu())
        damped = H + 0.1 * H.diagonal().mean() * torch.eye(COLUMNS)
        torch.testing.assert_close(R @ R.T, damped[order][:, order])
        torch.testing.assert_close(invert(R) @ R, torch.eye(COLUMNS, dtype=torch.float64))
        assert torch.equal(H, before)

    def test_names_the_original_column(self) -> None:
        inputs = data()
        inputs[:, 2] = inputs[:, 9]  # 2 is visited before 9, so 2 is what 9 and the rest already explain
        with pytest.raises(QuantError, match="not positive definite at column 2 of 12"):
            factorize(hessian(inputs), ORDER, 0.0)
