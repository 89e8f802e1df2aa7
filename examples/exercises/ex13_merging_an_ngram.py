"""Exercise 13: several draft tokens that are one token of the target (OmniDraft 2025, equations 1 and 2).

The drafter writes "f", "la", "ke" where the target has "flake". A cache of n-grams knows that, and a draft
is translated from left to right: the longest n-gram that fits, otherwise the direct counterpart of one
token. A token that has neither ends the translation.

In the paper's rule the n-gram's token t gains the probability that all of its pieces are drawn, and its
first piece loses it. t has a probability before only if it is some draft token's direct counterpart as well:

    m = q(d_1) q(d_2) ... q(d_n)    q'(t) = q(t) + m    q'(d_1) = q(d_1) - m    all others as they are

The rule is approximate: lesson 22 counts what it gets wrong.

Lesson: examples/21_two_tokenizers_meet.py    Page: docs/drafting/how_it_works.md    Grade: pytest -m ex13
"""

from torch import Tensor


def translate(
    drafted: list[int], direct: dict[int, int], ngrams: dict[tuple[int, ...], int]
) -> list[tuple[int, int]]:
    """Return (target token, number of draft tokens it stands for), from left to right.

    `direct` is the target token of a draft token, `ngrams` that of several draft tokens in a row.
    """
    raise NotImplementedError


def merged(q: Tensor, first: int, token: int, pieces: list[float]) -> Tensor:
    """Return q' [V] for q [V] over target tokens; q itself stays as it is.

    first is the direct counterpart of d_1, token is t, and pieces are q(d_1), q(d_2), ... of the n-gram.
    """
    raise NotImplementedError
