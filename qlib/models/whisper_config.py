"""Whisper's sizes and token ids, as config.json and generation_config.json state them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlib.errors import ModelError, list_names
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    ConfigValues,
    divide,
)
from qlib.models.hub.formats.whisper_config import MULTILINGUAL_VOCABULARY
from qlib.models.tokenizer import Tokenizer

_SUPPORTED = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
_MOST = {
    "vocab_size": MOST_TOKENS,
    "num_mel_bins": MOST_WIDTH,
    "d_model": MOST_WIDTH,
    "encoder_layers": MOST_LAYERS,
    "encoder_attention_heads": MOST_HEADS,
    "encoder_ffn_dim": MOST_WIDTH,
    "decoder_layers": MOST_LAYERS,
    "decoder_attention_heads": MOST_HEADS,
    "decoder_ffn_dim": MOST_WIDTH,
}
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes, named as in config.json."""

    vocab_size: int
    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    max_source_positions: int = 1500
    max_target_positions: int = 448

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> WhisperConfig:
        """Read config.json; keys that this implementation cannot support are errors."""
        values = ConfigValues.of(values)
        values.check(_SUPPORTED)
        values.require(_MOST, "a Whisper")
        sizes = {name: values.whole(name, most=most) for name, most in _MOST.items()}
        for side in ("encoder", "decoder"):
            divide(values, "d_model", f"{side}_attention_heads")
        return cls(
            **sizes,
            max_source_positions=values.whole("max_source_positions", 1500),
            max_target_positions=values.whole("max_target_positions", 448),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **asdict(self)}


@dataclass(frozen=True)
class WhisperGeneration:
    """Token ids that steer decoding, from generation_config.json."""

    start: int  # <|startoftranscript|>
    end: int  # <|endoftext|>
    no_timestamps: int
    suppress: tuple[int, ...] = ()  # never chosen: symbols and special tokens
    suppress_first: tuple[int, ...] = ()  # never chosen first: a blank, the end
    languages: tuple[tuple[str, int], ...] = ()  # ("<|en|>", id); empty for English-only checkpoints
    tasks: tuple[tuple[str, int], ...] = ()
    other_ends: tuple[int, ...] = ()  # ids that end a text as well

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.end, *self.other_ends)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any] | ConfigValues,
        vocabulary: int = MOST_TOKENS,
        tokenizer: Tokenizer | None = None,
    ) -> WhisperGeneration:
        """Read generation_config.json, or a config.json that carries the same keys (older checkpoints).

        Parameters
        ----------
        values : mapping
            What the files state.
        vocabulary : int
            Tokens of the model; every id must be below.
        tokenizer : Tokenizer, optional
            Knows the special tokens that the files of 2022 and 2023 leave out.

        Raises
        ------
        ModelError
            An id is of another type or outside of the vocabulary, or a needed one is nowhere.
        """
        values = ConfigValues.of(values)
        special = _SpecialIds(values, vocabulary, tokenizer)
        ends = values.ids("eos_token_id", vocabulary) or (special.need("eos_token_id", "<|endoftext|>"),)
        many = bool(values.get("lang_to_id")) or MULTILINGUAL_VOCABULARY <= vocabulary < MOST_TOKENS
        multilingual = values.flag("is_multilingual", many)
        return cls(
            start=special.need("decoder_start_token_id", "<|startoftranscript|>"),
            end=ends[0],
            other_ends=ends[1:],
            no_timestamps=special.need("no_timestamps_token_id", "<|notimestamps|>"),
            suppress=values.suppressed("suppress_tokens", vocabulary),
            suppress_first=values.suppressed("begin_suppress_tokens", vocabulary),
            languages=special.languages() if multilingual else (),
            tasks=special.tasks() if multilingual else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        multilingual = {"lang_to_id": dict(self.languages), "task_to_id": dict(self.tasks)}
        return {
            "decoder_start_token_id": self.start,
            "eos_token_id": list(self.ends) if self.other_ends else self.end,
            "no_timestamps_token_id": self.no_timestamps,
            "suppress_tokens": list(self.suppress),
            "begin_suppress_tokens": list(self.suppress_first),
            "is_multilingual": bool(self.languages),
            **(multilingual if self.languages else {}),
        }

    def prompt(self, language: str = "en", task: str = "transcribe") -> list[int]:
        """Return the tokens that every transcript begins with.

        English-only checkpoints know no language or task tokens: there, anything but English
        transcription is an error.
        """
        if not self.languages:
            if (language, task) != ("en", "transcribe"):
                raise ModelError(
                    f"This checkpoint only transcribes English; language={language!r}, task={task!r} needs "
                    "a multilingual one, for example whisper-base."
                )
            return [self.start, self.no_timestamps]
        languages, tasks = dict(self.languages), dict(self.tasks)
        if f"<|{language}|>" not in languages:
            known = sorted(name.strip("<|>") for name in languages)
            raise ModelError(f"Unknown language {language!r}. Known: {list_names(known, 100)}.")
        if task not in tasks:
            raise ModelError(f"Unknown task {task!r}. Known: {list_names(tasks)}.")
        return [self.start, languages[f"<|{language}|>"], tasks[task], self.no_timestamps]


class _SpecialIds:
    """Ids of special tokens: as a configuration states them, else by their names in the tokenizer."""

    def __init__(self, values: ConfigValues, vocabulary: int, tokenizer: Tokenizer | None):
        self.values, self.vocabulary, self.tokenizer = values, vocabulary, tokenizer

    def need(self, key: str, token: str) -> int:
        """Return one id; that it is nowhere is an error."""
        stated = self.values.id(key, self.vocabulary)
        found = self._by_name(token) if stated is None else stated
        if found is None:
            raise ModelError(
                f"{self.values.file} lacks {key!r}, which Whisper's prompt needs, and no tokenizer.json "
                f"beside it has {token!r} below {self.vocabulary}. Copy both from where the weights came "
                "from."
            )
        return found

    def languages(self) -> tuple[tuple[str, int], ...]:
        """Return the language tokens, ``("<|en|>", id)``."""
        if stated := self.values.ids_by_name("lang_to_id", self.vocabulary):
            return stated
        ids = sorted(self.tokenizer.special_ids) if self.tokenizer else ()
        names = ((self.tokenizer.decode([i], skip_special=False), i) for i in ids if self.tokenizer)
        found = tuple((name, i) for name, i in names if _LANGUAGE.fullmatch(name) and i < self.vocabulary)
        if not found:
            raise ModelError(
                f"{self.values.file} is of a multilingual checkpoint and lacks 'lang_to_id', and no "
                "tokenizer.json beside it has language tokens, for example '<|en|>'. Copy both from where "
                "the weights came from."
            )
        return found

    def tasks(self) -> tuple[tuple[str, int], ...]:
        """Return the task tokens, ``("transcribe", id)``."""
        if stated := self.values.ids_by_name("task_to_id", self.vocabulary):
            return stated
        found = ((task, self._by_name(f"<|{task}|>")) for task in _TASKS)
        return tuple((task, number) for task, number in found if number is not None)

    def _by_name(self, token: str) -> int | None:
        try:
            number = self.tokenizer.token_id(token) if self.tokenizer else self.vocabulary
        except ModelError:  # the table has no such token
            return None
        return number if number < self.vocabulary else None
