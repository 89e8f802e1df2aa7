"""Grader of exercise 1."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from grading import close, true

from qlib.grid import Grid
from qlib.methods.rtn import rtn

pytestmark = [pytest.mark.exercises, pytest.mark.ex01]


def test_by_hand(answer: ModuleType) -> None:
    w = torch.tensor([-1.0, 0.2, 0.9, 2.0])
    scale, zero = answer.fit(w, 2)
    close(scale, 1.0, "2 bits from -1 to 2: four values have three steps of 1 between them")
    close(zero, 1.0, "0.0 is one step above lo = -1, so its code is 1")
    codes = answer.encode(w, scale, zero, 2)
    close(codes, [0, 1, 2, 3], "codes = clamp(round(w / scale) + zero)")
    close(answer.decode(codes, scale, zero), [-1, 0, 1, 2], "value = scale (code - zero)")


def test_the_range_reaches_zero(answer: ModuleType) -> None:
    scale, zero = answer.fit(torch.tensor([2.0, 3.0, 6.0]), 2)
    close(scale, 2.0, "all weights are above 0: the range is then 0 to 6, not 2 to 6")
    close(zero, 0.0, "and the code of 0.0 is 0")
    scale, zero = answer.fit(torch.tensor([-6.0, -3.0]), 2)
    close(scale, 2.0, "all weights are below 0: the range is then -6 to 0")
    close(zero, 3.0, "and the code of 0.0 is the highest")


def test_zero_has_a_code_of_its_own(answer: ModuleType) -> None:
    w = torch.randn(100, generator=torch.Generator().manual_seed(0))
    scale, zero = answer.fit(w, 3)
    close(zero, zero.round(), "zero is a code: round it")
    code = answer.encode(torch.zeros(1), scale, zero, 3)
    close(answer.decode(code, scale, zero), [0.0], "0.0 must come back exactly")


def test_codes_stay_within_the_grid(answer: ModuleType) -> None:
    codes = answer.encode(torch.tensor([-9.0, 9.0]), torch.tensor(1.0), torch.tensor(1.0), 2)
    close(
        codes,
        [0, 3],
        "weights outside of the range take the lowest or highest code: clamp after zero is added",
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_as_the_library(answer: ModuleType, bits: int) -> None:
    w = torch.randn(200, generator=torch.Generator().manual_seed(bits))
    scale, zero = answer.fit(w, bits)
    right = rtn(w[None], Grid(bits))
    close(answer.encode(w, scale, zero, bits), right.codes[0], f"codes of 200 random weights at {bits} bits")
    true(bool(scale > 0), "a scale is above 0")
