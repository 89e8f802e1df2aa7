"""Solution of exercise 3. Only the diagonal of D H D^T counts: row i times row i of D."""

from torch import Tensor


def hessian(X: Tensor) -> Tensor:
    return X.T @ X


def output_error(D: Tensor, H: Tensor) -> Tensor:
    return ((D @ H) * D).sum()
