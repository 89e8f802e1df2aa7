"""The folder in which an n-gram cache is kept: numbers in `ngrams.safetensors`, the rest in `ngrams.json`.

    tokens   int32 [sum of lengths]   draft tokens of all entries, one after the other
    lengths  int32 [N]                draft tokens of each entry
    targets  int32 [N]
    counts   int64 [N]                times emitted
    last     int64 [N]                clock when last emitted; below 0 for entries of a warm start
    aged     int64 [N]                age of the cache when last emitted, less its age when saved: 0 or less

`ngrams.json` names the pair of vocabularies and holds the sha256 of the numbers, and one of itself, so that
damage is noticed. The folder is replaced as a whole (`qlib.models.disk`): a reader finds the old cache or
the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from draftlib.vocabulary.bounded_ngrams import Row
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.errors import DraftError, ModelError, list_names
from qlib.models.disk.folders import atomic_folder
from qlib.models.disk.hashes import (
    SEAL,
    digest_of,
    sealed,
    sha256_of,
)
from qlib.models.disk.read_folder import read_whole
from qlib.models.files import parse_json

VERSION = 2  # 1 had no hash of ngrams.json
READABLE = (1, 2)
SETTINGS = {"max_entries", "policy", "max_length"}
_NUMBERS, _REST = "ngrams.safetensors", "ngrams.json"


@dataclass(frozen=True)
class Table:
    """All entries of a cache as arrays; the fields are described above."""

    tokens: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    last: np.ndarray[Any, Any]
    aged: np.ndarray[Any, Any]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """Put rows into arrays."""
        rows = list(rows)
        return cls(
            np.array([token for row in rows for token in row.tokens], dtype=np.int32),
            np.array([len(row.tokens) for row in rows], dtype=np.int32),
            np.array([row.target for row in rows], dtype=np.int32),
            np.array([row.emitted for row in rows], dtype=np.int64),
            np.array([row.last for row in rows], dtype=np.int64),
            np.array([row.aged for row in rows], dtype=np.int64),
        )

    def check(self) -> None:
        """Raise ValueError if the arrays do not fit together."""
        shapes = {name: each.shape for name, each in vars(self).items()}
        entries = {name: shape for name, shape in shapes.items() if name != "tokens"}
        if len({*entries.values()}) > 1 or self.lengths.ndim != 1 or self.lengths.min(initial=1) < 1:
            raise ValueError(f"the arrays do not describe the same entries: {entries}")
        if shapes["tokens"] != (self.lengths.sum(),):
            raise ValueError(
                f"{shapes['tokens']} draft tokens for lengths that add up to {self.lengths.sum()}"
            )
        if any(each.dtype.kind != "i" for each in vars(self).values()):
            raise ValueError("the arrays hold something else than whole numbers")

    def rows(self) -> Iterator[Row]:
        """Yield one row for each entry."""
        tokens, start = self.tokens.tolist(), 0
        columns = (self.lengths, self.targets, self.counts, self.last, self.aged)
        for length, *row in zip(*(each.tolist() for each in columns), strict=True):
            yield Row(tuple(tokens[start : start + length]), *row)
            start += length


def write(
    folder: Path, rows: Iterable[Row], settings: dict[str, Any], clock: int, pair: VocabularyMap
) -> None:
    """Write both files at once: whatever happens, the folder holds the old cache or the new one.

    Raises
    ------
    DraftError
        The folder holds other files and no n-gram cache.
    FileError
        The disk is full, or may not be written.
    """
    numbers = save(dict(vars(Table.of(rows))))
    rest = {
        "version": VERSION,
        "pair": pair.fingerprint,
        "vocabularies": str(pair),
        "clock": clock,
        "settings": settings,
        "sha256": sha256_of(numbers),
    }
    with atomic_folder(folder, _our_files) as fresh:
        (fresh / _NUMBERS).write_bytes(numbers)
        (fresh / _REST).write_text(json.dumps(sealed(rest), indent=1) + "\n", encoding="utf-8")


def _our_files(folder: Path) -> list[str]:
    """Return the names of the files of a cache; refuse a folder that holds others and no cache."""
    names = [_NUMBERS, _REST]
    if not folder.is_dir():
        raise DraftError(f"{folder} is a file. An n-gram cache is saved in a folder: choose another name.")
    others = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {*names}
    try:
        known = {"version", "pair", "sha256"} <= parse_json(
            (folder / _REST).read_bytes(), folder / _REST
        ).keys()
    except (OSError, ModelError):
        known = not others  # nothing else is there: an empty folder, or a damaged cache
    if not known:
        held = list_names(sorted(others)) or f"a {_REST} of another kind"
        raise DraftError(f"{folder} holds {held} and no n-gram cache. Choose another folder for it.")
    return names


def read(folder: Path, pair: VocabularyMap) -> tuple[list[Row], dict[str, Any], int]:
    """Return the entries, the settings and the clock.

    A folder that is replaced meanwhile gives the older cache or the newer one.

    Raises
    ------
    DraftError
        A file is missing, damaged or of another version, or the cache belongs to another pair.
    """
    return read_whole(folder, _REST, lambda place: _read(place, pair))


def _read(folder: Path, pair: VocabularyMap) -> tuple[list[Row], dict[str, Any], int]:
    if not (folder / _REST).exists():
        raise DraftError(
            f"{folder} holds no n-gram cache: it has no {_REST}. Write one by cache.save(folder)."
        )
    try:
        rest = parse_json((folder / _REST).read_bytes(), folder / _REST)
        numbers = (folder / _NUMBERS).read_bytes()
    except (OSError, ModelError) as error:
        raise DraftError(
            f"{folder} holds no n-gram cache that can be read: {error} Save it again."
        ) from error
    _check_rest(rest, folder / _REST, pair)
    if sha256_of(numbers) != rest["sha256"]:
        raise DraftError(
            f"{folder / _NUMBERS} is damaged: its {len(numbers):,} bytes do not have the sha256 that "
            f"{_REST} names. Delete the folder and collect a new cache."
        )
    try:
        arrays = load(numbers)
        if "counts" in arrays:  # caches of the first releases did not age
            arrays.setdefault("aged", np.zeros_like(arrays["counts"]))
        table = Table(**arrays)
        table.check()
    except (SafetensorError, TypeError, ValueError) as error:
        raise DraftError(f"{folder / _NUMBERS} is damaged: {error}. Delete the folder.") from error
    return list(table.rows()), rest["settings"], rest["clock"]


def _check_rest(rest: dict[str, Any], path: Path, pair: VocabularyMap) -> None:
    """Raise a DraftError unless `ngrams.json` is whole, of a known version, and this pair's."""
    kinds = {"version": int, "pair": str, "clock": int, "settings": dict, "sha256": str}
    wrong = [key for key, kind in kinds.items() if type(rest.get(key)) is not kind]
    if wrong or {*rest["settings"]} != SETTINGS:
        raise DraftError(
            f"{path} is damaged: check {list_names(wrong or ['settings'], 9)}. Save the cache again."
        )
    if rest["version"] not in READABLE:
        raise DraftError(
            f"{path} has version {rest['version']}, this release reads {list_names(map(str, READABLE))}. "
            "Collect a new cache."
        )
    if rest.get(SEAL) != (digest_of(rest) if rest["version"] > 1 else None):
        raise DraftError(
            f"{path} is damaged: it does not have the sha256 that it names. Delete the folder and collect a "
            "new cache."
        )
    if rest["pair"] != pair.fingerprint:
        raise DraftError(
            f"The n-gram cache in {path.parent} belongs to another pair of vocabularies: "
            f"{rest.get('vocabularies', '?')} This pair: {pair} Collect a new cache for it."
        )
