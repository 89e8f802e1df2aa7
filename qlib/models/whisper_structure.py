"""What a quantizer must know of Whisper: which layers share an input, what may move, how a block is run."""

from __future__ import annotations

from torch import Tensor, nn

from qlib.models.call import call
from qlib.models.speech_layers import causal_mask
from qlib.models.speech_structure import (
    Decoder,
    Encoder,
    SpeechBatch,
    SpeechDecoderStage,
    SpeechEncoderStage,
)
from qlib.models.structure import LayerGroup, select
from qlib.models.whisper_config import WhisperConfig


def whisper_layers(config: WhisperConfig, side: str) -> list[str]:
    """Return the full paths of the layers of one side, "encoder" or "decoder"."""
    return [f"model.{side}.layers.{i}" for i in range(getattr(config, f"{side}_layers"))]


def whisper_groups(config: WhisperConfig) -> list[LayerGroup]:
    """Return every linear layer but the tied head, by the input that it reads, in order of use."""
    encoder = [group for layer in whisper_layers(config, "encoder") for group in _layer_groups(layer)]
    decoder_layers = whisper_layers(config, "decoder")
    cross = tuple(f"{layer}.encoder_attn.{name}" for layer in decoder_layers for name in ("k_proj", "v_proj"))
    shared = LayerGroup(cross, "model.encoder.layer_norm", source="encoder", shift=True)
    decoder = [group for layer in decoder_layers for group in _layer_groups(layer, cross=True)]
    return [*encoder, shared, *decoder]


def _layer_groups(layer: str, cross: bool = False) -> list[LayerGroup]:
    """List the groups inside one layer. Cross-attention's k and v read the encoder: they are not here."""
    own, other = f"{layer}.self_attn", f"{layer}.encoder_attn"
    qkv = (f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
    # An offset may move too. k_proj has no bias to take it up, and needs none: a constant in all keys adds
    # the same number to all scores of a query, which the softmax takes away again. Attention weights sum to
    # 1, so an offset of the values passes through to out_proj unchanged.
    groups = [
        LayerGroup(qkv, f"{own}_layer_norm", shift=True),
        LayerGroup((f"{own}.out_proj",), f"{own}.v_proj", shift=True),
    ]
    if cross:
        groups += [
            LayerGroup((f"{other}.q_proj",), f"{other}_layer_norm", shift=True),
            LayerGroup((f"{other}.out_proj",), f"{other}.v_proj", shift=True),
        ]
    gelu = "GELU stands between fc1 and fc2, and gelu(x / s) is not gelu(x) / s"
    return [
        *groups,
        LayerGroup((f"{layer}.fc1",), f"{layer}.final_layer_norm", shift=True),
        LayerGroup((f"{layer}.fc2",), None, gelu),
    ]


class EncoderStage(SpeechEncoderStage):
    """The encoder's layers."""

    def __init__(self, encoder: Encoder, config: WhisperConfig) -> None:
        super().__init__(encoder, whisper_layers(config, "encoder"))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch, only: Tensor | None = None) -> Tensor:
        """One encoder layer. Of a single utterance it computes the marked frames alone: 4 in 10 for 5 s.

        `k_proj` and `v_proj` then still read all frames; `q_proj`, first of their group, the marked ones.
        """
        frames = only[0] if only is not None and len(only) == 1 else None
        return select(call(block, hidden, frames), only)


class DecoderStage(SpeechDecoderStage):
    """The decoder's layers."""

    def __init__(self, decoder: Decoder, norm: nn.Module, config: WhisperConfig) -> None:
        super().__init__(decoder, norm, whisper_layers(config, "decoder"))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch, only: Tensor | None = None) -> Tensor:
        """One decoder layer."""
        mask = causal_mask(hidden.shape[1], hidden.shape[1], hidden.device)
        return select(call(block, hidden, self.cross(block, batch), mask), only)
