"""Exercise 12: drafter and target draw with the same noise (the Gumbel-max trick).

Noise g on the log-probabilities turns drawing a token into an argmax:

    g = -log(-log u)   with u uniform between 0 and 1, one for each token        y = argmax (log p + g)

y has exactly the distribution p. If drafter and target use the same u, they mostly choose the same token
where q is near p, and the target's text depends on u alone, with or without drafts.

Lesson: examples/20_shared_noise.py    Page: docs/drafting/lossless.md    Grade: pytest -m ex12
"""

from torch import Tensor


def gumbel(u: Tensor) -> Tensor:
    """Return g for uniform u, any shape."""
    raise NotImplementedError


def choose(log_p: Tensor, u: Tensor) -> Tensor:
    """Return the chosen token of each row, int64 [N], for log p and u [N, V]."""
    raise NotImplementedError


def agreement(log_p: Tensor, log_q: Tensor, u: Tensor) -> float:
    """Return the share of the rows in which target and drafter choose the same token; all [N, V]."""
    raise NotImplementedError
