"""The `config.json` of the text model in a GGUF file, from the file's settings.

Left out: other architectures, the rotary scalings "yarn" and "longrope", files split into parts (each is an
error that names it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlib.errors import ModelError, list_names
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_TOKENS,
)
from qlib.models.hub.formats.gguf import GgufFile
from qlib.models.hub.formats.gguf_rope import rope_scaling

# Architecture of the file -> model_type and class of Hugging Face.
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
GEMMA_27B_LAYERS = 62  # of Gemma 3, the only size whose queries are scaled by width / heads


def text_config(file: GgufFile) -> dict[str, Any]:
    """Return `config.json` of the model in a GGUF file.

    Raises
    ------
    ModelError
        The architecture or its rotary scaling is not supported, or a setting is missing or of another type.
    """
    architecture = _architecture(file)
    kind, name = FAMILIES[architecture]
    values, width = file.values, _whole(file, "embedding_length")
    heads = _whole(file, "attention.head_count", most=MOST_HEADS)
    head_dim = values.whole(f"{architecture}.attention.key_length", width // heads, most=MOST_HEADS)
    turned = values.whole(f"{architecture}.rope.dimension_count", head_dim, most=MOST_HEADS)
    if turned != head_dim:
        raise ModelError(
            f"{file.path} rotates {turned} of the {head_dim} channels of a head; only all are read. Use "
            "another model."
        )
    theta = _shortest(file, "rope.freq_base", 1e6 if architecture == "gemma3" else 1e4)
    config = {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": _whole(file, "feed_forward_length"),
        "num_hidden_layers": _whole(file, "block_count", most=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": values.whole(
            f"{architecture}.attention.head_count_kv", heads, most=MOST_HEADS
        ),
        "head_dim": head_dim,
        "vocab_size": file.rows("token_embd.weight"),
        "max_position_embeddings": _whole(file, "context_length", most=MOST_POSITIONS),
        "rms_norm_eps": _shortest(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(file, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": str(file.dtype("token_embd.weight")).removeprefix("torch."),
        **token_ids(file),
    }
    return config | (_gemma_settings(file, config) if architecture == "gemma3" else _llama_settings(file))


def _architecture(file: GgufFile) -> str:
    architecture = file.setting("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ModelError(
            f"{file.path} holds the architecture {architecture!r}; only {list_names(map(repr, FAMILIES))} "
            "are read. Use a model of one of these families."
        )
    if (parts := file.values.whole("split.count", 1, least=0)) > 1:
        raise ModelError(
            f"{file.path} is one of {parts} parts of a model. Join them with llama.cpp's "
            "llama-gguf-split --merge, and pass the result."
        )
    return architecture


def _whole(file: GgufFile, key: str, most: int = MOST_TOKENS) -> int:
    """Return a needed setting of the architecture that is a whole number."""
    key = f"{file.metadata['general.architecture']}.{key}"
    file.setting(key)
    return file.values.whole(key, most=most)


def _shortest(file: GgufFile, key: str, default: float | None = None) -> float:
    """Return a float32 setting as it was written: 1e-05, not 9.999999747378752e-06."""
    key = f"{file.metadata['general.architecture']}.{key}"
    if default is None:
        file.setting(key)
    return float(str(np.float32(file.values.number(key, default or 0.0, above=0.0))))


def _llama_settings(file: GgufFile) -> dict[str, Any]:
    """Return what the Llama family states besides; a window as wide as the context hides nothing."""
    architecture = file.metadata["general.architecture"]
    window = file.values.whole(f"{architecture}.attention.sliding_window", 0, least=0, most=MOST_POSITIONS)
    context = file.setting(f"{architecture}.context_length")
    if 0 < window < context:
        raise ModelError(
            f"{file.path}: layers look back through a sliding window ({window} of {context} tokens), which "
            "is not supported in this family. Use a model whose layers all see the whole text."
        )
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}


def _gemma_settings(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Gemma 3 states besides, and what llama.cpp knows without being told."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["hidden_size"] // heads if layers == GEMMA_27B_LAYERS else config["head_dim"]
    pattern = file.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        slides = {"layer_types": ["sliding_attention" if each else "full_attention" for each in pattern]}
    else:
        slides = {"sliding_window_pattern": pattern}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": _whole(file, "attention.sliding_window", most=MOST_POSITIONS),
        "rope_local_base_freq": _shortest(file, "rope.freq_base_swa", 1e4),
        "attn_logit_softcapping": file.metadata.get("gemma3.attn_logit_softcapping"),
        "final_logit_softcapping": file.metadata.get("gemma3.final_logit_softcapping"),
        **slides,
    }


def token_ids(file: GgufFile) -> dict[str, int]:
    """Return the stated ones of `bos_token_id`, `eos_token_id` and `pad_token_id`."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{role}_token_id": f"tokenizer.ggml.{word}_token_id" for role, word in roles.items()}
    return {name: file.metadata[key] for name, key in keys.items() if key in file.metadata}
