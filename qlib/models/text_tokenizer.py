"""The tokenizer of a text model's folder, as transformers 5 reads it.

    tokenizer.json             vocabulary, merges, special tokens, the start token (its post-processor)
    tokenizer_config.json      the tokenizer's class, and special tokens by name: bos_token, eos_token, ...
    special_tokens_map.json    the same names, in older folders

Some classes of transformers take vocabulary, merges and post-processor from tokenizer.json and bring rules of
their own for how a text is split. Folders on the hub differ from them here and there: old Llama 2 files put a
space after every special token, the class only in front of the text. What counts is the prompt that the
model gets elsewhere, so the class's rules are used here too. `add_bos_token` and `add_eos_token` of
tokenizer_config.json count for nothing beside a tokenizer.json, as in transformers 5.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from qlib.errors import ModelError, describe, list_names
from qlib.models.files import read_json
from qlib.models.text_config import TextGeneration
from qlib.models.tokenizer import Tokenizer
from qlib.models.tokenizer_class import class_differences, token_text

log = logging.getLogger(__name__)

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# The class of a family, whatever the folder says, or where it says nothing.
ALWAYS = {"qwen2": "Qwen2Tokenizer"}
USUAL = {"qwen3": "Qwen2Tokenizer", "gemma3_text": "GemmaTokenizer"}
DEFAULTS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GemmaTokenizer": {
        **{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
}


def read_text_tokenizer(
    folder: Path, config: Mapping[str, Any], generation: TextGeneration
) -> Tokenizer | None:
    """Return the tokenizer of a text model's folder, or None where it has no tokenizer.json.

    Parameters
    ----------
    folder : Path
        A folder in Hugging Face layout.
    config : mapping
        Content of its config.json.
    generation : TextGeneration
        Names the start and end tokens where no file of the tokenizer does.

    Raises
    ------
    ModelError
        A file is damaged, or a field is of another type than expected.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    settings, said = _settings(folder)
    backend = Tokenizer.from_folder(folder)._backend
    table = json.loads(backend.to_str())
    said_class = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = class_of(config["model_type"], said_class, table)
    if changed := class_differences(table, kind, settings):
        log.info("%s: %s of the class %s are used, not the file's", path, " and ".join(changed), kind)
        backend = tokenizers.Tokenizer.from_str(json.dumps({**table, **changed}))
    usual = DEFAULTS.get(kind, {})
    named = {name: token for name, token in {**usual, **said}.items() if token is not None}
    if not said and not usual:
        named = _from_ids(backend, generation)
    _add_special(backend, [*named.values(), *_more_special(settings, folder)], config.get("vocab_size"))
    return Tokenizer(backend, named)


def read_chat_template(folder: Path) -> tuple[str | None, Path]:
    """Return a folder's chat template, or None, and the file that has it.

    Newer checkpoints have a file of its own; older ones keep it in tokenizer_config.json, perhaps as one of
    several by purpose, of which the one called "default" counts.

    Raises
    ------
    ModelError
        The file is not UTF-8, the entry is no text, or there are several and none is the default.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8 ({error}). Copy the file again.") from error
    path = folder / "tokenizer_config.json"
    found = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    if isinstance(found, dict):
        if "default" not in found:
            raise ModelError(
                f"{path}: of its chat templates ({list_names(map(str, found)) or 'none'}) none is called "
                "'default'. Call the one for plain conversations so."
            )
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise ModelError(f"{path}: chat_template is {describe(found)}, not text. Copy the file again.")
    return found, path


def class_of(family: str, said: str | None, table: Mapping[str, Any]) -> str:
    """Return the class that transformers' AutoTokenizer takes; "" where tokenizer.json is read as it stands.

    Parameters
    ----------
    family : str
        `model_type` of config.json.
    said : str or None
        `tokenizer_class` of tokenizer_config.json.
    table : mapping
        Content of tokenizer.json.
    """
    kind = (said or USUAL.get(family, "")).removesuffix("Fast")
    byte_level = '"ByteLevel"' in json.dumps({**table, "model": None, "added_tokens": None})
    if family == "mistral" or (kind == "LlamaTokenizer" and byte_level):
        kind = ""  # Mistral's own reader aside, the file counts; and that class is not for byte-level tables
    kind = ALWAYS.get(family, kind)
    return kind if kind in DEFAULTS and table["model"]["type"] == "BPE" else ""


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return tokenizer_config.json (empty where missing), and the special tokens that are named."""
    settings: dict[str, Any] = {}
    named: dict[str, str | None] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / file
        if not path.is_file() or "added_tokens_decoder" in settings:  # the newer layout: all in one file
            continue
        content = read_json(path)
        settings = settings or content
        named |= {name: token_text(content[name], name, path) for name in NAMES if name in content}
    kind = settings.get("tokenizer_class")
    if kind is not None and not isinstance(kind, str):
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {describe(kind)}, not a str."
        )
    return settings, named


def _more_special(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the special tokens that the settings list without a name for templates."""
    found = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    path = folder / "tokenizer_config.json"
    if not isinstance(found, list | dict):
        raise ModelError(
            f"{path}: extra_special_tokens is {describe(found)}, not a list. Copy the file again."
        )
    values = found.values() if isinstance(found, dict) else found
    tokens = [token_text(value, "an entry of extra_special_tokens", path) for value in values]
    return [token for token in tokens if token is not None]


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], size: Any) -> None:
    """Make tokens special that the table has as words; new ones come in where the model has room for them."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in dict.fromkeys(tokens):
        room = isinstance(size, int) and backend.get_vocab_size() < size
        if token not in known and (room or _has(backend, token)):
            backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])


def _has(backend: tokenizers.Tokenizer, token: str) -> bool:
    return backend.token_to_id(token) is not None


def _from_ids(backend: tokenizers.Tokenizer, generation: TextGeneration) -> dict[str, str]:
    ids = {"bos_token": generation.bos, "eos_token": next(iter(generation.eos), None)}
    # An id of another type, or without a token, names nothing.
    tokens = {name: backend.id_to_token(i) for name, i in ids.items() if isinstance(i, int) and i >= 0}
    return {name: token for name, token in tokens.items() if token is not None}
