"""What speech recognizers share: the batch that calibration feeds, the cache of a decoding, small helpers.

An encoder turns a recording into states [B, S, D] once; a decoder writes tokens, each step reading its own
past (self-attention) and all states (cross-attention). So a decoding remembers two kinds of keys and
values: those of its tokens, which grow and can be truncated, and those of the states, computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlib.models.cache import KVCache, drop_row

Cross = tuple[Tensor, Tensor, "Tensor | None"]  # keys, values [B, H, S, D/H], mask [B, 1, 1, S]


@dataclass(frozen=True)
class SpeechBatch:
    """Teacher-forced utterances: what the encoder hears and the tokens of the transcripts."""

    features: Tensor | None  # what the encoder reads, [B, ...]; None once it has read them
    frame_mask: Tensor  # bool [B, S]: encoder frames that count in statistics
    tokens: Tensor  # int [B, T], prompt and transcript
    token_mask: Tensor  # bool [B, T]
    states: Tensor | None = None  # [B, S, D], the encoder's output before its final norm
    where: str = ""  # which utterance it is, for error messages


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


def embedding(count: int, width: int) -> nn.Embedding:
    """Return a table of vectors that is not filled yet.

    Filling it with random numbers would be wasted work, and on the meta device imports a compiler for 2 s.
    """
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Return the mask [new, total] of the last `new` of `total` positions: True where a query may look."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
