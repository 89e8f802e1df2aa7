"""The Hessian of a layer: its fast form, its factor in any order, and what is checked of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.checks import check_damping, check_layer, check_layer_stats, with_token_note
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.hessian import factorize, gram, hessian, invert
from qlib.quantized_weight import QuantizedWeight

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


class TestChecks:
    def test_layer(self) -> None:
        W, H = weights(), hessian(data()).float()
        assert check_layer(W, H.requires_grad_(), Grid(3)).dtype == torch.float64
        assert not check_layer(W, H, Grid(3)).requires_grad
        with pytest.raises(QuantError, match=r"Hessian of shape \(11, 11\) for 12 inputs"):
            check_layer(W, H[1:, 1:], Grid(3))
        with pytest.raises(QuantError, match="group=13 is larger than the 12 columns"):
            check_layer(W, H, Grid(3, 13))
        with pytest.raises(QuantError, match="cannot be quantized"):
            check_layer(W[0], H, Grid(3))

    @pytest.mark.parametrize("damping", [-1e-9, float("nan"), float("inf")])
    def test_damping(self, damping: float) -> None:
        check_damping(0, "ANY")
        with pytest.raises(QuantError, match=f"damping={damping} in ANY"):
            check_damping(damping, "ANY")

    def test_missing_hessian(self) -> None:
        W, H = weights(), hessian(data())
        (found,) = check_layer_stats(LayerStats(60, H), W, Needs.HESSIAN, "ANY")
        assert found is H
        with pytest.raises(QuantError, match="ANY got statistics without a Hessian"):
            check_layer_stats(LayerStats(60), W, Needs.HESSIAN, "ANY")

    @pytest.mark.parametrize(
        ("tokens", "note"),
        [
            (0, "0 tokens for 12 inputs: the Hessian has rank 0 at most"),
            (11, "11 tokens for 12 inputs: the Hessian has rank 11 at most"),
            (12, "12 tokens for 12 inputs: so few leave much to chance. Calibrate on 48 or more"),
            (47, "47 tokens for 12 inputs: so few leave much to chance. Calibrate on 48 or more"),
            (48, None),
        ],
    )
    def test_note_on_tokens(self, tokens: int, note: str | None) -> None:
        codes = torch.zeros(ROWS, COLUMNS, dtype=torch.uint8)
        notes = with_token_note(QuantizedWeight(codes, torch.ones(ROWS, 1), notes=("x",)), tokens).notes
        assert notes[-1] == "x"
        assert len(notes) == 1 if note is None else notes[0].startswith(note)
