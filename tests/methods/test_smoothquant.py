"""SmoothQuant: the formula by loops, what it is good for, where it must not matter, odd channels, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlib.activation import PerToken
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.contracts import LayerStats, Needs, Transform
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import TINY, SmoothQuant, smoothing_scale

COLUMNS = 40
alphas = pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])


def inputs(outlier: float, tokens: int = 500, seed: int = 0) -> Tensor:
    """Tokens; channels 3 and 17 are `outlier` times larger than the rest."""
    X = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X[:, [3, 17]] *= outlier
    return X


def weights(rows: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def absmax(X: Tensor) -> Tensor:
    return X.abs().amax(0)


def scale_oracle(ranges: Tensor, matrices: list[Tensor], alpha: float) -> list[float]:
    """The formula, number by number."""
    result = []
    for j, of_input in enumerate(ranges.tolist()):
        of_weight = max(abs(value) for W in matrices for value in W[:, j].tolist())
        s = max(of_input, 1e-5) ** alpha / max(of_weight, 1e-5) ** (1 - alpha)
        result.append(s if of_input else 1.0)
    return result


def rounded_error(W: Tensor, X: Tensor, scale: Tensor, bits: int = 8) -> float:
    """Relative squared output error with weights and inputs both rounded."""
    expected = X @ W.T
    found = PerToken(bits, symmetric=True)(X / scale) @ rtn(W * scale, Grid(bits, None, True)).decode().T
    return float((found - expected).square().sum() / expected.square().sum())


class TestFormula:
    @alphas
    def test_loops(self, alpha: float) -> None:
        X, matrices = inputs(30.0), [weights(), 3 * weights(8, 2)]
        X[:, 5] = 0
        matrices[0][:, 7] = matrices[1][:, 7] = 0
        expected = torch.tensor(scale_oracle(absmax(X), matrices, alpha), dtype=torch.float64)
        torch.testing.assert_close(smoothing_scale(absmax(X), matrices, alpha), expected)

    def test_ends_of_alpha(self) -> None:
        X, W = inputs(30.0), weights()
        torch.testing.assert_close(smoothing_scale(absmax(X), [W], 1.0), absmax(X))
        torch.testing.assert_close(smoothing_scale(absmax(X), [W], 0.0), 1 / absmax(W))

    def test_half_way_both_have_the_same_range(self) -> None:
        X, matrices = inputs(30.0), [weights(), 3 * weights(8, 2)]
        s = smoothing_scale(absmax(X), matrices, 0.5)
        joint = torch.cat(matrices)
        torch.testing.assert_close(absmax(X / s), absmax(joint * s), rtol=1e-10, atol=0)
        torch.testing.assert_close(absmax(X / s), (absmax(X) * absmax(joint)).sqrt(), rtol=1e-10, atol=0)

    @pytest.mark.parametrize("power", [-3, 4])
    def test_units_of_the_inputs(self, power: int) -> None:
        X, W = inputs(30.0), weights()
        s = smoothing_scale(absmax(X), [W], 0.5)
        torch.testing.assert_close(smoothing_scale(4.0**power * absmax(X), [W], 0.5), 2.0**power * s)

    def test_order_of_channels_and_of_weights(self) -> None:
        X, matrices = inputs(30.0), [weights(), weights(8, 2)]
        order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(3))
        s = smoothing_scale(absmax(X), matrices)
        shuffled = smoothing_scale(absmax(X)[order], [W[:, order] for W in matrices[::-1]])
        assert torch.equal(shuffled, s[order])

    def test_dtypes(self) -> None:
        X, W = inputs(30.0).float(), weights()
        s = smoothing_scale(absmax(X), [W.bfloat16()])
        assert s.dtype == torch.float32
        torch.testing.assert_close(s, smoothing_scale(absmax(X), [W.bfloat16().float()]))
        assert smoothing_scale(absmax(X).double(), [W]).dtype == torch.float64
        assert not smoothing_scale(absmax(X), [torch.nn.Parameter(W)]).requires_grad

    def test_arguments_are_left_alone(self) -> None:
        X, W = inputs(30.0), weights()
        ranges, copy = absmax(X), W.clone()
        smoothing_scale(ranges, [W])
        assert torch.equal(ranges, absmax(X))
        assert torch.equal(W, copy)

    @given(
        ranges=st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
        size=st.sampled_from([0.0, 1e-9, 1.0, 1e4]), alpha=st.floats(0, 1),
    )  # fmt: skip
    @settings(max_examples=100, deadline=None)
    def test_always_positive_and_finite(self, ranges: list[float], size: float, alpha: float) -> None:
        s = smoothing_scale(torch.tensor(ranges), [size * torch.ones(3, len(ranges))], alpha)
        assert s.isfinite().all()
        assert (s > 0).all()


class TestMechanism:
    def test_large_channels_cost_less(self) -> None:
        X, W = inputs(100.0), weights()
        s = smoothing_scale(absmax(X), [W])
        unseen = inputs(100.0, seed=5)
        assert rounded_error(W, unseen, s) < 0.5 * rounded_error(W, unseen, torch.ones(COLUMNS))

    def test_without_them_nothing_is_gained_or_lost(self) -> None:
        X, W = inputs(1.0), weights()
        s = smoothing_scale(absmax(X), [W])
        assert float(s.max() / s.min()) < 3
        assert rounded_error(W, X, s) == pytest.approx(rounded_error(W, X, torch.ones(COLUMNS)), rel=0.25)

    def test_a_single_spike_makes_weights_harder_for_nothing(self) -> None:
        """Why to leave it out where only weights are rounded: it sees the largest |x|, not the usual one."""
        X, W, grid = inputs(1.0), weights(), Grid(4, None, True)
        X[0, [3, 17]] = 1000.0
        s = smoothing_scale(absmax(X), [W], 0.8)
        usual = X[1:]
        smoothed, plain = (
            ((rtn(W * scale, grid).decode() / scale - W) @ usual.T).square().sum()
            for scale in (s, torch.ones(COLUMNS))
        )
        assert smoothed > 3 * plain

    def test_more_bits(self) -> None:
        X, W = inputs(100.0), weights()
        s = smoothing_scale(absmax(X), [W])
        errors = [rounded_error(W, X, s, bits) for bits in (8, 6, 4, 3)]
        assert all(2 * fewer < more for fewer, more in itertools.pairwise(errors))


class TestOddChannels:
    @alphas
    def test_dead_channels_stay(self, alpha: float) -> None:
        X, W = inputs(30.0), weights()
        X[:, [0, 9]] = 0
        s = smoothing_scale(absmax(X), [W], alpha)
        assert s[[0, 9]].tolist() == [1.0, 1.0]
        others = [j for j in range(COLUMNS) if j not in (0, 9)]
        assert torch.equal(s[others], smoothing_scale(absmax(X)[others], [W[:, others]], alpha))

    def test_nothing_but_zeros(self) -> None:
        assert smoothing_scale(torch.zeros(3), [torch.zeros(2, 3)]).tolist() == [1.0] * 3

    def test_inputs_that_no_weight_reads_are_made_small(self) -> None:
        W = weights().float()
        W[:, 4] = 0
        s = smoothing_scale(torch.full((COLUMNS,), 10.0), [W])
        assert s[4].item() == pytest.approx((10 / TINY) ** 0.5)

    def test_constant_channel(self) -> None:
        X, W = inputs(30.0), weights()
        X[:, 6] = -4.0
        assert smoothing_scale(absmax(X), [W])[6] == pytest.approx((4.0 / absmax(W)[6].item()) ** 0.5)

    def test_faint_channels_count_as_the_least(self) -> None:
        s = smoothing_scale(torch.tensor([1e-30, 1e-5]), [torch.ones(1, 2)])
        assert s[0] == s[1]


class TestErrors:
    @pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
    def test_alpha(self, alpha: float) -> None:
        with pytest.raises(QuantError, match=r"alpha=.* in SmoothQuant is outside 0 to 1.*alpha=0.5"):
            smoothing_scale(torch.ones(COLUMNS), [weights()], alpha)
        with pytest.raises(QuantError, match="outside 0 to 1"):
            SmoothQuant(alpha)

    def test_no_weights(self) -> None:
        with pytest.raises(QuantError, match="no weight to scale"):
            smoothing_scale(torch.ones(COLUMNS), [])

    @pytest.mark.parametrize("shape", [(39,), (40, 1), ()])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(QuantError, match=r"input ranges of shape .* for weights \[\(24, 40\)\]"):
            smoothing_scale(torch.ones(shape), [weights()])

    def test_weights_of_other_widths(self) -> None:
        with pytest.raises(QuantError, match=r"\(24, 40\), \(24, 39\)"):
            smoothing_scale(torch.ones(COLUMNS), [weights(), weights()[:, :39]])

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
    def test_ranges_without_numbers(self, bad: float) -> None:
        ranges = torch.ones(COLUMNS)
        ranges[7] = bad
        with pytest.raises(QuantError, match=r"1 of 40 input ranges .* channel 7"):
            smoothing_scale(ranges, [weights()])

    def test_weight_without_numbers(self) -> None:
        W = weights()
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            smoothing_scale(torch.ones(COLUMNS), [weights(), W])

    def test_no_range(self) -> None:
        with pytest.raises(QuantError, match=r"without the range.*Needs.RANGE"):
            SmoothQuant().scale_group([weights()], LayerStats(tokens=5), Grid(8))


def test_class_is_the_function() -> None:
    method = SmoothQuant(alpha=0.7)
    assert isinstance(method, Transform)
    assert (method.name, method.needs) == ("smoothquant", Needs.RANGE)
    X, matrices = inputs(30.0), [weights(), weights(8, 2)]
    stats = LayerStats(tokens=len(X), low=X.amin(0), high=X.amax(0))
    s = method.scale_group(matrices, stats, Grid(8))
    assert torch.equal(s, smoothing_scale(absmax(X), matrices, 0.7))
    assert torch.equal(s, method.scale_group(matrices, stats, Grid(2, symmetric=True)))
    assert not torch.allclose(s, SmoothQuant().scale_group(matrices, stats, Grid(8)))
