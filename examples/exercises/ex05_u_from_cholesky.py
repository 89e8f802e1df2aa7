"""Exercise 5: the triangular matrix that GPTQ needs, from one Cholesky factorization.

    U^T U = (H + d mean(diag H) I)^-1        U upper triangular

The damping d makes up for too few tokens: without it H may have no inverse. torch.linalg.cholesky(A) returns
the lower triangular L with L L^T = A, and with upper=True its transpose.

Lesson: examples/04_gptq_column_by_column.py    Page: docs/methods/gptq.md    Grade: pytest -m ex05
"""

from torch import Tensor


def upper_factor(H: Tensor, d: float = 0.01) -> Tensor:
    """Return U [inputs, inputs] for H [inputs, inputs], symmetric."""
    raise NotImplementedError
