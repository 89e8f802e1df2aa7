"""The Hessian of a layer: its fast form, and its factor in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.methods.hessian import factorize, gram, hessian, invert

COLUMNS, ROWS = 12, 5
ORDER = torch.tensor([3, 0, 11, 7, 1, 10, 2, 9, 4, 8, 6, 5])


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    return torch.randn(60, COLUMNS, generator=generator, dtype=torch.float64) @ mixing


def weights() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 255, 256, 257, 1100])
def test_gram_is_the_product(width: int) -> None:
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    torch.testing.assert_close(gram(rows), rows.T @ rows)


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
