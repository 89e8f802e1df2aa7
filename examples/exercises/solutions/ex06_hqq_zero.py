"""Solution of exercise 6. relu(-inf) is 0, so R = 0 needs no case of its own."""

from torch import Tensor


def shrink(R: Tensor, p: float, beta: float) -> Tensor:
    return R.sign() * (R.abs() - R.abs() ** (p - 1) / beta).relu()


def new_zero(W: Tensor, q: Tensor, E: Tensor, s: Tensor) -> Tensor:
    return (q - (W - E) / s).mean(1, keepdim=True)
