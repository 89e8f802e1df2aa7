"""The folder in which a decoder keeps what it has learned: `SpeculativeDecoder.save`, and `state=`.

    state.json           the pair of vocabularies, the values of all parts, sha256 of tensors and of itself
    state.safetensors    the tensors of all parts, each as PART/NAME
    ngrams/              the n-gram cache (`vocabulary/ngram_file.py`)

Parts: "adapter", "length CLASS" for a rule that has a state, and "source NAME" for each source. The folder is
replaced as a whole (`qlib.models.disk`): a reader finds the old state or the new one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from draftlib.state import State
from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError, ModelError, describe, list_names
from qlib.models.disk.folders import atomic_folder
from qlib.models.disk.hashes import SEAL, digest_of, sealed, sha256_of
from qlib.models.disk.read_folder import read_whole
from qlib.models.files import parse_json

if TYPE_CHECKING:
    from draftlib.decoder import SpeculativeDecoder

log = logging.getLogger(__name__)
VERSION = 1
_VALUES, _TENSORS, _NGRAMS = "state.json", "state.safetensors", "ngrams"


def save(decoder: SpeculativeDecoder, folder: Path) -> None:
    """Write what a decoder has learned; see `SpeculativeDecoder.save`."""
    parts = {name: _checked(part.state(), name) for name, part in _parts(decoder)}
    tensors = {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, part in parts.items()
        for key, value in part.tensors.items()
    }
    content = save_tensors(tensors)
    values = {
        "version": VERSION,
        "pair": decoder.vocabulary.fingerprint,
        "vocabularies": str(decoder.vocabulary),
        "ngrams": decoder.cache is not None,
        "parts": {name: part.values for name, part in parts.items()},
        "sha256": sha256_of(content),
    }
    with atomic_folder(folder, _our_files) as fresh:
        (fresh / _TENSORS).write_bytes(content)
        if decoder.cache is not None:
            decoder.cache.save(fresh / _NGRAMS)
        (fresh / _VALUES).write_text(json.dumps(sealed(values), indent=1) + "\n", encoding="utf-8")


def look(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return what a folder holds, without any model: the values of each part by name; None for no state yet.

    Raises
    ------
    DraftError
        The state is damaged or of another version, or the folder holds something else.
    """

    def values(place: Path) -> dict[str, dict[str, Any]] | None:
        if not place.exists():
            return None
        names = [place / name for name in _our_files(place)]
        return _read_values(place)["parts"] if any(name.exists() for name in names) else None

    return read_whole(folder, _VALUES, values)


def load(decoder: SpeculativeDecoder, folder: Path) -> None:
    """Give a decoder what another one has learned. A decoder that raises is not to be used.

    Raises
    ------
    DraftError
        A file is missing, damaged or of another version; the state belongs to another pair of vocabularies
        or another drafter; or it holds a drafter that has learned, and the decoder has no adapter.
    """
    ngrams, states = read_whole(folder, _VALUES, lambda place: _read(decoder, place))
    if ngrams is not None:
        decoder.cache = ngrams
    parts = dict(_parts(decoder))
    if "adapter" in states and "adapter" not in parts:
        raise DraftError(
            f"{folder} holds a draft model that has learned. Make the decoder with "
            "adapter=draftlib.OnlineAdapter(); set its `frozen` to True if it should learn nothing more."
        )
    for name, state in states.items():
        if name not in parts:
            log.warning(
                "%s: the decoder has no %s; what that had learned is left out, and the next save drops it. "
                "Make the decoder with it to keep it.",
                folder,
                name,
            )
            continue
        try:
            parts[name].restore(state)
        except DraftError as error:
            raise DraftError(f"{folder}, {name}: {error}") from error


def _parts(decoder: SpeculativeDecoder) -> Iterator[tuple[str, Any]]:
    """Yield what can have learned, by name."""
    if decoder.adapter is not None:
        yield "adapter", decoder.adapter
    if all(callable(getattr(decoder.length, name, None)) for name in ("state", "restore")):
        yield f"length {type(decoder.length).__name__}", decoder.length
    for source in decoder.sources:
        yield f"source {source.name}", source


