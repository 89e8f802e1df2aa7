"""Row stability: a row's result is the same, bit for bit, however many rows are computed with it.

Matrix kernels do not give that by themselves. They treat the last one or two rows of an odd number in another
way, and so add the same numbers in another order. So it is measured with which numbers of rows a kernel gives
the same bits (`row_stable_counts`), and any other number of rows is filled up to the next of those. Attention
also depends on the number of keys; the keys that are read are filled up in the same way (`StableSizes`,
measured in `row_stable_attention.py`).

A table of counts is a tuple: `counts[n]` is how many rows to compute where n are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qlib.models.cache import KEY_SPLIT
from qlib.models.fast.products import Pack, arithmetic_dtype

# Most rows of one product that can be row-stable. A draft to verify is seldom longer, and prepacked products
# of 16 rows take little more time than of 1 (SmolLM2-135M, one thread: 26 ms instead of 19).
STABLE_ROWS = 16
# Numbers of keys are multiples of it. Nearly all give the same bits (measured in float32 with heads of
# 64 channels: all but 256 and 320 keys), so few keys are read that are not needed.
KEY_BLOCK = 64


def row_stable_counts(run: Callable[[int, int], Tensor]) -> tuple[int, ...]:
    """Return, for 0 to `STABLE_ROWS` rows, the least number of rows >= it that gives the bits of all rows.

    Parameters
    ----------
    run : callable
        ``run(start, stop)`` computes the rows from `start` to `stop - 1` and no others, [rows, ...]. It is
        called for every number of rows, with the first ones and with the last ones of `STABLE_ROWS`.
    """
    expected = run(0, STABLE_ROWS)

    def agrees(count: int) -> bool:
        first, last = slice(0, count), slice(STABLE_ROWS - count, STABLE_ROWS)
        return all(torch.equal(run(each.start, each.stop), expected[each]) for each in (first, last))

    stable = [count for count in range(1, STABLE_ROWS) if agrees(count)]
    return round_up_to([0, *stable, STABLE_ROWS])


@cache
def measure_row_stable_counts(
    pack: Pack, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, threads: int
) -> tuple[int, ...]:
    """Return `row_stable_counts` of a kind of product.

    The right half of the weight is the left one negated, and the two halves of each input are equal: all
    products are 0 but for rounding errors. Another order of the sum then changes the first digits, while in a
    narrow dtype the result of ordinary numbers would nearly always be rounded to the same.

    Parameters
    ----------
    pack : callable
        The kind of product.
    shape : (int, int)
        [outputs, inputs] of the weight.
    dtype, device : torch.dtype, torch.device
        Of weight and rows.
    threads : int
        `torch.get_num_threads()`, on which the result may depend.
    """
    outputs, inputs = shape
    half, source = inputs // 2, torch.Generator().manual_seed(0)
    weight, x = torch.zeros(shape), torch.zeros(STABLE_ROWS, inputs)
    # Few digits, exact in any dtype, but of such different size that their sums are not.
    sizes = torch.randint(-8, 9, (half,), generator=source)
    weight[:, :half] = (16 * torch.randn(outputs, half, generator=source)).round() * 2.0**sizes
    weight[:, half : 2 * half] = -weight[:, :half]
    x[:, :half] = x[:, half : 2 * half] = torch.randn(STABLE_ROWS, half, generator=source)
    weight = weight.to(device, dtype)
    product = pack(weight, None)
    assert product is not None  # a layer was packed in this way before
    x = x.to(device, arithmetic_dtype(weight))
    return row_stable_counts(lambda start, stop: product(x[start:stop]))


def intersect(tables: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the table of the counts that are stable by every one of some tables of equal length."""
    known = list(tables)
    return round_up_to([n for n in range(len(known[0])) if all(table[n] == n for table in known)])


def round_up_to(stable: Sequence[int]) -> tuple[int, ...]:
    """Return, for each number from 0 to the last of some growing numbers, the least of them >= it.

    >>> round_up_to([0, 2, 5])
    (0, 2, 2, 5, 5, 5)
    """
    return tuple(next(n for n in stable if n >= number) for number in range(stable[-1] + 1))


@dataclass(frozen=True)
class StableSizes:
    """How many tokens to compute, and how many keys to read, so that a token's bits depend on neither.

    Parameters
    ----------
    tokens : tuple of int
        ``tokens[n]``: how many tokens to compute where n are new.
    blocks : tuple of int
        ``blocks[n]``: how many blocks of `KEY_BLOCK` keys to read, behind whole ones of `KEY_SPLIT`, where n
        blocks are needed.
    """

    tokens: tuple[int, ...]
    blocks: tuple[int, ...]

    def length(self, end: int) -> int:
        """Return up to which position to read keys where those before `end` are needed."""
        whole, rest = divmod(end, KEY_SPLIT)
        return whole * KEY_SPLIT + self.blocks[-(-rest // KEY_BLOCK)] * KEY_BLOCK

    def keys(self, needed: slice) -> slice:
        """Return which positions of keys to read where some are needed."""
        return slice(needed.start - needed.start % KEY_SPLIT, self.length(needed.stop))
