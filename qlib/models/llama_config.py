"""The configuration of Llama and its relatives: Qwen 2, 2.5 and 3, Mistral, SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qlib.errors import ModelError, list_names
from qlib.models.config_values import MOST_POSITIONS, ConfigValues
from qlib.models.rotary import Rope, read_rope
from qlib.models.text_config import FULL, SLIDING, TextConfig, read_sizes

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
