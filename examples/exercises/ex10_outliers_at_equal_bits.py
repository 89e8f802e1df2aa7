"""Exercise 10: outliers that stay in float, at the same number of bits (after SpQR and QUIK, both 2023).

A single large weight stretches the grid of its row. Kept apart in float16 it takes 32 bits (16 for the
value, 16 for its place), so with one bit less per code one can keep

    n = rows * columns * (high - low) // 32

weights. Keep those that would cost most if they were lost: the n largest w_ij^2 H_jj of the whole matrix.
Fit the grid to all the others.

Lesson: examples/09_outliers_kept_apart.py    Page: docs/methods/spqr.md    Grade: pytest -m ex10
"""

from torch import Tensor

from qlib.grid import (
    Grid,
    round_to_nearest,
)  # round_to_nearest(W, Grid(bits)); a 0 stays 0 and stretches nothing


def outliers_for(rows: int, columns: int, high: int, low: int) -> int:
    """Return n, for codes of `low` bits instead of `high`."""
    raise NotImplementedError


def pick(W: Tensor, h: Tensor, n: int) -> Tensor:
    """Return True where a weight is kept: bool [outputs, inputs], n of them; h [inputs] is diag H."""
    raise NotImplementedError


def rounded(W: Tensor, kept: Tensor, bits: int) -> Tensor:
    """Return the values [outputs, inputs]: those kept in float16, the others rounded as if these were 0."""
    raise NotImplementedError


__all__ = ["Grid", "outliers_for", "pick", "round_to_nearest", "rounded"]
