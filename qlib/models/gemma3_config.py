"""The configuration of Gemma 3's text models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlib.errors import ModelError
from qlib.models.config_values import MOST_LAYERS, MOST_POSITIONS, ConfigValues
from qlib.models.rotary import Rope
from qlib.models.text_config import FULL, SLIDING, TextConfig, read_sizes

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
    others = {key: each for key, each in newer.values.items() if key not in (FULL, SLIDING)}
    if others not in ({}, {"rope_type": "default", "rope_theta": None}):  # the second: transformers 5.5
        raise values.refusal("rope_parameters", f"an object with {FULL!r} and {SLIDING!r}")
    full = newer.section(FULL)
    if full is not None and older is not None:
        full = ConfigValues({**full.values, **older.values}, older.file)
    return Rope.from_dict(full or older, theta), Rope.from_dict(newer.section(SLIDING), local)
