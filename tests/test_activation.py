"""Rounding of inputs: brute force, independence of tokens, counting, what JSON keeps, error texts."""

from __future__ import annotations

import copy
import itertools
import json
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fit_oracle, round_oracle
from torch import Tensor, nn

from qlib.activation import Activation, FixedRange, PerTensor, PerToken
from qlib.activation_state import describe, exceeded, reset_counts, restore
from qlib.errors import ModelError, QuantError
from qlib.grid import Grid, decode, encode, fit_minmax
from qlib.histogram import Histogram
from qlib.kept_columns import KeepColumns
from qlib.linear import FakeQuantLinear
from qlib.methods.rtn import rtn

every_bits = pytest.mark.parametrize("bits", range(2, 9))
both_kinds = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def tokens(rows: int = 24, columns: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def filled(*parts: Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def brute_force(values: Tensor, bits: int, symmetric: bool, ends: Tensor | None = None) -> Tensor:
    """All values on one grid fitted to `ends` (by default to themselves), number by number, in float64."""
    flat = values.double().flatten()
    scale, zero = fit_oracle(flat if ends is None else ends.double(), bits, symmetric)
    codes = torch.tensor(round_oracle(flat, scale, zero, bits, symmetric), dtype=torch.float64)
    return ((codes - zero) * scale).view(values.shape)


def one_grid(values: Tensor, grid: Grid) -> Tensor:
    """All values on one grid, by the functions that round weights."""
    row = values.reshape(1, -1)
    scale = fit_minmax(row, grid)
    return decode(encode(row, scale, grid), scale).view(values.shape)


ROUNDINGS = [
    *(PerToken(bits, symmetric) for bits, symmetric in itertools.product((2, 4, 8), (False, True))),
    *(
        PerTensor(bits, symmetric, dynamic=True)
        for bits, symmetric in itertools.product((4, 8), (False, True))
    ),
    *(
        PerTensor(8, symmetric, fit=fit).calibrated(filled(tokens()))
        for symmetric, fit in itertools.product((False, True), ("minmax", "percentile", "mse"))
    ),
    KeepColumns(PerToken(4), [0, 7, 39]),
    KeepColumns(FixedRange(PerTensor(), -2.0, 3.0), [3]),
]
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)


class TestAll:
    @every_rounding
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtype_and_shape_are_kept(self, rounding: Activation, dtype: torch.dtype) -> None:
        rounded = rounding(tokens().to(dtype).view(4, 6, 40))
        assert (rounded.dtype, rounded.shape) == (dtype, (4, 6, 40))

    @every_rounding
    def test_half_precision_is_computed_in_float32(self, rounding: Activation) -> None:
        short = tokens().bfloat16()
        assert torch.equal(rounding(short), rounding(short.float()).bfloat16())

    @every_rounding
    def test_input_is_left_alone(self, rounding: Activation) -> None:
        inputs = tokens()
        rounding(inputs)
        assert torch.equal(inputs, tokens())

    @every_rounding
    def test_zeros_and_nothing(self, rounding: Activation) -> None:
        assert torch.equal(rounding(torch.zeros(2, 40)), torch.zeros(2, 40))
        assert torch.equal(rounding(torch.full((1, 40), 1e-45))[0, 1], torch.tensor(0.0))
        for shape in [(0, 40), (2, 0, 40)]:
            assert rounding(torch.empty(shape)).shape == shape

    @every_rounding
    def test_zero_stays_zero_among_others(self, rounding: Activation) -> None:
        inputs = tokens()
        inputs[:, ::7] = 0
        assert (rounding(inputs)[:, ::7] == 0).all()

    @every_rounding
    def test_nan_stays_nan(self, rounding: Activation) -> None:
        inputs = tokens()
        inputs[3, 5] = math.nan
        assert rounding(inputs)[3, 5].isnan()

    @every_rounding
    def test_no_gradient_passes(self, rounding: Activation) -> None:
        assert not rounding(tokens().requires_grad_()).requires_grad

    @every_rounding
    def test_transposed_storage_gives_the_same_values(self, rounding: Activation) -> None:
        assert torch.equal(rounding(tokens().T.contiguous().T), rounding(tokens()))


class TestPerToken:
    @every_bits
    @both_kinds
    def test_equals_fit_encode_decode(self, bits: int, symmetric: bool) -> None:
        inputs = tokens(200)
        grid = Grid(bits, None, symmetric)
        scale = fit_minmax(inputs, grid)
        expected = decode(encode(inputs, scale, grid), scale)
        assert torch.equal(PerToken(bits, symmetric)(inputs), expected)
        assert torch.equal(PerToken(bits, symmetric)(inputs.view(10, 20, 40)), expected.view(10, 20, 40))

    @both_kinds
    def test_equals_brute_force(self, symmetric: bool) -> None:
        inputs = tokens().double()
        expected = torch.stack([brute_force(token, 4, symmetric) for token in inputs])
        torch.testing.assert_close(PerToken(4, symmetric)(inputs), expected, rtol=1e-14, atol=1e-14)

    def test_ends_that_both_round_away_from_zero(self) -> None:
        """-1.5 and 1.5 steps: four codes reach from -2 to 1, so the upper end is clamped."""
        assert PerToken(2)(torch.tensor([[-1.5, -0.4, 0.6, 1.5]])).tolist() == [[-2.0, 0.0, 1.0, 1.0]]

    @given(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=12),
        st.integers(2, 8),
        st.booleans(),
    )
    @settings(max_examples=300, deadline=None)
    def test_any_token_has_an_error_of_half_a_step(
        self, values: list[float], bits: int, symmetric: bool
    ) -> None:
        token = torch.tensor([values])
        step = fit_minmax(token, Grid(bits, None, symmetric)).scale.double()
        error = (PerToken(bits, symmetric)(token).double() - token.double()).abs()
        assert (error <= step * (0.5 + 1e-4) + 1e-37).all()  # below, float32 itself has no digits left

    @both_kinds
    def test_tokens_are_independent(self, symmetric: bool) -> None:
        inputs, rounding = tokens(9), PerToken(4, symmetric)
        inputs[4] *= 1000
        expected = rounding(inputs)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        assert torch.equal(rounding(inputs[order]), expected[order])
        for size in (1, 2, 5):
            assert torch.equal(torch.cat([rounding(part) for part in inputs.split(size)]), expected)

    def test_nan_and_infinity_spoil_their_own_token_only(self) -> None:
        inputs = tokens()
        inputs[3, 5], inputs[7, 0] = math.nan, math.inf
        rounded = PerToken()(inputs)
        good = [row for row in range(24) if row not in (3, 7)]
        assert rounded[[3, 7]].isnan().all()
        assert torch.equal(rounded[good], PerToken()(tokens())[good])

    def test_name(self) -> None:
        assert str(PerToken()) == "a8 per token asymmetric"
        assert str(PerToken(4, symmetric=True)) == "a4 per token symmetric"

    @pytest.mark.parametrize("bits", [1, 9, 4.0])
    def test_bits(self, bits: object) -> None:
        for kind in (PerToken, PerTensor):
            with pytest.raises(QuantError, match=r"bits=.* outside 2 to 8"):
                kind(bits)  # type: ignore[arg-type]


