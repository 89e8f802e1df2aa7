"""Grader of exercise 2."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close

from qlib.grid import Grid, round_to_nearest
from qlib.methods.rtn import rtn

pytestmark = [pytest.mark.exercises, pytest.mark.ex02]


def weight(columns: int) -> torch.Tensor:
    return torch.randn(8, columns, generator=torch.Generator().manual_seed(0))


def test_groups_that_divide_the_columns(answer: ModuleType) -> None:
    found = answer.rounded(weight(24), 3, 8)
    close(
        found,
        round_to_nearest(weight(24), Grid(3, 8)),
        "each group of 8 neighbouring columns of a row has a scale",
    )


def test_a_narrower_last_group(answer: ModuleType) -> None:
    found = answer.rounded(weight(20), 3, 8)
    close(found, round_to_nearest(weight(20), Grid(3, 8)), "20 columns in groups of 8: the last group has 4")


def test_bits_by_hand(answer: ModuleType) -> None:
    close(
        answer.stored_bits(1, 8, 4, 8),
        4 * 8 + 36,
        "8 codes of 4 bits, a scale of 32 and a zero point of 4 bits",
    )
    close(
        answer.stored_bits(10, 256, 4, 64), 10 * (256 * 4 + 4 * 36), "256 / 64 = 4 groups in each of 10 rows"
    )
    close(
        answer.stored_bits(1, 288, 4, 128),
        288 * 4 + 3 * 36,
        "288 columns in groups of 128 are 3 groups, not 2",
    )


def test_bits_as_the_library_counts(answer: ModuleType) -> None:
    grid = Grid(4, 8)
    right = rtn(weight(20), grid).bits(grid)
    close(answer.stored_bits(8, 20, 4, 8), right, "QuantizedWeight.bits of 8 x 20 weights")
