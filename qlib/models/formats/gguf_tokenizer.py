"""The byte-level BPE tokenizer of a GGUF file as `tokenizer.json`.

GGUF keeps tokens, their types and merges, but of the splitting rules only a name (`tokenizer.ggml.pre`).
Digits come apart one by one under "smollm"; without that rule numbers get ids that training never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlib.errors import ModelError, list_names

CONTROL, USER_DEFINED = 3, 4  # token types that are matched in the text before anything is split
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITTERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
}


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild `tokenizer.json` from a GGUF file's settings.

    Parameters
    ----------
    metadata : mapping
        `GgufFile.metadata`.

    Raises
    ------
    ModelError
        There is no byte-level BPE in the file, or its splitting rules are unknown.
    """
    kind, rules = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or rules not in _SPLITTERS:
        raise ModelError(
            f"The tokenizer of kind {kind!r} with the splitting rules {rules!r} cannot be rebuilt: "
            f"only kind 'gpt2' with {list_names(_SPLITTERS)}. Take tokenizer.json from the original model."
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, token, special=kind == CONTROL)
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": _SPLITTERS[rules],
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}
