"""The grids: hand-worked numbers, properties over every setting, packing against brute force, error texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import encode_oracle, fit_mse_oracle, pack_oracle
from torch import Tensor, nn

from qlib.errors import QuantError
from qlib.grid import Grid, QuantParams, decode, encode, fit_float_zero, fit_minmax, fit_mse, fit_scale
from qlib.linear import FakeQuantLinear
from qlib.methods.gptq import gptq, hessian
from qlib.methods.rtn import rtn
from qlib.packing import from_unsigned, pack, to_unsigned, unpack

GRIDS = [
    Grid(bits, group, symmetric)
    for bits, group, symmetric in itertools.product([2, 3, 4, 8], [None, 64, 100], [False, True])
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
every_bits = pytest.mark.parametrize("bits", range(2, 9))
both_kinds = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def layer(rows: int = 24, columns: int = 384, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def round_trip(
    weight: Tensor, grid: Grid, fit: Callable[[Tensor, Grid], QuantParams] = fit_minmax
) -> tuple[Tensor, QuantParams]:
    params = fit(weight, grid)
    return decode(encode(weight, params, grid), params), params


def squared_error(weight: Tensor, grid: Grid) -> float:
    return float((round_trip(weight, grid)[0] - weight).square().sum())


class TestByHand:
    def test_asymmetric_two_bits(self) -> None:
        weight = torch.tensor([[-1.0, 0.2, 0.9, 2.0]])
        params = fit_minmax(weight, Grid(bits=2))
        assert (params.scale.item(), params.zero.item(), params.index) == (1.0, 1, None)
        assert encode(weight, params, Grid(bits=2)).tolist() == [[0, 1, 2, 3]]

    def test_symmetric_three_bits(self) -> None:
        weight = torch.tensor([[-6.0, 1.4, 3.0, 5.2]])
        grid = Grid(bits=3, symmetric=True)
        params = fit_minmax(weight, grid)  # 6 / 3; 3.0 lies between two codes and goes to the even one
        assert params.scale.item() == 2.0
        assert params.zero is None
        assert encode(weight, params, grid).tolist() == [[-3, 1, 2, 3]]

    def test_ragged_group_is_a_layer_of_its_own(self) -> None:
        weight = torch.tensor([[0.0, 3.0, 0.0, 30.0, 0.0, 300.0, 200.0]])
        params = fit_minmax(weight, Grid(bits=2, group=3))
        assert params.scale.tolist() == [[1.0, 100.0, pytest.approx(200 / 3)]]
        assert params.index.tolist() == [0, 0, 0, 1, 1, 1, 2]

    def test_all_zero_group_takes_the_range_from_minus_one_to_one(self) -> None:
        for grid, step in [(Grid(4), 2 / 15), (Grid(4, symmetric=True), 1 / 7)]:
            params = fit_minmax(torch.zeros(1, 4), grid)
            assert params.scale.item() == pytest.approx(step)
            assert params.zero is None or params.zero.item() in (7, 8)  # 7.5, rounded in float32

    @pytest.mark.parametrize(
        ("grid", "text", "lowest", "highest"),
        [
            (Grid(4, 64), "w4 g64 asymmetric", 0, 15),
            (Grid(3, None, True), "w3 per channel symmetric", -4, 3),
            (Grid(8, 1, True), "w8 g1 symmetric", -128, 127),
        ],
        ids=str,
    )
    def test_codes_and_name(self, grid: Grid, text: str, lowest: int, highest: int) -> None:
        assert (str(grid), grid.qmin, grid.qmax) == (text, lowest, highest)
        assert grid.levels == highest - lowest + 1 == 2**grid.bits

    def test_slices_and_group_index_agree(self) -> None:
        for group, columns in [(None, 5), (5, 5), (2, 5), (128, 288), (32, 288), (1, 3)]:
            grid = Grid(4, group)
            index = torch.cat(
                [torch.full((s.stop - s.start,), k) for k, s in enumerate(grid.slices(columns))]
            )
            assert torch.equal(grid.group_index(columns), index)


class TestProperties:
    @every_grid
    def test_error_is_at_most_half_a_step(self, grid: Grid) -> None:
        weight = layer()
        rounded, params = round_trip(weight, grid)
        assert ((rounded - weight).abs() <= params.per_column()[0] / 2 * (1 + 1e-4)).all()

    @every_grid
    def test_codes_and_zeros_stay_in_range(self, grid: Grid) -> None:
        weight = layer()
        params = fit_minmax(weight, grid)
        codes = encode(weight, params, grid)
        assert codes.dtype == (torch.int8 if grid.symmetric else torch.uint8)
        assert int(codes.min()) >= grid.qmin
        assert int(codes.max()) == grid.qmax
        if params.zero is not None:
            assert params.zero.dtype == torch.uint8
            assert int(params.zero.max()) <= grid.qmax

    @every_grid
    @pytest.mark.parametrize("fit", [fit_minmax, fit_mse], ids=["minmax", "mse"])
    def test_zero_is_exact(self, grid: Grid, fit: Callable[[Tensor, Grid], QuantParams]) -> None:
        weight = layer()
        weight[:, ::7] = 0
        assert (round_trip(weight, grid, fit)[0][:, ::7] == 0).all()

    @every_grid
    def test_rounding_twice_changes_nothing(self, grid: Grid) -> None:
        once, params = round_trip(layer(), grid)
        frozen = decode(encode(once, params, grid), params)
        assert torch.equal(frozen, once)
        again, _ = round_trip(once, grid)
        tolerance = 0 if grid.symmetric else 1e-4 * float(params.scale.max())
        torch.testing.assert_close(again, once, rtol=1e-6 if grid.symmetric else 0, atol=tolerance)

    @every_grid
    def test_scaling_by_a_power_of_two_scales_the_result(self, grid: Grid) -> None:
        assert torch.equal(round_trip(layer() * 8, grid)[0], round_trip(layer(), grid)[0] * 8)

    def test_symmetric_grid_commutes_with_the_sign(self) -> None:
        grid = Grid(4, 64, symmetric=True)
        assert torch.equal(round_trip(-layer(), grid)[0], -round_trip(layer(), grid)[0])

    @every_grid
    @pytest.mark.parametrize("fit", [fit_minmax, fit_mse], ids=["minmax", "mse"])
    def test_rows_are_independent(self, grid: Grid, fit: Callable[[Tensor, Grid], QuantParams]) -> None:
        weight = layer(rows=6)
        order = torch.tensor([3, 1, 5])
        assert torch.equal(round_trip(weight[order], grid, fit)[0], round_trip(weight, grid, fit)[0][order])

    @both_kinds
    @pytest.mark.parametrize(("columns", "group"), [(384, 100), (288, 128), (416, 64), (5, 2)])
    def test_ragged_equals_slices_apart(self, columns: int, group: int, symmetric: bool) -> None:
        weight = layer(8, columns)
        grid = Grid(4, group, symmetric)
        for fit in (fit_minmax, fit_mse):
            apart = [
                round_trip(weight[:, part], Grid(4, None, symmetric), fit)[0] for part in grid.slices(columns)
            ]
            assert torch.equal(round_trip(weight, grid, fit)[0], torch.cat(apart, dim=1))

    @both_kinds
    def test_group_of_the_full_width_is_per_channel(self, symmetric: bool) -> None:
        whole, params = round_trip(layer(), Grid(3, 384, symmetric))
        assert torch.equal(whole, round_trip(layer(), Grid(3, None, symmetric))[0])
        assert params.index is None

    def test_group_of_one_is_exact_when_symmetric(self) -> None:
        torch.testing.assert_close(round_trip(layer(), Grid(4, 1, True))[0], layer(), rtol=1e-6, atol=0)

    @both_kinds
    def test_error_falls_with_the_bits_as_the_squared_step(self, symmetric: bool) -> None:
        errors = {bits: squared_error(layer(384), Grid(bits, None, symmetric)) for bits in (8, 4, 3, 2)}
        steps = {bits: Grid(bits, None, symmetric).qmax for bits in errors}
        for fine, coarse in [(8, 4), (4, 3), (3, 2)]:
            expected = (steps[fine] / steps[coarse]) ** 2
            assert expected / 2 < errors[coarse] / errors[fine] < expected * 2

    @both_kinds
    def test_error_falls_with_smaller_groups(self, symmetric: bool) -> None:
        errors = [squared_error(layer(384), Grid(4, group, symmetric)) for group in (32, 64, 128, None)]
        assert errors == sorted(errors)

    @given(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=12),
        st.integers(2, 8),
        st.booleans(),
        st.integers(1, 12),
    )
    @settings(max_examples=300, deadline=None)
    def test_any_row_gives_finite_values_within_half_a_step(
        self, row: list[float], bits: int, symmetric: bool, group: int
    ) -> None:
        weight = torch.tensor([row])
        grid = Grid(bits, min(group, len(row)), symmetric)
        rounded, params = round_trip(weight, grid)
        assert rounded.isfinite().all()
        step = params.per_column()[0].double()
        room = step * (0.5 + 1e-4) + 1e-37  # below 1e-37 float32 itself has no digits left
        assert ((rounded.double() - weight.double()).abs() <= room).all()

    @pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-8, 1.0, 1e4, 1e30])
    @pytest.mark.parametrize("sign", [1, -1])
    @both_kinds
    def test_constant_rows(self, size: float, sign: int, symmetric: bool) -> None:
        weight = torch.full((2, 5), size * sign)
        for bits, fit in itertools.product((2, 4, 8), (fit_minmax, fit_mse)):
            rounded, _ = round_trip(weight, Grid(bits, None, symmetric), fit)
            torch.testing.assert_close(rounded, weight, rtol=1e-5, atol=1e-44)

    def test_one_signed_group_keeps_its_precision(self) -> None:
        weight = layer().abs() + 0.5
        rounded, params = round_trip(weight, Grid(4))
        assert ((rounded - weight).abs() <= params.scale / 2 * (1 + 1e-4)).all()
        assert (params.zero == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @every_grid
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype, grid: Grid) -> None:
        short = layer().to(dtype)
        rounded, params = round_trip(short, grid)
        assert params.scale.dtype == rounded.dtype == torch.float32
        assert torch.equal(rounded, round_trip(short.float(), grid)[0])

    @every_grid
    def test_float64_agrees_with_a_separate_implementation(self, grid: Grid) -> None:
        weight = layer().double()
        params = fit_minmax(weight, grid)
        codes, values = encode_oracle(weight, grid.bits, grid.group, grid.symmetric)
        assert params.scale.dtype == torch.float64
        assert torch.equal(encode(weight, params, grid).double(), codes)
        torch.testing.assert_close(
            decode(encode(weight, params, grid), params), values, rtol=1e-14, atol=1e-14
        )

    def test_transposed_storage_gives_the_same_codes(self) -> None:
        weight, grid = layer(), Grid(4, 64)
        tall = weight.T.contiguous().T
        assert torch.equal(
            encode(tall, fit_minmax(tall, grid), grid), encode(weight, fit_minmax(weight, grid), grid)
        )


class TestRangeSearch:
    @pytest.mark.parametrize("grid", [Grid(2, 64), Grid(3), Grid(4, 100), Grid(3, 64, True)], ids=str)
    def test_equals_a_loop_over_rows_and_groups(self, grid: Grid) -> None:
        weight = layer(rows=3).double()
        params = fit_mse(weight, grid)
        expected_scale, expected_zero = fit_mse_oracle(weight, grid.bits, grid.group, grid.symmetric)
        torch.testing.assert_close(params.scale, expected_scale, rtol=1e-12, atol=0)
        if params.zero is not None:
            assert torch.equal(params.zero.double(), expected_zero)

    @every_grid
    def test_never_worse_in_its_own_norm(self, grid: Grid) -> None:
        weight = layer()

        def loss(fit: Callable[[Tensor, Grid], QuantParams]) -> Tensor:
            error = (round_trip(weight, grid, fit)[0] - weight).abs().pow(2.4)
            return torch.stack([error[:, part].sum(1) for part in grid.slices(384)])

        assert (loss(fit_mse) <= loss(fit_minmax) * (1 + 1e-5)).all()

    def test_outlier_is_clipped_at_low_bits(self) -> None:
        weight = layer()
        weight[:, 5] = 8.0
        grid = Grid(2, symmetric=True)
        assert (fit_mse(weight, grid).scale < 0.9 * fit_minmax(weight, grid).scale).all()

    def test_chunks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weight, grid = layer(), Grid(3, 100)
        whole = fit_mse(weight, grid)
        monkeypatch.setattr("qlib.grid.fit.CHUNK", 1)
        assert torch.equal(fit_mse(weight, grid).scale, whole.scale)

    def test_goes_down_to_a_fifth_of_the_range(self) -> None:
        weight = torch.full((1, 10_001), 0.21)
        weight[0, 0] = 1.0  # alone against ten thousand
        scale = fit_mse(weight, Grid(2, symmetric=True)).scale
        torch.testing.assert_close(scale, torch.tensor([[0.21]]))

    def test_fit_by_name(self) -> None:
        weight, grid = layer(), Grid(3)
        assert torch.equal(fit_scale(weight, grid, "mse").scale, fit_mse(weight, grid).scale)
        assert torch.equal(fit_scale(weight, grid, "minmax").scale, fit_minmax(weight, grid).scale)


class TestPacking:
    @given(st.integers(2, 8), st.integers(0, 70), st.randoms(use_true_random=False))
    @settings(max_examples=200, deadline=None)
    def test_equals_bit_by_bit(self, bits: int, count: int, random: object) -> None:
        codes = [random.randrange(1 << bits) for _ in range(count)]  # type: ignore[attr-defined]
        packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
        assert packed.dtype == torch.uint8
        assert packed.tolist() == pack_oracle(codes, bits)
        assert unpack(packed, bits, (count,)).tolist() == codes

    @every_bits
    @pytest.mark.parametrize("shape", [(3, 384), (7, 288), (1, 1536), (5, 1), (2, 3, 5)])
    def test_shapes_and_extremes(self, bits: int, shape: tuple[int, ...]) -> None:
        for fill in (0, 2**bits - 1):
            codes = torch.full(shape, fill, dtype=torch.uint8)
            packed = pack(codes, bits)
            assert len(packed) == -(-codes.numel() * bits // 8)
            assert torch.equal(unpack(packed, bits, shape), codes)

    def test_transposed_codes(self) -> None:
        codes = torch.arange(12, dtype=torch.uint8).view(3, 4).T
        assert torch.equal(unpack(pack(codes, 4), 4, codes.shape), codes)

    @every_bits
    @both_kinds
    def test_grid_codes_survive_and_decode_to_the_same_bits(self, bits: int, symmetric: bool) -> None:
        weight, grid = layer(7, 288), Grid(bits, 128, symmetric)
        params = fit_minmax(weight, grid)
        codes = encode(weight, params, grid)
        codes[0, :2] = torch.tensor([grid.qmin, grid.qmax])
        back = from_unsigned(unpack(pack(to_unsigned(codes, grid), bits), bits, codes.shape), grid)
        assert back.dtype == codes.dtype
        assert torch.equal(back, codes)
        assert torch.equal(decode(back, params), decode(codes, params))


class TestErrors:
    @pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4"])
    def test_bits(self, bits: object) -> None:
        with pytest.raises(QuantError, match=r"bits=.* outside 2 to 8"):
            Grid(bits)  # type: ignore[arg-type]

    @pytest.mark.parametrize("group", [0, -1, 64.0])
    def test_group(self, group: object) -> None:
        with pytest.raises(QuantError, match=r"group=.* Use group=64"):
            Grid(4, group)  # type: ignore[arg-type]

    def test_group_larger_than_the_layer(self) -> None:
        with pytest.raises(QuantError, match=r"group=512 .* 384 columns of encoder.fc1.* Use group=384"):
            Grid(4, 512).check(384, "encoder.fc1")
        with pytest.raises(QuantError, match="group=512"):
            fit_minmax(layer(), Grid(4, 512))
        Grid(4, 384).check(384, "encoder.fc1")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_weights_that_are_no_numbers(self, bad: float) -> None:
        weight = layer()
        params = fit_minmax(weight, Grid(4))
        weight[3, 7] = weight[5, 0] = bad
        for call in (
            lambda: fit_minmax(weight, Grid(4)),
            lambda: fit_mse(weight, Grid(4)),
            lambda: encode(weight, params, Grid(4)),
        ):
            with pytest.raises(QuantError, match=r"2 of 9216 weights .* row 3, column 7"):
                call()

    @pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(0, 4), torch.ones(2, 2, dtype=torch.int8)])
    def test_weights_of_a_wrong_kind(self, weight: Tensor) -> None:
        with pytest.raises(QuantError, match="floating-point matrix"):
            fit_minmax(weight, Grid(4))

    def test_unknown_fit(self) -> None:
        with pytest.raises(QuantError, match=r"fit='l2' is unknown"):
            fit_scale(layer(), Grid(4), "l2")  # type: ignore[arg-type]

    @pytest.mark.parametrize("codes", [[0, 16], [-1, 3]])
    def test_codes_that_do_not_fit(self, codes: list[int]) -> None:
        with pytest.raises(QuantError, match=r"do not fit into 4 unsigned bits.*to_unsigned"):
            pack(torch.tensor(codes), 4)

    @pytest.mark.parametrize("size", [2, 4])
    def test_wrong_number_of_bytes(self, size: int) -> None:
        with pytest.raises(QuantError, match=r"7 codes of 3 bits take 3 bytes"):
            unpack(torch.zeros(size, dtype=torch.uint8), 3, (7,))


class TestEndsOfTheFloats:
    """Spans down to the smallest float and up to the largest: scales are normal numbers, values finite."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @given(
        bits=st.integers(2, 8),
        symmetric=st.booleans(),
        exponent=st.floats(0, 1),
        low=st.sampled_from([-1.0, -0.3, 0.0]),
        high=st.sampled_from([0.0, 0.6, 1.0]),
        seed=st.integers(0, 9),
    )
    @settings(max_examples=60, deadline=None)
    def test_rounding_to_nearest(
        self,
        dtype: torch.dtype,
        bits: int,
        symmetric: bool,
        exponent: float,
        low: float,
        high: float,
        seed: int,
    ) -> None:
        numbers = torch.finfo(dtype)
        octaves = math.log2(numbers.max) - math.log2(numbers.smallest_normal) - math.log2(numbers.eps)
        half = 2.0 ** (-(1 - exponent) * octaves / 2)  # from the largest number down to the smallest denormal
        size = numbers.max * half * half
        share = torch.rand(3, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        share[:, 0], share[:, 1] = 0, 1
        weight = ((low + (high - low) * share) * size).to(dtype)
        grid = Grid(bits, 4, symmetric)
        for fit in (fit_minmax, fit_mse, *([] if symmetric else [fit_float_zero])):
            params = fit(weight, grid)
            smallest = torch.finfo(params.scale.dtype).tiny
            assert bool((params.scale >= smallest).all() and params.scale.isfinite().all())
            assert params.zero is None or bool(params.zero.float().isfinite().all())
            codes = encode(weight, params, grid)
            values = decode(codes, params)
            assert bool(values.isfinite().all())
            if params.zero is not None and fit is not fit_float_zero:
                assert int(params.zero.max()) <= grid.qmax
                assert torch.equal(unpack(pack(codes, bits), bits, codes.shape), codes)
            if fit is fit_minmax:  # half a step; a whole one where a range reaches for the end of the dtype
                step = params.per_column()[0].double() * (1.001 if size > numbers.max / 4 else 0.501)
                assert bool(((values.double() - weight.double()).abs() <= step).all())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("grid", [Grid(2), Grid(4, 8), Grid(8, 8, True), Grid(3, None, True)], ids=str)
    def test_a_layer_at_the_end_of_its_dtype(self, dtype: torch.dtype, grid: Grid) -> None:
        generator = torch.Generator().manual_seed(3)
        linear = nn.Linear(24, 6, bias=False).to(dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.rand(6, 24, generator=generator) * 2 - 1).mul_(torch.finfo(dtype).max)
        inputs = torch.randn(99, 24, generator=generator)
        for codes in (rtn(linear.weight, grid), gptq(linear.weight, hessian(inputs), grid)):
            layer = FakeQuantLinear.from_linear(linear, codes, grid)
            assert layer.weight.dtype == dtype and bool(layer.weight.isfinite().all())
            layer.load_state_dict(layer.state_dict())
            assert bool(layer.weight.isfinite().all())

    def test_a_span_of_denormals_takes_the_code_of_zero(self) -> None:
        weight = torch.tensor([[1e-43, -1e-44, 0.0, 2e-44]])
        params = fit_minmax(weight, Grid(4))
        assert int(params.zero) <= 15  # type: ignore[arg-type]
        assert decode(encode(weight, params, Grid(4)), params).abs().max() == 0

    @pytest.mark.parametrize("fit", [fit_minmax, fit_mse, fit_float_zero], ids=lambda fit: fit.__name__)
    def test_the_widest_span_of_all(self, fit: Callable[[Tensor, Grid], QuantParams]) -> None:
        largest = torch.finfo(torch.float32).max
        weight = torch.tensor([[-largest, 0.0, largest, largest / 3]])
        params = fit(weight, Grid(4))
        assert params.scale.isfinite().all()
        assert decode(encode(weight, params, Grid(4)), params).isfinite().all()
