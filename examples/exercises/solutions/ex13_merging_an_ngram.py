"""Solution of exercise 13. Mass moves from the first piece to the whole: the sum stays."""

from math import prod

from torch import Tensor


def translate(
    drafted: list[int], direct: dict[int, int], ngrams: dict[tuple[int, ...], int]
) -> list[tuple[int, int]]:
    found, at = [], 0
    while at < len(drafted):
        lengths = [n for n in range(len(drafted) - at, 1, -1) if tuple(drafted[at : at + n]) in ngrams]
        if lengths:
            found.append((ngrams[tuple(drafted[at : at + lengths[0]])], lengths[0]))
        elif drafted[at] in direct:
            found.append((direct[drafted[at]], 1))
        else:
            break
        at += found[-1][1]
    return found


def merged(q: Tensor, first: int, token: int, pieces: list[float]) -> Tensor:
    q = q.clone()
    q[first] -= prod(pieces)
    q[token] += prod(pieces)
    return q
