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
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.config_values import MOST_POSITIONS, ConfigValues
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
from qlib.models.llama_structure import llama_groups
from qlib.models.rotary import Rope, Rotary, read_rope
from qlib.models.structure import LayerGroup
from qlib.models.text import TextCore, TextLayer, TextModel
from qlib.models.text_config import TextConfig, TextGeneration, read_sizes
from qlib.models.tokenizer import Tokenizer

FULL, SLIDING = "full_attention", "sliding_attention"
_QWEN_WINDOW = {"sliding_window": 4096, "max_window_layers": 28}
# What a config.json means where it is silent, as its authors' code reads it.
_SILENT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, **_QWEN_WINDOW},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        **_QWEN_WINDOW,
    },
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class LlamaConfig(TextConfig):
    """Sizes and variations."""

    model_type: str = "llama"
    rope: Rope = field(default_factory=Rope)
    attention_bias: bool = False  # "llama": on q, k, v and o; "qwen3": the same; "qwen2" has q, k, v always
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> LlamaConfig:
        """Read config.json; what this implementation cannot honour is an error."""
        values = ConfigValues.of(values)
        kind = values.get("model_type") or "llama"
        if kind not in [*_SILENT]:
            raise values.refusal("model_type", f"one of {list_names(_SILENT)}")
        values = values.with_defaults(_SILENT[kind])
        values.check({"hidden_act": "silu", "partial_rotary_factor": 1.0})
        sizes = read_sizes(values)
        _refuse_windows(kind, values, sizes["num_hidden_layers"], sizes["max_position_embeddings"])
        has_bias = kind in ("llama", "qwen3")
        return cls(
            **sizes,
            model_type=kind,
            rope=read_rope(values),
            attention_bias=has_bias and values.flag("attention_bias", False),
            mlp_bias=kind == "llama" and values.flag("mlp_bias", False),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        values = asdict(self)
        del values["rope"]
        scaling = {"rope_theta": self.rope.rope_theta, "rope_scaling": self.rope.scaling()}
        window = {"sliding_window": None} if self.model_type == "mistral" else {}
        names = {"architectures": [_ARCHITECTURES[self.model_type]], "hidden_act": "silu"}
        return {**names, **values, **scaling, **window}

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed before they are rotated."""
        return self.model_type == "qwen3"


def _refuse_windows(kind: str, values: ConfigValues, layers: int, positions: int) -> None:
    """Refuse layers that do not see the whole text; a window as wide as all positions hides nothing."""
    found = values.words("layer_types", (FULL, SLIDING))
    if found is not None and len(found) != layers:
        raise values.refusal("layer_types", f"one entry for each of the {layers} layers")
    uses = kind in ("qwen2", "qwen3") and values.flag("use_sliding_window", False)
    if found is not None:
        slides = SLIDING in found
    elif kind == "mistral":
        slides = True
    else:
        slides = uses and values.whole("max_window_layers", 0, least=0) < layers
    stated = values.get("sliding_window") is not None
    if not slides or (found is None and not stated):
        return
    window = values.whole("sliding_window", most=MOST_POSITIONS) if stated else 0
    if not stated or window < positions:
        raise ModelError(
            f"{values.file}: this {kind} model looks back through a sliding window ({window or 'unknown'} of "
            f"{positions} tokens), which is not supported in this family. Use a checkpoint whose layers all "
            "see the whole text."
        )


class LlamaLayer(TextLayer):
    """Attention and gated MLP, both behind a norm on a residual stream."""

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
        """Return what attention needs for `new` tokens behind `start` others, which all layers see."""
        heads = self.config.num_attention_heads, self.config.num_key_value_heads
        return {FULL: attention_inputs(self.rotary, start, new, hidden, heads, stable=stable)}

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but a tied head, by the input that it reads, in order of use."""
        return llama_groups(self)
