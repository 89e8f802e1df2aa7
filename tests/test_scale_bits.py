"""Scales in 16 bits and in two levels: rounded before codes are chosen, stored to the bit, by all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from storage_cases import print_of, small_whisper, text_result
from torch import Tensor, nn

import qlib
from qlib.errors import QuantError
from qlib.grid import (
    Grid,
    QuantParams,
    decode,
    encode,
    fit_float_zero,
    fit_minmax,
    fit_mse,
    short_scales,
    two_levels,
)
from qlib.linear import FakeQuantLinear
from qlib.methods.gptq import gptq, gptq_plain, hessian
from qlib.methods.hessian import statistics
from qlib.methods.hqq import hqq, hqq_plain
from qlib.methods.omniquant import clip_range, fake_quant, fake_quant_plain
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.spqr import spqr
from qlib.models.tiny import tiny_llama
from qlib.quantized_weight import QuantizedWeight, check_scale_bits
from qlib.returned import check_rounded
from qlib.stored_layer import pack_layer, unpack_layer

SHORT = [16, 8, 4, 3, 2]
every_width = pytest.mark.parametrize("scale_bits", SHORT)
FITS = [fit_minmax, fit_mse, fit_float_zero]


def layer(rows: int = 40, columns: int = 48, seed: int = 0) -> Tensor:
    """Rows of different sizes: their scales differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * (0.5 + torch.rand(rows, 1, generator=generator))


def inputs(columns: int = 48) -> Tensor:
    return torch.randn(200, columns, generator=torch.Generator().manual_seed(1))


def rounded(name: str, weight: Tensor, grid: Grid) -> QuantizedWeight:
    H = hessian(inputs(weight.shape[1]))
    results = {
        "rtn": lambda: rtn(weight, grid),
        "rtn mse": lambda: rtn(weight, grid, fit="mse"),
        "gptq": lambda: gptq(weight, H, grid, act_order=True, fit="mse"),
        "gptq static": lambda: gptq(weight, H, grid, act_order=True, static_groups=True),
        "quik": lambda: quik(weight, statistics(inputs(weight.shape[1])), grid, columns=3),
        "quik, a group fewer": lambda: quik(weight, statistics(inputs(weight.shape[1])), grid, columns=13),
        "hqq": lambda: hqq(weight, grid),
        "spqr": lambda: spqr(weight, H, grid),
    }
    return results[name]()


METHODS = ["rtn", "rtn mse", "gptq", "gptq static", "quik", "quik, a group fewer", "hqq", "spqr"]
CASES = [
    (name, scale_bits, symmetric)
    for name, scale_bits, symmetric in itertools.product(METHODS, [32, *SHORT], [False, True])
    if not (symmetric and name in ("hqq", "spqr")) and not (name == "spqr" and scale_bits < 16)
]


