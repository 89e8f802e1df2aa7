"""Exercise 11: accept, or draw from the residual (Leviathan et al. 2023, algorithm 1).

The drafter draws a token x from q. The target, with the distribution p, accepts it with the probability

    min(1, p(x) / q(x))

and otherwise draws a token from max(p - q, 0), normalised. Both together give exactly p. Where p = q nothing
is ever rejected; let the residual be p then.

Lesson: examples/19_speculative_decoding.py    Page: docs/drafting/one_vocabulary.md    Grade: pytest -m ex11
"""

from torch import Tensor


def accept_probability(p: Tensor, q: Tensor) -> Tensor:
    """Return the probability that each token is accepted if it was drawn, [V]; 1 where q is 0."""
    raise NotImplementedError


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return the distribution after a rejection, [V], with the sum 1."""
    raise NotImplementedError
