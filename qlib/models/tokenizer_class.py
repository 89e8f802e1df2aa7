"""What the tokenizer class that a checkpoint names does differently from its tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlib.errors import ModelError, describe

SPACE = "\u2581"

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def class_differences(table: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of tokenizer.json that the class replaces by others."""
    if not kind:
        return {}
    model, normalizer, pre_tokenizer, decoder = _rules(kind, settings)
    wanted = {
        "model": {**table["model"], **model},
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
    }
    return {name: value for name, value in wanted.items() if value != table[name]}


def _rules(kind: str, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return settings of the merges, normalizer, pre-tokenizer and decoder of a class."""
    space_first = settings.get("add_prefix_space")
    if kind == "LlamaTokenizer":
        space_first = space_first is None or bool(space_first)
        where = ("always" if settings.get("legacy") else "first") if space_first else "never"
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_first else []
        words = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": where, "split": False}
        return _merges(fuse=True), None, words, _bytes_of_pieces(strip)
    if kind == "GemmaTokenizer":
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        words = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
        unknown = token_text(settings.get("unk_token", "<unk>"), "unk_token", Path("tokenizer_config.json"))
        return {**_merges(fuse=True), "unk_token": unknown}, normalizer, words, _bytes_of_pieces([])
    if kind == "Qwen2Tokenizer":
        pattern = {
            "type": "Split",
            "pattern": {"Regex": QWEN_WORDS},
            "behavior": "Isolated",
            "invert": False,
        }
        words = {"type": "Sequence", "pretokenizers": [pattern, _byte_level(bool(space_first), regex=False)]}
        return _merges(), {"type": "NFC"}, words, _byte_level(True)
    return _merges(), None, _byte_level(bool(space_first)), _byte_level(True)


def _merges(fuse: bool = False) -> dict[str, Any]:
    return {"unk_token": None, "fuse_unk": fuse, "byte_fallback": fuse, "ignore_merges": False}


def _byte_level(space_first: bool, regex: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": space_first, "trim_offsets": True, "use_regex": regex}


def _bytes_of_pieces(more: list[dict[str, Any]]) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *more]}


def token_text(value: Any, name: str, path: Path) -> str | None:
    """Return a token's text from a str or an object with its content; None where there is none."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ModelError(f"{path}: {name} is {describe(text)}, not a str. Copy the file again.")
    return text
