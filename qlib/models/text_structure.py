"""What a quantizer must know of a decoder-only text model: its linear layers, its chain of blocks.

The families share all of it but what their norms can absorb: see `llama_structure.py`, `gemma3_structure.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qlib.models.call import call
from qlib.models.layers import Attention, AttentionShape
from qlib.models.structure import LayerGroup, Source, Stage, select

if TYPE_CHECKING:
    from qlib.models.text import TextModel


@dataclass(frozen=True)
class TextBatch:
    """Texts to calibrate with, padded after their ends."""

    tokens: Tensor  # int [B, T]
    mask: Tensor  # bool [B, T]: tokens that count in statistics
    where: str = "a batch of texts"  # for messages


class TextStage(Stage):
    """The layers as a chain of blocks, fed with `TextBatch`."""

    name = "decoder"

    def __init__(self, model: TextModel):
        self.model = model
        self.blocks = tuple(f"model.layers.{i}" for i in range(len(model.model.layers)))

    def enter(self, batch: TextBatch) -> Tensor:
        """Token embeddings."""
        return self.model.embed(batch.tokens)

    def run(self, block: nn.Module, hidden: Tensor, batch: TextBatch, only: Tensor | None = None) -> Tensor:
        """One layer. Padding follows the text, where the causal mask hides it."""
        return select(call(block, hidden, self.model.attention_inputs(0, hidden.shape[1], hidden)), only)

    def leave(self, hidden: Tensor, batch: TextBatch) -> TextBatch:
        """Nothing follows."""
        return batch

    def valid(self, batch: TextBatch, source: Source) -> Tensor:
        """Return the tokens that count."""
        return batch.mask


def decoder_groups(
    model: TextModel, attention_norm: str | None, mlp_norm: str | None, reason: str = ""
) -> list[LayerGroup]:
    """Return every linear layer of a text model but a tied head, by the input that it reads.

    Parameters
    ----------
    model : TextModel
        Its layers have `self_attn` and `mlp`.
    attention_norm, mlp_norm : str or None
        Names, within a layer, of the norms in front of the two parts, where they can absorb a scale.
    reason : str
        Why they cannot, where they cannot. It then holds for the final norm as well.
    """
    groups = []
    for i, layer in enumerate(model.model.layers):
        name, attention = f"model.layers.{i}", layer.self_attn
        assert isinstance(attention, Attention)
        own, mlp = f"{name}.self_attn", f"{name}.mlp"
        groups += [
            _behind_norm((f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj"), name, attention_norm, reason),
            LayerGroup((f"{own}.o_proj",), f"{own}.v_proj", rows=value_rows(attention.shape)),
            _behind_norm((f"{mlp}.gate_proj", f"{mlp}.up_proj"), name, mlp_norm, reason),
            # silu(gate) up: linear in up only.
            LayerGroup((f"{mlp}.down_proj",), f"{mlp}.up_proj"),
        ]
    if not model.tied:
        groups.append(_behind_norm(("lm_head",), "model", None if reason else "norm", reason))
    return groups


def _behind_norm(layers: tuple[str, ...], parent: str, norm: str | None, reason: str) -> LayerGroup:
    return LayerGroup(layers, norm and f"{parent}.{norm}", reason)


def value_rows(shape: AttentionShape) -> tuple[int, ...] | None:
    """Return the output of `v_proj` that each input of `o_proj` comes from; None: the same one."""
    groups, channels = shape.heads // shape.kv_heads, shape.head_dim
    if groups == 1:
        return None
    return tuple(head // groups * channels + c for head in range(shape.heads) for c in range(channels))