class TestByHand:
    def test_16_bits(self) -> None:
        """Between 1 and 2, bfloat16 has steps of 1/128."""
        params = fit_minmax(torch.tensor([[0.0, 3 * (1 + 1 / 128 + 1 / 1000)]]), Grid(2, scale_bits=16))
        assert params.scale.item() == 1 + 1 / 128
        params = fit_minmax(torch.tensor([[0.0, 3 * (1 + 3 / 256 + 1e-4)]]), Grid(2, scale_bits=16))
        assert params.scale.item() == 1 + 2 / 128

    def test_two_levels(self) -> None:
        """Scales 1, 2, 3, 4 are the codes 0 to 3 of 2 bits, with step 1 and zero point -1."""
        weight = torch.tensor([[0.0, 3.0], [0.0, 6.0], [0.0, 9.0], [0.0, 12.0]])
        params = fit_minmax(weight, Grid(2, scale_bits=2))
        assert params.second is not None and params.second.params.zero is not None
        assert params.second.codes.tolist() == [[0, 1, 2, 3]]
        assert params.second.params.scale.tolist() == [[1.0]] and params.second.params.zero.tolist() == [
            [-1.0]
        ]
        assert params.scale.tolist() == [[1.0], [2.0], [3.0], [4.0]]

    def test_the_next_code_where_the_nearest_clips_more_than_a_step(self) -> None:
        """A scale of 1.4 among 1 .. 4: the code of 1 clips 0.4 qmax / 1 steps, 1.2 at 2 bits."""
        scale, none = torch.tensor([[1.0], [1.4], [4.0]]), torch.zeros(3, 1, dtype=torch.bool)
        assert two_levels(scale, none, Grid(2, scale_bits=2)).codes.tolist() == [[0, 1, 3]]
        assert two_levels(scale, none, Grid(2, symmetric=True, scale_bits=2)).codes.tolist() == [[0, 0, 3]]

    def test_name_and_errors(self) -> None:
        assert str(Grid(4, 64, scale_bits=16)) == "w4 g64 asymmetric, 16-bit scales"
        assert str(Grid(4, 64, scale_bits=32)) == "w4 g64 asymmetric"
        for bad in (1, 9, 15, 64, 16.5, "16", True):
            with pytest.raises(QuantError, match=r"scale_bits=.* in Grid is none of 32, 16 and 2 to 8"):
                Grid(4, 64, scale_bits=bad)  # type: ignore[arg-type]


class TestBeforeCodes:
    @pytest.mark.parametrize(("name", "scale_bits", "symmetric"), CASES)
    def test_scales_have_their_bits(self, name: str, scale_bits: int, symmetric: bool) -> None:
        grid = Grid(4, 16, symmetric, scale_bits=scale_bits)
        result = rounded(name, layer(), grid)
        check_scale_bits(result, grid)
        assert (result.scale > 0).all()
        if scale_bits < 16:
            assert result.second is not None
            assert torch.equal(result.second.decode()[0], result.scale)

    @every_width
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_codes_are_the_nearest_on_the_rounded_grid(self, fit, bits: int, scale_bits: int) -> None:  # type: ignore[no-untyped-def]
        """Brute force: no code of the grid that is stored has a value closer to the weight."""
        grid, weight = Grid(bits, 16, scale_bits=scale_bits), layer()
        params = fit(weight, grid)
        own = (decode(encode(weight, params, grid), params) - weight).abs()
        for code in range(grid.levels):
            other = (decode(torch.full_like(weight, code, dtype=torch.uint8), params) - weight).abs()
            assert (own <= other + 1e-6).all()

    @every_width
    def test_fast_forms_equal_plain_forms(self, scale_bits: int) -> None:
        weight, H = layer().double(), hessian(inputs())
        for grid in (Grid(4, 16, scale_bits=scale_bits), Grid(3, 20, True, scale_bits=scale_bits)):
            for static in (False, True):
                fast = gptq(weight, H, grid, static_groups=static)
                plain = gptq_plain(weight, H, grid, static_groups=static)
                assert torch.equal(fast.codes, plain.codes) and torch.equal(fast.scale, plain.scale)
        grid = Grid(4, 16, scale_bits=scale_bits)
        torch.testing.assert_close(hqq(weight, grid).decode(), hqq_plain(weight, grid).decode())

    @every_width
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_learned_ranges_give_the_grid_that_rounding_finds(self, scale_bits: int, symmetric: bool) -> None:
        weight, grid = layer(), Grid(4, 16, symmetric, scale_bits=scale_bits)
        upper = torch.rand(40, 3, generator=torch.Generator().manual_seed(2)) * 4
        lower = None if symmetric else upper.flip(0)
        learned = fake_quant(weight, grid, upper, lower)
        assert torch.equal(rtn(clip_range(weight, grid, upper, lower), grid).decode(), learned)
        torch.testing.assert_close(fake_quant_plain(weight, grid, upper, lower), learned)


