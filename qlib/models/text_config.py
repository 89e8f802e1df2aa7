"""Sizes and token ids of decoder-only text models, read from config.json and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlib.errors import ModelError, list_names


@dataclass(frozen=True)
class TextConfig:
    """Sizes, named as in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        raise NotImplementedError


def read_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `TextConfig` from config.json; `num_key_value_heads` and `head_dim` may be absent.

    Raises
    ------
    ModelError
        A size is missing, not a whole number above 0, or does not divide as it must.
    """
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    if missing := [name for name in [*names, "max_position_embeddings"] if values.get(name) is None]:
        raise ModelError(f"config.json lacks {list_names(missing)}. Is this a text model's checkpoint?")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    sizes = {name: values[name] for name in [*names, "max_position_embeddings"]}
    sizes["num_key_value_heads"] = values.get("num_key_value_heads") or heads
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ModelError(f"config.json: {name}={size!r} is not a whole number above 0.")
    sizes["head_dim"] = values.get("head_dim") or width // heads
    if not values.get("head_dim") and width % heads:
        raise ModelError(f"config.json: hidden_size={width} does not divide into {heads} heads.")
    if heads % sizes["num_key_value_heads"]:
        raise ModelError(
            f"config.json: {heads} query heads cannot share {sizes['num_key_value_heads']} key/value heads "
            "evenly. Check num_attention_heads and num_key_value_heads."
        )
    if sizes["head_dim"] % 2:
        raise ModelError(f"config.json: head_dim={sizes['head_dim']} is odd; rotary positions need pairs.")
    return {
        **sizes,
        "rms_norm_eps": float(values.get("rms_norm_eps", 1e-6)),
        "tie_word_embeddings": bool(values["tie_word_embeddings"]),
    }


def check_supported(values: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Refuse settings of config.json that are present and not what this implementation computes."""
    for key, only in supported.items():
        if values.get(key, only) != only:
            raise ModelError(f"config.json: {key}={values[key]!r} is not supported, only {only!r}.")


@dataclass(frozen=True)
class TextGeneration:
    """Token ids by role, from generation_config.json (older checkpoints: config.json)."""

    bos: int | None = None  # names the start token where no file of the tokenizer does
    eos: tuple[int, ...] = ()  # any of them ends a text
    pad: int | None = None  # texts are not padded here; kept for those who load the saved folder

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextGeneration:
        """Read the three ids; each may be absent."""
        eos = values.get("eos_token_id")
        ends = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(values.get("bos_token_id"), ends, values.get("pad_token_id"))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
        ids = {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}
        return {name: value for name, value in ids.items() if value is not None}
