"""GPTQ: two independent oracles, what must not matter, what must help, what it says when data is short."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from oracles import gptq_oracle, least_squares_oracle
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, fit_mse
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.gptq import GPTQ, gptq, gptq_plain, gptq_steps, hessian, inverse_factor
from qlib.methods.rtn import rtn
from qlib.quantized_weight import QuantizedWeight

COLUMNS = 40
ORDERS: dict[str, dict[str, bool]] = {  # the two switches of `gptq`
    "left to right": {"act_order": False, "static_groups": False},
    "left to right, static": {"act_order": False, "static_groups": True},
    "largest first": {"act_order": True, "static_groups": False},
    "largest first, static": {"act_order": True, "static_groups": True},
}
GROUPS = [None, 20, 8, 12]  # 12: the last group has 4 columns
SETTINGS = [
    (Grid(bits, group, symmetric), order)
    for bits, symmetric, group, order in itertools.product([2, 3, 4], [False, True], GROUPS, ORDERS)
]
every_setting = pytest.mark.parametrize(
    ("grid", "order"), SETTINGS, ids=[f"{grid} {order}" for grid, order in SETTINGS]
)
every_order = pytest.mark.parametrize("order", ORDERS)
both_kinds = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def data(seed: int = 0, tokens: int = 300, columns: int = COLUMNS, outlier: float = 10.0) -> Tensor:
    """Inputs that repeat one another, a tenth of them `outlier` times larger than the rest."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.linspace(1.5, 0.05, columns, dtype=torch.float64)[:, None]
    gain = 1 + (outlier - 1) * (torch.rand(columns, generator=generator, dtype=torch.float64) > 0.9)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing * gain


