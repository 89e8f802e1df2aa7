"""Exercise 14: when to stop drafting, without changing the text.

A rejected token takes all later ones with it. So stop after the token with which the belief that the whole
draft will be accepted falls below `least`:

    belief = q(x_1) q(x_2) ... q(x_i)

A rule may look at everything that was drafted. But what was drawn is kept: to drop a token because of what
it is changes the distribution of those that remain, and with it the text.

Lesson: examples/26_how_far_to_draft.py    Page: docs/drafting/learning.md    Grade: pytest -m ex14
"""

from collections.abc import Callable

Draw = Callable[[list[int]], tuple[int, float]]


def draft(draw: Draw, least: float, most: int) -> list[int]:
    """Return the tokens to verify, 1 to `most`.

    draw(tokens so far) draws the next token x and returns (x, q(x)).
    """
    raise NotImplementedError
