"""What GPTQ, QUIK and SpQR share: compensation as least squares, groups and columns in their turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.compensate import Compensated, assemble, fit_groups
from qlib.methods.gptq import gptq
from qlib.methods.hessian import hessian

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


def started(damping: float = 0.01) -> Compensated:
    return Compensated(weights(), hessian(data()), ORDER, damping)


class TestStart:
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
        compensated = Compensated(W, hessian(inputs), ORDER, 0.01)
        assert (compensated.in_original_order(compensated.weight)[[0, 4]] == 0).all()
        assert compensated.notes == ("2 of 12 inputs were 0 for every token: their weights count as 0",)
        assert (W != 0).all()


class TestColumns:
    @pytest.mark.parametrize("part", [slice(0, 3), slice(4, 7), slice(9, 12)])
    def test_compensated_columns_solve_the_least_squares_problem(self, part: slice) -> None:
        """Those columns alone and all later ones are free; the earlier ones are fixed at other values."""
        W, H = weights(), hessian(data())
        compensated = started(0.1)
        change = torch.randn(part.start, ROWS, dtype=torch.float64)
        groups = compensated.groups([slice(0, part.start), part] if part.start else [part])
        for j, _ in next(groups) if part.start else []:
            compensated.set(j, compensated.weight[j] - change[j])
        first, free = ORDER[: part.start], ORDER[part.start :]
        A = H + 0.1 * H.diagonal().mean() * torch.eye(COLUMNS)
        moved = torch.linalg.solve(A[free][:, free], A[free][:, first] @ change)
        group = next(groups)
        assert group.part == part
        torch.testing.assert_close(group.weight, (W.T[free] + moved)[: part.stop - part.start])
        torch.testing.assert_close(compensated.rest(part.start), W.T[free] + moved)
        _, column = next(iter(group))
        torch.testing.assert_close(column, (W.T[free] + moved)[0])

    @pytest.mark.parametrize("block", [1, 2, 5, 128])
    def test_groups_and_columns_in_their_turn(self, block: int) -> None:
        compensated = started()
        visits: list[object] = []
        parts = Grid(3, 4).slices(10)  # the last two columns are not rounded
        for group in compensated.groups(parts, block):
            visits.append(group.part)
            at_first = group.weight.clone()
            for j, w in group:
                visits.append(j)
                if j in (0, 4, 8):  # the first of its group: as it is when the group is fitted
                    torch.testing.assert_close(w, at_first[0])
                compensated.set(j, w.round())
        assert visits == [parts[0], 0, 1, 2, 3, parts[1], 4, 5, 6, 7, parts[2], 8, 9]
        values = compensated.weight - compensated.error
        assert torch.equal(values[:10], values[:10].round())
        assert (compensated.error[10:] == 0).all()

    def test_nothing_moves_where_nothing_is_rounded(self) -> None:
        compensated = started()
        seen = []
        for group in compensated.groups([slice(0, COLUMNS)]):
            for j, w in group:
                seen.append(w)
                compensated.set(j, w)
        torch.testing.assert_close(torch.stack(seen), compensated.weight, rtol=0, atol=0)
        assert (compensated.error == 0).all()

    def test_block_size_is_a_matter_of_speed(self) -> None:
        errors = []
        for block in (1, 3, 128):
            compensated = started()
            for group in compensated.groups(Grid(3, 5).slices(COLUMNS), block):
                for j, w in group:
                    compensated.set(j, w.round())
            errors.append(compensated.error)
        torch.testing.assert_close(errors[0], errors[1])
        torch.testing.assert_close(errors[0], errors[2])


class TestOutOfTurn:
    """What a new method may do wrong is an error, and no result that is slightly off."""

    PARTS = Grid(3, 4).slices(COLUMNS)

    @pytest.mark.parametrize("columns", [0, 1, 3, 4])
    @pytest.mark.parametrize("block", [1, 2, 128])
    def test_a_group_left_before_its_end(self, columns: int, block: int) -> None:
        """Four columns set, but the loop left at the last: the group does not know yet that it is done."""
        compensated = started()
        groups = compensated.groups(self.PARTS, block)
        group = next(groups)
        for _ in range(columns):
            j, w = next(iter(group))
            compensated.set(j, w.round())
        with pytest.raises(QuantError, match="0 columns are set where 4 should be"):
            next(groups)

    def test_the_last_group_left_before_its_end(self) -> None:
        compensated = started()
        with pytest.raises(QuantError, match="8 columns are set where 12 should be"):
            for group in compensated.groups(self.PARTS):
                for j, w in group:
                    compensated.set(j, w.round())
                    if j == 10:
                        break

    def test_the_rest_before_the_groups_are_done(self) -> None:
        with pytest.raises(QuantError, match="0 columns are set where 8 should be"):
            started().rest(8)

    def test_a_gap_between_groups(self) -> None:
        compensated = started()
        with pytest.raises(QuantError, match="4 columns are set where 6 should be"):
            for group in compensated.groups([slice(0, 4), slice(6, 12)]):
                for j, w in group:
                    compensated.set(j, w.round())

    def test_a_column_not_set(self) -> None:
        compensated = started()
        with pytest.raises(QuantError, match="column 2 was visited and not set"):
            for group in compensated.groups(self.PARTS):
                for j, w in group:
                    if j != 2:
                        compensated.set(j, w.round())

    @pytest.mark.parametrize("other", [0, 1, 3, 4, 99])
    def test_another_column_set(self, other: int) -> None:
        compensated = started()
        with pytest.raises(QuantError, match=f"column {other} was set, but the one to set now is 2"):
            for group in compensated.groups(self.PARTS):
                for j, w in group:
                    compensated.set(other if j == 2 else j, w.round())

    def test_a_column_set_twice(self) -> None:
        compensated = started()
        j, w = next(iter(next(compensated.groups(self.PARTS))))
        compensated.set(j, w.round())
        with pytest.raises(QuantError, match="column 0 was set, but the one to set now is None"):
            compensated.set(j, w)


class TestOrdinaryGrid:
    def test_static_groups_are_not_fitted_again(self) -> None:
        W, grid = weights(), Grid(3, 4)
        scales = fit_groups(W.T, grid, "minmax")
        index = grid.group_index(COLUMNS)
        result = assemble(torch.zeros(COLUMNS, ROWS), scales, index[ORDER], grid, ORDER, ("note",))
        assert result.scale.shape == (ROWS, 3)
        assert result.scale.max() < 5
        inputs = data() * torch.logspace(0, 2, COLUMNS, dtype=torch.float64)  # columns move far
        for act_order in (False, True):
            rounded = gptq(W, hessian(inputs), grid, act_order=act_order, static_groups=True)
            assert torch.equal(rounded.scale, result.scale)
            assert torch.equal(rounded.zero, result.zero)

    def test_codes_return_to_the_original_order(self) -> None:
        grid = Grid(4, 4)
        codes = ORDER[:, None].expand(COLUMNS, ROWS).double()
        index = torch.arange(3).repeat_interleave(4)
        result = assemble(codes, fit_groups(weights().T, grid, "minmax"), index, grid, ORDER, ("note",))
        assert result.codes.tolist() == [list(range(COLUMNS))] * ROWS
        assert result.index[ORDER].tolist() == index.tolist()
        assert result.notes == ("note",)
