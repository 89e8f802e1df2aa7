"""Key/value cache of one decoding run: allocated once, truncated and shrunk in place.

Shapes: keys and values of a layer are `[rows, heads, capacity, head_width]`; the first `length`
positions are filled. `rows` counts the sequences still being decoded: a finished one gives its place to
the last, so the work per step falls as sequences end, and no memory is allocated on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.errors import ModelError

LONG_BLOCK = 512  # keys that attention's kernel takes at a time; capacities are rounded up to a multiple


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
        shape = (layers, rows, heads, -(-capacity // LONG_BLOCK) * LONG_BLOCK, head_width)
        # Positions not yet written are finite: attention may read them under its mask.
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.rows = rows
        self.capacity = capacity
        self.length = 0
        self._layers = self._views()

    def append(
        self, layer: int, keys: Tensor, values: Tensor, seen: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write new positions `[rows, heads, new, head_width]` behind the old; return all of this layer's.

        `seen` are the positions to return instead; it may reach up to the next multiple of `LONG_BLOCK`. The
        length moves on with `advance`, once all the layers have written.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise ModelError(
                f"The key/value cache holds {self.capacity} positions and {end} are needed. "
                "Ask for fewer new tokens, or allocate a larger cache."
            )
        all_keys, all_values = self._layers[layer]
        all_keys.narrow(2, self.length, keys.shape[2]).copy_(keys)
        all_values.narrow(2, self.length, keys.shape[2]).copy_(values)
        seen = slice(end) if seen is None else seen
        return all_keys[:, :, seen], all_values[:, :, seen]

    def advance(self, new: int) -> None:
        """Count `new` positions as written."""
        self.length += new

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on, as after rejected draft tokens."""
        if not 0 <= length <= self.length:
            raise ModelError(f"Cannot truncate a cache of {self.length} positions to {length}.")
        self.length = length

    def drop(self, row: int) -> None:
        """Remove one sequence: the last row moves into its place."""
        drop_row(self.keys, row, self.rows)
        drop_row(self.values, row, self.rows)
        self.rows -= 1
        self._layers = self._views()

    def _views(self) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of each layer, without the rows that were dropped: slicing takes time."""
        kept = self.keys[:, : self.rows], self.values[:, : self.rows]
        return list(zip(*(each.unbind() for each in kept), strict=True))


def drop_row(stacked: Tensor, row: int, rows: int) -> None:
    """Move row `rows - 1` of `stacked [layers, rows, ...]` to `row`, in place."""
    if not 0 <= row < rows:
        raise ModelError(f"Row {row} is not one of the {rows} sequences in the cache.")
    if row != rows - 1:
        stacked[:, row].copy_(stacked[:, rows - 1])
