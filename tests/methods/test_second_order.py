"""What the second-order methods share: the factor in any order, compensation as least squares, the walk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.contracts import LayerStats
from qlib.methods.hessian import (
    Layer,
    OnGrid,
    check_damping,
    check_layer,
    factorize,
    hessian,
    invert,
    known_hessian,
    walk,
    with_token_note,
)
from qlib.quantized_weight import QuantizedWeight

COLUMNS, ROWS = 12, 5
ORDER = torch.tensor([3, 0, 11, 7, 1, 10, 2, 9, 4, 8, 6, 5])


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    return torch.randn(60, COLUMNS, generator=generator, dtype=torch.float64) @ mixing


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def damped(H: Tensor, damping: float) -> Tensor:
    return H + damping * H.diagonal().mean() * torch.eye(len(H))


class TestFactor:
    @pytest.mark.parametrize("order", [torch.arange(COLUMNS), ORDER], ids=["natural", "shuffled"])
    def test_is_the_triangle_of_the_damped_hessian_in_order(self, order: Tensor) -> None:
        H = hessian(data())
        before = H.clone()
        R = factorize(H, order, 0.1)
        assert torch.equal(R, R.triu())
        torch.testing.assert_close(R @ R.T, damped(H, 0.1)[order][:, order])
        torch.testing.assert_close(invert(R) @ R, torch.eye(COLUMNS, dtype=torch.float64))
        assert torch.equal(H, before)

    def test_names_the_original_column(self) -> None:
        inputs = data()
        inputs[:, 2] = inputs[:, 9]  # 2 is visited before 9, so 2 is what 9 and the rest already explain
        with pytest.raises(QuantError, match="not positive definite at column 2 of 12"):
            factorize(hessian(inputs), ORDER, 0.0)


class TestLayer:
    def test_columns_lie_in_the_order_of_the_visit(self) -> None:
        W = weights(torch.bfloat16)
        layer = Layer.of(W, hessian(data()), ORDER, 0.01)
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, W.float().T[ORDER])
        assert torch.equal(layer.restore(layer.weight).T, W.float())
        assert (layer.change == 0).all()
        assert layer.notes == ()

    def test_weights_of_dead_inputs_are_zero_and_noted(self) -> None:
        inputs, W = data(), weights()
        inputs[:, [0, 4]] = 0
        layer = Layer.of(W, hessian(inputs), ORDER, 0.01)
        assert (layer.restore(layer.weight)[[0, 4]] == 0).all()
        assert layer.notes == ("2 of 12 inputs were 0 for every token: their weights count as 0",)
        assert (W != 0).all()

    @pytest.mark.parametrize("part", [slice(0, 3), slice(4, 7), slice(9, 12)])
    def test_compensated_columns_solve_the_least_squares_problem(self, part: slice) -> None:
        """Those columns alone and all later ones are free; the earlier ones are fixed at other values."""
        W, H = weights(), hessian(data())
        layer = Layer.of(W, H, ORDER, 0.1)
        layer.change[: part.start] = torch.randn(part.start, ROWS, dtype=torch.float64)
        first, free = ORDER[: part.start], ORDER[part.start :]
        A = damped(H, 0.1)
        moved = torch.linalg.solve(A[free][:, free], A[free][:, first] @ layer.change[: part.start])
        expected = (W.T[free] + moved)[: part.stop - part.start]
        torch.testing.assert_close(layer.compensated(part, layer.owed(part)), expected)


class TestWalk:
    @pytest.mark.parametrize("block", [1, 2, 5, 128])
    def test_calls(self, block: int) -> None:
        layer = Layer.of(weights(), hessian(data()), ORDER, 0.01)
        calls: list[object] = []
        fitted: dict[int, Tensor] = {}

        def fit(group: slice, weight: Tensor) -> None:
            calls.append(group)
            fitted.update({group.start + k: column.clone() for k, column in enumerate(weight)})

        def keep(column: int, weight: Tensor) -> Tensor:
            calls.append(column)
            if column in (0, 4, 8):  # the first of its group: as it was when the group was fitted
                torch.testing.assert_close(weight, fitted[column])
            return weight.round()

        groups = Grid(3, 4).slices(10)  # the last two columns are not rounded
        walk(layer, groups, fit, keep, block)
        assert calls == [groups[0], 0, 1, 2, 3, groups[1], 4, 5, 6, 7, groups[2], 8, 9]
        assert torch.equal((layer.weight - layer.change)[:10], (layer.weight - layer.change)[:10].round())
        assert (layer.change[10:] == 0).all()

    def test_nothing_moves_where_nothing_is_rounded(self) -> None:
        layer = Layer.of(weights(), hessian(data()), ORDER, 0.01)
        seen = []

        def keep(column: int, weight: Tensor) -> Tensor:
            seen.append(weight)
            return weight

        walk(layer, [slice(0, COLUMNS)], lambda group, weight: None, keep)
        torch.testing.assert_close(torch.stack(seen), layer.weight, rtol=0, atol=0)
        assert (layer.change == 0).all()

    def test_block_size_is_a_matter_of_speed(self) -> None:
        changes = []
        for block in (1, 3, 128):
            layer = Layer.of(weights(), hessian(data()), ORDER, 0.01)
            walk(layer, Grid(3, 5).slices(COLUMNS), lambda g, w: None, lambda c, w: w.round(), block)
            changes.append(layer.change)
        torch.testing.assert_close(changes[0], changes[1])
        torch.testing.assert_close(changes[0], changes[2])

    def test_groups_fitted_before_are_not_fitted_again(self) -> None:
        layer = Layer.of(weights(), hessian(data()), ORDER, 0.01)
        on_grid = OnGrid(layer, Grid(3, 4), "minmax", Grid(3, 4).group_index(COLUMNS))
        on_grid.fit_all(weights(), Grid(3, 4))
        on_grid.fit_group(slice(0, 4), 100 * layer.weight[:4])
        on_grid.fit_group(slice(8, 12), 100 * layer.weight[8:])
        assert on_grid.result().scale.shape == (ROWS, 3)
        assert on_grid.result().scale.max() < 5


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
        H = hessian(data())
        assert known_hessian(LayerStats(60, H), "ANY") is H
        with pytest.raises(QuantError, match="ANY got statistics without a Hessian"):
            known_hessian(LayerStats(60), "ANY")

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
