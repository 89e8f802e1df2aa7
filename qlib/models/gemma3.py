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
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.config_values import MOST_LAYERS, MOST_POSITIONS, ConfigValues
from qlib.models.fast.packed_layer import PackedLayer
from qlib.models.fast.row_stability import StableSizes
from qlib.models.gemma3_structure import gemma3_groups
from qlib.models.layers import (
    Attention,
    AttentionInputs,
    AttentionShape,
    GatedMLP,
    RMSNorm,
    attention_inputs,
)
from qlib.models.rotary import Rope, Rotary
from qlib.models.structure import LayerGroup
from qlib.models.text import TextCore, TextLayer, TextModel
from qlib.models.text_config import TextConfig, TextGeneration, read_sizes
from qlib.models.tokenizer import Tokenizer

FULL, SLIDING = "full_attention", "sliding_attention"
# What a config.json means where it is silent, as its authors' code reads it.
_SILENT = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_SUPPORTED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": "null",
    "final_logit_softcapping": "null",
    "use_bidirectional_attention": False,
}


@dataclass(frozen=True)
class Gemma3Config(TextConfig):
    """Sizes, and what each layer sees."""

    query_pre_attn_scalar: int
    sliding_window: int
    layer_types: tuple[str, ...]
    rope: Rope  # of full layers
    local_rope: Rope  # of sliding layers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> Gemma3Config:
        """Read config.json; what this implementation cannot honour is an error."""
        values = ConfigValues.of(values)
        stated = {key: value for key, value in values.values.items() if value is not None}
        values = ConfigValues({**_SILENT, **stated}, values.file)
        values.check(_SUPPORTED)
        sizes = read_sizes(values)
        full, local = _ropes(values)
        return cls(
            **sizes,
            query_pre_attn_scalar=values.whole("query_pre_attn_scalar"),
            sliding_window=values.whole("sliding_window", most=MOST_POSITIONS),
            layer_types=_layer_types(values, sizes["num_hidden_layers"]),
            rope=full,
            local_rope=local,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        values = asdict(self)
        del values["rope"], values["local_rope"]
        return {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            **values,
            "layer_types": list(self.layer_types),
            "rope_theta": self.rope.rope_theta,
            "rope_scaling": self.rope.scaling(),
            "rope_local_base_freq": self.local_rope.rope_theta,
        }


def _layer_types(values: ConfigValues, layers: int) -> tuple[str, ...]:
    """Read what each layer sees; older files state that every n-th sees all."""
    kinds = values.words("layer_types", (FULL, SLIDING))
    if kinds is None:
        every = values.whole("sliding_window_pattern", most=MOST_LAYERS)
        return tuple(FULL if (i + 1) % every == 0 else SLIDING for i in range(layers))
    if len(kinds) != layers:
        raise ModelError(
            f"{values.file}: layer_types must name {layers} layers (num_hidden_layers), each {FULL!r} or "
            f"{SLIDING!r}, and holds {len(kinds)}: {sorted(set(kinds))}."
        )
    return kinds


def _ropes(values: ConfigValues) -> tuple[Rope, Rope]:
    """Read the rotary settings of full and of sliding layers, in the newer or the older form."""
    theta = values.number("rope_theta", 1e6, above=0)
    local = values.number("rope_local_base_freq", 1e4, above=0)
    newer, older = values.section("rope_parameters"), values.section("rope_scaling")
    if newer is None:
        return Rope.from_dict(older, theta), Rope(local)
    if set(newer.values) - {FULL, SLIDING}:
        raise values.refusal("rope_parameters", f"an object with {FULL!r} and {SLIDING!r}")
    full = newer.section(FULL)
    if full is not None and older is not None:
        full = ConfigValues({**full.values, **older.values}, older.file)
    return Rope.from_dict(full or older, theta), Rope.from_dict(newer.section(SLIDING), local)


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
        """Return what attention needs for `new` tokens behind `start` others, for both kinds of layers."""
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
