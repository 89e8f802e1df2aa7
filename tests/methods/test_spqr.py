"""SpQR: brute-force oracles of the test, the fit and the columns; what outliers save; two levels on disk."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, fit_float_zero
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.gptq import gptq
from qlib.methods.hessian import hessian
from qlib.methods.spqr import SpQR, leave_one_out, spqr
from qlib.methods.two_levels import round_scales
from qlib.quantized_weight import QuantizedWeight
from qlib.stored_weight import pack_weight, unpack_weight

Array = NDArray[np.float64]

COLUMNS, ROWS = 40, 20  # the second group of rows has 4
INF = float("inf")
GRIDS = [Grid(bits, group) for bits in (2, 3, 4) for group in (None, 16, 8, 12)]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
every_order = pytest.mark.parametrize("order", [False, True], ids=["left to right", "largest first"])


def data(tokens: int = 300, columns: int = COLUMNS, seed: int = 0) -> Tensor:
    """Inputs that repeat one another, some of them larger than the rest."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.linspace(1.5, 0.05, columns, dtype=torch.float64)[:, None]
    gain = 1 + 4 * (torch.rand(columns, generator=generator, dtype=torch.float64) > 0.8)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing * gain


def weights(rows: int = ROWS, columns: int = COLUMNS, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal weights, one in fifty of them five times larger."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (W * (1 + 4 * (torch.rand(rows, columns, generator=generator) > 0.98))).to(dtype)


def loss(W: Tensor, result: QuantizedWeight, X: Tensor) -> float:
    return float(((W - result.decode()).double() @ X.T).square().sum())


def count(result: QuantizedWeight) -> int:
    return 0 if result.outliers is None else len(result.outliers)


# --- oracles, number by number


def fit_numbers(values: Array, bits: int, reach_zero: bool) -> tuple[float, float]:
    lo, hi = values.min(), values.max()
    if reach_zero:
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1) or 1.0
    return scale, -lo / scale


def on_grid(values: Array, scale: float, zero: float, bits: int) -> Array:
    return scale * (np.clip(np.round(values / scale + zero), 0, 2**bits - 1) - zero)


def leave_one_out_oracle(group: Array, pivots: Array, bits: int) -> Array:
    """Fit and round each group once without each of its weights."""
    gains = np.zeros_like(group)
    for r, row in enumerate(group):
        whole = (((row - on_grid(row, *fit_numbers(row, bits, True), bits)) * pivots) ** 2).sum()
        for k in range(len(row)):
            rest, costs = np.delete(row, k), np.delete(pivots, k)
            rounded = on_grid(rest, *fit_numbers(rest, bits, True), bits)
            gains[r, k] = whole - (((rest - rounded) * costs) ** 2).sum()
    return gains


def second_oracle(numbers: Array, bits: int, group: int) -> Array:
    parts = [numbers[k : k + group] for k in range(0, len(numbers), group)]
    return np.concatenate([on_grid(part, *fit_numbers(part, bits, False), bits) for part in parts])