def weights(rows: int = 16, columns: int = COLUMNS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def loss(weight: Tensor, result: QuantizedWeight, inputs: Tensor) -> float:
    return float(((weight - result.decode()).double() @ inputs.T).square().sum())


class TestHessian:
    def test_is_the_sum_of_outer_products(self) -> None:
        inputs = data(tokens=5)
        torch.testing.assert_close(hessian(inputs), sum(torch.outer(x, x) for x in inputs))

    def test_batches_add_up(self) -> None:
        inputs = data(tokens=60).float()
        whole = hessian(inputs)
        assert whole.dtype == torch.float64
        torch.testing.assert_close(hessian(inputs[:7]) + hessian(inputs[7:]), whole, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(hessian(inputs.view(3, 4, 5, COLUMNS)), whole, rtol=1e-12, atol=1e-9)


class TestInverseFactor:
    def test_is_the_factor_of_the_damped_inverse(self) -> None:
        H = hessian(data())
        U = inverse_factor(H, damping=0.1)
        damped = H + 0.1 * H.diagonal().mean() * torch.eye(COLUMNS)
        assert torch.equal(U, U.triu())
        torch.testing.assert_close(U.T @ U, torch.linalg.inv(damped), rtol=1e-8, atol=1e-12)

    def test_each_row_is_a_row_of_the_inverse_of_the_free_columns(self) -> None:
        H = hessian(data())
        U = inverse_factor(H, damping=0.0)
        for j in (0, 1, 17, COLUMNS - 1):
            expected = torch.linalg.inv(H[j:, j:])[0]
            torch.testing.assert_close(U[j, j] * U[j, j:], expected, rtol=1e-6, atol=1e-9)

    def test_dead_inputs_do_not_touch_the_others(self) -> None:
        inputs = data()
        alive = [j for j in range(COLUMNS) if j not in (3, 30)]
        with_dead = inputs.clone()
        with_dead[:, [3, 30]] = 0
        U = inverse_factor(hessian(with_dead))
        torch.testing.assert_close(U[alive][:, alive], inverse_factor(hessian(inputs[:, alive])))
        assert (U[[3, 30]] != 0).sum() == 2  # nothing but the diagonal


class TestOracles:
    @every_setting
    def test_schur_complement(self, grid: Grid, order: str) -> None:
        W, H = weights(), hessian(data())
        codes, values = gptq_oracle(W, H, grid.bits, grid.group, grid.symmetric, **ORDERS[order])
        result = gptq(W, H, grid, **ORDERS[order])
        assert torch.equal(result.codes.double(), codes)
        torch.testing.assert_close(result.decode(), values, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize(
        ("grid", "order"),
        [
            (Grid(3, 12), "left to right"),
            (Grid(3), "left to right"),
            (Grid(2, 8, True), "left to right"),
            (Grid(3, 12), "largest first"),
            (Grid(2, 12), "largest first, static"),
            (Grid(3, 12), "left to right, static"),
        ],
        ids=str,
    )
    def test_least_squares_anew_after_each_column(self, grid: Grid, order: str) -> None:
        W, inputs = weights(6), data()
        codes = least_squares_oracle(W, inputs, grid.bits, grid.group, grid.symmetric, **ORDERS[order])
        assert torch.equal(gptq(W, hessian(inputs), grid, **ORDERS[order]).codes.double(), codes)

    @pytest.mark.parametrize(("bits", "group", "symmetric", "order"), [
        (4, 64, False, "left to right"), (3, None, True, "left to right"), (2, 100, False, "largest first"),
        (3, 128, False, "largest first, static"),
    ])  # fmt: skip
    def test_float32_layer_of_full_width(
        self, bits: int, group: int | None, symmetric: bool, order: str
    ) -> None:
        W, H = weights(48, 384, torch.float32), hessian(data(tokens=1000, columns=384))
        codes, _ = gptq_oracle(W, H, bits, group, symmetric, **ORDERS[order])
        result = gptq(W, H, Grid(bits, group, symmetric), **ORDERS[order])
        assert (result.codes == codes).double().mean() >= 0.999
        assert result.scale.dtype == torch.float32


class TestWhatMustNotMatter:
    @every_setting
    def test_the_paper_s_form_gives_the_codes_of_the_fast_one(self, grid: Grid, order: str) -> None:
        W, H = weights(dtype=torch.float32), hessian(data())
        plain, fast = gptq_plain(W, H, grid, **ORDERS[order]), gptq(W, H, grid, **ORDERS[order])
        assert torch.equal(plain.codes, fast.codes)
        torch.testing.assert_close(plain.decode(), fast.decode(), rtol=1e-5, atol=1e-6)
        assert (plain.index is None) == (fast.index is None)
        assert plain.index is None or torch.equal(plain.index, fast.index)

    @every_order
    @pytest.mark.parametrize("group", GROUPS)
    def test_block_size(self, group: int | None, order: str) -> None:
        W, H = weights(), hessian(data())
        results = [gptq(W, H, Grid(3, group), **ORDERS[order], block=b).codes for b in (1, 5, 8, 32, 128)]
        assert all(torch.equal(results[0], other) for other in results)

    @every_order
    def test_other_rows(self, order: str) -> None:
        W, H, rows = weights(), hessian(data()), torch.tensor([9, 2, 5])
        some, every = (gptq(w, H, Grid(3, 12), **ORDERS[order]) for w in (W[rows], W))
        assert torch.equal(some.codes, every.codes[rows])
        torch.testing.assert_close(some.scale, every.scale[rows], rtol=1e-10, atol=0)

    @every_order
    def test_scale_of_the_hessian(self, order: str) -> None:
        W, H = weights(), hessian(data())
        assert torch.equal(
            gptq(W, 3.7 * H, Grid(3, 12), **ORDERS[order]).codes,
            gptq(W, H, Grid(3, 12), **ORDERS[order]).codes,
        )

    def test_storage_of_the_weight_and_a_second_run(self) -> None:
        W, H = weights(dtype=torch.float32), hessian(data())
        first = gptq(W, H, Grid(3, 12))
        for again in (gptq(W, H, Grid(3, 12)), gptq(W.T.contiguous().T, H, Grid(3, 12))):
            assert torch.equal(again.codes, first.codes)
            assert torch.equal(again.decode(), first.decode())

    @every_order
    def test_arguments_are_left_alone(self, order: str) -> None:
        W, H = weights(), hessian(data())
        H[5] = H[:, 5] = 0
        weight, matrix = W.clone(), H.clone()
        gptq(weight, matrix, Grid(3, 12), **ORDERS[order])
        gptq_plain(weight, matrix, Grid(3, 12), **ORDERS[order])
        assert torch.equal(weight, W)
        assert torch.equal(matrix, H)

    def test_parameters_leave_no_gradients(self) -> None:
        W, H = torch.nn.Parameter(weights()), hessian(data())
        for result in (
            gptq(W, H, Grid(3, 12)),
            gptq_plain(W, H, Grid(3, 12)),
            rtn(W, Grid(3, 12), fit="mse"),
        ):
            assert not result.decode().requires_grad

    def test_half_precision_is_computed_in_float32(self) -> None:
        W, H = weights(dtype=torch.bfloat16), hessian(data())
        result = gptq(W, H, Grid(3, 12))
        assert result.scale.dtype == torch.float32
        assert torch.equal(result.codes, gptq(W.float(), H, Grid(3, 12)).codes)


class TestBecomesRoundToNearest:
    @pytest.mark.parametrize("group", GROUPS)
    @both_kinds
    @pytest.mark.parametrize("order", ["left to right", "left to right, static", "largest first, static"])
    @pytest.mark.parametrize("diagonal", ["ones", "mixed"])
    def test_without_correlation(self, group: int | None, symmetric: bool, order: str, diagonal: str) -> None:
        W, grid = weights(dtype=torch.float32), Grid(3, group, symmetric)
        energy = torch.ones(COLUMNS) if diagonal == "ones" else torch.linspace(5, 0.1, COLUMNS).flip(0)
        result, expected = gptq(W, energy.diag(), grid, **ORDERS[order]), rtn(W, grid)
        assert torch.equal(result.codes, expected.codes)
        assert torch.equal(result.decode(), expected.decode())

    def test_with_overwhelming_damping(self) -> None:
        W, H = weights(), hessian(data())
        assert torch.equal(gptq(W, H, Grid(3, 12), damping=1e6).codes, rtn(W, Grid(3, 12)).codes)
        assert not torch.equal(gptq(W, H, Grid(3, 12), damping=1e-2).codes, rtn(W, Grid(3, 12)).codes)


class TestWhatMustHelp:
    @every_setting
    def test_output_error_is_far_below_rounding_to_nearest(self, grid: Grid, order: str) -> None:
        W = weights(64)
        seen, unseen = data(outlier=1.0), data(outlier=1.0, seed=5)
        result, nearest = gptq(W, hessian(seen), grid, **ORDERS[order]), rtn(W, grid)
        for inputs, share in [(seen, 0.7), (unseen, 0.8)]:
            assert loss(W, result, inputs) < share * loss(W, nearest, inputs)

    def test_weights_themselves_are_further_off(self) -> None:
        W = weights(64)
        result, nearest = gptq(W, hessian(data()), Grid(3)), rtn(W, Grid(3))
        assert (result.decode() - W).square().sum() > 1.2 * (nearest.decode() - W).square().sum()

    def test_range_search_is_used_for_every_group(self) -> None:
        W, H = weights(), hessian(data())
        searched, ranged = (gptq(W, H, Grid(2, 12), fit=fit) for fit in ("mse", "minmax"))
        first = fit_mse(W[:, :12], Grid(2)).scale[:, 0]
        torch.testing.assert_close(searched.scale[:, 0], first)
        assert all((searched.scale[:, g] < ranged.scale[:, g]).any() for g in range(4))
        assert loss(W, searched, data()) < loss(W, ranged, data())

    def test_largest_first_helps_where_the_last_columns_matter_most(self) -> None:
        W, inputs = weights(64), data()
        inputs[:, 30:] *= 30
        off, static, dynamic = (
            loss(W, gptq(W, hessian(inputs), Grid(3), **ORDERS[order]), inputs)
            for order in ("left to right", "largest first, static", "largest first")
        )
        assert static < 0.8 * off
        assert dynamic == static  # one group: the same thing


class TestOrderOfColumns:
    @every_order
    @pytest.mark.parametrize("group", GROUPS)
    def test_a_huge_column_stays_where_it_is(self, group: int | None, order: str) -> None:
        W = weights()
        W[:, 11] = 1000.0
        result = gptq(W, hessian(data()), Grid(4, group), **ORDERS[order]).decode()
        assert result.abs().argmax(dim=1).tolist() == [11] * len(W)
        torch.testing.assert_close(result[:, 11], W[:, 11], rtol=0.05, atol=0)

    def test_dynamic_groups_hold_the_columns_visited_together(self) -> None:
        W, H = weights(), hessian(data())
        index = gptq(W, H, Grid(3, 12), act_order=True).index
        by_energy = H.diagonal().argsort(descending=True)
        assert index[by_energy].tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 4

    @pytest.mark.parametrize("order", ["left to right", "left to right, static", "largest first, static"])
    def test_other_groups_are_neighbours(self, order: str) -> None:
        result = gptq(weights(), hessian(data()), Grid(3, 12), **ORDERS[order])
        assert torch.equal(result.index, Grid(3, 12).group_index(COLUMNS))
        assert gptq(weights(), hessian(data()), Grid(3), **ORDERS[order]).index is None

    @pytest.mark.parametrize("order", ["left to right, static", "largest first, static"])
    def test_static_scales_are_those_of_the_original_weight(self, order: str) -> None:
        W = weights()
        result = gptq(W, hessian(data()), Grid(3, 12), **ORDERS[order])
        assert torch.equal(result.scale, rtn(W, Grid(3, 12)).scale)
        assert torch.equal(result.zero, rtn(W, Grid(3, 12)).zero)
        assert not torch.equal(gptq(W, hessian(data()), Grid(3, 12), act_order=False).scale, result.scale)

    @every_setting
    def test_codes_lie_in_the_grid(self, grid: Grid, order: str) -> None:
        result = gptq(weights(), hessian(data()), grid, **ORDERS[order])
        assert result.codes.dtype == grid.code_dtype
        assert int(result.codes.min()) >= grid.qmin
        assert int(result.codes.max()) <= grid.qmax
        assert result.codes.is_contiguous()
        assert result.scale.shape == (16, len(grid.slices(COLUMNS)))
        if grid.symmetric:
            assert result.zero is None
        else:
            assert result.zero.dtype == torch.uint8


class TestShortData:
    @every_order
    @both_kinds
    def test_dead_inputs_get_weight_zero_and_nothing_else_notices(self, order: str, symmetric: bool) -> None:
        W, inputs, dead = weights(), data(), [4, 5, 39]
        W[:, dead] *= 100  # would spoil every row's range
        inputs[:, dead] = 0
        alive = [j for j in range(COLUMNS) if j not in dead]
        result = gptq(W, hessian(inputs), Grid(3, None, symmetric), **ORDERS[order])
        assert (result.decode()[:, dead] == 0).all()
        without = gptq(W[:, alive], hessian(inputs[:, alive]), Grid(3, None, symmetric), **ORDERS[order])
        assert torch.equal(result.codes[:, alive], without.codes)
        assert result.notes[0] == "3 of 40 inputs were 0 for every token: their weights count as 0"
        grouped = gptq(W, hessian(inputs), Grid(3, 12, symmetric), **ORDERS[order]).decode()
        assert (grouped[:, dead] == 0).all()
        assert grouped.isfinite().all()

    def test_nothing_but_zeros(self) -> None:
        result = gptq(weights(), torch.zeros(COLUMNS, COLUMNS), Grid(3, 12))
        assert (result.decode() == 0).all()
        assert "40 of 40 inputs" in result.notes[0]

    def test_fewer_tokens_than_inputs(self) -> None:
        W, inputs = weights(), data(tokens=10)
        stats = LayerStats(tokens=10, hessian=hessian(inputs))
        result = GPTQ().quantize_layer(W, stats, Grid(3, 12))
        assert loss(W, result, inputs) < 0.5 * loss(W, rtn(W, Grid(3, 12)), inputs)
        assert result.notes[0].startswith("10 tokens for 40 inputs: the Hessian has rank 10 at most")

    @pytest.mark.parametrize(
        ("tokens", "said"),
        [(39, "has rank 39"), (40, "Calibrate on 160"), (159, "Calibrate on 160"), (160, "")],
    )
    def test_too_few_tokens_are_noted(self, tokens: int, said: str) -> None:
        notes = GPTQ().quantize_layer(weights(), LayerStats(tokens, hessian(data())), Grid(3)).notes
        assert len(notes) == (1 if said else 0)
        assert all(note.startswith(f"{tokens} tokens for 40 inputs: ") and said in note for note in notes)

    def test_one_token(self) -> None:
        W, inputs = weights(), data(tokens=1)
        result = gptq(W, hessian(inputs), Grid(3))
        assert loss(W, result, inputs) < 0.1 * loss(W, rtn(W, Grid(3)), inputs)

    def test_good_data_needs_no_note_even_if_inputs_nearly_repeat_others(self) -> None:
        inputs = data(tokens=400)
        stats = LayerStats(tokens=400, hessian=hessian(inputs))
        assert GPTQ().quantize_layer(weights(), stats, Grid(3)).notes == ()


class TestSteps:
    @every_order
    def test_each_step_shows_its_column(self, order: str) -> None:
        W, H, grid = weights(), hessian(data()), Grid(3, 12)
        result = gptq(W, H, grid, **ORDERS[order])
        steps = list(gptq_steps(W, H, grid, **ORDERS[order]))
        visit = torch.tensor([step.column for step in steps])
        energy = H.diagonal()[visit]
        natural = order.startswith("left to right")
        assert visit.tolist() == list(range(COLUMNS)) if natural else (energy[1:] <= energy[:-1]).all()
        for step in steps:
            assert torch.equal(step.codes, result.codes[:, step.column].to(step.codes.dtype))
        torch.testing.assert_close(steps[-1].weight, result.decode()[:, visit], rtol=1e-8, atol=1e-10)

    def test_first_step_by_hand(self) -> None:
        W = torch.tensor([[0.4, 0.4, 3.0]])
        H = hessian(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        steps = gptq_steps(W, H, Grid(2), damping=0.0001)
        first = next(steps)  # 0.4 becomes 0; its twin takes over all of it
        assert first.codes.item() == 0
        torch.testing.assert_close(first.weight[0], torch.tensor([0.0, 0.8, 3.0]).double(), rtol=0, atol=1e-3)

    def test_error_is_zero_for_a_column_on_the_grid(self) -> None:
        W = weights().round().clamp(-3, 3)
        W[:, 0], W[:, 1] = -3.0, 4.0
        for step in gptq_steps(W, hessian(data()), Grid(3)):
            assert (step.error == 0).all()


class TestErrors:
    def test_not_positive_definite_names_the_column(self) -> None:
        inputs = data()
        inputs[:, 3] = inputs[:, 7]
        message = r"not positive definite at column 3 of 40 with damping=0.0.* damping=0.01 or more"
        with pytest.raises(QuantError, match=message):
            gptq(weights(), hessian(inputs), Grid(3), damping=0.0)

    @pytest.mark.parametrize(("ratio", "visited_first"), [(1.5, 3), (0.5, 7)])
    def test_column_is_named_by_its_original_place(self, ratio: float, visited_first: int) -> None:
        inputs = data()
        inputs[:, 3] = ratio * inputs[:, 7]
        with pytest.raises(QuantError, match=f"at column {visited_first} of 40"):
            gptq(weights(), hessian(inputs), Grid(3), damping=0.0, act_order=True, static_groups=True)

    def test_negative_hessian(self) -> None:
        with pytest.raises(QuantError, match="not positive definite at column 39"):
            gptq(weights(), -torch.eye(COLUMNS), Grid(3))

    @pytest.mark.parametrize("shape", [(39, 39), (40, 39), (40,)])
    def test_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(QuantError, match=r"Hessian of shape .* for 40 inputs"):
            gptq(weights(), torch.ones(shape), Grid(3))
        with pytest.raises(QuantError, match="Hessian of shape"):
            inverse_factor(torch.ones(40, 39))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_hessian_without_numbers(self, bad: float) -> None:
        H = hessian(data())
        H[2, 3] = bad
        with pytest.raises(QuantError, match="1 of 1600 entries of the Hessian"):
            gptq(weights(), H, Grid(3))

    def test_weight_without_numbers(self) -> None:
        W = weights()
        W[1, 2] = float("nan")
        with pytest.raises(QuantError, match="row 1, column 2"):
            gptq(W, hessian(data()), Grid(3))

    def test_group_larger_than_the_layer(self) -> None:
        with pytest.raises(QuantError, match="group=64 is larger than the 40 columns"):
            gptq(weights(), hessian(data()), Grid(3, 64))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"damping": -0.1}, "damping=-0.1"),
            ({"damping": float("nan")}, "damping=nan"),
            ({"act_order": "on"}, "act_order='on' .* True or False"),
            ({"act_order": "static"}, "Use act_order=True, static_groups=True"),
            ({"act_order": "off-static"}, "Use act_order=False, static_groups=True"),
            ({"act_order": 1}, "act_order"),
            ({"static_groups": "yes"}, "static_groups"),
            ({"block": 0}, "block=0"),
            ({"fit": "l2"}, "fit='l2'"),
        ],
    )
    def test_settings(self, setting: dict[str, object], message: str) -> None:
        with pytest.raises(QuantError, match=message):
            GPTQ(**setting)
        with pytest.raises(QuantError, match=message):
            gptq(weights(), hessian(data()), Grid(3), **setting)

    def test_no_hessian(self) -> None:
        with pytest.raises(QuantError, match="without a Hessian"):
            GPTQ().quantize_layer(weights(), LayerStats(tokens=5), Grid(3))


def test_class_is_the_function() -> None:
    method: WeightMethod = GPTQ(damping=0.05, act_order=True, fit="mse", block=8)
    assert (method.name, method.needs) == ("gptq", Needs.HESSIAN)
    W, H = weights(), hessian(data())
    result = method.quantize_layer(W, LayerStats(tokens=300, hessian=H), Grid(2, 12))
    expected = gptq(W, H, Grid(2, 12), damping=0.05, act_order=True, fit="mse", block=8)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.index, expected.index)
    for other in ({"damping": 0.01}, {"act_order": False}, {"static_groups": True}, {"fit": "minmax"}):
        settings: dict[str, Any] = {"damping": 0.05, "act_order": True, "fit": "mse", **other}
        assert not torch.equal(gptq(W, H, Grid(2, 12), **settings).codes, expected.codes)
