"""Exercise 6: the zero point that HQQ finds (Badri and Shaji 2023).

HQQ keeps the scales s and moves the zero points z, in turn with a guess E of which errors are outliers:

    q = clamp(round(W / s + z))          R = W - s (q - z)                       the codes, and their errors
    E = sign(R) max(|R| - |R|^(p-1) / beta, 0)                                   0 where the error is small
    z = mean over the row of  q - (W - E) / s                                    the best z for all the rest

You write the second and the third line.

Lesson: examples/05_hqq_iterations.py    Page: docs/methods/hqq.md    Grade: pytest -m ex06
"""

from torch import Tensor


def shrink(R: Tensor, p: float, beta: float) -> Tensor:
    """Return E, in the shape of R. |R|^(p-1) is infinite at R = 0, where E is 0."""
    raise NotImplementedError


def new_zero(W: Tensor, q: Tensor, E: Tensor, s: Tensor) -> Tensor:
    """Return z [rows, 1] for W, q and E [rows, columns] and s [rows, 1]."""
    raise NotImplementedError
