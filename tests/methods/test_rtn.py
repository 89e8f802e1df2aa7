"""Round to nearest is its grid and nothing else."""

from __future__ import annotations

import pytest
import torch
from oracles import encode_oracle

from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.rtn import RTN, rtn

WEIGHT = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("grid", [Grid(4), Grid(3, 16), Grid(2, 16, True)], ids=str)
def test_codes_and_values(grid: Grid) -> None:
    codes, values = encode_oracle(WEIGHT, grid.bits, grid.group, grid.symmetric)
    result = rtn(WEIGHT, grid)
    assert torch.equal(result.codes.double(), codes)
    torch.testing.assert_close(result.decode(), values, rtol=1e-14, atol=1e-14)
    assert result.notes == ()


def test_range_search_lowers_the_error_of_a_row_with_an_outlier() -> None:
    weight = WEIGHT.clone()
    weight[:, 3] = 6.0

    def error(fit: str) -> float:
        return float((rtn(weight, Grid(2), fit=fit).decode() - weight).square().sum())  # type: ignore[arg-type]

    assert error("mse") < 0.9 * error("minmax")


@pytest.mark.parametrize("fit", ["minmax", "mse"])
def test_class_is_the_function(fit: str) -> None:
    method: WeightMethod = RTN(fit)  # type: ignore[arg-type]
    assert method.needs is Needs.NOTHING
    result = method.quantize_layer(WEIGHT, LayerStats(), Grid(3, 16))
    expected = rtn(WEIGHT, Grid(3, 16), fit=fit)  # type: ignore[arg-type]
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.scale, expected.scale)


def test_twice_the_same() -> None:
    assert torch.equal(rtn(WEIGHT, Grid(3, 16)).decode(), rtn(WEIGHT, Grid(3, 16)).decode())


def test_errors() -> None:
    with pytest.raises(QuantError, match="fit='l2'"):
        RTN("l2")  # type: ignore[arg-type]
    with pytest.raises(QuantError, match="group=64 is larger than the 50 columns"):
        rtn(WEIGHT, Grid(4, 64))
