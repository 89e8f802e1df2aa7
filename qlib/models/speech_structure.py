"""What a quantizer must know of any speech model: what it is calibrated with, its two chains of blocks.

The encoder's blocks come first. Those of the decoder read the transcript ("teacher forcing") and what the
finished encoder wrote. A family adds its groups of layers and how one block is run: see
`whisper_structure.py`, `moonshine_structure.py`.

B batch, S encoder states, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.call import call
from qlib.models.speech_layers import Cross, cross_attention
from qlib.models.structure import Source, Stage


@dataclass(frozen=True)
class SpeechBatch:
    """Teacher-forced utterances: what the encoder reads and the tokens of the transcripts."""

    features: Tensor | None  # what the encoder reads, [B, ...]; None once it has read them
    frame_mask: Tensor  # bool [B, S]: encoder frames that count in statistics
    tokens: Tensor  # int [B, T], prompt and transcript
    token_mask: Tensor  # bool [B, T]
    states: Tensor | None = None  # [B, S, D], the encoder's output before its final norm
    where: str = ""  # which utterance it is, for error messages


class Encoder(Protocol):
    """What `SpeechEncoderStage` needs of an encoder."""

    def stem(self, features: Tensor, /) -> Tensor:
        """Return the first layer's input [B, S, D]."""
        ...


class Decoder(Protocol):
    """What `SpeechDecoderStage` needs of a decoder."""

    def embed(self, tokens: Tensor, /) -> Tensor:
        """Return the first layer's input [B, T, D]."""
        ...


class SpeechEncoderStage(Stage):
    """An encoder as a chain of blocks; a family adds how one block is run."""

    name = "encoder"

    def __init__(self, encoder: Encoder, blocks: Sequence[str]) -> None:
        self.encoder = encoder
        self.blocks = tuple(blocks)

    def enter(self, batch: SpeechBatch) -> Tensor:
        """Send what the encoder reads through the convolution stem."""
        if batch.features is None:
            raise ModelError("This batch has been through the encoder already.")
        return self.encoder.stem(batch.features)

    def leave(self, hidden: Tensor, batch: SpeechBatch) -> SpeechBatch:
        """Keep the last layer's output; what the encoder has read is not needed any more.

        The final norm is left to the decoder stage, because a scale may still be folded into it there.
        """
        return replace(batch, features=None, states=hidden)

    def valid(self, batch: SpeechBatch, source: Source) -> Tensor:
        """Return the frames that count."""
        return batch.frame_mask


class SpeechDecoderStage(Stage):
    """A decoder as a chain of blocks, fed with transcripts and the encoder's output.

    A family adds how one block is run. Padding follows the text, where the causal mask hides it.
    """

    name = "decoder"

    def __init__(self, decoder: Decoder, norm: nn.Module, blocks: Sequence[str]) -> None:
        self.decoder = decoder
        self.norm = norm  # the encoder's last
        self.blocks = tuple(blocks)

    def enter(self, batch: SpeechBatch) -> Tensor:
        """Embed the tokens."""
        return self.decoder.embed(batch.tokens)

    def cross(self, block: nn.Module, batch: SpeechBatch) -> Cross:
        """Return the encoder's keys and values for one block."""
        assert batch.states is not None, "the encoder's stage comes first"
        return (*cross_attention(block).keys_values(call(self.norm, batch.states)), None)

    def leave(self, hidden: Tensor, batch: SpeechBatch) -> SpeechBatch:
        """Nothing follows the decoder."""
        return batch

    def valid(self, batch: SpeechBatch, source: Source) -> Tensor:
        """Return the tokens of the transcript, or the frames that count for what reads the encoder."""
        return batch.frame_mask if source == "encoder" else batch.token_mask