class TestPerTensorDynamic:
    @every_bits
    @both_kinds
    def test_equals_one_grid_for_everything(self, bits: int, symmetric: bool) -> None:
        inputs, rounding = tokens().view(2, 12, 40), PerTensor(bits, symmetric, dynamic=True)
        assert torch.equal(rounding(inputs), one_grid(inputs, Grid(bits, None, symmetric)))
        expected = brute_force(inputs, bits, symmetric)
        torch.testing.assert_close(rounding(inputs.double()), expected, rtol=1e-13, atol=1e-13)

    def test_depends_on_the_batch(self) -> None:
        inputs, rounding = tokens(), PerTensor(4, dynamic=True)
        inputs[1] *= 100
        assert not torch.equal(rounding(inputs)[:1], rounding(inputs[:1]))

    def test_name(self) -> None:
        assert str(PerTensor(dynamic=True)) == "a8 per tensor dynamic asymmetric"


class TestPerTensorStatic:
    @both_kinds
    @pytest.mark.parametrize("bits", [3, 8])
    def test_the_full_range_equals_the_dynamic_grid(self, bits: int, symmetric: bool) -> None:
        fixed = PerTensor(bits, symmetric).calibrated(filled(*tokens().split(5)))
        assert torch.equal(fixed(tokens()), PerTensor(bits, symmetric, dynamic=True)(tokens()))
        assert (fixed.seen, fixed.exceeded, fixed.exceeded_share) == (960, 0, 0.0)

    @both_kinds
    @pytest.mark.parametrize("size", [0.3, 1.0, 5.0])
    def test_other_inputs_equal_brute_force(self, size: float, symmetric: bool) -> None:
        fixed = FixedRange(PerTensor(4, symmetric), -2.0, 1.0)
        inputs = size * tokens().double()
        expected = brute_force(inputs, 4, symmetric, ends=torch.tensor([-2.0, 1.0]))
        torch.testing.assert_close(fixed(inputs), expected, rtol=1e-6, atol=1e-6)  # its scale is a float32

    def test_each_fit_takes_its_own_range(self) -> None:
        histogram = filled(tokens(200))
        for spec, expected in [
            (PerTensor(), histogram.minmax()),
            (PerTensor(fit="percentile", percentile=99.0), histogram.percentile(99.0)),
            (PerTensor(4, fit="mse"), histogram.mse(Grid(4))),
        ]:
            fixed = spec.calibrated(histogram)
            assert (fixed.spec, fixed.low, fixed.high) == (spec, *expected)
        assert histogram.minmax() != histogram.percentile(99.0) != histogram.mse(Grid(4))

    def test_range_reaches_zero_and_both_sides_of_a_symmetric_one(self) -> None:
        above = FixedRange(PerTensor(), 1.0, 3.0)
        assert (above.low, above.high, above.zero) == (0.0, 3.0, 0)
        below = FixedRange(PerTensor(symmetric=True), -3.0, 1.0)
        assert (below.low, below.high, below.zero, below.scale) == (-3.0, 3.0, 0, pytest.approx(3 / 127))

    def test_names(self) -> None:
        spec = PerTensor(fit="percentile", symmetric=True)
        assert str(spec) == "a8 per tensor static (percentile 99.99) symmetric"
        assert str(PerTensor(4, fit="mse")) == "a4 per tensor static (mse) asymmetric"
        fixed = FixedRange(PerTensor(), -1.5, 2.25)
        assert str(fixed) == "a8 per tensor static (minmax) asymmetric"
        assert repr(fixed) == "FixedRange(a8 per tensor static (minmax) asymmetric, -1.5 to 2.25)"


