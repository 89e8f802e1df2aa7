"""Exercise 1: a number becomes a code, and a code a number.

A grid of b bits has 2^b values at equal distances. Its range [lo, hi] always reaches 0, so that 0.0 has a
code of its own:

    lo = min(w, 0)    hi = max(w, 0)                         over all w
    scale = (hi - lo) / (2^b - 1)      zero = round(-lo / scale)
    code = clamp(round(w / scale) + zero, 0, 2^b - 1)        value = scale (code - zero)

Lesson: examples/01_one_number_one_grid.py    Page: docs/methods/rtn.md    Grade: pytest -m ex01
"""

from torch import Tensor


def fit(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero, two numbers, for weights w [n] that are not all 0."""
    raise NotImplementedError


def encode(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the codes of w, [n], whole numbers from 0 to 2^bits - 1 (in a float tensor)."""
    raise NotImplementedError


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the values of codes, [n]."""
    raise NotImplementedError
