"""What a quantizer must know of Moonshine: which layers share an input, what may move, how a block is run."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from qlib.models.call import call
from qlib.models.moonshine_config import MoonshineConfig
from qlib.models.speech_layers import causal_mask
from qlib.models.speech_structure import (
    Decoder,
    Encoder,
    SpeechBatch,
    SpeechDecoderStage,
    SpeechEncoderStage,
)
from qlib.models.structure import LayerGroup, select


def moonshine_layers(config: MoonshineConfig, side: str) -> list[str]:
    """Return the full paths of the layers of one side, "encoder" or "decoder"."""
    return [f"model.{side}.layers.{i}" for i in range(getattr(config, f"{side}_num_hidden_layers"))]


def moonshine_groups(config: MoonshineConfig) -> list[LayerGroup]:
    """Return every linear layer but the tied head, by the input that it reads, in order of use.

    No offset may move: the norms have no bias to begin with, and the constant that an offset leaves in
    the keys of self-attention is turned by each position, so it would not cancel in the softmax.
    """
    encoder = [group for layer in moonshine_layers(config, "encoder") for group in _encoder_groups(layer)]
    decoder_layers = moonshine_layers(config, "decoder")
    cross = tuple(f"{layer}.encoder_attn.{name}" for layer in decoder_layers for name in ("k_proj", "v_proj"))
    shared = LayerGroup(cross, "model.encoder.layer_norm", source="encoder")
    inner = config.intermediate_size
    decoder = [group for layer in decoder_layers for group in _decoder_groups(layer, inner)]
    return [*encoder, shared, *decoder]


def _encoder_groups(layer: str) -> list[LayerGroup]:
    gelu = "GELU stands between fc1 and fc2, and gelu(x / s) is not gelu(x) / s"
    return [
        *_attention_groups(f"{layer}.self_attn", f"{layer}.input_layernorm", own=True),
        LayerGroup((f"{layer}.mlp.fc1",), f"{layer}.post_attention_layernorm"),
        LayerGroup((f"{layer}.mlp.fc2",), None, gelu),
    ]


def _decoder_groups(layer: str, inner: int) -> list[LayerGroup]:
    return [
        *_attention_groups(f"{layer}.self_attn", f"{layer}.input_layernorm", own=True),
        *_attention_groups(f"{layer}.encoder_attn", f"{layer}.post_attention_layernorm", own=False),
        LayerGroup((f"{layer}.mlp.fc1",), f"{layer}.final_layernorm"),
        # The first half of fc1 is multiplied by the gate, which lets a scale through; the gate would not.
        LayerGroup((f"{layer}.mlp.fc2",), f"{layer}.mlp.fc1", rows=tuple(range(inner))),
    ]


def _attention_groups(attention: str, norm: str, own: bool) -> list[LayerGroup]:
    """List the groups of one attention. Cross-attention's k and v read the encoder: they are not here."""
    readers = ("q_proj", "k_proj", "v_proj") if own else ("q_proj",)
    return [
        LayerGroup(tuple(f"{attention}.{name}" for name in readers), norm),
        LayerGroup((f"{attention}.o_proj",), f"{attention}.v_proj"),
    ]


class RotaryEncoder(Encoder, Protocol):
    """What `EncoderStage` needs of the encoder."""

    def angles(self, hidden: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the rotations of all frames of `hidden [B, S, D]`."""
        ...


class RotaryDecoder(Decoder, Protocol):
    """What `DecoderStage` needs of the decoder."""

    def angles(self, hidden: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the rotations of all tokens of `hidden [B, T, D]`."""
        ...


class EncoderStage(SpeechEncoderStage):
    """The encoder's layers."""

    encoder: RotaryEncoder

    def __init__(self, encoder: RotaryEncoder, config: MoonshineConfig) -> None:
        super().__init__(encoder, moonshine_layers(config, "encoder"))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch, only: Tensor | None = None) -> Tensor:
        """One encoder layer."""
        return select(call(block, hidden, self.encoder.angles(hidden)), only)


class DecoderStage(SpeechDecoderStage):
    """The decoder's layers."""

    decoder: RotaryDecoder

    def __init__(self, decoder: RotaryDecoder, norm: nn.Module, config: MoonshineConfig) -> None:
        super().__init__(decoder, norm, moonshine_layers(config, "decoder"))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch, only: Tensor | None = None) -> Tensor:
        """One decoder layer."""
        mask = causal_mask(hidden.shape[1], hidden.shape[1], hidden.device)
        return select(call(block, hidden, self.cross(block, batch), self.decoder.angles(hidden), mask), only)
