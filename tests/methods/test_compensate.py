"""Columns that make up for one another: least squares as the oracle, and what a method may rely on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.grid import Grid, fit_scale
from qlib.methods.compensate import Compensated, assemble, fit_groups, in_order, visiting_order
from qlib.methods.hessian import hessian, inverse_factor

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


def start(damping: float = 0.01) -> Compensated:
    return Compensated(weights(), hessian(data()), ORDER, damping)


class TestOrder:
    def test_from_left_to_right_or_largest_first(self) -> None:
        H = torch.tensor([2.0, 5.0, 0.0, 5.0]).diag()
        assert visiting_order(H, False).tolist() == [0, 1, 2, 3]
        assert visiting_order(H, True).tolist() == [1, 3, 0, 2]  # equal ones stay in order

    def test_columns_lie_in_the_order_of_the_visit(self) -> None:
        W = weights(torch.bfloat16)
        compensated = Compensated(W, hessian(data()), ORDER, 0.01)
        assert compensated.weight.dtype == torch.float32
        assert torch.equal(compensated.weight, W.float().T[ORDER])
        assert torch.equal(compensated.in_original_order(compensated.weight).T, W.float())
        assert (compensated.error == 0).all()
        assert compensated.notes == ()

    def test_weights_of_dead_inputs_are_zero_and_noted(self) -> None:
        inputs, W = data(), weights()
        inputs[:, [0, 4]] = 0
        ordered, notes = in_order(W, hessian(inputs), ORDER)
        assert (ordered[ORDER.argsort()][[0, 4]] == 0).all()
        assert notes == ("2 of 12 inputs were 0 for every token: their weights count as 0",)
        assert (W != 0).all()


class TestRest:
    @pytest.mark.parametrize("begin", [0, 4, 9])
    def test_solves_the_least_squares_problem(self, begin: int) -> None:
        """The columns from there on are free; the earlier ones are fixed at other values."""
        W, H = weights(), hessian(data())
        compensated = start(damping=0.1)
        compensated.error[:begin] = torch.randn(begin, ROWS, generator=torch.Generator().manual_seed(2))
        fixed, free = ORDER[:begin], ORDER[begin:]
        A = H + 0.1 * H.diagonal().mean() * torch.eye(COLUMNS)
        moved = torch.linalg.solve(A[free][:, free], A[free][:, fixed] @ compensated.error[:begin])
        torch.testing.assert_close(compensated.rest(begin), W.T[free] + moved)


class TestGroups:
    @pytest.mark.parametrize("block", [1, 2, 5, 128])
    def test_are_visited_column_by_column(self, block: int) -> None:
        compensated = start()
        groups = Grid(3, 4).slices(10)  # the last two columns are not rounded
        visited: list[object] = []
        for group in compensated.groups(groups, block):
            visited.append(group.part)
            for j, w in group:
                visited.append(j)
                if j == group.part.start:  # as it was when the group was fitted
                    torch.testing.assert_close(w, group.weight[0])
                compensated.set(j, w.round())
        assert visited == [groups[0], 0, 1, 2, 3, groups[1], 4, 5, 6, 7, groups[2], 8, 9]
        became = (compensated.weight - compensated.error)[:10]
        torch.testing.assert_close(became, became.round())
        assert (compensated.error[10:] == 0).all()

    @pytest.mark.parametrize("block", [1, 3, 128])
    def test_columns_are_those_of_the_rule_as_the_paper_writes_it(self, block: int) -> None:
        compensated, W = start(), weights().T[ORDER].clone()
        H = hessian(data())
        U = inverse_factor(H[ORDER][:, ORDER], 0.01)
        for group in compensated.groups(Grid(3, 5).slices(COLUMNS), block):
            torch.testing.assert_close(group.weight, W[group.part])
            for j, w in group:
                torch.testing.assert_close(w, W[j])
                compensated.set(j, w.round())
                W[j:] -= U[j, j:, None] * (W[j] - W[j].round()) / U[j, j]

    def test_nothing_moves_where_every_column_stays_as_it_is(self) -> None:
        compensated, visited = start(), []
        for group in compensated.groups([slice(0, COLUMNS)]):
            for j, w in group:
                visited.append(w)
                compensated.set(j, w)
        torch.testing.assert_close(torch.stack(visited), compensated.weight, rtol=0, atol=0)
        assert (compensated.error == 0).all()

    def test_only_the_column_of_the_moment_can_be_set(self) -> None:
        compensated = start()
        with pytest.raises(KeyError):
            compensated.set(0, torch.zeros(ROWS, dtype=torch.float64))


class TestGrid:
    @pytest.mark.parametrize("grid", [Grid(3, 5), Grid(3), Grid(3, 5, symmetric=True)], ids=str)
    def test_groups_are_fitted_as_by_fit_scale(self, grid: Grid) -> None:
        fitted, scales = fit_scale(weights(), grid, "mse"), fit_groups(weights().T, grid, "mse")
        assert torch.equal(torch.stack([scale for scale, _ in scales], 1), fitted.scale)
        for group, (_, zero) in enumerate(scales):
            assert (zero is None) == grid.symmetric
            assert zero is None or torch.equal(zero, fitted.zero[:, group].double())

    def test_the_result_is_in_the_original_order(self) -> None:
        codes = torch.arange(COLUMNS * 2.0).view(COLUMNS, 2)
        index = Grid(4, 4).group_index(COLUMNS)
        scales = [(torch.full((2,), k + 1.0), torch.full((2,), 3.0)) for k in range(3)]
        result = assemble(codes, scales, index, Grid(5, 4), ORDER, ("x",))
        assert torch.equal(result.codes[:, ORDER].double(), codes.double().T)
        assert result.index[ORDER].tolist() == index.tolist()
        assert result.scale.tolist() == [[1, 2, 3]] * 2
        assert (result.zero == 3).all() and result.zero.dtype == torch.uint8
        assert result.notes == ("x",)
        assert assemble(codes, scales[:1], index, Grid(5), ORDER, ()).index is None