def two_levels_oracle(scales: list[float], bits: int, qmax: int) -> list[float]:
    """Scales of the rows of one group after rounding, number by number."""
    out: list[float] = []
    for start in range(0, len(scales), 16):
        part = scales[start : start + 16]
        step = max((max(part) - min(part)) / (2**bits - 1), max(part) / 1024)
        step = torch.tensor(step, dtype=torch.float64).to(torch.bfloat16).item()
        zero = torch.tensor(-min(part) / step, dtype=torch.float64).half().item()
        for scale in part:
            code = min(max(round(scale / step + zero), 0), 2**bits - 1)
            if (scale - step * (code - zero)) * qmax > step * (code - zero):
                code = min(code + 1, 2**bits - 1)
            out.append(step * (code - zero))
    return out


class TestTwoLevels:
    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("scale_bits", [2, 3, 8])
    def test_rtn_equals_a_loop_in_float64(self, bits: int, scale_bits: int, symmetric: bool) -> None:
        weight = layer(rows=37).double()  # a ragged last block of rows
        grid = Grid(bits, 16, symmetric, scale_bits=scale_bits)
        plain = rtn(weight, replace(grid, scale_bits=32))
        result = rtn(weight, grid)
        for group in range(3):
            wanted = two_levels_oracle(plain.scale[:, group].tolist(), scale_bits, grid.qmax)
            for row, scale in enumerate(wanted):
                zero = 0 if plain.zero is None else int(plain.zero[row, group])
                part = slice(16 * group, 16 * group + 16)
                codes = [
                    min(max(round(value / scale) + zero, grid.qmin), grid.qmax)
                    for value in weight[row, part].tolist()
                ]
                assert result.codes[row, part].tolist() == codes
                expected = [scale * (code - zero) for code in codes]
                assert result.decode()[row, part].tolist() == pytest.approx(expected, rel=1e-12)

    def test_a_group_of_zeros_does_not_stretch_the_grid_of_its_neighbours(self) -> None:
        weight, grid = layer(rows=16) / 1000, Grid(4, 16, scale_bits=3)
        weight[5] = 0
        others = [row for row in range(16) if row != 5]
        result, alone = rtn(weight, grid), rtn(weight[others], grid)
        assert torch.equal(result.decode()[others], alone.decode()) and not result.decode()[5].any()
        assert not rtn(torch.zeros(40, 48), grid).decode().any()

    def test_a_row_far_smaller_than_its_neighbours_keeps_a_scale_above_0(self) -> None:
        weight = layer(rows=16)
        weight[3] *= 1e-12
        result = rtn(weight, Grid(8, 16, scale_bits=3))
        assert (result.scale > 0).all() and result.decode().isfinite().all()
        assert ((result.decode() - weight).abs() <= result.scale.repeat_interleave(16, 1)).all()

    def test_the_same_in_spqr(self) -> None:
        """Its second level rounds to the nearest code, so the smallest scale may be the zero point alone."""
        weight = layer(rows=16)
        weight[3] *= 1e-12
        result = spqr(weight, hessian(inputs()), Grid(4, 16, scale_bits=16), threshold=torch.inf)
        assert (result.scale > 0).all() and result.decode().isfinite().all()

    def test_costs_little_at_4_bits(self) -> None:
        weight = layer(256, 256, seed=3)
        errors = {
            scale_bits: float(
                (rtn(weight, Grid(4, 64, scale_bits=scale_bits)).decode() - weight).square().sum()
            )
            for scale_bits in (32, 16, 4)
        }
        assert errors[16] < 1.005 * errors[32] and errors[4] < 1.05 * errors[32]


