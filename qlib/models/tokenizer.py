"""Text to token ids and back, by a checkpoint's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tokenizers

from qlib.errors import ModelError, describe, list_names
from qlib.models.disk.disk_errors import disk_errors


class Tokenizer:
    """A `tokenizers.Tokenizer` that adds special tokens only where asked to, and never changes.

    What a file says about training and batches is switched off: truncation, padding, dropout of merges.
    Copies are the same object, also under `copy.deepcopy`; pickling is supported.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        The table and its rules. Do not change it afterwards.
    named : mapping of str to str, optional
        Special tokens by their names in tokenizer_config.json, such as ``{"bos_token": "<s>"}``. Chat
        templates use them.

    Attributes
    ----------
    vocab_size : int
        Number of ids, special tokens included: ids are below it unless the table has gaps.
    special_ids : frozenset of int
        Ids of the special tokens.
    named : dict of str to str
        As above.
    start, end : tuple of int
        What the table puts in front of a text and after it; see `encode`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, named: Mapping[str, str] | None = None):
        self._backend = _for_single_texts(backend)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.named = dict(named or {})
        self.start, self.end = self._around()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of a folder in Hugging Face layout.

        Raises
        ------
        ModelError
            The file is missing or damaged.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{path} does not exist. A checkpoint folder needs it besides config.json and "
                "model.safetensors; copy it from where the weights came from."
            )
        with disk_errors("read", path):
            content = path.read_bytes()  # not from_file: it opens no path that is not UTF-8
        try:
            return cls(tokenizers.Tokenizer.from_str(content.decode("utf-8")))
        except Exception as error:  # the reader raises bare Exception
            raise ModelError(f"{path} is damaged or of an unknown kind: {error}. Copy it again.") from error

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; a special token that is spelled out in it becomes its id.

        Parameters
        ----------
        text : str
            Any text.
        special : bool
            Add what the tokenizer adds by itself: the start token of Llama 2 and 3 and of Gemma, nothing for
            Qwen and SmolLM2. Some files also end every text with a token; it is added as well. Leave it off
            for a part of a text, and for a rendered chat, which has its start token already.

        Raises
        ------
        ModelError
            The text is no str, or holds half a character.
        """
        if not isinstance(text, str):
            raise ModelError(f"The text to encode is {describe(text)}, not a str. {_remedy(text)}")
        try:
            return self._backend.encode(text, add_special_tokens=special).ids
        except TypeError as error:  # how the reader puts it
            at = next((i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), 0)
            raise ModelError(
                f"The text to encode holds half a character, {text[at]!r}, at position {at}. Read the file "
                "as UTF-8, or replace what is broken: text.encode(errors='replace').decode()."
            ) from error
        except Exception as error:  # the reader raises bare Exception
            raise ModelError(
                f"The tokenizer cannot read the text {text[:60]!r}: {error}. Is tokenizer.json the "
                "checkpoint's own?"
            ) from error

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of some ids, spaces as they are.

        Parameters
        ----------
        ids : iterable of int
            Token ids; those that the table lacks (Whisper's timestamps) stand for nothing.
        skip_special : bool
            Leave special tokens out; otherwise they are spelled out.
        """
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int:
        """Return the id of one token as it is spelled in the table.

        Raises
        ------
        ModelError
            There is no such token; the message lists similar ones.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            vocabulary = self._backend.get_vocab()
            special = sorted(name for name, number in vocabulary.items() if number in self.special_ids)
            similar = get_close_matches(token, special) or get_close_matches(token, vocabulary)
            hint = f"Similar: {list_names(similar)}" if similar else f"Special ones: {list_names(special)}"
            raise ModelError(f"The tokenizer has no token {token!r} among its {self.vocab_size}. {hint}.")
        return found

    def has_special(self, *tokens: str) -> bool:
        """Return whether all of these are special tokens of the table."""
        return all(self._backend.token_to_id(token) in self.special_ids for token in tokens)

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        return self._backend.to_str()

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what is added in front of a text and after it."""
        try:
            alone, whole = self.encode("a"), self.encode("a", special=True)
        except ModelError:  # a table that lacks its own unknown token; using it will say so
            return (), ()
        for at in range(len(whole) - len(alone) + 1):
            if whole[at : at + len(alone)] == alone:
                # A table that cannot spell the letter shows only what it adds; that counts as in front.
                at = at if alone else len(whole)
                return tuple(whole[:at]), tuple(whole[at + len(alone) :])
        return (), ()

    def __copy__(self) -> Tokenizer:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_json, (self.to_json(), self.named)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {len(self.special_ids)} special)"


def _for_single_texts(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Switch off what a file keeps from training or from batches; it would cut, fill up or change texts."""
    backend.no_truncation()
    backend.no_padding()
    model: Any = backend.model  # a view: what is set in it is set in the backend
    if getattr(model, "dropout", None) is not None:
        model.dropout = None
    return backend


def _remedy(text: Any) -> str:
    if isinstance(text, bytes):
        return "Decode it first: text.decode('utf-8')."
    return "Encode texts one by one." if isinstance(text, list | tuple) else "Pass the text itself."


def _from_json(text: str, named: Mapping[str, str]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), named)


def need_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer of a model; that it has none is a ModelError."""
    if tokenizer is None:
        raise ModelError(
            "The model has no tokenizer: its folder lacks tokenizer.json. Copy the one of the checkpoint "
            "that it was trained from. From vocab.json and merges.txt, transformers makes it: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    return tokenizer
