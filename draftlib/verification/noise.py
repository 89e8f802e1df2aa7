"""Randomness by address instead of by order: the noise of a seed, a position and a token is always the same.

Problem   A generator hands out numbers in the order of the calls. A speculative decoder calls in another
          order than a plain one (it drafts, rejects and comes back), so equal seeds would give different
          texts.
Rule      `gumbel(seed, position, count)`: hash (seed, position, token) to 31 bits, read them as v in (0, 1),
          return g = -log(-log(1 - v)), a standard Gumbel number for every token of the vocabulary at that
          position. argmax(log p + g) is then a draw from p (the Gumbel-max trick), and the same draw whoever
          asks, and how often.
Why       P(token i wins) = integral of f(x - log p_i) prod_(j != i) F(x - log p_j) dx = p_i with F(x) =
          exp(-exp(-x)). v is small where g is large, and small floats are exact: the side that wins has full
          precision.
Device    Always made on the CPU and copied to `device`: logarithms of other devices differ in the last bit.
Left out  Cryptographic quality. Seeds count modulo 2**64.

The ordinary kind, numbers in order, is in `draws.py`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qlib.errors import DraftError

MASK = (1 << 64) - 1


def splitmix(value: int) -> int:
    """Scramble 64 bits (the finaliser of the splitmix64 generator): a bijection without visible structure.

    >>> splitmix(0) == 0xE220A8397B1DCDAF
    True
    """
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _mix(bits: Tensor) -> Tensor:
    """Scramble int32 numbers in place. Products wrap; shifts are masked, for they copy the sign."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x21F0AAAD
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x735A2D97
    bits ^= (bits >> 15) & 0x1FFFF
    return bits


@lru_cache(maxsize=8)
def _scrambled_tokens(count: int) -> Tensor:
    """Hash of every token alone, int32 [count]: the part that no position changes."""
    return _mix(torch.arange(count, dtype=torch.int32) * 0x3C6EF35F + 0x1B873593)


def gumbel(
    seed: int, position: int, count: int, stream: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return standard Gumbel noise for every token of a vocabulary at one position.

    Parameters
    ----------
    seed : int
        Which noise; counts modulo 2**64.
    position : int
        Index of the token in its text, from 0.
    count : int
        Size of the vocabulary. A smaller count gives the beginning of a larger one.
    stream : int
        Independent noise for another purpose at the same seed and position.
    device : torch.device or str
        Where to put it. The numbers are the same everywhere.

    Returns
    -------
    Tensor
        float32 [count], between -2.9 and 22.2.

    Raises
    ------
    DraftError
        `position`, `count` or `stream` is negative.

    >>> torch.equal(gumbel(1, 7, 1000)[:10], gumbel(1, 7, 10))
    True
    """
    if min(position, count, stream) < 0:
        raise DraftError(
            f"noise of position {position}, {count} tokens, stream {stream}: none of them may be negative. "
            "Count positions from 0, the first token of the prompt."
        )
    key = splitmix(splitmix(splitmix(seed & MASK) ^ stream) ^ position)
    factor = (key & 0x7FFFFFFF) | 1  # an odd factor loses no bit
    offset = (key >> 32) - (1 << 31)  # both fit in int32
    bits = _mix(_scrambled_tokens(count) * factor + offset)
    v = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    v.clamp_(max=1 - 2.0**-24)  # the largest bits round up to 1, and log1p(-1) is not a number to go on with
    return v.neg_().log1p_().neg_().log_().neg_().to(device)


class GumbelNoise:
    """Rows of Gumbel noise, each made once however often drafter and verifier use it.

    Parameters
    ----------
    seed, stream : int
        As in `gumbel`.
    count : int
        Tokens in a row.
    keep : int
        Rows to remember. When there are more, those of the lowest positions go; they can always be made
        again.
    device : torch.device or str
        Where the rows are.

    >>> noise = GumbelNoise(seed=1, count=10)
    >>> torch.equal(noise.row(7), gumbel(1, 7, 10))
    True
    """

    def __init__(
        self, seed: int, count: int, stream: int = 0, keep: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.count, self.stream, self.keep, self.device = seed, count, stream, keep, device
        self._rows: dict[int, Tensor] = {}

    def row(self, position: int) -> Tensor:
        """Return the noise at one position, float32 [count]. Do not write to it."""
        if position not in self._rows:
            self._rows[position] = gumbel(self.seed, position, self.count, self.stream, self.device)
            if len(self._rows) > self.keep:
                del self._rows[min(self._rows.keys() - {position})]
        return self._rows[position]

    def rows(self, position: int, length: int) -> Tensor:
        """Return the noise at `length` positions from `position` on, float32 [length, count]."""
        return torch.stack([self.row(position + i) for i in range(length)])