class TestExtremes:
    @pytest.mark.parametrize("scale_bits", [32, *SHORT])
    @pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-5, 1e5, 1e30, 1e35])
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_of_any_size(self, bits: int, size: float, scale_bits: int) -> None:
        """Finite, and off by no more than a step and a half."""
        weight = (layer() / layer().abs().max() * size).float()
        for symmetric in (False, True):
            grid = Grid(bits, 16, symmetric, scale_bits=scale_bits)
            result = rtn(weight, grid)
            values = result.decode()
            assert values.isfinite().all() and result.scale.isfinite().all() and (result.scale > 0).all()
            step = result.scale.repeat_interleave(16, 1)
            assert ((values / 4 - weight / 4).abs() <= 1.5 / 4 * step).all()

    @every_width
    def test_float_zeros_far_from_the_codes(self, scale_bits: int) -> None:
        """Groups of one sign, or of equal weights: right to the 11 digits of a float16 zero point."""
        for weight in (100 + torch.rand(20, 16), torch.full((20, 16), -7.3), 1e6 + torch.rand(1, 16)):
            result = hqq(weight, Grid(4, 16, scale_bits=scale_bits))
            off = 2.0**-10 if scale_bits == 16 else 2.0**-7
            assert ((result.decode() - weight).abs() <= off * weight.abs()).all()

    @every_width
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("share", [1.0, 0.5, 1e-2, 1e-4])
    def test_at_the_end_of_float32_values_are_finite_or_refused(
        self, fit, share: float, scale_bits: int
    ) -> None:  # type: ignore[no-untyped-def]
        end = torch.finfo(torch.float32).max * share
        weight = (torch.rand(20, 16, generator=torch.Generator().manual_seed(5)) - 0.5) * 2 * end
        for shifted in (weight, weight.abs(), weight.sign() * end, torch.full_like(weight, end)):
            grid = Grid(4, 8, scale_bits=scale_bits)
            try:
                params = fit(shifted, grid)
            except QuantError as error:
                assert "do not fit into" in str(error) and share > 1e-3
                continue
            assert decode(encode(shifted, params, grid), params).isfinite().all()

    def test_float64_beyond_16_bits_is_refused(self) -> None:
        for size in (1e300, 1e-300):
            weight = layer().double() * size
            for scale_bits in SHORT:
                with pytest.raises(
                    QuantError, match=r"scales from .* do not fit into \d+ bits.*scale_bits=32"
                ):
                    rtn(weight, Grid(4, 16, scale_bits=scale_bits))
            assert rtn(weight, Grid(4, 16)).decode().isfinite().all()

    @given(
        st.lists(st.floats(2.0**-120, 2.0**110, width=32), min_size=1, max_size=40),
        st.sampled_from([2, 3, 8]),
    )
    def test_two_levels_of_any_scales(self, numbers: list[float], scale_bits: int) -> None:
        scale = torch.tensor(numbers)[:, None]
        grid = Grid(4, scale_bits=scale_bits)
        result = two_levels(scale, torch.zeros_like(scale, dtype=torch.bool), grid).decode()
        assert result.isfinite().all() and (result > 0).all()
        assert (result >= scale * 0.93).all()  # at most one step of 15 is clipped, with what 16 bits lose

    def test_two_levels_refuse_a_scale_that_is_no_number(self) -> None:
        scale, none = torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 1, dtype=torch.bool)
        with pytest.raises(QuantError, match=r"1 of 2 .* NaN"):
            short_scales(scale, none, Grid(4, scale_bits=4))


