"""The tokenizer of a GGUF file as `tokenizer.json`: byte-level BPE, or SentencePiece's BPE.

Of byte-level BPE, GGUF keeps tokens, their types and merges, but of the splitting rules only a name
(`tokenizer.ggml.pre`). Digits come apart one by one under "smollm" and "qwen2", in groups of three under
"llama-bpe"; with other rules numbers get ids that training never saw. Of SentencePiece it keeps scores in
place of merges: two neighbouring pieces join if the joined one is a piece, those of the highest score first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlib.errors import ModelError, describe, list_names

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # the last three are matched in the text before anything
_BLANK = "\u2581"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = _BYTE_LEVEL | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _split(digits: str) -> dict[str, Any]:
    """Split as Llama 3 and Qwen 2 do, which differ in how many digits stay together."""
    words = {
        "type": "Split",
        "pattern": {"Regex": _WORDS % digits},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [words, _BYTES_ONLY]}


_SPLITTERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild `tokenizer.json` from a GGUF file's settings.

    Parameters
    ----------
    metadata : mapping
        `GgufFile.metadata`.

    Raises
    ------
    ModelError
        The tokenizer is of another kind, its splitting rules are unknown, or its tables do not fit together.
    """
    kind, stated = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    rules = _SAME.get(stated, stated) if isinstance(stated, str) else None
    tokens, types = _table(metadata, "tokens", str), _table(metadata, "token_type", int)
    if kind == "llama":
        parts = _sentencepiece(metadata, tokens, types)
    elif kind == "gpt2" and rules in _SPLITTERS:
        parts = _byte_level(metadata, tokens, rules)
    else:
        raise ModelError(
            f"The tokenizer of kind {kind!r} with the splitting rules {stated!r} cannot be rebuilt: only "
            f"kind 'gpt2' with {list_names(_SPLITTERS)}, and kind 'llama'. Take tokenizer.json from the "
            "original model."
        )
    if len(types) != len(tokens):
        raise ModelError(
            f"The tokenizer has {len(tokens)} tokens and {len(types)} types. Copy the file again."
        )
    starts = kind == "llama" or rules == "llama-bpe"  # what llama.cpp does where the file does not say
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, token, special=kind != USER_DEFINED)
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        **parts,
        "post_processor": _post_processor(metadata, tokens, starts),
    }


def _table(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
        raise ModelError(
            f"The setting tokenizer.ggml.{name} is {describe(found)}, not a list of {kind.__name__}. Copy "
            "the file again."
        )
    return found


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], rules: str) -> dict[str, Any]:
    return {
        "normalizer": {"type": "NFC"} if rules == "qwen2" else None,
        "pre_tokenizer": _SPLITTERS[rules],
        "decoder": _BYTE_LEVEL,
        "model": _bpe(tokens, _table(metadata, "merges", str)) | {"ignore_merges": rules == "llama-bpe"},
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Spaces become visible blanks, Llama's with one in front; what no piece spells goes by bytes."""
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    unknown = next((token for token, kind in zip(tokens, types, strict=False) if kind == UNKNOWN), None)
    merges = sentencepiece_merges(tokens, types, _table(metadata, "scores", float))
    normalizers = [{"type": "Prepend", "prepend": _BLANK}, blanks] if prefix else [blanks]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back + strip},
        "model": _bpe(tokens, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def sentencepiece_merges(tokens: list[str], types: list[int], scores: list[float]) -> list[list[str]]:
    """Return the merges that SentencePiece's scores stand for, the first to apply first.

    >>> sentencepiece_merges(["a", "b", "ab", "ba", "aba"], [1] * 5, [-3.0, -4.0, -1.0, -2.0, -5.0])
    [['a', 'b'], ['b', 'a'], ['ab', 'a'], ['a', 'ba']]
    """
    pieces = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == NORMAL
    }
    merges = [
        (scores[number], token[:cut], token[cut:])
        for token, number in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in merges]


def _bpe(tokens: list[str], merges: list[Any]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": merges,
    }


def _post_processor(metadata: Mapping[str, Any], tokens: list[str], starts: bool) -> dict[str, Any] | None:
    """Return what the tokenizer puts around a text by itself: a start token, an end token, or nothing."""
    around: dict[str, str | None] = {}
    for role, default in (("bos", starts), ("eos", False)):
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        there = isinstance(number, int) and 0 <= number < len(tokens)
        wanted = metadata.get(f"tokenizer.ggml.add_{role}_token", default)
        around[role] = tokens[number] if wanted and there and isinstance(number, int) else None
    used = [token for token in around.values() if token is not None]
    if not used:
        return None

    def template(*sequences: tuple[str, int]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for name, kind in sequences:
            ends = {
                role: [{"SpecialToken": {"id": token, "type_id": kind}}] if token is not None else []
                for role, token in around.items()
            }
            parts += [*ends["bos"], {"Sequence": {"id": name, "type_id": kind}}, *ends["eos"]]
        return parts

    return {
        "type": "TemplateProcessing",
        "single": template(("A", 0)),
        "pair": template(("A", 0), ("B", 1)),
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in used
        },
    }


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}
