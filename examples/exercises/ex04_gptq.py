"""Exercise 4: GPTQ in eight lines (Frantar et al. 2022, algorithm 1).

Round one column after the other, and at once let all later columns make up for its error. How far each of
them moves is row j of an upper triangular U, with U^T U = H^-1 (exercise 5). For j = 0, 1, ...:

    q = Q(w_j)        e = (w_j - q) / U_jj        w_k -= e U_jk  for all k >= j

w_j is column j as the earlier errors have moved it. For k = j the last step leaves w_j = q.

Lesson: examples/04_gptq_column_by_column.py    Page: docs/methods/gptq.md    Grade: pytest -m ex04
"""

from torch import Tensor


def nearest(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return Q(w) of a column w [outputs], given scale and zero point of each row, [outputs]. Leave it."""
    codes = ((w / scale).round() + zero).clamp(0, 2**bits - 1)
    return scale * (codes - zero)


def gptq(W: Tensor, U: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the rounded values [outputs, inputs] of W [outputs, inputs], which stays as it is.

    U [inputs, inputs]; scale and zero [outputs].
    """
    raise NotImplementedError
