"""AWQ: losses from the tokens themselves, promises of the searches, where they help, odd channels, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import encode_oracle
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.awq import AWQ, awq_clip, awq_scale
from qlib.methods.contracts import Clip, LayerStats, Needs, Transform
from qlib.methods.output_error import STRIP, error_of_rows, squared_output_error, upper_triangle
from qlib.methods.rtn import rtn

COLUMNS = 40
GRIDS = [
    Grid(bits, group, symmetric)
    for bits, group, symmetric in itertools.product([2, 3, 4], [None, 20, 12], [False, True])
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def inputs(outlier: float = 20.0, tokens: int = 300, seed: int = 0, columns: int = COLUMNS) -> Tensor:
    """Tokens whose channels repeat one another; three of them are `outlier` times larger."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.linspace(1.5, 0.3, columns, dtype=torch.float64)[:, None] / columns**0.5
    gain = torch.ones(columns, dtype=torch.float64)
    gain[[3, 17, 30]] = outlier
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing * gain


def weights(rows: int = 24, seed: int = 1, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(X: Tensor) -> tuple[Tensor, Tensor]:
    return X.T @ X, X.abs().mean(0)


def token_loss(W: Tensor, values: Tensor, X: Tensor) -> float:
    """Squared difference of the outputs, summed over tokens and outputs."""
    return float((X @ values.T - X @ W.T).square().sum())


def scale_oracle(
    matrices: list[Tensor], X: Tensor, grid: Grid, points: int = 20
) -> tuple[Tensor, list[float]]:
    """The search on the tokens themselves; rounds number by number."""
    a = X.abs().mean(0)
    best, least, losses = torch.ones_like(a), float("inf"), []
    for k in range(points):
        s = a.clamp(min=1e-4 * float(a.max())) ** (k / points)
        s = s / (s.max() * s.min()).sqrt()
        loss = 0.0
        for W in matrices:
            _, values = encode_oracle(W * s, grid.bits, grid.group, grid.symmetric)
            loss += float(((X / s) @ values.T - X @ W.T).square().sum())
        losses.append(loss)
        if loss < least:
            best, least = s, loss
    return best, losses


def clip_oracle(W: Tensor, X: Tensor, grid: Grid, shares: list[float]) -> Tensor:
    """The search on the tokens themselves, row by row and group by group."""
    result = W.clone()
    width = grid.group or W.shape[1]
    for row, start in itertools.product(range(len(W)), range(0, W.shape[1], width)):
        part, seen = W[row : row + 1, start : start + width], X[:, start : start + width]
        low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
        if grid.symmetric:
            high = max(-low, high)
            low = -high
        least = float("inf")
        for share in shares:
            clipped = part.clamp(low * share, high * share)
            _, values = encode_oracle(clipped, grid.bits, None, grid.symmetric)
            error = float((seen @ (values - part).T).square().sum())
            if error < least * (1 - 1e-12):
                least, result[row, start : start + width] = error, clipped[0]
    return result


def partial_losses(W: Tensor, clipped: Tensor, X: Tensor, grid: Grid) -> Tensor:
    """Squared error of the part of each output that each group adds, [rows, groups], once rounded."""
    D = rtn(clipped, grid).decode() - W
    return torch.stack([(D[:, part] @ X[:, part].T).square().sum(1) for part in grid.slices(W.shape[1])], 1)


class TestScaleOracle:
    @every_grid
    def test_losses_from_the_tokens(self, grid: Grid) -> None:
        X, W = inputs(), weights(8)
        scale, losses = awq_scale([W], *statistics(X), grid)
        expected, of_tokens = scale_oracle([W], X, grid)
        torch.testing.assert_close(losses, torch.tensor(of_tokens, dtype=torch.float64), rtol=1e-9, atol=0)
        torch.testing.assert_close(scale, expected)

    def test_weights_that_share_an_input_share_the_search(self) -> None:
        X, matrices = inputs(), [weights(8), 5 * weights(3, 2)]
        scale, losses = awq_scale(matrices, *statistics(X), Grid(3, 20), points=8)
        expected, of_tokens = scale_oracle(matrices, X, Grid(3, 20), 8)
        torch.testing.assert_close(losses, torch.tensor(of_tokens, dtype=torch.float64), rtol=1e-9, atol=0)
        torch.testing.assert_close(scale, expected)
        apart = sum(awq_scale([W], *statistics(X), Grid(3, 20), points=8)[1] for W in matrices)
        torch.testing.assert_close(losses, apart)

    @pytest.mark.parametrize("columns", [1, 40, STRIP, 2 * STRIP + 30])
    def test_trace_is_the_squared_output_error(self, columns: int) -> None:
        """By the tokens, by tr (D H D^T), and by the rows of its fast form."""
        generator = torch.Generator().manual_seed(2)
        X, D = torch.randn(50, columns, generator=generator, dtype=torch.float64), weights(3, columns=columns)
        expected = (X @ D.T).square()
        torch.testing.assert_close(squared_output_error(D, X.T @ X), expected.sum(), rtol=1e-10, atol=0)
        found = error_of_rows(D, upper_triangle(X.T @ X, D))
        torch.testing.assert_close(found, expected.sum(0), rtol=1e-10, atol=0)

    def test_trace_by_hand(self) -> None:
        """X = [[1, 2], [0, 1]], H = [[1, 2], [2, 5]]; d = (1, -1) moves the outputs by -1 and -1."""
        H, D = torch.tensor([[1.0, 2.0], [2.0, 5.0]]), torch.tensor([[1.0, -1.0], [0.0, 3.0]])
        assert upper_triangle(H, D).tolist() == [[1.0, 4.0], [0.0, 5.0]]
        assert error_of_rows(D, upper_triangle(H, D)).tolist() == [2.0, 45.0]
        assert squared_output_error(D, H).item() == 47.0

    def test_more_columns_than_a_strip(self) -> None:
        """The product with half of H, strip by strip, is the product with H."""
        columns = 2 * STRIP + 30
        X, W = inputs(columns=columns, tokens=50), weights(3, columns=columns)
        H, a = statistics(X)
        _, losses = awq_scale([W], H, a, Grid(3, 128), points=2)
        assert losses[0].item() == pytest.approx(token_loss(W, rtn(W, Grid(3, 128)).decode(), X), rel=1e-10)

    @pytest.mark.parametrize("outlier", [1.0, 20.0, 1000.0])
    @pytest.mark.parametrize("grid", [Grid(4), Grid(3, 64), Grid(2, 128, True)], ids=str)
    def test_float32_chooses_as_float64_does(self, grid: Grid, outlier: float) -> None:
        X, W = inputs(outlier, 600, columns=288), weights(48, columns=288).float()
        H, a = statistics(X)
        narrow, losses = awq_scale([W], H, a, grid)
        wide, exact = awq_scale([W.double()], H, a, grid)
        assert narrow.dtype == torch.float32
        assert int(losses.argmin()) == int(exact.argmin())
        torch.testing.assert_close(losses, exact, rtol=2e-3, atol=0)  # a code at a tie may differ
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)
        clipped, expected = awq_clip(W, H, grid), awq_clip(W.double(), H, grid)
        assert ((clipped - expected).abs() > 1e-5).double().mean() < 1e-3


