"""Gemma 3, the text model: sliding and full attention layers in turn, norms before and after each part.

Paper: Gemma Team 2025, arXiv 2503.19786. Module and tensor names are those of Hugging Face checkpoints.

    hidden = embedding * sqrt(D)
    hidden = hidden + post_attention_layernorm(attention(input_layernorm(hidden)))
    hidden = hidden + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(hidden)))

Sliding layers see the last `sliding_window` tokens and rotate by `rope_local_base_freq`, full ones see
all and rotate by `rope_theta`. Norms multiply by 1 + weight; queries and keys are normed; the MLP's gate
is a GELU.
Left out: images, softcapping and bidirectional attention; a checkpoint with them is refused. The cache of
sliding layers keeps the whole text, of which only the window is read: that costs memory and makes
truncation free.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.fast.packed_layer import PackedLayer
from qlib.models.fast.row_stability import StableSizes
from qlib.models.gemma3_config import Gemma3Config
from qlib.models.gemma3_structure import gemma3_groups
from qlib.models.layers import (
    Attention,
    AttentionInputs,
    AttentionShape,
    GatedMLP,
    RMSNorm,
    attention_inputs,
)
from qlib.models.rotary import Rotary
from qlib.models.structure import LayerGroup
from qlib.models.text import TextCore, TextLayer, TextModel
from qlib.models.text_config import FULL, SLIDING, TextGeneration
from qlib.models.tokenizer import Tokenizer


class Gemma3RMSNorm(RMSNorm):
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight), all of it in float32 or wider."""

    def gain(self) -> Tensor:
        """Return 1 + weight, [width]; in bfloat16 that would lose the weight."""
        return 1 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return super().forward(x.to(wide)).to(x.dtype)


class Gemma3Layer(TextLayer):
    """Attention and gated MLP, each between two norms on a residual stream."""

    def __init__(self, config: Gemma3Config, kind: str):
        super().__init__()
        self.kind = kind
        norm = partial(Gemma3RMSNorm, eps=config.rms_norm_eps)
        gelu = partial(F.gelu, approximate="tanh")
        shape = AttentionShape(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.query_pre_attn_scalar**-0.5,
        )
        self.self_attn = Attention(shape, norm)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, gelu)
        self.input_layernorm = norm(config.hidden_size)
        self.post_attention_layernorm = norm(config.hidden_size)
        self.pre_feedforward_layernorm = norm(config.hidden_size)
        self.post_feedforward_layernorm = norm(config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        inputs: Mapping[str, AttentionInputs],
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = self.self_attn(self.input_layernorm(hidden), inputs[self.kind], cache, layer)
        hidden = hidden + self.post_attention_layernorm(x)
        x = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + call(self.post_feedforward_layernorm, x)

    def pack(self, stable: bool) -> PackedLayer:
        """Return this layer for inference."""
        norms = self.input_layernorm, self.pre_feedforward_layernorm
        behind = self.post_attention_layernorm, self.post_feedforward_layernorm
        return PackedLayer(self.kind, self.self_attn, self.mlp, norms, behind, stable=stable)


class Gemma3(TextModel):
    """A Gemma 3 text model, with its tokenizer, token ids and chat markers."""

    family: ClassVar[str] = "gemma3_text"
    config: Gemma3Config

    def __init__(
        self,
        config: Gemma3Config,
        generation: TextGeneration,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
    ):
        layers = [Gemma3Layer(config, kind) for kind in config.layer_types]
        core = TextCore(config, layers, Gemma3RMSNorm(config.hidden_size, config.rms_norm_eps))
        super().__init__(config, core, generation, tokenizer, chat_template)
        self.rotary = {
            FULL: (Rotary(config.rope, config.head_dim), None),
            SLIDING: (Rotary(config.local_rope, config.head_dim), config.sliding_window),
        }

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]: embeddings times sqrt(D)."""
        hidden = call(self.model.embed_tokens, tokens)
        return hidden * _embedding_scale(self.config.hidden_size, hidden.dtype)

    def attention_inputs(
        self, start: int, new: int, hidden: Tensor, stable: StableSizes | None = None
    ) -> dict[str, AttentionInputs]:
        """Return what attention needs for `new` tokens after `start` others, for both kinds of layers."""
        heads = self.config.num_attention_heads, self.config.num_key_value_heads
        return {
            kind: attention_inputs(rotary, start, new, hidden, heads, window, stable=stable)
            for kind, (rotary, window) in self.rotary.items()
        }

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but a tied head, by the input that it reads, in order of use."""
        return gemma3_groups(self)


@lru_cache
def _embedding_scale(width: int, dtype: torch.dtype) -> float:
    """Return sqrt(width) rounded to `dtype`, as in training: 25.25 and not 25.298 in bfloat16."""
    return float(torch.tensor(width**0.5, dtype=dtype, device="cpu"))