class TestStored:
    @pytest.mark.parametrize(("name", "scale_bits", "symmetric"), CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_round_trip_and_bits_to_the_byte(
        self, name: str, scale_bits: int, symmetric: bool, dtype: torch.dtype
    ) -> None:
        weight = layer(37, 44).to(dtype)
        grid = Grid(3, 16, symmetric, scale_bits=scale_bits)
        linear = nn.Linear(44, 37, dtype=dtype)
        result = rounded(name, weight, grid)
        stored, entry = pack_layer("x", FakeQuantLinear.from_linear(linear, result, grid))
        bits = sum(8 * value.nbytes for key, value in stored.items() if key != "x.bias")
        assert result.bits(grid) == bits
        parts = {key.removeprefix("x."): value for key, value in stored.items()}
        again = unpack_layer(parts, entry, linear, dtype)
        assert again.grid == grid
        for key, value in result.tensors().items():
            other = again.quantized.tensors()[key]
            assert other.dtype == value.dtype and torch.equal(other, value), key

    def test_what_a_group_of_64_costs(self) -> None:
        """By hand: 4 bits a code, 4 a zero point, and of the scales 32, 16, or k + 32 / 16."""
        weight = layer(64, 256)
        for scale_bits, of_scale in ((32, 32), (16, 16), (8, 10), (3, 5)):
            grid = Grid(4, 64, scale_bits=scale_bits)
            assert rtn(weight, grid).bits(grid) / weight.numel() == 4 + (4 + of_scale) / 64

    def test_dtypes_on_disk(self, tmp_path: Path) -> None:
        model = tiny_llama(0, width=16, layers=1, heads=2, kv_heads=1)
        for scale_bits, wanted in ((16, torch.bfloat16), (3, torch.uint8)):
            result = text_result(model, qlib.RTN(), Grid(4, 8, scale_bits=scale_bits))
            tensors = load_file(result.save(tmp_path / str(scale_bits)) / "model.safetensors")
            name = next(key.removesuffix(".codes") for key in tensors if key.endswith("q_proj.codes"))
            key = "scale" if scale_bits == 16 else "scale_codes"
            assert tensors[f"{name}.{key}"].dtype == wanted and tensors[f"{name}.zero"].dtype == torch.uint8
            if scale_bits == 3:
                assert f"{name}.scale" not in tensors
                assert tensors[f"{name}.scale_scale"].dtype == torch.bfloat16
                assert tensors[f"{name}.scale_zero"].dtype == torch.float16

    @every_width
    def test_a_model_is_the_same_after_reading(self, scale_bits: int, tmp_path: Path) -> None:
        for method in (qlib.RTN(), qlib.HQQ()):
            grid = Grid(4, 8, scale_bits=scale_bits)
            result = qlib.quantize(small_whisper(0), [method], weight=grid, progress=False)
            again = qlib.load_quantized(result.save(tmp_path / "saved"))
            assert print_of(again) == print_of(result.model)
            assert f"{scale_bits}-bit scales" in result.report.layers[0].grid

    def test_scales_of_another_kind_are_refused(self) -> None:
        weight = layer()
        plain = rtn(weight, Grid(4, 16))
        for scale_bits, message in ((16, "not in bfloat16"), (3, "no codes of 3 bits")):
            grid = Grid(4, 16, scale_bits=scale_bits)
            with pytest.raises(QuantError, match=rf"Mine\.quantize_layer returned other scales.*{message}"):
                check_rounded(plain, weight, grid, "Mine")
            with pytest.raises(QuantError, match=message):
                pack_layer("x", FakeQuantLinear(plain, grid))
        zero = QuantParams(torch.ones(40, 1), torch.full((40, 1), 1 / 3))
        with pytest.raises(QuantError, match="not in float16"):
            check_scale_bits(QuantizedWeight.of(plain.codes, zero), Grid(4, scale_bits=16))

    def test_spqr_has_a_second_level_of_its_own(self) -> None:
        for call in (
            lambda grid: spqr(layer(), hessian(inputs()), grid),
            lambda grid: qlib.SpQR().check_weights({}, grid),
        ):
            with pytest.raises(QuantError, match=r"scale_bits=4 for SpQR.*second_bits=4.*scale_bits=16"):
                call(Grid(4, 16, scale_bits=4))
        sizes = {
            bits: spqr(
                layer(64, 64),
                hessian(inputs(64)),
                Grid(4, 16, scale_bits=bits),
                threshold=1e9,
                act_order=False,
            ).bits(Grid(4, 16, scale_bits=bits))
            for bits in (32, 16)
        }
        assert sizes[32] - sizes[16] == 4 * 16 * (64 // 16) * (64 // 16)
