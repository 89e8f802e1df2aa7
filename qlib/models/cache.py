"""Key/value cache of one decoding run: allocated once, truncated and shrunk in place.

Shapes: keys and values of a layer are `[rows, heads, capacity, head_width]`, halves of one tensor, so that
one copy writes both; the first `length` positions are filled. `rows` counts the sequences still being
decoded: a finished one gives its place to the last, so the work per step falls as sequences end, and no
memory is allocated on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.errors import ModelError

# Torch's attention kernel for CPUs works through the keys in parts of this length (`kvSplitSize` in its
# FlashAttentionKernel.cpp). Capacities are multiples of it, so that whole parts can be read.
KEY_SPLIT = 512


class KVCache:
    """Keys and values of every self-attention layer.

    Parameters
    ----------
    layers, rows, heads, capacity, head_width : int
        `capacity` is the largest number of positions that will be written.
    like : Tensor
        Gives dtype and device.
    """

    def __init__(self, layers: int, rows: int, heads: int, capacity: int, head_width: int, like: Tensor):
        shape = (layers, rows, 2 * heads, -(-capacity // KEY_SPLIT) * KEY_SPLIT, head_width)
        # Positions not yet written are finite: attention may read them under its mask.
        self.keys_values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.rows = rows
        self.capacity = capacity
        self.length = 0
        self._views: dict[tuple[int, int, int], list[tuple[Tensor, ...]]] = {}

    def append(self, layer: int, new: Tensor, read: slice | None = None) -> tuple[Tensor, Tensor]:
        """Write new positions after the old; return all keys and all values of this layer.

        `new` `[rows, new, 2 heads, head_width]` holds keys beside values. `read` are the positions to return
        instead of all; it may reach up to the next multiple of `KEY_SPLIT`. The length moves on with
        `advance`, once all the layers have written.
        """
        end = self.length + new.shape[1]
        if end > self.capacity:
            raise ModelError(
                f"The key/value cache holds {self.capacity} positions and {end} are needed. "
                "Ask for fewer new tokens, or allocate a larger cache."
            )
        first, last = (0, end) if read is None else (read.start, read.stop)
        views = self._views.get((end, first, last))
        if views is None:  # the first layer slices for all: slicing takes as long as writing
            views = self._views[end, first, last] = self._slice(end, first, last)
        written, keys, values = views[layer]
        written.copy_(new)
        return keys, values

    def _slice(self, end: int, first: int, last: int) -> list[tuple[Tensor, ...]]:
        """Return for each layer the part to write into, and the keys and values to read."""
        kept = self.keys_values[:, : self.rows]
        written = kept[:, :, :, self.length : end].transpose(2, 3)
        keys, values = kept[:, :, :, first:last].chunk(2, 2)
        return list(zip(written.unbind(), keys.unbind(), values.unbind(), strict=True))

    def advance(self, new: int) -> None:
        """Count `new` positions as written."""
        self._set(self.length + new)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on, as after rejected draft tokens."""
        if not 0 <= length <= self.length:
            raise ModelError(f"Cannot truncate a cache of {self.length} positions to {length}.")
        self._set(length)

    def drop(self, row: int) -> None:
        """Remove one sequence: the last row moves into its place."""
        drop_row(self.keys_values, row, self.rows)
        self.rows -= 1
        self._views.clear()

    def _set(self, length: int) -> None:
        self.length = length
        self._views.clear()


def drop_row(stacked: Tensor, row: int, rows: int) -> None:
    """Move row `rows - 1` of `stacked [layers, rows, ...]` to `row`, in place."""
    if not 0 <= row < rows:
        raise ModelError(f"Row {row} is not one of the {rows} sequences in the cache.")
    if row != rows - 1:
        stacked[:, row].copy_(stacked[:, rows - 1])