def _checked(state: Any, name: str) -> State:
    """Return what a part has learned; refuse what files cannot hold."""
    if not isinstance(state, State) or not all(isinstance(each, dict) for each in state):
        raise DraftError(
            f"{name}: its state is {describe(state)}. Return a draftlib.state.State of two dicts: tensors, "
            "and values for JSON."
        )
    if wrong := [key for key, value in state.tensors.items() if not isinstance(value, Tensor)]:
        raise DraftError(
            f"{name}: in its state, tensors[{wrong[0]!r}] is {describe(state.tensors[wrong[0]])}. Numbers "
            "and lists go to State.values."
        )
    try:
        json.dumps(state.values)
    except (TypeError, ValueError) as error:
        raise DraftError(
            f"{name}: the values of its state cannot be written as JSON: {error}. Use numbers, strings, "
            "lists and dicts; tensors go to State.tensors."
        ) from error
    if wrong := [key for key in _keys(state.values) if not isinstance(key, str)]:
        raise DraftError(
            f"{name}: a dict among the values of its state has the key {wrong[0]!r}, which JSON would give "
            "back as a str. Write a list of pairs: [[key, value], ...]."
        )
    return state


def _keys(values: Any) -> Iterator[Any]:
    """Yield the keys of all dicts in what JSON may hold, however deep."""
    if isinstance(values, dict):
        yield from values
        values = values.values()
    elif not isinstance(values, list | tuple):
        return
    for each in values:
        yield from _keys(each)


def _read(decoder: SpeculativeDecoder, folder: Path) -> tuple[NGramCache | None, dict[str, State]]:
    values = _read_values(folder)
    try:
        content = (folder / _TENSORS).read_bytes()
    except OSError as error:
        raise DraftError(f"{folder} holds no state that can be read: {error}") from error
    if values["pair"] != decoder.vocabulary.fingerprint:
        raise DraftError(
            f"The state in {folder} belongs to another pair of vocabularies: "
            f"{values.get('vocabularies', '?')} This pair: {decoder.vocabulary} Choose another folder."
        )
    if sha256_of(content) != values["sha256"]:
        raise DraftError(
            f"{folder / _TENSORS} is damaged: its {len(content):,} bytes do not have the sha256 that "
            f"{_VALUES} names. Take an older copy of the folder, or learn anew."
        )
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise DraftError(f"{folder / _TENSORS} is damaged: {error}.") from error
    states = {name: State({}, part) for name, part in values["parts"].items()}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        states[part].tensors[key] = tensor
    cache = NGramCache.load(folder / _NGRAMS, decoder.vocabulary) if values["ngrams"] else None
    return cache, states


def _read_values(folder: Path) -> dict[str, Any]:
    """Return `state.json`; raise a DraftError unless it is whole and of this version."""
    path = folder / _VALUES
    if not path.exists():
        raise DraftError(
            f"{folder} holds no state: it has no {_VALUES}. Leave state= out the first time, and keep what "
            f"was learned by decoder.save({str(folder)!r})."
        )
    try:
        values = parse_json(path.read_bytes(), path)
    except (OSError, ModelError) as error:
        raise DraftError(f"{folder} holds no state that can be read: {error}") from error
    kinds = {"version": int, "pair": str, "ngrams": bool, "parts": dict, "sha256": str}
    wrong = [key for key, kind in kinds.items() if type(values.get(key)) is not kind]
    if wrong:
        raise DraftError(f"{path} is damaged: check {list_names(wrong, 9)}. Learn anew.")
    if values["version"] != VERSION:
        raise DraftError(f"{path} has version {values['version']}, this release reads {VERSION}. Learn anew.")
    if values.get(SEAL) != digest_of(values):
        raise DraftError(
            f"{path} is damaged: it does not have the sha256 that it names. Take an older copy of the "
            "folder, or learn anew."
        )
    return values


def _our_files(folder: Path) -> list[str]:
    """Return the names of the files of a state; refuse a folder that holds others and no state."""
    names = [_TENSORS, _NGRAMS, _VALUES]
    if not folder.is_dir():
        raise DraftError(f"{folder} is a file. A state is saved in a folder: choose another name.")
    others = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {*names}
    try:
        values = parse_json((folder / _VALUES).read_bytes(), folder / _VALUES)
        known = {"version", "pair", "parts"} <= values.keys()
    except (OSError, ModelError):
        known = not others  # nothing else is there: an empty folder, or a damaged state
    if not known:
        held = list_names(sorted(others)) or f"a {_VALUES} of another kind"
        raise DraftError(f"{folder} holds {held} and no state. Choose another folder for it.")
    return names
