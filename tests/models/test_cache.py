"""The key/value cache by itself, against lists of what was written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.cache import KEY_SPLIT, KVCache

LAYERS, HEADS, WIDTH = 2, 3, 4


def new(rows: int, count: int, seed: int) -> Tensor:
    """Keys beside values, as projections give them."""
    return torch.randn(rows, count, 2 * HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


def write(cache: KVCache, entry: Tensor, seen: slice | None = None) -> list[tuple[Tensor, Tensor]]:
    found = [cache.append(layer, entry + layer, seen) for layer in range(LAYERS)]
    cache.advance(entry.shape[1])
    return found


def check(found: list[tuple[Tensor, Tensor]], written: Tensor) -> None:
    for layer, (keys, values) in enumerate(found):
        expected = (written + layer).transpose(1, 2)
        assert torch.equal(keys, expected[:, :HEADS]) and torch.equal(values, expected[:, HEADS:])


def empty(rows: int = 2, capacity: int = 20) -> KVCache:
    return KVCache(LAYERS, rows, HEADS, capacity, WIDTH, torch.empty(0))


def test_what_was_written_is_read_also_after_truncation() -> None:
    cache = empty()
    first, second, third = new(2, 5, 1), new(2, 3, 2), new(2, 1, 3)
    check(write(cache, first), first)
    check(write(cache, second), torch.cat((first, second), 1))
    cache.truncate(7)  # the next ends where the last one did, and begins elsewhere
    check(write(cache, third), torch.cat((first, second[:, :2], third), 1))
    assert cache.length == 8


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_dropped_row_is_gone_also_in_the_middle_of_a_pass(row: int) -> None:
    cache, first, second = empty(rows=3), new(3, 4, 1), new(2, 1, 2)
    write(cache, first)
    cache.append(0, new(3, 1, 5))
    cache.drop(row)
    kept = {0: [2, 1], 1: [0, 2], 2: [0, 1]}[row]  # the last takes the place
    check(write(cache, second), torch.cat((first[kept], second), 1))


def test_positions_that_are_asked_for_and_those_not_yet_written() -> None:
    cache, entry = empty(), new(2, 6, 1)
    found = write(cache, entry, slice(2, 10))
    for keys, values in found:
        assert keys.shape == values.shape == (2, HEADS, 8, WIDTH)
        assert torch.equal(keys[:, :, 4:], torch.zeros(2, HEADS, 4, WIDTH))
    check([(keys[:, :, :4], values[:, :, :4]) for keys, values in found], entry[:, 2:])


def test_more_than_it_holds() -> None:
    cache = empty(capacity=4)
    assert cache.keys_values.shape[3] == KEY_SPLIT
    with pytest.raises(ModelError, match="holds 4 positions and 5 are needed"):
        cache.append(0, new(2, 5, 1))
    with pytest.raises(ModelError, match="Cannot truncate a cache of 0 positions to 1"):
        cache.truncate(1)
    with pytest.raises(ModelError, match="Row 2 is not one of the 2 sequences"):
        cache.drop(2)
