"""Llama and the models that differ from it by a bias or a norm: text in, next-token logits out.

Papers: Touvron et al. 2023, arXiv 2307.09288; Llama 3, arXiv 2407.21783; Qwen2, 2407.10671; Qwen3,
2505.09388. Module and tensor names are those of Hugging Face checkpoints, projections plain `nn.Linear`.

    hidden = hidden + attention(input_layernorm(hidden))
    hidden = hidden + mlp(post_attention_layernorm(hidden))        mlp: down(silu(gate) * up)

`model_type` in config.json tells the members of the family apart: "llama" (also SmolLM2, TinyLlama,
Vicuna), "mistral" without sliding window, "qwen2" (biases on q, k, v), "qwen3" (norms on q, k).
Left out: sliding windows, and rotary scalings other than "linear" and "llama3"; a checkpoint with them is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.fast.packed_layer import PackedLayer
from qlib.models.fast.row_stability import StableSizes
from qlib.models.layers import (
    Attention,
    AttentionInputs,
    AttentionShape,
    GatedMLP,
    RMSNorm,
    attention_inputs,
)
from qlib.models.llama_config import LlamaConfig
from qlib.models.llama_structure import llama_groups
from qlib.models.rotary import Rotary
from qlib.models.structure import LayerGroup
from qlib.models.text import TextCore, TextLayer, TextModel
from qlib.models.text_config import FULL, TextGeneration
from qlib.models.tokenizer import Tokenizer


class LlamaLayer(TextLayer):
    """Attention and gated MLP, both after a norm on a residual stream."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        norm = partial(RMSNorm, eps=config.rms_norm_eps)
        shape = AttentionShape(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.head_dim**-0.5,
            config.qkv_bias,
            config.attention_bias,
        )
        self.self_attn = Attention(shape, norm if config.qk_norm else None)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, F.silu, config.mlp_bias)
        self.input_layernorm = norm(config.hidden_size)
        self.post_attention_layernorm = norm(config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        inputs: Mapping[str, AttentionInputs],
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), inputs[FULL], cache, layer)
        return hidden + call(self.mlp, self.post_attention_layernorm(hidden))

    def pack(self, stable: bool) -> PackedLayer:
        """Return this layer for inference."""
        norms = self.input_layernorm, self.post_attention_layernorm
        return PackedLayer(FULL, self.self_attn, self.mlp, norms, stable=stable)


class Llama(TextModel):
    """A model of the Llama family, with its tokenizer, token ids and chat markers."""

    family: ClassVar[str] = "llama"
    config: LlamaConfig

    def __init__(
        self,
        config: LlamaConfig,
        generation: TextGeneration,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
    ):
        layers = [LlamaLayer(config) for _ in range(config.num_hidden_layers)]
        core = TextCore(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))
        super().__init__(config, core, generation, tokenizer, chat_template)
        self.rotary = Rotary(config.rope, config.head_dim)

    def attention_inputs(
        self, start: int, new: int, hidden: Tensor, stable: StableSizes | None = None
    ) -> dict[str, AttentionInputs]:
        """Return what attention needs for `new` tokens after `start` others, which all layers see."""
        heads = self.config.num_attention_heads, self.config.num_key_value_heads
        return {FULL: attention_inputs(self.rotary, start, new, hidden, heads, stable=stable)}

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but a tied head, by the input that it reads, in order of use."""
        return llama_groups(self)
