"""Exercise 15: what a drafter learns from a target with other tokens (OmniDraft 2025, equation 3).

Draft token d becomes the target token direct[d], or none (-1). Both distributions are compared over the
target's V tokens and one more event, "other":

    q'(t) = sum of q(d) over all d with direct[d] = t        q'(other) = sum of q(d) over the d without a t
    p'(t) = p(t) where some d becomes t, otherwise 0         p'(other) = the rest of p
    KL(q' || p') = sum of q' log (q' / p')                   a term with q' = 0 is 0

Lesson: examples/25_a_drafter_that_learns.py    Page: docs/drafting/learning.md    Grade: pytest -m ex15
"""

from torch import Tensor


def lift(q: Tensor, direct: Tensor, V: int) -> Tensor:
    """Return q' [N, V + 1], "other" last, for q [N, D] and direct, int64 [D]."""
    raise NotImplementedError


def reachable(p: Tensor, direct: Tensor) -> Tensor:
    """Return p' [N, V + 1], "other" last, for p [N, V]."""
    raise NotImplementedError


def reverse_kl(q: Tensor, p: Tensor, direct: Tensor) -> Tensor:
    """Return KL(q' || p') of each row, [N]."""
    raise NotImplementedError
