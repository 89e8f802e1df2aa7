"""Solution of exercise 14. The token that makes the belief too small is the last one, and it is kept."""

from collections.abc import Callable

Draw = Callable[[list[int]], tuple[int, float]]


def draft(draw: Draw, least: float, most: int) -> list[int]:
    tokens: list[int] = []
    belief = 1.0
    while len(tokens) < most and belief >= least:
        token, q = draw(tokens)
        tokens = [*tokens, token]
        belief *= q
    return tokens