class TestCounting:
    @both_kinds
    @given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30), st.integers(1, 4))
    @settings(max_examples=100, deadline=None)
    def test_equals_a_count_by_hand(self, symmetric: bool, values: list[float], calls: int) -> None:
        fixed = FixedRange(PerTensor(8, symmetric), -2.0, 1.5)
        low, high = (-2.0, 2.0) if symmetric else (-2.0, 1.5)
        for _ in range(calls):
            fixed(torch.tensor([values]))
        assert fixed.seen == calls * len(values)
        assert fixed.exceeded == calls * sum(not low <= value <= high for value in values)
        assert fixed.exceeded_share == fixed.exceeded / fixed.seen

    def test_ends_belong_to_the_range(self) -> None:
        fixed = FixedRange(PerTensor(), -2.0, 1.5)
        just = torch.tensor([-2.0, 1.5, math.nextafter(1.5, 2.0), torch.finfo(torch.float32).eps * 2 + 1.5])
        fixed(just)
        assert fixed.exceeded == 1  # the third is 1.5 in float32

    def test_nan_lies_outside_and_hides_nothing(self) -> None:
        fixed = FixedRange(PerTensor(), -2.0, 1.5)
        fixed(torch.tensor([math.nan, 9.0, -9.0, math.inf, 0.0]))
        assert (fixed.seen, fixed.exceeded) == (5, 4)

    def test_before_the_first_value(self) -> None:
        assert FixedRange(PerTensor(), -1.0, 1.0).exceeded_share == 0.0

    def test_inside_and_outside_of_inference_mode(self) -> None:
        with torch.inference_mode():
            fixed = FixedRange(PerTensor(), -1.0, 1.0)
            fixed(torch.full((3,), 2.0))
        fixed(torch.full((2,), 2.0))
        assert (fixed.seen, fixed.exceeded) == (5, 5)

    def test_copies_count_on_their_own(self) -> None:
        fixed = FixedRange(PerTensor(), -1.0, 1.0)
        fixed(torch.full((3,), 2.0))
        other = copy.deepcopy(fixed)
        other(torch.full((1,), 2.0))
        assert (fixed.exceeded, other.exceeded) == (3, 4)

    def test_casts_and_devices_change_nothing(self) -> None:
        fixed = PerTensor().calibrated(filled(tokens()))
        expected = fixed(tokens())
        for moved in (fixed.half(), fixed.double(), fixed.to("cpu")):
            assert torch.equal(moved(tokens()), expected)
        assert not fixed.state_dict()

    def test_lists_the_layers_of_a_model(self) -> None:
        def quantized(activation: Activation | None) -> FakeQuantLinear:
            weight = torch.ones(2, 4)
            return FakeQuantLinear(rtn(weight, Grid(4)), Grid(4), None, activation)

        model = nn.ModuleDict(
            {
                "inside": quantized(FixedRange(PerTensor(), -9.0, 9.0)),
                "some": quantized(FixedRange(PerTensor(), -1.0, 1.0)),
                "kept": quantized(KeepColumns(FixedRange(PerTensor(), -1.0, 1.0), [0])),
                "token": quantized(PerToken()),
                "none": quantized(None),
            }
        )
        assert exceeded(model) == {}
        for layer in model.values():
            layer(torch.tensor([[3.0, 2.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]]))
        assert list(exceeded(model).items()) == [("some", 3 / 8), ("kept", 2 / 6)]
        reset_counts(model)
        assert exceeded(model) == {}
        assert model["inside"].activation.seen == 0


