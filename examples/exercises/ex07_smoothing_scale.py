"""Exercise 7: SmoothQuant's scale, folded into the norm before the layer (Xiao et al. 2022, equation 4).

A few inputs are much larger than the rest. They become smaller, and their weights larger by as much:

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)        W x = (W s) (x / s)

x comes from a norm, x = g n + b, with a vector n of one size, a gain g and a bias b for each input. The norm
can divide by s once and for all. An input that is always 0 (max|x_j| = 0) keeps s_j = 1.

Lesson: examples/06_outliers_and_smoothquant.py    Page: docs/methods/smoothquant.md    Grade: pytest -m ex07
"""

from torch import Tensor


def smoothing_scale(max_x: Tensor, W: Tensor, alpha: float) -> Tensor:
    """Return s [inputs] for max|x| [inputs] and W [outputs, inputs], which has no column of zeros."""
    raise NotImplementedError


def fold(g: Tensor, b: Tensor, W: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return new g [inputs], b [inputs] and W [outputs, inputs] that leave the outputs as they are."""
    raise NotImplementedError
