"""Solution of exercise 7. max|W_j| is taken over the outputs, so it belongs to an input, as max|x_j| does."""

from torch import Tensor


def smoothing_scale(max_x: Tensor, W: Tensor, alpha: float) -> Tensor:
    s = max_x**alpha / W.abs().amax(0) ** (1 - alpha)
    return s.masked_fill(max_x == 0, 1)


def fold(g: Tensor, b: Tensor, W: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return g / s, b / s, W * s