class TestKeepColumns:
    KEPT = (2, 7, 39)

    @pytest.mark.parametrize(
        "inner",
        [PerToken(4), PerToken(8, True), PerTensor(4, dynamic=True), FixedRange(PerTensor(4), -1.0, 2.0)],
        ids=str,
    )
    @pytest.mark.parametrize("columns", [[2, 7, 39], torch.tensor([39, 2, 7])], ids=["list", "tensor"])
    def test_equals_rounding_the_others_alone(self, inner: Activation, columns: list[int] | Tensor) -> None:
        inputs = tokens().view(2, 12, 40)
        inputs[..., 7] *= 1000  # an outlier that must not widen the range of the others
        others = [column for column in range(40) if column not in self.KEPT]
        rounded = KeepColumns(inner, columns)(inputs)
        assert torch.equal(rounded[..., self.KEPT], inputs[..., self.KEPT])
        assert torch.equal(rounded[..., others], inner(inputs[..., others]))

    def test_counts_rounded_values_only(self) -> None:
        inner = FixedRange(PerTensor(), -1.0, 1.0)
        KeepColumns(inner, [0, 2])(torch.tensor([[9.0, 9.0, 9.0, 0.5, -9.0]]))
        assert (inner.seen, inner.exceeded) == (3, 2)

    def test_a_kept_nan_spoils_nothing(self) -> None:
        inputs = tokens()
        inputs[:, 7] = math.nan
        rounded = KeepColumns(PerToken(), self.KEPT)(inputs)
        assert rounded[:, 7].isnan().all()
        assert int(rounded.isnan().sum()) == 24

    def test_none_and_all(self) -> None:
        assert torch.equal(KeepColumns(PerToken(), [])(tokens()), PerToken()(tokens()))
        assert torch.equal(KeepColumns(PerToken(2), range(40))(tokens()), tokens())

    def test_moves_with_the_model(self) -> None:
        kept = KeepColumns(PerToken(), self.KEPT)
        assert kept.half().columns.dtype == torch.int64
        assert torch.equal(copy.deepcopy(kept)(tokens()), kept(tokens()))
        assert copy.deepcopy(kept).to("meta").columns.device.type == "meta"
        assert not kept.state_dict()

    def test_name(self) -> None:
        kept = KeepColumns(PerToken(), self.KEPT)
        assert str(kept) == "a8 per token asymmetric, 3 columns in float"
        assert repr(kept) == f"KeepColumns({kept})"

    @pytest.mark.parametrize("columns", [[-1, 3], [3, 3]])
    def test_columns_that_are_none(self, columns: list[int]) -> None:
        with pytest.raises(QuantError, match=r"columns=\[.*3\] in KeepColumns.*counted from 0"):
            KeepColumns(PerToken(), columns)

    def test_too_narrow_an_input(self) -> None:
        with pytest.raises(QuantError, match=r"column 39 is to be kept.* has 39 columns"):
            KeepColumns(PerToken(), self.KEPT)(tokens(2, 39))


