"""Moonshine's sizes and token ids, as config.json and generation_config.json state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlib.errors import ModelError
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    ConfigValues,
    divide,
)

_MOST = {
    "vocab_size": MOST_TOKENS,
    "hidden_size": MOST_WIDTH,
    "intermediate_size": MOST_WIDTH,
    "encoder_num_hidden_layers": MOST_LAYERS,
    "encoder_num_attention_heads": MOST_HEADS,
    "decoder_num_hidden_layers": MOST_LAYERS,
    "decoder_num_attention_heads": MOST_HEADS,
}


@dataclass(frozen=True)
class MoonshineConfig:
    """Sizes, named as in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    encoder_num_hidden_layers: int
    encoder_num_attention_heads: int
    decoder_num_hidden_layers: int
    decoder_num_attention_heads: int
    max_position_embeddings: int = 512
    partial_rotary_factor: float = 0.9
    rope_theta: float = 10_000.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> MoonshineConfig:
        """Read config.json; keys that this implementation cannot honour are errors."""
        values = ConfigValues.of(values)
        if rope := values.section("rope_parameters"):  # newer files keep the rotary settings together
            stated = {key: value for key, value in rope.values.items() if value is not None}
            values = ConfigValues({**values.values, **stated}, values.file)
        values.require(_MOST, "a Moonshine")
        sizes = {name: values.whole(name, most=most) for name, most in _MOST.items()}
        widths = {
            side: divide(values, "hidden_size", f"{side}_num_attention_heads")
            for side in ("encoder", "decoder")
        }
        values.check(
            {
                "encoder_hidden_act": "gelu",
                "decoder_hidden_act": "silu",
                "attention_bias": False,
                "tie_word_embeddings": True,
                "rope_scaling": "null",
                "rope_type": "default",
                "encoder_num_key_value_heads": sizes["encoder_num_attention_heads"],
                "decoder_num_key_value_heads": sizes["decoder_num_attention_heads"],
            }
        )
        config = cls(
            **sizes,
            max_position_embeddings=values.whole("max_position_embeddings", 512),
            partial_rotary_factor=values.number("partial_rotary_factor", 0.9, above=0, most=1),
            rope_theta=values.number("rope_theta", 10_000.0, above=0),
        )
        for side, width in widths.items():
            turned = 2 * config.rotary_pairs(sizes[f"{side}_num_attention_heads"])
            if not 0 < turned <= width:
                raise values.refusal(
                    "partial_rotary_factor",
                    f"a share of a head's {width} channels ({side}) in whole pairs; this one turns {turned}",
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        rotary = {key: getattr(self, key) for key in ("rope_theta", "partial_rotary_factor")}
        names = {"model_type": "moonshine", "architectures": ["MoonshineForConditionalGeneration"]}
        return {**names, **asdict(self), "rope_parameters": {"rope_type": "default", **rotary}}

    def rotary_pairs(self, heads: int) -> int:
        """Return how many pairs of channels of a head are rotated."""
        return -(-int(self.hidden_size // heads * self.partial_rotary_factor) // 2)


@dataclass(frozen=True)
class MoonshineGeneration:
    """Token ids that steer decoding, from generation_config.json."""

    start: int  # <s>
    end: int  # </s>
    suppress: tuple[int, ...] = ()  # never chosen; Moonshine has none
    suppress_first: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()  # ids that end a text as well

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.end, *self.other_ends)

    @property
    def languages(self) -> tuple[tuple[str, int], ...]:
        """Language tokens: it has none."""
        return ()

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any] | ConfigValues, vocabulary: int = MOST_TOKENS
    ) -> MoonshineGeneration:
        """Read generation_config.json, or a config.json with the same keys; ids are below `vocabulary`."""
        values = ConfigValues.of(values)
        start = values.id("decoder_start_token_id", vocabulary)
        ends = values.ids("eos_token_id", vocabulary)
        if start is None or not ends:
            lacking = "decoder_start_token_id" if start is None else "eos_token_id"
            raise ModelError(
                f"{values.file} lacks {lacking!r}, which decoding needs. Copy the file from where the "
                "weights came from."
            )
        return cls(start, ends[0], other_ends=ends[1:])

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        return {
            "bos_token_id": self.start,
            "decoder_start_token_id": self.start,
            "eos_token_id": list(self.ends) if self.other_ends else self.end,
            "pad_token_id": self.end,
        }

    def prompt(self, language: str = "en", task: str = "transcribe") -> list[int]:
        """Return the tokens that every transcript begins with.

        There are no language or task tokens, so asking for anything but the default is an error.
        """
        if (language, task) != ("en", "transcribe"):
            raise ModelError(
                f"language={language!r}, task={task!r}: a Moonshine checkpoint writes the one language that "
                "it was trained on. Leave both out, or take a multilingual model, for example whisper-base."
            )
        return [self.start]
