"""Sizes and token ids of decoder-only text models, read from config.json and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlib.errors import ModelError
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_TOKENS,
    ConfigValues,
    divide,
)

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers: see the whole text, or a window


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


_MOST = {
    "vocab_size": MOST_TOKENS,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": MOST_HEADS,
    "max_position_embeddings": MOST_POSITIONS,
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def read_sizes(values: ConfigValues) -> dict[str, Any]:
    """Return the fields of `TextConfig` from config.json; `num_key_value_heads` and `head_dim` may be absent.

    Raises
    ------
    ModelError
        A size is missing, not a whole number above 0, or does not divide as it must.
    """
    names = [*_SIZES, "max_position_embeddings"]
    values.require(names, "a text model's")
    sizes = {
        name: values.whole(name, most=_MOST[name]) if name in _MOST else values.whole(name) for name in names
    }
    heads = sizes["num_attention_heads"]
    stated = values.get("head_dim") is not None
    sizes["head_dim"] = (
        values.whole("head_dim", most=MOST_HEADS)
        if stated
        else divide(values, "hidden_size", "num_attention_heads")
    )
    sizes["num_key_value_heads"] = values.whole("num_key_value_heads", heads, most=MOST_HEADS)
    if heads % sizes["num_key_value_heads"]:
        raise ModelError(
            f"{values.file}: {heads} query heads cannot share {sizes['num_key_value_heads']} key/value heads "
            "evenly. Check num_attention_heads and num_key_value_heads."
        )
    if sizes["head_dim"] % 2:
        raise ModelError(
            f"{values.file}: head_dim={sizes['head_dim']} is odd; rotary positions need pairs. Check "
            "head_dim, hidden_size and num_attention_heads."
        )
    return {
        **sizes,
        "rms_norm_eps": values.number("rms_norm_eps", 1e-6, above=0.0),
        "tie_word_embeddings": values.flag("tie_word_embeddings", False),
    }


@dataclass(frozen=True)
class TextGeneration:
    """Token ids by role, from generation_config.json (older checkpoints: config.json)."""

    bos: int | None = None  # names the start token where no file of the tokenizer does
    eos: tuple[int, ...] = ()  # any of them ends a text
    pad: int | None = None  # texts are not padded here; kept for those who load the saved folder

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any] | ConfigValues, vocabulary: int = MOST_TOKENS
    ) -> TextGeneration:
        """Read the three ids, each below the size of the vocabulary; each may be absent.

        Padding of -1, as some older files have it, means none.
        """
        values = ConfigValues.of(values)
        pad = None if values.get("pad_token_id") == -1 else values.id("pad_token_id", vocabulary)
        return cls(values.id("bos_token_id", vocabulary), values.ids("eos_token_id", vocabulary), pad)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
        ids = {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}
        return {name: value for name, value in ids.items() if value is not None}
