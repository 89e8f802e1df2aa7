"""What a changed weight does to the outputs of its layer: the squared error, from the Hessian alone.

Inputs X [tokens, inputs], H = X^T X, and D = Q(W) - W [outputs, inputs]: the outputs move by X D^T, and

    |X D^T|^2 = tr (D H D^T) = sum over the rows d of D of d H d^T

exactly, over every token that H was made of. So no token has to be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of the product that `error_of_rows` computes at once: they stay in the processor's cache.
STRIP = 256


def squared_output_error(D: Tensor, hessian: Tensor) -> Tensor:
    """Return tr (D H D^T), a number, for D [outputs, inputs] and H [inputs, inputs] of the same dtype."""
    return ((D @ hessian) * D).sum()


# --- the same for each row, in about half of the multiplications


def error_of_rows(D: Tensor, upper: Tensor) -> Tensor:
    """Return d H d^T of each row d of D [outputs, inputs], [outputs].

    Parameters
    ----------
    D : Tensor
        [outputs, inputs].
    upper : Tensor
        `upper_triangle(H)`, [inputs, inputs], in the dtype of D.
    """
    total = torch.zeros(len(D), dtype=D.dtype, device=D.device)
    for start in range(0, D.shape[1], STRIP):
        stop = min(start + STRIP, D.shape[1])
        total += (D[:, :stop] @ upper[:stop, start:stop]).mul_(D[:, start:stop]).sum(1)
    return total


def upper_triangle(hessian: Tensor, like: Tensor) -> Tensor:
    """Return the upper triangle U with d U d^T = d H d^T for each d, in the dtype and device of `like`.

    H is symmetric, so what lies below the diagonal is added to what lies above: U = 2 triu(H) - diag(H).

    >>> upper_triangle(torch.tensor([[1.0, 3.0], [3.0, 2.0]]), torch.zeros(1)).tolist()
    [[1.0, 6.0], [0.0, 2.0]]
    """
    H = hessian.detach().to(like.device)
    return (2 * H.triu() - H.diagonal().diag()).to(like.dtype)
