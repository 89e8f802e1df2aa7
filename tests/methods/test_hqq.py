"""HQQ: an oracle of the published formulas, what must fall, what must not matter, odd groups, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import CHUNK, Grid, fit_float_zero
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.hqq import HQQ, hqq, hqq_plain, hqq_steps, shrink
from qlib.methods.rtn import rtn
from qlib.quantized_weight import QuantizedWeight

GRIDS = [Grid(bits, group) for bits, group in itertools.product([2, 3, 4, 8], [None, 20, 8, 12])]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
NORMAL, LARGE = 0.05, 2.0  # with the default beta, the first has no outliers, the second has many


def weights(rows: int = 16, columns: int = 40, size: float = LARGE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def plain(weight: Tensor, grid: Grid) -> QuantizedWeight:
    return hqq(weight, grid, iterations=0)


def mean_error(weight: Tensor, result: QuantizedWeight, p: float = 1.0) -> float:
    return float((weight - result.decode()).abs().pow(p).mean())


def hqq_oracle(
    weight: Tensor, grid: Grid, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01, iterations: int = 20
) -> tuple[Tensor, list[Tensor], list[float], list[float]]:
    """Codes, zeros [rows, groups] tried, errors, shares of outliers: the formulas as they are published.

    An inverse scale, E by sign and relu, the mean of q - (W - E) s', group by group; the first zeros whose
    error is not below all before end it.
    """
    parts = weight.split(grid.group or weight.shape[1], dim=1)
    span = [part.amax(1, keepdim=True) - part.amin(1, keepdim=True) for part in parts]
    inverse = [torch.where(each == 0, 1.0, (2**grid.bits - 1) / each) for each in span]
    zeros = [-part.amin(1, keepdim=True) * s for part, s in zip(parts, inverse, strict=True)]
    tried, errors, shares = [], [], []
    best, best_error = zeros, float("inf")
    for _ in range(iterations + 1):
        total, outside, moved = 0.0, 0, []
        for part, s, z in zip(parts, inverse, zeros, strict=True):
            q = (part * s + z).round().clamp(0, 2**grid.bits - 1)
            R = part - (q - z) / s
            E = R.sign() * torch.relu(R.abs() - R.abs().pow(p - 1) / beta)
            moved.append((q - (part - E) * s).mean(1, keepdim=True))
            total, outside = total + float(R.abs().sum()), outside + int((E != 0).sum())
        tried.append(torch.cat(zeros, 1))
        errors.append(total / weight.numel())
        shares.append(outside / weight.numel())
        if not errors[-1] < best_error:
            break
        best, best_error, zeros, beta = zeros, errors[-1], moved, beta * kappa
    codes = [
        (part * s + z).round().clamp(0, 2**grid.bits - 1)
        for part, s, z in zip(parts, inverse, best, strict=True)
    ]
    return torch.cat(codes, 1), tried, errors, shares


class TestOracle:
    @every_grid
    @pytest.mark.parametrize("size", [NORMAL, LARGE])
    def test_published_formulas(self, grid: Grid, size: float) -> None:
        W = weights(size=size)
        codes, zeros, errors, shares = hqq_oracle(W, grid)
        result, steps = hqq(W, grid), list(hqq_steps(W, grid))
        assert torch.equal(result.codes.double(), codes)
        if len(steps) != len(zeros):  # at rest: the last errors differ by rounding alone
            assert min(errors) == pytest.approx(errors[-1], rel=1e-12)
        for step, zero, error, share in zip(steps, zeros, errors, shares, strict=False):
            torch.testing.assert_close(step.zero, zero, rtol=0, atol=1e-8)
            assert step.error == pytest.approx(error, rel=1e-10)
            assert step.outliers == pytest.approx(share)

    @pytest.mark.parametrize(
        "setting", [{"p": 1.0}, {"p": 0.4}, {"beta": 1000.0}, {"kappa": 1.5}, {"iterations": 3}], ids=str
    )
    def test_settings(self, setting: dict[str, Any]) -> None:
        W, grid = weights(), Grid(3, 12)
        codes, zeros, _, _ = hqq_oracle(W, grid, **setting)
        *_, last = hqq_steps(W, grid, **setting)
        assert torch.equal(hqq(W, grid, **setting).codes.double(), codes)
        torch.testing.assert_close(last.zero, zeros[-1], rtol=0, atol=1e-8)
        *_, usual = hqq_steps(W, grid)
        assert last.zero.shape == usual.zero.shape
        assert not torch.allclose(last.zero, usual.zero, rtol=0, atol=1e-6)

    def test_float32_layer_of_full_width(self) -> None:
        W = weights(384, 384, 0.05).float()
        codes, _, _, _ = hqq_oracle(W.double(), Grid(4, 64))
        result = hqq(W, Grid(4, 64))
        assert (result.codes == codes).double().mean() >= 0.9999
        assert result.zero.dtype == result.scale.dtype == torch.float32


class TestShrink:
    def test_by_hand(self) -> None:
        """p = 0.5, beta = 2: |R| = 4 has the bound 4^-0.5 / 2 = 0.25; |R| = 0.25 has 1, and is cut to 0."""
        R = torch.tensor([4.0, -4.0, 1.0, -1.0, 0.25, -0.25], dtype=torch.float64)
        expected = torch.tensor([3.75, -3.75, 0.5, -0.5, 0, 0], dtype=torch.float64)
        torch.testing.assert_close(shrink(R, p=0.5, beta=2.0), expected, rtol=1e-15, atol=0)

    @pytest.mark.parametrize("p", [0.3, 0.7, 1.0])
    def test_begins_at_the_limit(self, p: float) -> None:
        limit = 10.0 ** (-1 / (2 - p))
        R = torch.tensor([0.0, 0.999 * limit, -0.999 * limit, 1.001 * limit, -1.001 * limit])
        E = shrink(R, p, beta=10.0)
        assert (E[:3] == 0).all() and E[3] > 0 > E[4]

    def test_solves_its_problem_for_p_1(self) -> None:
        """For p = 1 it is the exact minimum of |E| + beta/2 (E - R)^2, found here among many E."""
        tried = torch.linspace(-3, 3, 6001, dtype=torch.float64)
        for R in (-2.0, -0.3, 0.0, 0.21, 1.0):
            cost = tried.abs() + 5 / 2 * (tried - R).square()
            E = shrink(torch.tensor(R, dtype=torch.float64), p=1.0, beta=5.0)
            assert float(E) == pytest.approx(float(tried[cost.argmin()]), abs=1e-3)


class TestPlainForm:
    @every_grid
    @pytest.mark.parametrize("size", [NORMAL, LARGE])
    def test_is_the_fast_one(self, grid: Grid, size: float) -> None:
        W = weights(size=size)
        plainly, result = hqq_plain(W, grid), hqq(W, grid)
        assert torch.equal(plainly.codes, result.codes)
        assert torch.equal(plainly.scale, result.scale)
        assert plainly.zero is not None and result.zero is not None
        torch.testing.assert_close(plainly.zero, result.zero, rtol=0, atol=1e-8)

    @pytest.mark.parametrize(
        "setting", [{"p": 1.0}, {"p": 0.4}, {"beta": 1000.0}, {"kappa": 1.5}, {"iterations": 3}], ids=str
    )
    def test_with_other_settings(self, setting: dict[str, Any]) -> None:
        W, grid = weights(), Grid(3, 12)
        plainly, result = hqq_plain(W, grid, **setting), hqq(W, grid, **setting)
        assert torch.equal(plainly.codes, result.codes)
        torch.testing.assert_close(plainly.zero, result.zero, rtol=0, atol=1e-8)

    def test_by_hand(self) -> None:
        """One iteration of the example of `hqq`: scale 1, no outliers, so z = mean(q - W)."""
        W = torch.tensor([[0.0, 1.2, 1.2, 1.2, 2.2, 3.0]], dtype=torch.float64)
        result = hqq_plain(W, Grid(2), beta=1e-6, iterations=1)
        assert result.codes.tolist() == [[0, 1, 1, 1, 2, 3]]
        assert result.zero is not None
        assert result.zero.item() == pytest.approx((0 - 0.2 - 0.2 - 0.2 - 0.2 + 0) / 6)


class TestWhatMustFall:
    @every_grid
    @pytest.mark.parametrize("size", [NORMAL, LARGE])
    def test_errors(self, grid: Grid, size: float) -> None:
        W = weights(64, size=size)
        start, end = plain(W, grid), hqq(W, grid)
        assert mean_error(W, end) <= mean_error(W, start)
        assert torch.equal(end.scale, start.scale)

    @pytest.mark.parametrize("group", [None, 64, 128])
    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("size", [NORMAL, LARGE])
    def test_errors_of_a_wide_layer(self, bits: int, group: int | None, size: float) -> None:
        """In groups below some 20 the norm of the paper may rise: the two ends lose their exact codes."""
        W = weights(64, 384, size)
        start, end = plain(W, Grid(bits, group)), hqq(W, Grid(bits, group))
        for p, share in [(0.7, 0.999), (1.0, 0.995), (2.0, 0.995)]:
            assert mean_error(W, end, p) < share * mean_error(W, start, p)

    def test_steps_end_at_the_first_that_does_not_fall_and_the_best_is_kept(self) -> None:
        W = weights(4, 12)
        steps = list(hqq_steps(W, Grid(2), iterations=500))
        errors = [step.error for step in steps]
        assert 2 < len(steps) < 500
        assert [step.kept for step in steps] == [True] * (len(steps) - 1) + [False]
        assert all(later < earlier for earlier, later in itertools.pairwise(errors[:-1]))
        assert errors[-1] >= errors[-2]
        result = hqq(W, Grid(2), iterations=500)
        assert torch.equal(result.zero, steps[-2].zero)
        assert mean_error(W, result) == pytest.approx(min(errors))

    def test_the_last_move_counts_when_iterations_run_out(self) -> None:
        W = weights()
        steps = list(hqq_steps(W, Grid(3, 12), iterations=2))
        assert [step.iteration for step in steps] == [0, 1, 2]
        assert steps[2].kept
        assert torch.equal(hqq(W, Grid(3, 12), iterations=2).zero, steps[2].zero)

    def test_beta_grows(self) -> None:
        betas = [step.beta for step in hqq_steps(weights(), Grid(3), beta=5, kappa=1.1, iterations=2)]
        assert betas == pytest.approx([5, 5.5, 6.05])

    def test_more_bits(self) -> None:
        W = weights(64, size=NORMAL)
        errors = [mean_error(W, hqq(W, Grid(bits, 20)), 2) for bits in (8, 4, 3, 2)]
        assert all(1.5 * fewer < more for fewer, more in itertools.pairwise(errors))


class TestMeaningOfBeta:
    def test_small_beta_gives_nothing_up_and_takes_the_mean(self) -> None:
        """E = 0: z = mean(q - W / s), the least-squares fit for these codes."""
        W, grid = weights(), Grid(3)
        first, second, *_ = hqq_steps(W, grid, beta=1e-6)
        scale = fit_float_zero(W, grid).scale
        codes = (W / scale + first.zero).round().clamp(0, 7)
        assert second.outliers == 0
        torch.testing.assert_close(second.zero, (codes - W / scale).mean(1, keepdim=True))

    def test_large_beta_gives_everything_up_and_stays(self) -> None:
        W, grid = weights(), Grid(3)
        steps = list(hqq_steps(W, grid, beta=1e12))
        assert steps[0].outliers == 0.95  # all but the two ends of each row, which are exact
        torch.testing.assert_close(steps[1].zero, steps[0].zero, rtol=0, atol=1e-6)

    def test_outliers_are_the_errors_beyond_the_limit(self) -> None:
        W, grid = weights(), Grid(3)
        size = (W - plain(W, grid).decode()).abs()
        step = next(hqq_steps(W, grid, p=0.5, beta=7.0))
        assert 0 < step.outliers < 1
        assert step.outliers == pytest.approx(float((size > 7.0 ** (-1 / 1.5)).double().mean()))

    def test_with_the_defaults_ordinary_weights_have_none(self) -> None:
        steps = list(hqq_steps(weights(size=NORMAL), Grid(2)))
        assert all(step.outliers == 0 for step in steps)
        assert torch.equal(
            hqq(weights(size=NORMAL), Grid(2)).codes, hqq(weights(size=NORMAL), Grid(2), p=1.0).codes
        )

    def test_one_outlier_does_not_drag_the_zero(self) -> None:
        """Nine weights on the grid but for a common offset, one far from it: the offset is found exactly."""
        W = torch.tensor([[0.0, 8.0, *[1.0] * 4, *[3.0] * 4]], dtype=torch.float64)
        W[0, 2:] += 0.5  # the ends hold the scale; eight weights lie half way
        W *= 10
        robust, mean = hqq(W, Grid(3), beta=0.05, iterations=50), hqq(W, Grid(3), beta=1e-9, iterations=50)
        assert mean_error(W, robust) <= mean_error(W, mean)


class TestWhatMustNotMatter:
    @every_grid
    def test_a_second_run_the_layout_and_the_dtype(self, grid: Grid) -> None:
        W = weights().float()
        first = hqq(W, grid)
        for again in (hqq(W, grid), hqq(W.T.contiguous().T, grid), hqq(torch.nn.Parameter(W), grid)):
            assert torch.equal(again.codes, first.codes)
            assert torch.equal(again.decode(), first.decode())
            assert not again.decode().requires_grad
        half = hqq(W.bfloat16(), grid)
        assert half.scale.dtype == torch.float32
        assert torch.equal(half.codes, hqq(W.bfloat16().float(), grid).codes)

    def test_the_weight_is_left_alone(self) -> None:
        W = weights()
        copy = W.clone()
        hqq(W, Grid(3, 12))
        assert torch.equal(W, copy)

    def test_order_of_the_rows(self) -> None:
        W, order = weights(), torch.randperm(16, generator=torch.Generator().manual_seed(3))
        assert torch.equal(hqq(W[order], Grid(3, 12)).codes, hqq(W, Grid(3, 12)).codes[order])

    def test_parts_that_fit_the_cache(self) -> None:
        rows = CHUNK // 40 + 7  # two parts, the second one short
        W = weights(rows).float()
        codes, _, _, _ = hqq_oracle(W.double(), Grid(2, 12), iterations=4)
        assert (hqq(W, Grid(2, 12), iterations=4).codes == codes).double().mean() > 0.9999

    @pytest.mark.parametrize("group", [12, 39])
    def test_a_narrower_last_group_is_a_group_like_any_other(self, group: int) -> None:
        """Away from the common stop, the slices can be rounded apart."""
        W, grid = weights(), Grid(3, group)
        _, joint = hqq_steps(W, grid, iterations=1)
        for index, part in enumerate(grid.slices(40)):
            _, alone = hqq_steps(W[:, part], Grid(3), iterations=1)
            torch.testing.assert_close(joint.zero[:, index : index + 1], alone.zero)

    def test_threads(self) -> None:
        W, threads = weights(384, 288, NORMAL).float(), torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = hqq(W, Grid(4, 128))
            torch.set_num_threads(2)
            two = hqq(W, Grid(4, 128))
        finally:
            torch.set_num_threads(threads)
        assert (one.codes != two.codes).double().mean() <= 1e-4


class TestOddGroups:
    def test_width_of_moonshine(self) -> None:
        result = hqq(weights(6, 288, NORMAL), Grid(4, 128))
        assert result.zero.shape == result.scale.shape == (6, 3)
        assert torch.equal(result.index, Grid(4, 128).group_index(288))

    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-8, 1e4])
    def test_equal_weights_are_exact(self, bits: int, value: float) -> None:
        W = torch.full((3, 8), value)
        result = hqq(W, Grid(bits, 4))
        assert torch.equal(result.decode(), W)
        assert len(list(hqq_steps(W, Grid(bits, 4)))) == 2

    @pytest.mark.parametrize("sign", [1, -1])
    def test_one_sign_uses_the_whole_grid(self, sign: int) -> None:
        W = sign * (5 + torch.rand(8, 40, generator=torch.Generator().manual_seed(0)))
        result = hqq(W, Grid(4))
        assert float((result.decode() - W).abs().max()) < 0.6 / 15
        assert mean_error(W, result) < 0.3 * mean_error(W, rtn(W, Grid(4)))

    def test_weights_on_a_grid_come_back(self) -> None:
        W = torch.arange(16.0).repeat(4, 2) * 0.5 - 3
        steps = list(hqq_steps(W, Grid(4, 16)))
        assert [step.error for step in steps] == [0, 0]
        assert torch.equal(hqq(W, Grid(4, 16)).decode(), W)

    def test_a_single_column(self) -> None:
        W = weights(5, 1).float()
        torch.testing.assert_close(hqq(W, Grid(2)).decode(), W, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("size", [1e-30, 1e-8, 1e4, 1e30])
    def test_extreme_sizes(self, size: float) -> None:
        W = weights(size=size).float()
        result = hqq(W, Grid(4, 12))
        assert result.decode().isfinite().all()
        assert (
            mean_error(
                W / size, QuantizedWeight(result.codes, result.scale / size, result.zero, result.index)
            )
            < 0.1
        )

    @given(
        rows=st.integers(1, 5), columns=st.integers(1, 24), bits=st.sampled_from([2, 3, 4]),
        group=st.integers(1, 24), seed=st.integers(0, 1000), size=st.sampled_from([1e-3, 1.0, 100.0]),
    )  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_any_shape(self, rows: int, columns: int, bits: int, group: int, seed: int, size: float) -> None:
        W, grid = weights(rows, columns, size, seed), Grid(bits, min(group, columns))
        result = hqq(W, grid)
        assert int(result.codes.max()) <= grid.qmax
        assert result.zero.shape == (rows, len(grid.slices(columns)))
        assert result.decode().isfinite().all()
        assert mean_error(W, result) <= mean_error(W, plain(W, grid))


class TestErrors:
    def test_symmetric_grid(self) -> None:
        with pytest.raises(QuantError, match=r"needs an asymmetric grid.*symmetric=False"):
            hqq(weights(), Grid(4, symmetric=True))

    def test_weight_without_numbers(self) -> None:
        W = weights()
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            hqq(W, Grid(3))

    def test_group_larger_than_the_layer(self) -> None:
        with pytest.raises(QuantError, match="group=64 is larger than the 40 columns"):
            hqq(weights(), Grid(3, 64))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"p": 0.0}, "p=0.0 in HQQ .* p=0.7"),
            ({"p": 1.1}, "p=1.1"),
            ({"beta": 0.0}, "beta=0.0"),
            ({"beta": float("inf")}, "beta=inf"),
            ({"kappa": 0.9}, "kappa=0.9"),
            ({"kappa": float("nan")}, "kappa=nan"),
            ({"iterations": -1}, "iterations=-1"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(QuantError, match=message):
            HQQ(**setting)
        with pytest.raises(QuantError, match=message):
            hqq(weights(), Grid(3), **setting)


def test_class_is_the_function() -> None:
    method: WeightMethod = HQQ(p=0.5, beta=20, kappa=1.1, iterations=3)
    assert (method.name, method.needs) == ("hqq", Needs.NOTHING)
    result = method.quantize_layer(weights(), LayerStats(), Grid(2, 12))
    expected = hqq(weights(), Grid(2, 12), p=0.5, beta=20, kappa=1.1, iterations=3)
    assert torch.equal(result.zero, expected.zero)
    for other in ({"p": 0.7}, {"beta": 10}, {"kappa": 1.01}, {"iterations": 20}):
        changed = hqq(
            weights(), Grid(2, 12), **{"p": 0.5, "beta": 20, "kappa": 1.1, "iterations": 3, **other}
        )
        assert not torch.equal(changed.zero, expected.zero)
