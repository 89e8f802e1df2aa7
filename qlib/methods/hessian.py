"""The Hessian of a layer, and the triangular factor that GPTQ, QUIK and SpQR take from it.

Problem: minimise |X W^T - X W^^T|^2 over W^ on the grid, that is tr (W - W^) H (W - W^)^T with H = X^T X.
Rule: with U upper triangular, U^T U = H^-1; for column j = 0, 1, ...
          q = Q(w_j)      e = (w_j - q) / U_jj      w_k -= e U_jk  for all k >= j
Why it works: once column j is fixed, the best the free columns can do is a least-squares problem, and its
    answer is row j of the inverse of H[j:, j:], the part of H that belongs to columns j and later. (Errors
    before j do not enter: the free columns stand at the minimum for these, where the slope is 0.) A new
    inverse for each column would cost n^4. But let H = R R^T with R upper triangular (Cholesky, begun at
    the last column). Then H[j:, j:] = R[j:, j:] R[j:, j:]^T for every j at once, so with U = R^-1 its inverse
    is U[j:, j:]^T U[j:, j:], and the row wanted is U_jj U[j, j:]. One triangular matrix holds them all.
Without an inverse: R alone is enough, as `qlib/methods/compensate.py` shows.
Shapes: X [tokens, inputs], H, R and U [inputs, inputs].
Precision: float64, except for `gram`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import as_compute_dtype, check_tensor
from qlib.methods.checks import check_damping, check_hessian
from qlib.methods.contracts import LayerStats


def hessian(inputs: Tensor) -> Tensor:
    """Return the sum of x x^T over all tokens, [features, features], float64.

    The Hessians of several batches are added: `total += hessian(batch)`. A constant factor changes nothing.

    Parameters
    ----------
    inputs : Tensor
        [..., features], any floating dtype.
    """
    check_tensor(inputs, "the input", "Pass the inputs of a layer, [..., features].")
    tokens = inputs.reshape(-1, inputs.shape[-1]).double()
    return tokens.T @ tokens


def statistics(inputs: Tensor) -> LayerStats:
    """Return all that a method may want to know of the inputs of one layer.

    Parameters
    ----------
    inputs : Tensor
        X [tokens, inputs], any floating dtype.

    Raises
    ------
    QuantError
        No matrix of finite floats, or no token.
    """
    check_tensor(inputs, "inputs", "Pass the inputs of a layer, [tokens, inputs].")
    if inputs.ndim != 2 or not len(inputs) or not inputs.is_floating_point() or not inputs.isfinite().all():
        raise QuantError(
            f"inputs of shape {list(inputs.shape)} in {inputs.dtype} are no matrix [tokens, inputs] of "
            "finite floats. Pass one row for each token: x.flatten(0, -2)."
        )
    X = as_compute_dtype(inputs.detach())
    return LayerStats(len(X), hessian(X), X.amin(0), X.amax(0), X.double().abs().sum(0))


def gram(rows: Tensor) -> Tensor:
    """Return rows^T rows, [features, features], in the dtype of the rows: the fast form of `hessian`.

    Only blocks on and below the diagonal are multiplied; the others are their mirror images. That takes
    little more than half the time of the whole product.

    Parameters
    ----------
    rows : Tensor
        [tokens, features]. Calibration passes float32, 2048 tokens at a time, and adds products in float64.
    """
    width = rows.shape[1]
    step = max(128, -(-width // 16))
    product = rows.new_empty(width, width)
    for start in range(0, width, step):
        stop = min(start + step, width)
        product[start:, start:stop] = rows[:, start:].T @ rows[:, start:stop]
        product[start:stop, stop:] = product[stop:, start:stop].T
    return product


def factorize(H: Tensor, order: Tensor, damping: float) -> Tensor:
    """Return the upper triangular R with R R^T = H + damping * mean(diag H) * I, columns taken in `order`.

    Parameters
    ----------
    H, damping : Tensor, float
        As in `inverse_factor`; H is checked and float64.
    order : Tensor
        A permutation of the columns, [inputs], int64.

    Raises
    ------
    QuantError
        Not positive definite: names the column.
    """
    # Cholesky begins at the first column and gives a lower triangle; begun at the last, an upper one.
    columns, last_first = len(H), order.flip(0)
    dead = H.diagonal() == 0
    added = damping * float(H.diagonal().sum() / (~dead).sum().clamp(min=1))
    natural = bool((order[1:] > order[:-1]).all())
    # Column-major (.T; the matrix is symmetric) is how LAPACK wants it: it then works in place.
    lower = (H.flip(0, 1) if natural else H[last_first][:, last_first]).T
    diagonal = lower.diagonal().add_(added).add_(dead[last_first]).clone()
    info = torch.empty((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    # Rounding errors can make a singular matrix pass as a barely regular one, with nonsense for an answer.
    weak = lower.diagonal().square() <= columns * torch.finfo(H.dtype).eps * diagonal
    if int(info) or weak.any():
        step = int(info) - 1 if int(info) else int(weak.nonzero()[0])
        raise QuantError(
            f"the Hessian is not positive definite at column {int(last_first[step])} of {columns} with "
            f"damping={damping} (that adds {added:.3g} to its diagonal). {_why_not(H)}"
        )
    return lower.flip(0, 1)


def _why_not(H: Tensor) -> str:
    """Say why a Hessian is not positive definite, and what to do."""
    if bool((H.diagonal() < 0).any()):
        return "Its diagonal is partly below 0, so it is no sum of x x^T: pass hessian(inputs)."
    return "This input repeats others: use damping=0.01 or more, or more calibration data."


def invert(R: Tensor) -> Tensor:
    """Return U = R^-1 of an upper triangular R."""
    inverse: Tensor = torch.linalg.solve_triangular(R, torch.eye(len(R)).to(R), upper=True)
    return inverse


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Return the upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1, float64.

    Parameters
    ----------
    hessian : Tensor
        [inputs, inputs], symmetric. An input that was always 0 (H_jj = 0) gets 1 there as well.
    damping : float
        The share of the mean of diag(H), over the inputs that were not always 0, that is added to it.

    Raises
    ------
    QuantError
        Not a square matrix of finite numbers, or not positive definite: names the column.
    """
    check_tensor(hessian, "the Hessian", "Pass hessian(inputs) of this layer's inputs.")
    damping = check_damping(damping, "inverse_factor")
    check_hessian(hessian, hessian.shape[-1] if hessian.ndim else 0)
    H = hessian.detach().double()
    return invert(factorize(H, torch.arange(len(H), device=H.device), damping))
