"""Exercise 9: a gradient through round(), which has none (OmniQuant, Shao et al. 2023, equation 2).

round() is flat almost everywhere. "Straight through" keeps its value, and takes the gradient of x instead.
With it a range can be learned: each row's largest |w| times sigmoid(u) = 1 / (1 + e^-u), on a symmetric grid.

    m = sigmoid(u) max|w|        scale = m / (2^(b-1) - 1)        value = scale round(clamp(w, -m, m) / scale)

y + (x - y).detach() has the value of x and the gradient of y.

Lesson: examples/08_learned_clipping.py    Page: docs/methods/omniquant.md    Grade: pytest -m ex09
"""

from torch import Tensor


def round_ste(x: Tensor) -> Tensor:
    """Return round(x), with the gradient 1 for x. Any shape."""
    raise NotImplementedError


def fake_quant(w: Tensor, u: Tensor, bits: int) -> Tensor:
    """Return the values [rows, columns] of w [rows, columns] for u [rows, 1], with gradients for both."""
    raise NotImplementedError
