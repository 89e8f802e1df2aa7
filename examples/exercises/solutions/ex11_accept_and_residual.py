"""Solution of exercise 11. A token with q = 0 is never drawn: any number but a NaN serves."""

import torch
from torch import Tensor


def accept_probability(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(q > 0, p / q, 1).clamp(max=1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    left = (p - q).clamp(min=0)
    return left / left.sum() if left.sum() > 0 else p