def spqr_oracle(
    weight: Tensor, H: Tensor, grid: Grid, order: bool = True, threshold: float = 0.2,
    second: tuple[int, int] = (3, 16), damping: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Values and outliers by the paper's algorithm, but ranges reach 0: the inverse, column by column."""
    energy = H.diagonal().numpy()
    visit = np.argsort(-energy, kind="stable") if order else np.arange(len(H))
    W, D = weight.double().numpy()[:, visit].copy(), H.numpy()[visit][:, visit]
    U = np.linalg.cholesky(np.linalg.inv(D + damping * energy.mean() * np.eye(len(D)))).T
    u, width = np.diag(U), grid.group or len(D)
    tau = threshold * (W.var(0, ddof=1) / u**2).mean()
    kept = np.zeros(W.shape, dtype=bool)
    for j in range(len(D)):
        if j % width == 0:
            group = W[:, j : j + width].copy()
            odd = leave_one_out_oracle(group, 1 / u[j : j + width], grid.bits) > tau
            for row, out in zip(group, odd, strict=True):
                row[out] = row[~out].mean() if (~out).any() else row
            fits = np.array([fit_numbers(row, grid.bits, True) for row in group])
            scale, zero = (second_oracle(part, *second) for part in fits.T)
        rounded = scale * (np.clip(np.round(W[:, j] / scale + zero), 0, grid.levels - 1) - zero)
        kept[:, j] = ((W[:, j] - rounded) / u[j]) ** 2 > tau
        rounded = np.where(kept[:, j], W[:, j].astype(np.float16), rounded)
        W[:, j + 1 :] -= np.outer((W[:, j] - rounded) / u[j], U[j, j + 1 :])
        W[:, j] = rounded
    back = np.argsort(visit)
    return torch.from_numpy(W[:, back].copy()), torch.from_numpy(kept[:, back].copy())


def kept_mask(result: QuantizedWeight) -> Tensor:
    mask = torch.zeros(result.codes.numel(), dtype=torch.bool)
    if result.outliers is not None:
        mask[result.outliers] = True
    return mask.view(result.codes.shape)


class TestOracles:
    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("width", [1, 2, 3, 16])
    def test_leave_one_out_is_as_if_each_weight_were_left_out(self, bits: int, width: int) -> None:
        group = weights(60, width)
        group[0], group[1] = 0.0, 0.5
        group[2:20].abs_()  # one sign
        group[20:30].round_()  # several equal extremes
        pivots = torch.linspace(0.5, 2, width, dtype=torch.float64)
        if width > 1:
            gains = torch.from_numpy(leave_one_out_oracle(group.numpy(), pivots.numpy(), bits))
            torch.testing.assert_close(leave_one_out(group, pivots, Grid(bits)), gains, rtol=1e-9, atol=1e-12)
        else:  # a single weight and 0 are both on the grid
            assert leave_one_out(group, pivots, Grid(bits)).abs().max() < 1e-12

    @every_grid
    @every_order
    def test_paper_s_algorithm(self, grid: Grid, order: bool) -> None:
        W, H = weights(), hessian(data())
        values, kept = spqr_oracle(W, H, grid, order)
        result = spqr(W, H, grid, act_order=order)
        assert torch.equal(kept_mask(result), kept)
        assert kept.any()
        torch.testing.assert_close(result.decode(), values, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("settings", [
        {"threshold": 0.05}, {"threshold": 0.0}, {"threshold": INF}, {"damping": 0.01},
        {"second": (2, 16)}, {"second": (8, 5)}, {"second": (3, 1)}, {"second": (3, 20)}, {"second": (3, 64)},
    ], ids=str)  # fmt: skip
    def test_settings(self, settings: dict[str, object]) -> None:
        W, H = weights(), hessian(data())
        values, kept = spqr_oracle(W, H, Grid(3, 16), **settings)
        bits, group = settings.pop("second", (3, 16))
        result = spqr(W, H, Grid(3, 16), second_bits=bits, second_group=group, **settings)
        assert torch.equal(kept_mask(result), kept)
        torch.testing.assert_close(result.decode(), values, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize(("bits", "group"), [(4, 16), (3, 64)])
    def test_float32_layer_of_full_width(self, bits: int, group: int) -> None:
        W, H = weights(24, 256, torch.float32), hessian(data(1500, 256))
        values, kept = spqr_oracle(W, H, Grid(bits, group))
        result = spqr(W, H, Grid(bits, group))
        assert (kept_mask(result) == kept).double().mean() >= 0.999
        same = (result.decode() - values).abs() < 1e-4
        assert same.double().mean() >= 0.999

    @every_order
    def test_without_outliers_and_with_exact_scales_it_is_gptq(self, order: bool) -> None:
        """Where a float zero is a whole number by chance, both grids are the same."""
        W, H = weights().clamp(-2.9, 3.9), hessian(data())
        first = H.diagonal().argmax() if order else 0
        W[:, first], W[:, 20] = -3.0, 4.0  # scale 1, zero 3
        result = spqr(W, H, Grid(3), threshold=INF, second_group=1, act_order=order)
        expected = gptq(W, H, Grid(3), damping=1.0, act_order=order)
        assert torch.equal(result.codes, expected.codes)
        torch.testing.assert_close(result.decode(), expected.decode())
        assert (result.outliers, result.outlier_values) == (None, None)
        assert result.notes == ("0 of 800 weights (0.00 %) stay in float16",)


class TestOutliers:
    def test_are_kept_as_compensation_left_them(self) -> None:
        """Once everything before is fixed, an outlier is the least-squares answer, to float16."""
        W, H = weights(), hessian(data())
        result = spqr(W, H, Grid(2, 8), act_order=False, threshold=0.02)
        A = H + H.diagonal().mean() * torch.eye(COLUMNS)
        values, places = result.decode(), result.outliers
        for place, value in list(zip(places.tolist(), result.outlier_values.tolist(), strict=True))[::5]:
            row, j = divmod(place, COLUMNS)
            moved = torch.linalg.solve(A[j:, j:], A[j:, :j] @ (W - values)[row, :j])
            assert value == float((W[row, j:] + moved)[0].half())

    def test_are_ascending_places_and_float16_values(self) -> None:
        result = spqr(weights(), hessian(data()), Grid(3, 8))
        assert result.outliers.dtype == torch.int64
        assert (result.outliers.diff() > 0).all()
        assert result.outlier_values.dtype == torch.float16
        assert (result.codes.flatten()[result.outliers] == 0).all()
        decoded = result.decode().flatten()[result.outliers]
        assert torch.equal(decoded, result.outlier_values.double())
        share = 100 * len(result.outliers) / 800
        assert result.notes == (f"{len(result.outliers)} of 800 weights ({share:.2f} %) stay in float16",)

    def test_grow_fewer_with_the_threshold(self) -> None:
        counts = [
            count(spqr(weights(), hessian(data()), Grid(3, 8), threshold=t))
            for t in (0, 0.01, 0.1, 0.5, 5, INF)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > 700
        assert counts[-2:] == [0, 0]

    def test_planted_weights_are_found_and_their_neighbours_profit(self) -> None:
        W = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
        generator = torch.Generator().manual_seed(1)
        planted = torch.randperm(W.numel(), generator=generator)[:20].sort().values
        W.view(-1)[planted] = 30.0
        X = torch.randn(500, 64, generator=generator, dtype=torch.float64)
        result = spqr(W, hessian(X), Grid(4, 16))
        without = spqr(W, hessian(X), Grid(4, 16), threshold=INF)
        assert torch.equal(result.outliers, planted)
        assert result.scale.max() < 0.7  # the ranges do not know of them
        assert loss(W, result, X) < 0.3 * loss(W, without, X)

    def test_beyond_float16_are_rounded_like_the_rest(self) -> None:
        W = weights()
        W[3, 4], W[3, 5] = 1e6, 4e5  # of 2 bits the nearest is 333,333
        result = spqr(W, torch.eye(COLUMNS), Grid(2, 8), threshold=1e-3, second_group=1)
        assert result.decode()[3, 5] == pytest.approx(1e6 / 3, rel=1e-4)
        assert result.decode().isfinite().all()


class TestScales:
    @every_grid
    @every_order
    def test_are_those_of_the_second_level_bit_for_bit(self, grid: Grid, order: bool) -> None:
        result = spqr(weights(dtype=torch.float32), hessian(data()), grid, act_order=order)
        groups = len(grid.slices(COLUMNS))
        scale, zero = result.second.decode()
        assert torch.equal(result.scale, scale)
        assert torch.equal(result.zero, zero)
        assert scale.shape == zero.shape == (ROWS, groups)
        assert scale.dtype == zero.dtype == torch.float32
        for level in (result.second.scale, result.second.zero):
            assert level.codes.shape == (groups, ROWS)
            assert level.codes.max() == 7  # 3 bits
            assert level.scale.shape == (groups, 2)  # 16 rows and 4
        assert (result.index is None) == (groups == 1)

    def test_zeros_stay_within_the_codes(self) -> None:
        W = weights() + 30 * (torch.arange(ROWS) % 2)[:, None]  # every other row is far from 0
        result = spqr(W, hessian(data()), Grid(3, 8), threshold=INF)
        assert result.zero.min() >= -1e-6
        assert result.zero.max() <= 7 + 1e-6

    @pytest.mark.parametrize("zeros", [[3], [3, 4, 17], [16, 17, 18, 19], list(range(ROWS))], ids=str)
    def test_rows_of_zeros_leave_the_scales_of_their_neighbours_alone(self, zeros: list[int]) -> None:
        W, H = 0.01 * weights(), hessian(data())
        others = [row for row in range(ROWS) if row not in zeros]
        usual = (W - spqr(W, H, Grid(3, 8), threshold=INF).decode())[others].norm()
        W[zeros] = 0
        result = spqr(W, H, Grid(3, 8), threshold=INF)
        assert (result.decode()[zeros] == 0).all()
        assert (W - result.decode())[others].norm() <= 1.2 * usual
        assert (result.scale == 1).all() if not others else result.scale[others].max() < 0.05

    @pytest.mark.parametrize(("columns", "group", "groups"), [(288, 128, 3), (288, 64, 5)])
    def test_last_group_may_be_narrower(self, columns: int, group: int, groups: int) -> None:
        W, H = weights(20, columns, torch.float32), hessian(data(900, columns))
        result = spqr(W, H, Grid(4, group))
        assert result.scale.shape == (20, groups)
        by_energy = H.diagonal().argsort(descending=True, stable=True)
        assert torch.equal(result.index[by_energy], Grid(4, group).group_index(columns))
        neighbours = spqr(W, H, Grid(4, group), act_order=False)
        assert torch.equal(neighbours.index, Grid(4, group).group_index(columns))


class TestWhatMustNotMatter:
    @every_order
    def test_second_run_and_storage_of_the_weight(self, order: bool) -> None:
        W, H = weights(dtype=torch.float32), hessian(data())
        first = spqr(W, H, Grid(3, 12), act_order=order)
        for again in (
            spqr(W, H, Grid(3, 12), act_order=order),
            spqr(W.T.contiguous().T, H, Grid(3, 12), act_order=order),
        ):
            assert torch.equal(again.codes, first.codes)
            assert torch.equal(again.outliers, first.outliers)

    @pytest.mark.parametrize("factor", [1e-12, 3.7, 1e30])
    def test_scale_of_the_hessian(self, factor: float) -> None:
        W, H = weights(dtype=torch.float32), hessian(data())
        H[3] = H[:, 3] = 0
        first, other = spqr(W, H, Grid(3, 12)), spqr(W, factor * H, Grid(3, 12))
        assert torch.equal(first.outliers, other.outliers)
        assert torch.equal(first.codes, other.codes)

    def test_scale_of_the_weight(self) -> None:
        W, H = weights(dtype=torch.float32), hessian(data())
        first, other = spqr(W, H, Grid(3, 12)), spqr(W / 1024, H, Grid(3, 12))
        assert torch.equal(first.outliers, other.outliers)
        assert torch.equal(first.codes, other.codes)

    def test_other_blocks_of_rows(self) -> None:
        W, H = weights(), hessian(data())
        some, every = (spqr(w, H, Grid(3, 12), threshold=INF) for w in (W[:16], W))
        assert torch.equal(some.codes, every.codes[:16])

    def test_arguments_are_left_alone(self) -> None:
        W, H = weights().requires_grad_(), hessian(data())
        H[5] = H[:, 5] = 0
        weight, matrix = W.detach().clone(), H.clone()
        result = spqr(W, H, Grid(3, 12))
        assert torch.equal(W, weight)
        assert torch.equal(H, matrix)
        assert not result.decode().requires_grad

    def test_half_precision_is_computed_in_float32(self) -> None:
        W, H = weights(dtype=torch.bfloat16), hessian(data())
        result = spqr(W, H, Grid(3, 12))
        assert result.scale.dtype == torch.float32
        assert torch.equal(result.codes, spqr(W.float(), H, Grid(3, 12)).codes)


class TestOddLayers:
    @every_order
    @every_grid
    def test_dead_and_constant_inputs(self, grid: Grid, order: bool) -> None:
        W, X, dead = weights(), data(), [4, 5, 39]
        W[:, dead] *= 100
        X[:, dead], X[:, 8] = 0, 2.0
        result = spqr(W, hessian(X), grid, act_order=order)
        assert result.notes[1] == "3 of 40 inputs were 0 for every token: their weights count as 0"
        assert not kept_mask(result)[:, dead].any()
        assert (result.decode()[:, dead].abs() <= 0.51 * result.scale.max()).all()
        assert loss(W, result, X) < 0.2 * float((W @ X.T).square().sum())

    def test_rows_of_one_sign_and_constants(self) -> None:
        W, H = weights(), hessian(data())
        W[3], W[4], W[5], W[6] = W[3].abs(), -W[4].abs(), 0.7, -1e-8
        result = spqr(W, H, Grid(4, 8))
        assert result.decode().isfinite().all()
        assert loss(W, result, data()) < 0.05 * float((W @ data().T).square().sum())

    @pytest.mark.parametrize(
        "W", [torch.zeros(20, 40), torch.ones(20, 40), torch.full((3, 40), 1e-44)], ids=str
    )
    def test_nothing_varies(self, W: Tensor) -> None:
        result = spqr(W, hessian(data()), Grid(3, 8))
        torch.testing.assert_close(result.decode(), W, rtol=1e-3, atol=1e-40)

    def test_nothing_but_dead_inputs(self) -> None:
        result = spqr(weights(), torch.zeros(COLUMNS, COLUMNS), Grid(3, 12))
        assert (result.decode() == 0).all()

    @pytest.mark.parametrize("rows", [1, 2, 16, 17])
    def test_few_rows(self, rows: int) -> None:
        W, X = weights(rows), data()
        result = spqr(W, hessian(X), Grid(4, 8))
        assert loss(W, result, X) < 0.1 * float((W @ X.T).square().sum())

    def test_fewer_tokens_than_inputs(self) -> None:
        X = data(tokens=10)
        result = SpQR().quantize_layer(weights(), LayerStats(10, hessian(X)), Grid(3, 8))
        assert result.notes[0].startswith("10 tokens for 40 inputs")
        assert result.decode().isfinite().all()


class TestStorage:
    @every_grid
    @every_order
    @pytest.mark.parametrize(
        "settings", [{}, {"threshold": INF}, {"second_group": 1}, {"second_group": 64}], ids=str
    )
    def test_round_trips_keep_every_bit(self, grid: Grid, order: bool, settings: dict[str, object]) -> None:
        result = spqr(weights(dtype=torch.float32), hessian(data()), grid, act_order=order, **settings)
        layer = FakeQuantLinear(result, grid)
        about = {
            "grid": asdict(grid), "second": asdict(result.second.grid),
            "shape": list(result.codes.shape), "notes": list(result.notes),
        }  # fmt: skip
        for again in (
            QuantizedWeight.from_tensors(result.tensors(), result.second.grid),
            unpack_weight(pack_weight(layer), about),
        ):
            assert again.tensors().keys() == result.tensors().keys()
            for name, tensor in result.tensors().items():
                assert torch.equal(again.tensors()[name], tensor), name
                assert again.tensors()[name].dtype == tensor.dtype
            assert torch.equal(again.decode(), result.decode())

    def test_bits_are_those_of_the_formula(self) -> None:
        """b + (b_s + b_z)/g + 128/(g * rows of a second group) + 32 for each outlier, and the order."""
        result = spqr(weights(64, 256, torch.float32), hessian(data(900, 256)), Grid(4, 16))
        stored = pack_weight(FakeQuantLinear(result, Grid(4, 16)))
        bits = 8 * sum(tensor.nbytes for tensor in stored.values())
        size = 64 * 256
        expected = size * (4 + 6 / 16 + 128 / 256) + 32 * count(result) + 8 * 256
        assert abs(bits - expected) <= 16 * count(result)


def test_a_row_of_zeros_gets_the_smallest_scale_of_its_neighbours() -> None:
    scale, zero = torch.tensor([1.0, 2.0, 900.0, 5.0, 900.0]), torch.zeros(5)
    empty = torch.tensor([False, False, True, False, True])
    rounded, _, level = round_scales(scale, zero, empty, Grid(8, 3))  # rows 0 to 2, and 3 and 4
    assert level.codes.shape == (2, 5)
    torch.testing.assert_close(rounded, torch.tensor([1.0, 2.0, 1.0, 5.0, 5.0]))
    assert torch.equal(rounded, level.decode()[0])


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"threshold": -0.1}, "threshold=-0.1 in SpQR"),
            ({"threshold": float("nan")}, "threshold=nan in SpQR"),
            ({"damping": -1}, "damping=-1 in SpQR"),
            ({"second_bits": 9}, "second_bits=9, second_group=16 in SpQR"),
            ({"second_bits": 1}, "second_bits=1"),
            ({"second_group": 0}, "second_group=0"),
            ({"act_order": "static"}, "act_order='static' in SpQR: act_order is True or False"),
            ({"act_order": "dynamic"}, "Use act_order=True"),
        ],
    )
    def test_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(QuantError, match=message):
            SpQR(**settings)
        with pytest.raises(QuantError, match=message):
            spqr(weights(), hessian(data()), Grid(3, 8), **settings)

    def test_symmetric_grid(self) -> None:
        with pytest.raises(QuantError, match=r"asymmetric grid.* symmetric=False"):
            spqr(weights(), hessian(data()), Grid(3, 8, symmetric=True))

    def test_bad_numbers(self) -> None:
        W, H = weights(), hessian(data())
        with pytest.raises(QuantError, match="Hessian of shape"):
            spqr(W, H[1:], Grid(3, 8))
        with pytest.raises(QuantError, match="group=64 is larger than the 40 columns"):
            spqr(W, H, Grid(3, 64))
        with pytest.raises(QuantError, match="not positive definite"):
            spqr(W, hessian(data(5)), Grid(3, 8), damping=0)
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            spqr(W, H, Grid(3, 8))

    def test_missing_statistics(self) -> None:
        with pytest.raises(QuantError, match="SpQR got statistics without a Hessian"):
            SpQR().quantize_layer(weights(), LayerStats(300), Grid(4, 8))


def test_class_is_the_function() -> None:
    chosen = {"threshold": 0.1, "second_bits": 4, "second_group": 8, "damping": 0.1, "act_order": False}
    method: WeightMethod = SpQR(**chosen)
    assert (method.name, method.needs) == ("spqr", Needs.HESSIAN)
    W, H = weights(), hessian(data())
    result = method.quantize_layer(W, LayerStats(300, H), Grid(3, 8))
    assert torch.equal(result.decode(), spqr(W, H, Grid(3, 8), **chosen).decode())
    for name in chosen:
        other = {**chosen, name: getattr(SpQR(), name)}
        assert not torch.equal(spqr(W, H, Grid(3, 8), **other).decode(), result.decode()), name


def test_ranges_of_the_oracle_are_those_of_the_library() -> None:
    fitted = fit_float_zero(weights(), Grid(3))
    scale, zero = fit_numbers(weights()[2].numpy(), 3, False)
    assert (float(fitted.scale[2]), float(fitted.zero[2])) == pytest.approx((scale, zero))
