"""Exercise 2: groups of columns, and what they cost.

Each row of W [rows, columns] is cut into groups of neighbouring columns, and each group has a scale and a
zero point of its own. Smaller groups have finer grids and more scales:

    stored bits = bits * rows * columns  +  (32 + bits) * rows * groups

32 bits are a scale, `bits` a zero point. Where `group` does not divide the columns, the last group is
narrower.

Lesson: examples/02_granularity.py    Page: docs/methods/rtn.md    Grade: pytest -m ex02
"""

from torch import Tensor

from qlib.grid import Grid, round_to_nearest  # round_to_nearest(W, Grid(bits)): one scale for each whole row


def rounded(W: Tensor, bits: int, group: int) -> Tensor:
    """Return the rounded values of W, [rows, columns], one scale for each row of each group of columns."""
    raise NotImplementedError


def stored_bits(rows: int, columns: int, bits: int, group: int) -> int:
    """Return the bits of all codes, scales and zero points."""
    raise NotImplementedError


__all__ = ["Grid", "round_to_nearest", "rounded", "stored_bits"]
