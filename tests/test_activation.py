"""Rounding of inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.activation import PerToken
from qlib.grid import Grid, decode, encode, fit_minmax

every_bits = pytest.mark.parametrize("bits", range(2, 9))
both_kinds = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def layer(rows: int = 24, columns: int = 384, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


class TestPerToken:
    @every_bits
    @both_kinds
    def test_equals_fit_encode_decode(self, bits: int, symmetric: bool) -> None:
        tokens = layer(9, 40)
        grid = Grid(bits, None, symmetric)
        scale = fit_minmax(tokens, grid)
        expected = decode(encode(tokens, scale, grid), scale)
        assert torch.equal(PerToken(bits, symmetric)(tokens), expected)
        assert torch.equal(PerToken(bits, symmetric)(tokens.view(3, 3, 40)), expected.view(3, 3, 40))

    @both_kinds
    def test_tokens_are_independent(self, symmetric: bool) -> None:
        tokens, rounding = layer(9, 40), PerToken(4, symmetric)
        tokens[4] *= 1000
        assert torch.equal(rounding(tokens.flip(0)), rounding(tokens).flip(0))
        assert torch.equal(torch.cat([rounding(part) for part in tokens.split(2)]), rounding(tokens))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtype_is_kept(self, dtype: torch.dtype) -> None:
        assert PerToken()(layer().to(dtype)).dtype == dtype

    def test_input_is_left_alone(self) -> None:
        tokens = layer()
        PerToken(4)(tokens)
        assert torch.equal(tokens, layer())

    @both_kinds
    def test_zeros_and_nothing(self, symmetric: bool) -> None:
        rounding = PerToken(8, symmetric)
        assert torch.equal(rounding(torch.zeros(2, 5)), torch.zeros(2, 5))
        assert torch.equal(rounding(torch.full((1, 5), 1e-45)), torch.zeros(1, 5))  # its step is 0 in float32
        for shape in [(0, 5), (2, 0), (0,)]:
            assert rounding(torch.empty(shape)).shape == shape

    def test_name(self) -> None:
        assert str(PerToken()) == "a8 per token asymmetric"
        assert str(PerToken(4, symmetric=True)) == "a4 per token symmetric"
