"""The fake-quantized layer: the same product as the decoded weight, through copies, casts and state dicts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qlib
from qlib.activation import PerToken
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.kept_columns import KeepColumns
from qlib.linear import FakeQuantLinear
from qlib.methods.hessian import statistics
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.quantized_weight import QuantizedWeight

GRID = Grid(bits=4, group=5)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def linear(seed: int = 0, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(12, 7, bias=bias, dtype=dtype)


def quantize(layer: nn.Linear, activation: PerToken | None = None, grid: Grid = GRID) -> FakeQuantLinear:
    return FakeQuantLinear.from_linear(layer, rtn(layer.weight.detach(), grid), grid, activation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, PerToken(bits=3)], ids=str)
def test_forward_is_the_product_with_the_decoded_weight(bias: bool, activation: PerToken | None) -> None:
    layer, inputs = linear(bias=bias), random(2, 3, 12)
    expected = rtn(layer.weight.detach(), GRID).decode()
    seen = inputs if activation is None else activation(inputs)
    torch.testing.assert_close(
        quantize(layer, activation)(inputs), nn.functional.linear(seen, expected, layer.bias), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_computes_in_the_dtype_of_the_layer(dtype: torch.dtype) -> None:
    twin = quantize(linear(dtype=dtype))
    assert twin.weight.dtype == dtype
    assert twin(random(3, 12, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("wrapped", [False, True])
def test_columns_in_float_read_inputs_in_float(wrapped: bool) -> None:
    """QUIK keeps the columns of large inputs: rounded with the others, these would spoil their grid."""
    layer, inputs = linear(), random(40, 12)
    inputs[:, 4] *= 100
    codes = quik(layer.weight.detach(), statistics(inputs), GRID, columns=1)
    kept = KeepColumns(PerToken(bits=4), [4])
    twin = FakeQuantLinear.from_linear(layer, codes, GRID, kept if wrapped else PerToken(bits=4))
    assert str(twin.activation) == "a4 per token asymmetric, 1 columns in float"
    assert torch.equal(twin(inputs), nn.functional.linear(kept(inputs), codes.decode(), layer.bias))
    assert FakeQuantLinear.from_linear(layer, codes, GRID).activation is None


def test_looks_like_a_linear_layer() -> None:
    twin = quantize(linear(), PerToken(bits=8))
    assert (twin.in_features, twin.out_features) == (12, 7)
    assert repr(twin) == "FakeQuantLinear(12, 7, bias=True, w4 g5 asymmetric, a8 per token asymmetric)"
    assert repr(quantize(linear(bias=False))) == "FakeQuantLinear(12, 7, bias=False, w4 g5 asymmetric)"


def test_bias_is_a_copy() -> None:
    layer = linear()
    twin = quantize(layer)
    assert torch.equal(twin.bias, layer.bias)
    assert twin.bias.data_ptr() != layer.bias.data_ptr()


def test_deepcopy_shares_nothing_and_gives_the_same_bits() -> None:
    twin, inputs = quantize(linear(), PerToken()), random(4, 12)
    other = copy.deepcopy(twin)
    assert torch.equal(other(inputs), twin(inputs))
    other.weight.zero_()
    other.codes.zero_()
    assert torch.equal(twin.quantized.decode(), twin.weight)


def test_moves_to_another_device_and_dtype() -> None:
    twin = quantize(linear())
    assert {tensor.device.type for tensor in copy.deepcopy(twin).to("meta").buffers()} == {"meta"}
    wide = copy.deepcopy(twin).double()
    assert wide.codes.dtype == torch.uint8
    assert torch.equal(wide.weight, twin.weight.double())


@pytest.mark.parametrize("grid", [GRID, Grid(3, symmetric=True)], ids=str)
def test_state_dict_holds_codes_and_restores_values(grid: Grid) -> None:
    source, target = quantize(linear(0), grid=grid), quantize(linear(1), grid=grid)
    state = source.state_dict()
    expected = {"codes", "scale", "bias"} | ({"zero", "index"} if grid is GRID else set())
    assert set(state) == expected
    target.load_state_dict(state)
    assert torch.equal(target.weight, source.weight)


INPUTS = random(60, 12) * torch.linspace(0.1, 3, 12)  # the last columns are the largest


SPQR, SPQR_FEWER, QUIK = qlib.SpQR(threshold=0.003), qlib.SpQR(threshold=0.01), qlib.QUIK(columns=2)
SYMMETRIC, W4, W3 = Grid(4, symmetric=True), Grid(4, 5), Grid(3, 5)


@pytest.mark.parametrize(
    ("method", "other", "grids", "message"),
    [
        (
            qlib.HQQ(),
            qlib.RTN(),
            (GRID, GRID),
            r"zero is torch.float32 \[7, 3\] in .* torch.uint8 \[7, 3\]",
        ),
        (qlib.RTN(), qlib.HQQ(), (GRID, GRID), "zero is torch.uint8"),
        (SPQR, SPQR_FEWER, (GRID, GRID), r"outliers is torch.int64 \[\d+\]"),
        (SPQR, qlib.RTN(), (GRID, GRID), "the state dict holds outliers, .*, which this layer does not have"),
        (qlib.RTN(), QUIK, (GRID, GRID), "the state dict lacks columns, column_values"),
        (qlib.QUIK(columns=3), QUIK, (Grid(4), Grid(4)), r"columns is torch.int64 \[3\]"),
        (qlib.RTN(), qlib.RTN(), (Grid(4), SYMMETRIC), "the state dict holds zero, which"),
        (SPQR, QUIK, (GRID, GRID), r"holds outliers, .*, which this layer does not have and lacks columns, "),
        (qlib.RTN(), qlib.RTN(), (W4, Grid(4, 6)), r"scale is torch.float32 \[7, 3\]"),
        (qlib.RTN(), qlib.RTN(), (W4, W3), "codes from 0 to 15 of it, and it is rounded to w3 g5"),
        (qlib.RTN(), qlib.RTN(), (W4, Grid(4, 4)), None),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_another_kind_is_refused(
    method: Any, other: Any, grids: tuple[Grid, Grid], message: str | None, strict: bool
) -> None:
    """Most of them were copied into what was there, floats into bytes, or missed the numbers that count."""

    def model(seed: int, method: Any, grid: Grid) -> nn.Sequential:
        layer = linear(seed)
        codes = method.quantize_layer(layer.weight.detach(), statistics(INPUTS), grid)
        return nn.Sequential(FakeQuantLinear.from_linear(layer, codes, grid))

    source, target = model(0, method, grids[0]), model(1, other, grids[1])
    before = target[0].quantized.decode()
    if message is None:  # as many groups of other sizes: the index is in the state dict
        target.load_state_dict(source.state_dict(), strict=strict)
        assert torch.equal(target[0].weight, source[0].weight)
        return
    with pytest.raises(RuntimeError, match=rf"0: .*{message}.*same method.*torch\.save"):
        target.load_state_dict(source.state_dict(), strict=strict)
    assert torch.equal(target[0].quantized.decode(), before)
    assert torch.equal(target[0].weight, before)


def test_a_state_dict_of_floats_or_of_the_bias_alone() -> None:
    twin = quantize(linear(0))
    with pytest.raises(RuntimeError, match=r"The layer: the state dict holds weight, .* and lacks codes"):
        twin.load_state_dict(linear(1).state_dict(), strict=False)
    twin.load_state_dict({"bias": torch.ones(7)}, strict=False)
    assert torch.equal(twin.bias, torch.ones(7))
    half = quantize(linear(1)).half()
    twin.load_state_dict(half.state_dict())  # scales of another float are cast
    assert torch.equal(twin.scale, half.scale.float())


def test_loaded_inputs_stay_in_float_where_loaded_weights_do() -> None:
    """QUIK chooses columns by the inputs: a layer that was loaded rounded other columns than its twin."""
    rounding, grid = PerToken(bits=3), Grid(4)

    def of(inputs: Tensor, activation: Any = rounding) -> FakeQuantLinear:
        layer = linear()
        codes = quik(layer.weight.detach(), statistics(inputs), grid, columns=2)
        return FakeQuantLinear.from_linear(layer, codes, grid, activation)

    source, target = of(INPUTS), of(INPUTS.flip(1))
    assert source.activation.columns.tolist() != target.activation.columns.tolist()
    target.load_state_dict(source.state_dict())
    assert target.activation.columns.tolist() == source.activation.columns.tolist() == [10, 11]
    assert torch.equal(target(INPUTS), source(INPUTS))
    assert target.activation.needed == 12
    own = of(INPUTS.flip(1), KeepColumns(rounding, [0, 1, 5]))  # not those of the weight
    own.load_state_dict(source.state_dict())
    assert own.activation.columns.tolist() == [0, 1, 5]


def test_quantized_gives_back_what_went_in() -> None:
    layer = linear()
    weight = rtn(layer.weight.detach(), GRID)
    twin = FakeQuantLinear(
        QuantizedWeight(weight.codes, weight.scale, weight.zero, weight.index, ("a",)), GRID
    )
    back = twin.quantized
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.decode(), weight.decode())
    assert back.notes == ("a",)
    assert twin.bias is None


def test_codes_of_another_layer_are_refused() -> None:
    with pytest.raises(QuantError, match=r"\(3, 12\).*\(7, 12\)"):
        FakeQuantLinear.from_linear(linear(), rtn(random(3, 12), GRID), GRID)
