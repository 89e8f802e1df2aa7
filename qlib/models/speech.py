"""What speech recognizers share: the batch that calibration feeds and its stages, the cache of a decoding.

An encoder turns a recording into states [B, S, D] once; a decoder writes tokens, each step reading its own
past (self-attention) and all states (cross-attention). So a decoding remembers two kinds of keys and
values: those of its tokens, which grow and can be truncated, and those of the states, computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.cache import KVCache, drop_row
from qlib.models.fast.packed import pack_linears
from qlib.models.structure import Model, Source, Stage

if TYPE_CHECKING:
    from typing import Self

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


def start_cache(
    layers: nn.ModuleList, heads: int, states: Tensor, capacity: int, mask: Tensor | None = None
) -> SpeechCache:
    """Return the cache of a new decoding over encoder states, whose keys and values are computed here.

    Parameters
    ----------
    layers : nn.ModuleList
        The decoder's; the `encoder_attn` of each has `keys_values`.
    heads : int
        Of each attention of the decoder.
    states : Tensor
        ``[B, S, D]``.
    capacity : int
        Number of tokens that the cache can hold.
    mask : Tensor, optional
        As in `SpeechCache`.
    """
    rows, length, width = states.shape
    shape = (len(layers), rows, heads, length, width // heads)
    keys, values = states.new_empty(shape), states.new_empty(shape)
    for i, layer in enumerate(layers):
        attention: Any = layer.encoder_attn
        keys[i], values[i] = attention.keys_values(states)
    own = KVCache(len(layers), rows, heads, capacity, width // heads, states)
    return SpeechCache(own, keys, values, mask)


class Encoder(Protocol):
    """What an encoder's stage asks of it."""

    def stem(self, heard: Tensor, /) -> Tensor:
        """Return the first layer's input [B, S, D]."""
        ...


class SpeechEncoderStage(Stage):
    """An encoder as a chain of blocks; a family adds how one block is run."""

    name = "encoder"
    encoder: Encoder

    def enter(self, batch: SpeechBatch) -> Tensor:
        """Send what is heard through the convolution stem."""
        if batch.features is None:
            raise ModelError("This batch has been through the encoder already.")
        return self.encoder.stem(batch.features)

    def leave(self, hidden: Tensor, batch: SpeechBatch) -> SpeechBatch:
        """Keep the last layer's output; what was heard is not needed any more.

        The final norm is left to the decoder stage, because a scale may still be folded into it there.
        """
        return replace(batch, features=None, states=hidden)

    def valid(self, batch: SpeechBatch, source: Source) -> Tensor:
        """Return the frames that count."""
        return batch.frame_mask


class SpeechDecoderStage(Stage):
    """A decoder as a chain of blocks, fed with transcripts and the encoder's output.

    A family adds how tokens enter and how one block is run.
    """

    name = "decoder"

    def leave(self, hidden: Tensor, batch: SpeechBatch) -> SpeechBatch:
        """Nothing follows the decoder."""
        return batch

    def valid(self, batch: SpeechBatch, source: Source) -> Tensor:
        """Return the tokens of the transcript, or the frames that count for what reads the encoder."""
        return batch.frame_mask if source == "encoder" else batch.token_mask


class SpeechModel(Model):
    """A recognizer: `model.decoder` writes, `proj_out` is its head."""

    model: Any
    proj_out: nn.Module

    def pack(self) -> Self:
        """Lay the decoder's linear layers out for inference, in place; see `Model.pack`.

        Those that read all of the encoder's states at once stay as they are: packing is for few rows.
        """
        self.require_unpacked("packed once more")
        decoder: nn.Module = self.model.decoder
        for path, module in list(decoder.named_modules()):
            parent, _, name = path.rpartition(".")
            reads_states = parent.endswith("encoder_attn") and name in ("k_proj", "v_proj")
            # What has codes is a quantized layer, a class of a package above this one.
            if not reads_states and (isinstance(module, nn.Linear) or hasattr(module, "codes")):
                setattr(decoder.get_submodule(parent), name, pack_linears([module]))
        self.proj_out = pack_linears([self.proj_out])
        self.packed = True
        return self


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Return the mask [new, total] of the last `new` of `total` positions: True where a query may look."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