class TestDescription:
    @every_rounding
    def test_round_trip_through_json_keeps_every_bit(self, rounding: Activation) -> None:
        about = describe(rounding)
        back = restore(json.loads(json.dumps(about)))
        assert describe(back) == about
        assert str(back) == str(rounding)
        inputs = 2 * tokens(seed=1)
        assert torch.equal(back(inputs), rounding(inputs))

    @given(st.floats(-(2.0**64), 0), st.floats(0, 2.0**64), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_any_range_survives(self, low: float, high: float, symmetric: bool) -> None:
        fixed = FixedRange(PerTensor(8, symmetric), low, high)
        back = restore(json.loads(json.dumps(describe(fixed))))
        assert isinstance(back, FixedRange)
        for name in ("spec", "low", "high", "scale", "zero"):
            assert getattr(back, name) == getattr(fixed, name)

    def test_form(self) -> None:
        kept = KeepColumns(FixedRange(PerTensor(fit="percentile", percentile=99.9), -1.0, 0.1), [5, 3])
        spec = {"bits": 8, "symmetric": False, "dynamic": False, "fit": "percentile", "percentile": 99.9}
        assert describe(kept) == {
            "kind": "keep columns",
            "inner": {"kind": "fixed range", "spec": spec, "low": -1.0, "high": 0.1},
            "columns": [3, 5],
        }

    def test_none_and_a_spec_without_range(self) -> None:
        assert describe(None) is None
        assert restore(None) is None
        spec = PerTensor(4, True, fit="mse")
        assert restore(describe(spec)) == spec

    def test_foreign_activation(self) -> None:
        with pytest.raises(QuantError, match=r"ReLU.* cannot be written as JSON.*PerToken"):
            describe(nn.ReLU())
        with pytest.raises(QuantError, match="ReLU"):
            describe(KeepColumns(nn.ReLU(), []))

    @pytest.mark.parametrize(
        ("about", "words"),
        [
            ({}, "no known kind"),
            ({"kind": "per row"}, r"'per row'.* no known kind"),
            ({"kind": "per token", "bytes": 8}, "unknown one.*bytes"),
            ({"kind": "fixed range", "low": -1.0, "high": 1.0}, "lacks a setting.*spec"),
            ({"kind": "fixed range", "spec": {}, "low": -1.0}, "lacks a setting.*high"),
            ({"kind": "keep columns", "columns": [1]}, "lacks a setting.*inner"),
            ({"kind": "keep columns", "inner": None, "columns": [1]}, "no known kind"),
        ],
    )
    def test_damaged_description(self, about: dict[str, object], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            restore(about)


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"fit": "l2"}, r"fit='l2'.* unknown.*'mse'"),
            ({"fit": "mse", "dynamic": True}, r"fit='mse'.*dynamic=True uses none.*Use dynamic=False"),
            ({"fit": "percentile", "percentile": 50}, r"percentile=50 is not above 50.*99.99"),
            ({"fit": "percentile", "percentile": 100.5}, r"percentile=100.5"),
            ({"fit": "percentile", "percentile": math.nan}, r"percentile=nan"),
            ({"percentile": 99.0}, r"percentile=99.0.* no effect with fit='minmax'.*Use fit='percentile'"),
        ],
    )
    def test_settings(self, settings: dict[str, object], words: str) -> None:
        with pytest.raises(QuantError, match=words):
            PerTensor(**settings)  # type: ignore[arg-type]

    def test_static_without_a_range(self) -> None:
        with pytest.raises(QuantError, match=r"static \(minmax\).* no range yet.*calibrated"):
            PerTensor()(tokens())

    def test_dynamic_is_not_calibrated(self) -> None:
        with pytest.raises(QuantError, match=r"fitted at each call.*PerTensor\(dynamic=False\)"):
            PerTensor(dynamic=True).calibrated(filled(tokens()))

    def test_nothing_seen(self) -> None:
        for spec in (PerTensor(), PerTensor(fit="percentile"), PerTensor(fit="mse")):
            with pytest.raises(QuantError, match=r"empty histogram.*recordings"):
                spec.calibrated(Histogram())

    @pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (math.nan, 1.0), (0.0, math.inf), (-3e38, 3e38)])
    def test_range(self, low: float, high: float) -> None:
        with pytest.raises(QuantError, match=r"the range .* cannot be used.*finite"):
            FixedRange(PerTensor(), low, high)
        with pytest.raises(QuantError, match="a8 per tensor dynamic"):
            FixedRange(PerTensor(dynamic=True), -1.0, 1.0)


