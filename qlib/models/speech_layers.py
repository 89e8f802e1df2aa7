"""What the networks of speech models share: attention over two streams, and the cache of a decoding.

An encoder turns a recording into states [B, S, D] once; a decoder writes tokens, each step reading its own
past (self-attention) and all states (cross-attention). So a decoding remembers two kinds of keys and
values: those of its tokens, which grow and can be truncated, and those of the states, computed once.

B batch, T tokens or frames, S encoder states, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.models.cache import KVCache, drop_row

Cross = tuple[Tensor, Tensor, "Tensor | None"]  # keys, values [B, H, S, D/H], mask [B, 1, 1, S]


class SpeechAttention(nn.Module):
    """Multi-head attention whose keys and values may come from another stream.

    A family adds the projection of the output. `k_proj` never has a bias.
    """

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D/H]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, T, D/H]` of the stream `x [B, T, D]`."""
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return softmax(Q K^T / sqrt(D/H)) V with the heads side by side, `[B, T, D]`.

        `mask` (broadcast to `[B, H, T, keys]`) is True where a query may look.
        """
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


def cross_attention(layer: nn.Module) -> SpeechAttention:
    """Return the cross-attention of a decoder's layer: every family calls it ``encoder_attn``."""
    attention = layer.encoder_attn
    assert isinstance(attention, SpeechAttention)
    return attention


class SpeechCache:
    """What one batch of decodings remembers: self-attention cache and the encoder's keys and values.

    Parameters
    ----------
    own : KVCache
        Of the decoder's self-attention.
    cross_keys, cross_values : Tensor
        ``[layers, rows, H, S, D/H]``, of the encoder's states.
    mask : Tensor, optional
        bool ``[rows, S]``, True where a state is data; None where all are.
    """

    def __init__(self, own: KVCache, cross_keys: Tensor, cross_values: Tensor, mask: Tensor | None = None):
        self.own = own
        self.cross_keys = cross_keys
        self.cross_values = cross_values
        # Copied: `drop` moves rows. The leading axis is the layers', which share the mask.
        self._mask = None if mask is None else mask.clone()[None, :, None, None]

    @property
    def rows(self) -> int:
        """Sequences still being decoded."""
        return self.own.rows

    @property
    def length(self) -> int:
        """Tokens decoded so far."""
        return self.own.length

    def cross(self, layer: int) -> Cross:
        """Return the encoder's keys and values for one layer, and the mask that attention takes."""
        mask = None if self._mask is None else self._mask[0, : self.rows]
        return self.cross_keys[layer, : self.rows], self.cross_values[layer, : self.rows], mask

    def truncate(self, length: int) -> None:
        """Forget the tokens from position `length` on."""
        self.own.truncate(length)

    def drop(self, row: int) -> None:
        """Remove one finished sequence; the last row takes its place."""
        drop_row(self.cross_keys, row, self.rows)
        drop_row(self.cross_values, row, self.rows)
        if self._mask is not None:
            drop_row(self._mask, row, self.rows)
        self.own.drop(row)


def start_cache(
    layers: nn.ModuleList, states: Tensor, capacity: int, mask: Tensor | None = None
) -> SpeechCache:
    """Return the cache of a new decoding over encoder states, whose keys and values are computed here.

    Parameters
    ----------
    layers : nn.ModuleList
        The decoder's.
    states : Tensor
        ``[B, S, D]``.
    capacity : int
        Number of tokens that the cache can hold.
    mask : Tensor, optional
        As in `SpeechCache`.
    """
    rows, length, width = states.shape
    heads = cross_attention(layers[0]).heads
    shape = (len(layers), rows, heads, length, width // heads)
    keys, values = states.new_empty(shape), states.new_empty(shape)
    for i, layer in enumerate(layers):
        keys[i], values[i] = cross_attention(layer).keys_values(states)
    own = KVCache(len(layers), rows, heads, capacity, width // heads, states)
    return SpeechCache(own, keys, values, mask)


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Return the mask [new, total] of the last `new` of `total` positions: True where a query may look."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
