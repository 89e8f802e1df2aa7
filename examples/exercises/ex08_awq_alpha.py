"""Exercise 8: the exponent that AWQ searches (Lin et al. 2023).

Weights that meet large inputs should be rounded more finely. AWQ scales them up by s = a^alpha, with a_j the
mean of |x_j|, rounds, and scales back. Alpha is the one number to find: try all of these, and take
the one with the smallest loss, the error of the outputs:

    alpha = k / points  for k = 0, 1, ... points - 1
    D = Q(W s) / s - W        loss = |X D^T|^2

Lesson: examples/07_awq_scale_search.py    Page: docs/methods/awq.md    Grade: pytest -m ex08
"""

from torch import Tensor

from qlib.grid import Grid, round_to_nearest  # Q(W) = round_to_nearest(W, Grid(bits))


def best_alpha(W: Tensor, X: Tensor, bits: int, points: int = 20) -> tuple[float, Tensor]:
    """Return the best alpha and the losses of all, [points], for W [outputs, inputs], X [tokens, inputs]."""
    raise NotImplementedError


__all__ = ["Grid", "best_alpha", "round_to_nearest"]