class TestEndsOfTheFloats:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("bits", [2, 4, 8])
    @both_kinds
    @pytest.mark.parametrize(
        "ends", [(-1.0, 1.0), (0.0, 1.0), (-1.0, 0.0), (-0.005, 1.0), (-1.0, 0.7)], ids=str
    )
    def test_finite_inputs_stay_finite(
        self, dtype: torch.dtype, bits: int, symmetric: bool, ends: tuple[float, float]
    ) -> None:
        numbers = torch.finfo(dtype)
        share = torch.rand(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        share[:, 0], share[:, 1] = 0, 1
        for size in (numbers.max, numbers.max * 0.4, numbers.tiny, numbers.tiny * 4 * numbers.eps):
            inputs = ((ends[0] + (ends[1] - ends[0]) * share) * size).to(dtype)
            span = float(inputs.double().abs().max()) * 2
            for rounding in (PerToken(bits, symmetric), PerTensor(bits, symmetric, dynamic=True)):
                rounded = rounding(inputs)
                assert rounded.dtype == dtype and bool(rounded.isfinite().all())
                step = span / rounding.grid.qmax * (1 + 4 * numbers.eps) + numbers.tiny
                assert float((rounded.double() - inputs.double()).abs().max()) <= step

    def test_the_reported_case(self) -> None:
        """65504 is the largest float16; half a step beyond it stays there."""
        rounded = PerToken(8)(torch.tensor([[-300.0, 65504.0]], dtype=torch.float16))
        assert rounded.isfinite().all() and rounded[0, 1] > 65000

    def test_a_static_range_in_float16(self) -> None:
        fixed = FixedRange(PerTensor(8), -300.0, 65504.0)
        assert fixed(torch.tensor([65504.0, -300.0], dtype=torch.float16)).isfinite().all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_spoils_its_token(self, bad: float) -> None:
        inputs = tokens(3, 6)
        inputs[1, 2] = bad
        rounded = PerToken(8)(inputs)
        assert rounded[1].isnan().all() and rounded[[0, 2]].isfinite().all()


class TestKinds:
    def test_numbers_of_numpy_and_torch(self) -> None:
        assert PerToken(numpy.int64(8), numpy.bool_(True)) == PerToken(8, True)
        assert PerTensor(torch.tensor(4), fit="percentile", percentile=numpy.float64(99)) == PerTensor(
            4, fit="percentile", percentile=99
        )