class TestScale:
    @every_grid
    @pytest.mark.parametrize("outlier", [1.0, 20.0])
    def test_never_worse_than_rounding_to_nearest(self, grid: Grid, outlier: float) -> None:
        X, W = inputs(outlier), weights()
        scale, losses = awq_scale([W], *statistics(X), grid)
        plain = token_loss(W, rtn(W, grid).decode(), X)
        assert losses[0].item() == pytest.approx(plain, rel=1e-9)  # alpha = 0 is s = 1
        found = token_loss(W, rtn(W * scale, grid).decode() / scale, X)
        assert found == pytest.approx(losses.min().item(), rel=1e-9)
        assert found <= plain
        assert (scale > 0).all()
        assert float((scale.max() * scale.min()).sqrt()) == pytest.approx(1)

    def test_one_point_is_rounding_to_nearest(self) -> None:
        scale, losses = awq_scale([weights()], *statistics(inputs()), Grid(3), points=1)
        assert (scale == 1).all()
        assert losses.shape == (1,)

    def test_the_first_of_equals_wins(self) -> None:
        """Weights on a grid of their own: no scale can do better than no error at all."""
        W = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2, dtype=torch.float64)
        scale, losses = awq_scale([W], torch.eye(4), torch.ones(4), Grid(2))
        assert (losses == 0).all()
        assert (scale == 1).all()

    def test_order_of_the_channels(self) -> None:
        X, W = inputs(), weights()
        order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(3))
        scale, losses = awq_scale([W], *statistics(X), Grid(3))
        shuffled, same = awq_scale([W[:, order]], *statistics(X[:, order]), Grid(3))
        torch.testing.assert_close(shuffled, scale[order])
        torch.testing.assert_close(same, losses)

    @pytest.mark.parametrize("unit", [1e-3, 50.0])
    def test_units_of_the_inputs(self, unit: float) -> None:
        X, W = inputs(), weights()
        scale, losses = awq_scale([W], *statistics(X), Grid(3, 12))
        again, scaled = awq_scale([W], *statistics(unit * X), Grid(3, 12))
        torch.testing.assert_close(again, scale)
        torch.testing.assert_close(scaled, losses * unit**2)

    def test_more_tokens_of_the_same_kind(self) -> None:
        H, a = statistics(inputs())
        assert torch.equal(
            awq_scale([weights()], 4 * H, a, Grid(3))[0], awq_scale([weights()], H, a, Grid(3))[0]
        )

    def test_a_second_run_and_arguments(self) -> None:
        W, (H, a) = weights().float(), statistics(inputs())
        copies = W.clone(), H.clone(), a.clone()
        first, again = (awq_scale([W], H, a, Grid(3, 12)) for _ in range(2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert all(torch.equal(new, old) for new, old in zip((W, H, a), copies, strict=True))
        parameter = awq_scale([torch.nn.Parameter(W)], H, a, Grid(3, 12))
        assert torch.equal(parameter[0], first[0])
        assert not parameter[0].requires_grad

    def test_threads(self) -> None:
        X, W = inputs(columns=288), weights(96, columns=288).float()
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = awq_scale([W], *statistics(X), Grid(4, 128))[0]
            torch.set_num_threads(2)
            two = awq_scale([W], *statistics(X), Grid(4, 128))[0]
        finally:
            torch.set_num_threads(threads)
        torch.testing.assert_close(one, two)


class TestMechanism:
    @pytest.mark.parametrize("grid", [Grid(4), Grid(3), Grid(3, 20), Grid(4, 20, True)], ids=str)
    def test_large_channels_get_the_finer_grid(self, grid: Grid) -> None:
        X, W, unseen = inputs(20.0), weights(64), inputs(20.0, seed=5)
        scale, _ = awq_scale([W], *statistics(X), grid)
        assert set(scale.topk(3).indices.tolist()) == {3, 17, 30}
        scaled = token_loss(W, rtn(W * scale, grid).decode() / scale, unseen)
        assert scaled < 0.6 * token_loss(W, rtn(W, grid).decode(), unseen)

    def test_without_them_nothing_is_gained_or_lost(self) -> None:
        X = torch.randn(300, COLUMNS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, losses = awq_scale([weights(64)], *statistics(X), Grid(4))
        assert losses.min() > 0.93 * losses[0]
        assert losses.max() < 1.15 * losses[0]

    @every_grid
    def test_clipping_helps_on_other_tokens_too(self, grid: Grid) -> None:
        X, W, unseen = inputs(), weights(64), inputs(seed=5)
        clipped = awq_clip(W, X.T @ X, grid)
        loss = token_loss(W, rtn(clipped, grid).decode(), unseen)
        assert loss < 0.97 * token_loss(W, rtn(W, grid).decode(), unseen)

    def test_scale_and_clip_add_up(self) -> None:
        X, W, grid, unseen = inputs(), weights(64), Grid(3), inputs(seed=5)
        H, a = statistics(X)
        scale, _ = awq_scale([W], H, a, grid)
        clipped = awq_clip(W * scale, H / scale / scale[:, None], grid)
        scaled = token_loss(W, rtn(W * scale, grid).decode() / scale, unseen)
        assert token_loss(W, rtn(clipped, grid).decode() / scale, unseen) < 0.9 * scaled

    def test_both_ends_shrink_by_the_same_share(self) -> None:
        """A lopsided range: to +-m, the short end would not be touched before the long one is as short."""
        W = torch.cat([torch.linspace(-0.5, 2, 39), torch.tensor([4.0])]).double().repeat(8, 1)
        W[:, 0] = -1
        clipped = awq_clip(W, torch.eye(COLUMNS, dtype=torch.float64), Grid(2))
        share = clipped.amax(1) / 4
        assert (share < 1).all()
        torch.testing.assert_close(clipped.amin(1), -share)
        codes = rtn(clipped, Grid(2))
        assert torch.equal(codes.zero, rtn(W, Grid(2)).zero)  # so 0.0 keeps its code


class TestClip:
    @every_grid
    def test_errors_from_the_tokens(self, grid: Grid) -> None:
        X, W = inputs(), weights(5)
        shares = [1 - step / 20 for step in range(10)]
        torch.testing.assert_close(awq_clip(W, X.T @ X, grid), clip_oracle(W, X, grid, shares))

    def test_steps_and_shrink(self) -> None:
        X, W = inputs(), weights(5)
        found = awq_clip(W, X.T @ X, Grid(2, 20), steps=4, shrink=0.8)
        torch.testing.assert_close(found, clip_oracle(W, X, Grid(2, 20), [1, 0.8, 0.6, 0.4]))
        assert torch.equal(awq_clip(W, X.T @ X, Grid(2, 20), steps=1), W)

    @every_grid
    def test_no_group_gets_worse(self, grid: Grid) -> None:
        X, W = inputs(), weights()
        clipped = awq_clip(W, X.T @ X, grid)
        assert (partial_losses(W, clipped, X, grid) <= partial_losses(W, W, X, grid) * (1 + 1e-9)).all()
        for part in grid.slices(COLUMNS):
            before, after = (matrix[:, part].abs().amax(1) for matrix in (W, clipped))
            assert (after <= before).all()
            assert (after >= 0.55 * before - 1e-12).all()

    def test_rows_and_groups_do_not_touch_one_another(self) -> None:
        X, W = inputs(), weights()
        H, rows = X.T @ X, torch.tensor([9, 2, 5])
        clipped = awq_clip(W, H, Grid(3, 12))
        torch.testing.assert_close(awq_clip(W[rows], H, Grid(3, 12)), clipped[rows])
        for part in Grid(3, 12).slices(COLUMNS):  # the last one has 4 columns
            torch.testing.assert_close(awq_clip(W[:, part], H[part, part], Grid(3)), clipped[:, part])

    def test_dtype_and_arguments(self) -> None:
        X, W = inputs(), weights().float()
        H, copy = X.T @ X, W.clone()
        clipped = awq_clip(W, H, Grid(3, 12))
        assert torch.equal(W, copy)
        assert torch.equal(clipped, awq_clip(torch.nn.Parameter(W), H, Grid(3, 12)))
        half = awq_clip(W.bfloat16(), H, Grid(3, 12))
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, awq_clip(W.bfloat16().float(), H, Grid(3, 12)).bfloat16())

    def test_more_bits(self) -> None:
        X, W = inputs(), weights(64)
        losses = [
            token_loss(W, rtn(awq_clip(W, X.T @ X, Grid(bits, 20)), Grid(bits, 20)).decode(), X)
            for bits in (8, 4, 3, 2)
        ]
        assert all(2 * fewer < more for fewer, more in itertools.pairwise(losses))


class TestOddChannels:
    @pytest.mark.parametrize("grid", [Grid(4), Grid(3, 12), Grid(3, 12, True)], ids=str)
    def test_dead_channels_leave_the_others_room(self, grid: Grid) -> None:
        X, W = inputs(), weights()
        X[:, [0, 9]] = 0
        H, a = statistics(X)
        scale, losses = awq_scale([W], H, a, grid)
        assert scale.isfinite().all()
        assert float(scale.max() / scale.min()) <= 1e4
        assert losses.isfinite().all()
        assert losses.min() < losses[0]
        assert awq_clip(W * scale, H / scale / scale[:, None], grid).isfinite().all()

    def test_nothing_but_zeros(self) -> None:
        H, a, W = torch.zeros(COLUMNS, COLUMNS), torch.zeros(COLUMNS), weights()
        scale, losses = awq_scale([W], H, a, Grid(3, 12))
        assert (scale == 1).all()
        assert (losses == 0).all()
        assert torch.equal(awq_clip(W, H, Grid(3, 12)), W)

    def test_constant_channel(self) -> None:
        X, W = inputs(), weights()
        X[:, 6] = -4.0
        scale, losses = awq_scale([W], *statistics(X), Grid(3))
        assert scale.isfinite().all()
        assert losses.min() < losses[0]

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("kind", ["zero", "positive", "negative", "one value"])
    def test_odd_groups(self, kind: str, symmetric: bool) -> None:
        X, W, grid = inputs(), weights(), Grid(4, 20, symmetric)
        part = W[:, :20]
        W[:, :20] = {
            "zero": torch.zeros_like(part), "positive": part.abs() + 1,
            "negative": -part.abs() - 1, "one value": torch.full_like(part, 0.3),
        }[kind]  # fmt: skip
        H, a = statistics(X)
        scale, losses = awq_scale([W], H, a, grid)
        clipped = awq_clip(W, H, grid)
        assert scale.isfinite().all()
        assert losses.isfinite().all()
        assert (partial_losses(W, clipped, X, grid) <= partial_losses(W, W, X, grid) * (1 + 1e-9)).all()
        if kind in ("zero", "one value"):
            assert torch.equal(clipped[:, :20], W[:, :20])

    def test_width_of_moonshine(self) -> None:
        X, W = inputs(columns=288, tokens=100), weights(4, columns=288)
        H, a = statistics(X)
        assert awq_scale([W], H, a, Grid(4, 128), points=3)[0].shape == (288,)
        alone = awq_clip(W[:, 256:], H[256:, 256:], Grid(4))
        torch.testing.assert_close(awq_clip(W, H, Grid(4, 128))[:, 256:], alone)

    @given(
        rows=st.integers(1, 5), columns=st.integers(1, 16), bits=st.sampled_from([2, 4]),
        group=st.integers(1, 16), symmetric=st.booleans(), seed=st.integers(0, 1000), dead=st.integers(0, 15),
    )  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_any_shape(
        self, rows: int, columns: int, bits: int, group: int, symmetric: bool, seed: int, dead: int
    ) -> None:
        W = weights(rows, seed, columns)
        X = torch.randn(7, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).exp()
        X[:, dead % columns] = 0
        grid = Grid(bits, min(group, columns), symmetric)
        H, a = statistics(X)
        scale, losses = awq_scale([W], H, a, grid, points=4)
        assert (scale > 0).all()
        assert float((scale.max() * scale.min()).sqrt()) == pytest.approx(1)
        assert losses.min() <= losses[0]
        clipped = awq_clip(W, H, grid, steps=3)
        before, after = (partial_losses(W, matrix, X, grid) for matrix in (W, clipped))
        assert (after <= before * (1 + 1e-9) + 1e-12).all()


class TestErrors:
    def test_no_weights(self) -> None:
        with pytest.raises(QuantError, match="no weight to scale"):
            awq_scale([], *statistics(inputs()), Grid(3))

    def test_shapes(self) -> None:
        H, a = statistics(inputs())
        with pytest.raises(QuantError, match=r"Hessian of shape \(39, 40\) for 40 inputs"):
            awq_scale([weights()], H[:39], a, Grid(3))
        with pytest.raises(QuantError, match=r"mean inputs of shape \(39,\) for weights \[\(24, 40\)\]"):
            awq_scale([weights()], H, a[:39], Grid(3))
        with pytest.raises(QuantError, match="for 39 inputs"):
            awq_scale([weights(), weights()[:, :39]], H, a, Grid(3))
        with pytest.raises(QuantError, match=r"Hessian of shape \(39, 40\) for 40 inputs"):
            awq_clip(weights(), H[:39], Grid(3))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_statistics_without_numbers(self, bad: float) -> None:
        H, a = statistics(inputs())
        H[2, 3] = bad
        with pytest.raises(QuantError, match="1 of 1600 entries of the Hessian are NaN or infinite"):
            awq_scale([weights()], H, a, Grid(3))
        with pytest.raises(QuantError, match="1 of 1600 entries of the Hessian are NaN or infinite"):
            awq_clip(weights(), H, Grid(3))
        H, a = statistics(inputs())
        a[2] = bad
        with pytest.raises(QuantError, match="1 of 40 mean inputs are NaN or infinite"):
            awq_scale([weights()], H, a, Grid(3))

    def test_weight_without_numbers(self) -> None:
        W, (H, a) = weights(), statistics(inputs())
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            awq_scale([weights(), W], H, a, Grid(3))
        with pytest.raises(QuantError, match="row 1, column 2"):
            awq_clip(W, H, Grid(3))

    def test_group_larger_than_the_layer(self) -> None:
        H, a = statistics(inputs())
        with pytest.raises(QuantError, match="group=64 is larger than the 40 columns"):
            awq_scale([weights()], H, a, Grid(3, 64))
        with pytest.raises(QuantError, match="group=64 is larger than the 40 columns"):
            awq_clip(weights(), H, Grid(3, 64))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"points": 0}, "points=0 in AWQ .* points=20"),
            ({"steps": 0}, "steps=0"),
            ({"shrink": 0.0}, "shrink=0.0"),
            ({"shrink": 1.0}, "shrink=1.0"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        H, a = statistics(inputs())
        with pytest.raises(QuantError, match=message):
            AWQ(**setting)
        with pytest.raises(QuantError, match=message):
            if "points" in setting:
                awq_scale([weights()], H, a, Grid(3), **setting)
            else:
                awq_clip(weights(), H, Grid(3), **setting)

    def test_no_statistics(self) -> None:
        H, a = statistics(inputs())
        for stats in (LayerStats(tokens=5, absolute=a), LayerStats(tokens=5, hessian=H)):
            with pytest.raises(QuantError, match=r"without a Hessian or mean .* Needs.MAGNITUDE"):
                AWQ().scale_group([weights()], stats, Grid(3))
        with pytest.raises(QuantError, match="without a Hessian"):
            AWQ().clip_layer(weights(), LayerStats(tokens=5), Grid(3))


class TestClass:
    def test_is_the_functions(self) -> None:
        method = AWQ(points=7, steps=4, shrink=0.8)
        assert isinstance(method, Transform)
        assert isinstance(method, Clip)
        assert (method.name, method.needs) == ("awq", Needs.HESSIAN | Needs.MAGNITUDE)
        X, matrices = inputs(), [weights(), weights(8, 2)]
        stats = LayerStats(tokens=len(X), hessian=X.T @ X, absolute=X.abs().sum(0))
        H, a = statistics(X)
        scale = method.scale_group(matrices, stats, Grid(2, 12))
        torch.testing.assert_close(scale, awq_scale(matrices, H, a, Grid(2, 12), points=7)[0])
        assert not torch.allclose(scale, awq_scale(matrices, H, a, Grid(2, 12))[0])
        clipped = method.clip_layer(matrices[0], stats, Grid(2, 12))
        assert torch.equal(clipped, awq_clip(matrices[0], H, Grid(2, 12), steps=4, shrink=0.8))
        assert not torch.equal(clipped, awq_clip(matrices[0], H, Grid(2, 12)))

    def test_either_search_can_be_left_out(self) -> None:
        X, W = inputs(), weights()
        stats = LayerStats(tokens=len(X), hessian=X.T @ X, absolute=X.abs().sum(0))
        assert (AWQ(scale=False).scale_group([W], stats, Grid(3)) == 1).all()
        assert AWQ(clip=False).clip_layer(W, stats, Grid(3)) is W
        assert not (AWQ(clip=False).scale_group([W], stats, Grid(3)) == 1).all()
        assert not torch.equal(AWQ(scale=False).clip_layer(W, stats, Grid(3)), W)

    def test_clip_after_scale_sees_the_scaled_inputs(self) -> None:
        X, W, method = inputs(), weights(), AWQ()
        stats = LayerStats(tokens=len(X), hessian=X.T @ X, absolute=X.abs().sum(0))
        scale = method.scale_group([W], stats, Grid(3))
        clipped = method.clip_layer(W * scale, stats.scaled(scale), Grid(3))
        expected = clip_oracle(W * scale, X / scale, Grid(3), [1 - step / 20 for step in range(10)])
        torch.testing.assert_close(clipped, expected)
