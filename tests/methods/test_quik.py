"""QUIK: a sequential oracle, what the float columns absorb, what they save, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest
import torch
from oracles import fit_oracle, round_oracle
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.gptq import gptq
from qlib.methods.hessian import hessian
from qlib.methods.quik import QUIK, quik
from qlib.quantized_weight import QuantizedWeight
from qlib.stored_weight import pack_weight, unpack_weight

COLUMNS = 40
LARGE = [5, 17, 30]
GRIDS = [Grid(b, g, s) for b in (2, 4) for g in (None, 8, 12) for s in (False, True)]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def data(tokens: int = 300, columns: int = COLUMNS, gain: float = 50.0, seed: int = 0) -> Tensor:
    """Inputs that repeat one another; those in LARGE are `gain` times larger."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.linspace(1.5, 0.05, columns, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing
    inputs[:, LARGE] *= gain
    return inputs


def weights(rows: int = 16, columns: int = COLUMNS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def run(W: Tensor, X: Tensor, grid: Grid, **settings: object) -> QuantizedWeight:
    return quik(W, of(hessian(X), X.abs().amax(0)), grid, **settings)


def of(H: Tensor, absmax: Tensor) -> LayerStats:
    """Statistics with this Hessian and this largest |x| of each input."""
    return LayerStats(300, H, -absmax, absmax)


def loss(W: Tensor, result: QuantizedWeight, X: Tensor) -> float:
    return float(((W - result.decode()).double() @ X.T).square().sum())


def quik_oracle(weight: Tensor, inputs: Tensor, grid: Grid, kept: int) -> tuple[Tensor, Tensor]:
    """Codes and values: one column at a time, the inverse of the free columns kept by Schur complements."""
    W, H = weight.double().numpy().copy(), (inputs.double().T @ inputs.double()).numpy()
    dead = np.diag(H) == 0
    H = H + np.eye(len(H)) * 0.01 * np.diag(H)[~dead].mean() + np.diag(dead.astype(float))
    W[:, dead] = 0
    visit = np.argsort(inputs.abs().amax(0).numpy(), kind="stable")[: len(H) - kept]
    visit = visit if kept else np.arange(len(H))
    width, inverse, codes = grid.group or len(visit), np.linalg.inv(H), np.zeros(W.shape)
    for step, j in enumerate(visit):
        if step % width == 0:
            group = torch.from_numpy(W[:, visit[step : step + width]])
            fits = [fit_oracle(row, grid.bits, grid.symmetric) for row in group]
        for row, (scale, zero) in enumerate(fits):
            value = torch.from_numpy(W[row, j : j + 1])
            codes[row, j] = round_oracle(value, scale, zero, grid.bits, grid.symmetric)[0]
        rounded = np.array(
            [scale * (code - zero) for (scale, zero), code in zip(fits, codes[:, j], strict=True)]
        )
        W -= np.outer((W[:, j] - rounded) / inverse[j, j], inverse[j])
        W[:, j] = rounded
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
        inverse[j, j] = 1
    return torch.from_numpy(codes), torch.from_numpy(W)


class TestOracle:
    @every_grid
    @pytest.mark.parametrize("kept", [0, 3, 39])
    def test_one_column_at_a_time(self, grid: Grid, kept: int) -> None:
        W, X = weights(), data()
        codes, values = quik_oracle(W, X, grid, kept)
        result = run(W, X, grid, columns=kept)
        assert torch.equal(result.codes.double(), codes)
        torch.testing.assert_close(result.decode(), values, rtol=1e-3 if kept else 1e-8, atol=1e-6)
        others = [j for j in range(COLUMNS) if result.columns is None or j not in result.columns]
        torch.testing.assert_close(result.decode()[:, others], values[:, others], rtol=1e-8, atol=1e-10)

    def test_float32_layer_of_full_width(self) -> None:
        W, X = weights(24, 384, torch.float32), data(1500, 384)
        codes, _ = quik_oracle(W, X, Grid(4, 64, True), 24)
        assert (run(W, X, Grid(4, 64, True)).codes == codes).double().mean() >= 0.999

    @every_grid
    def test_without_float_columns_it_is_gptq_from_left_to_right(self, grid: Grid) -> None:
        W, X = weights(dtype=torch.float32), data()
        expected = gptq(W, hessian(X), grid, damping=0.01, act_order=False)
        result = run(W, X, grid, columns=0)
        assert (result.columns, result.column_values) == (None, None)
        assert torch.equal(result.codes, expected.codes) and torch.equal(result.decode(), expected.decode())
        assert result.index is None or torch.equal(result.index, grid.group_index(COLUMNS))

    def test_without_float_columns_the_ascending_order_would_be_worse(self) -> None:
        W, X = weights(dtype=torch.float32), data()
        order = X.abs().amax(0).argsort(stable=True)
        ascending = gptq(W[:, order], hessian(X[:, order]), Grid(3), damping=0.01, act_order=False)
        worse = float(((W[:, order] - ascending.decode()).double() @ X[:, order].T).square().sum())
        assert loss(W, run(W, X, Grid(3), columns=0), X) < 0.7 * worse


class TestFloatColumns:
    def test_are_those_of_the_largest_inputs(self) -> None:
        result = run(weights(), data(), Grid(4), columns=3)
        assert result.columns.tolist() == LARGE
        assert result.columns.dtype == torch.int64
        assert result.column_values.shape == (16, 3)
        assert result.column_values.dtype == torch.float16
        assert result.column_values.is_contiguous()
        assert (result.codes[:, LARGE] == 0).all()
        assert torch.equal(result.decode()[:, LARGE], result.column_values.double())

    def test_leave_no_error_that_they_could_remove(self) -> None:
        """The gradient of the damped loss with respect to them is 0, up to float16."""
        W, X = weights(), data(gain=8.0)
        H = hessian(X)
        H += 0.01 * H.diagonal().mean() * torch.eye(COLUMNS)
        result = run(W, X, Grid(2), columns=3)
        assert result.columns.tolist() == LARGE
        D, others = W - result.decode(), [j for j in range(COLUMNS) if j not in LARGE]
        asked = D[:, others] @ H[others][:, LARGE]
        assert (D @ H[:, LARGE]).norm() < 0.01 * asked.norm()
        assert (D[:, LARGE].abs() > 1e-3).any()  # compensated, not the original values

    def test_take_no_part_in_the_ranges(self) -> None:
        W, X = weights(), data()
        scale = run(W, X, Grid(4), columns=3).scale
        W[:, LARGE] = 1000.0
        torch.testing.assert_close(run(W, X, Grid(4), columns=3).scale, scale)
        assert (run(W, X, Grid(4), columns=2).scale > 50 * scale).all()

    @pytest.mark.parametrize(("inputs", "expected"), [(16, 1), (31, 1), (384, 24), (15, None)])
    def test_default_share_is_the_paper_s(self, inputs: int, expected: int | None) -> None:
        X = torch.randn(100, inputs, generator=torch.Generator().manual_seed(0))
        columns = run(weights(4, inputs), X, Grid(4)).columns
        assert expected == (None if columns is None else len(columns))

    def test_equal_inputs_are_taken_from_the_right(self) -> None:
        result = quik(weights(), of(torch.eye(COLUMNS), torch.ones(COLUMNS)), Grid(4), columns=2)
        assert result.columns.tolist() == [38, 39]

    def test_beyond_float16_is_refused(self) -> None:
        W = weights()
        W[3, 17] = 70000.0
        with pytest.raises(QuantError, match=r"7e\+04 in a column that stays in float16.* columns=0"):
            run(W, data(), Grid(4), columns=3)


class TestWhatMustHelp:
    def test_error_falls_with_the_number_of_float_columns(self) -> None:
        W, seen, unseen = weights(64), data(gain=3.0), data(gain=3.0, seed=5)
        for X in (seen, unseen):
            losses = [loss(W, run(W, seen, Grid(3, None, True), columns=k), X) for k in (0, 4, 12, 24, 36)]
            assert all(after < 0.9 * before for before, after in itertools.pairwise(losses))

    def test_large_inputs_of_odd_weights_cost_nothing_any_more(self) -> None:
        W, X = weights(64), data()
        W[:, LARGE] *= 10  # they spoil the range of each row, and their inputs are large
        with_them, without = (loss(W, run(W, X, Grid(4), columns=k), X) for k in (0, 3))
        assert without < 0.05 * with_them


class TestGroups:
    @pytest.mark.parametrize(
        ("group", "sizes"), [(128, [128, 128, 14]), (64, [64, 64, 64, 64, 14]), (None, None)]
    )
    def test_are_formed_over_the_rounded_columns_as_visited(
        self, group: int | None, sizes: list[int]
    ) -> None:
        W, X = weights(6, 288), data(900, 288)
        result = run(W, X, Grid(4, group))
        rounded = [j for j in X.abs().amax(0).argsort(stable=True).tolist() if j not in result.columns]
        assert len(rounded) == 270
        if sizes is None:
            assert result.index is None
            return
        expected = [group for group, size in enumerate(sizes) for _ in range(size)]
        assert result.index[rounded].tolist() == expected
        assert result.scale.shape == (6, len(sizes))

    def test_wider_than_the_rounded_columns_is_one_group(self) -> None:
        assert run(weights(), data(), Grid(4, 39), columns=3).scale.shape == (16, 1)


class TestWhatMustNotMatter:
    @every_grid
    def test_other_rows_and_a_second_run(self, grid: Grid) -> None:
        W, X, rows = weights(), data(), torch.tensor([9, 2, 5])
        some, every, again = (run(w, X, grid) for w in (W[rows], W, W.T.contiguous().T))
        assert torch.equal(some.codes, every.codes[rows])
        assert torch.equal(again.codes, every.codes)
        torch.testing.assert_close(again.decode(), every.decode(), rtol=1e-3, atol=0)  # float16's last bit

    def test_scale_of_the_statistics(self) -> None:
        W, X = weights(), data()
        once, other = (quik(W, of(c * hessian(X), c * X.abs().amax(0)), Grid(3, 12)) for c in (1.0, 3.7))
        assert torch.equal(once.codes, other.codes)

    def test_arguments_are_left_alone(self) -> None:
        W, X = weights(), data()
        W.requires_grad_()
        H, absmax = hessian(X), X.abs().amax(0)
        copies = W.detach().clone(), H.clone(), absmax.clone()
        result = quik(W, of(H, absmax), Grid(3, 12))
        assert all(torch.equal(a, b) for a, b in zip((W, H, absmax), copies, strict=True))
        assert not result.decode().requires_grad


class TestOddLayers:
    @every_grid
    def test_dead_and_constant_inputs(self, grid: Grid) -> None:
        W, X = weights(), data()
        X[:, [0, 39]], X[:, 8] = 0, 2.0
        W[:, [0, 39]] *= 100
        result = run(W, X, grid, columns=3)
        assert (result.decode()[:, [0, 39]] == 0).all()
        assert result.notes == ("2 of 40 inputs were 0 for every token: their weights count as 0",)
        assert torch.equal(result.codes.double(), quik_oracle(W, X, grid, 3)[0])

    @every_grid
    def test_rows_of_zeros_and_of_one_sign(self, grid: Grid) -> None:
        W, X = weights(), data()
        W[2], W[3], W[4], W[5] = 0, W[3].abs(), -W[4].abs(), 0.7
        values = run(W, X, grid).decode()
        assert values.isfinite().all()
        assert (values[2] == 0).all()
        assert (
            loss(W[3:6], QuantizedWeight(values[3:6], torch.ones(3, 1)), X)
            < 0.5 * (W[3:6] @ X.T).square().sum()
        )

    def test_nothing_but_dead_inputs(self) -> None:
        result = quik(weights(), of(torch.zeros(COLUMNS, COLUMNS), torch.zeros(COLUMNS)), Grid(3, 12))
        assert (result.decode() == 0).all()

    def test_fewer_tokens_than_inputs(self) -> None:
        X = data(tokens=10)
        stats = LayerStats(10, hessian(X), X.amin(0), X.amax(0))
        result = QUIK().quantize_layer(weights(), stats, Grid(3, 12))
        assert result.notes[0].startswith("10 tokens for 40 inputs")
        assert result.decode().isfinite().all()


class TestStorage:
    @every_grid
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_round_trips_keep_every_bit(self, grid: Grid, dtype: torch.dtype) -> None:
        result = run(weights(dtype=dtype), data(), grid, columns=3)
        layer = FakeQuantLinear(result, grid)
        about = {"grid": asdict(grid), "shape": list(result.codes.shape), "notes": list(result.notes)}
        for again in (
            QuantizedWeight.from_tensors(result.tensors()),
            unpack_weight(pack_weight(layer), about),
        ):
            assert again.tensors().keys() == result.tensors().keys()
            for name, tensor in result.tensors().items():
                assert torch.equal(again.tensors()[name], tensor), name
                assert again.tensors()[name].dtype == tensor.dtype
            assert torch.equal(again.decode(), result.decode())


class TestErrors:
    @pytest.mark.parametrize("columns", [40, 256])
    def test_nothing_left_to_round(self, columns: int) -> None:
        message = f"columns={columns} in QUIK keeps all 40 inputs .* Use columns=2 "
        with pytest.raises(QuantError, match=message):
            run(weights(), data(), Grid(4), columns=columns)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"columns": -1}, "columns=-1"),
            ({"damping": -1}, "damping=-1 in QUIK"),
            ({"fit": "l2"}, "fit='l2'"),
        ],
    )
    def test_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(QuantError, match=message):
            QUIK(**settings)
        with pytest.raises(QuantError, match=message):
            run(weights(), data(), Grid(4), **settings)

    def test_bad_numbers(self) -> None:
        W, X = weights(), data()
        absmax = X.abs().amax(0)
        with pytest.raises(QuantError, match=r"range of the inputs of shape \(39,\) for 40 inputs"):
            quik(W, of(hessian(X), absmax[1:]), Grid(4))
        absmax[3] = float("nan")
        with pytest.raises(QuantError, match="1 of 40 inputs reached NaN or infinity"):
            quik(W, of(hessian(X), absmax), Grid(4))
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            run(W, X, Grid(4))

    def test_missing_statistics(self) -> None:
        X = data()
        with pytest.raises(QuantError, match="QUIK got statistics without a Hessian"):
            QUIK().quantize_layer(weights(), LayerStats(300, low=X.amin(0), high=X.amax(0)), Grid(4))
        with pytest.raises(QuantError, match="QUIK got statistics without the range of the inputs"):
            QUIK().quantize_layer(weights(), LayerStats(300, hessian(X)), Grid(4))


def test_class_is_the_function() -> None:
    method: WeightMethod = QUIK(columns=5, damping=0.05, fit="mse")
    assert (method.name, method.needs) == ("quik", Needs.HESSIAN | Needs.RANGE)
    W, X = weights(), data()
    result = method.quantize_layer(W, LayerStats(300, hessian(X), X.amin(0), X.amax(0)), Grid(2, 12))
    expected = run(W, X, Grid(2, 12), columns=5, damping=0.05, fit="mse")
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.decode(), expected.decode())
    for other in ({"damping": 0.01}, {"columns": 4}, {"fit": "minmax"}):
        settings = {"columns": 5, "damping": 0.05, "fit": "mse", **other}
        assert not torch.equal(run(W, X, Grid(2, 12), **settings).codes, expected.codes)
