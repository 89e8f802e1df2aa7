"""The folder in which an n-gram cache is kept: numbers in `ngrams.safetensors`, the rest in `ngrams.json`.

    tokens   int32 [sum of lengths]   draft tokens of all entries, one after the other
    lengths  int32 [N]                draft tokens of each entry
    targets  int32 [N]
    counts   int64 [N]                times emitted
    last     int64 [N]                clock when last emitted; below 0 for entries of a warm start
    aged     int64 [N]                age of the cache when last emitted, less its age when saved: 0 or less

`ngrams.json` names the pair of vocabularies and holds the sha256 of the numbers, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from draftlib.vocab import VocabularyMap
from qlib.errors import DraftError, list_names

VERSION = 1
SETTINGS = {"max_entries", "policy", "max_length"}
_NUMBERS, _REST = "ngrams.safetensors", "ngrams.json"
Row = tuple[tuple[int, ...], int, int, int, int]  # draft tokens, target token, count, last, aged


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
            np.array([token for row in rows for token in row[0]], dtype=np.int32),
            np.array([len(row[0]) for row in rows], dtype=np.int32),
            np.array([row[1] for row in rows], dtype=np.int32),
            np.array([row[2] for row in rows], dtype=np.int64),
            np.array([row[3] for row in rows], dtype=np.int64),
            np.array([row[4] for row in rows], dtype=np.int64),
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
            yield tuple(tokens[start : start + length]), *row
            start += length


def write(folder: Path, table: Table, settings: dict[str, Any], clock: int, pair: VocabularyMap) -> None:
    """Write both files; a reader finds either the old cache, the new one, or that they do not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = save(dict(vars(table)))
    rest = {
        "version": VERSION,
        "pair": pair.fingerprint,
        "vocabularies": str(pair),
        "clock": clock,
        "settings": settings,
        "sha256": hashlib.sha256(numbers).hexdigest(),
    }
    for name, content in ((_NUMBERS, numbers), (_REST, (json.dumps(rest, indent=1) + "\n").encode())):
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)


def read(folder: Path, pair: VocabularyMap) -> tuple[Table, dict[str, Any], int]:
    """Return the entries, the settings and the clock.

    Raises
    ------
    DraftError
        A file is missing, damaged or of another version, or the cache belongs to another pair.
    """
    try:
        rest = dict(json.loads((folder / _REST).read_bytes()))
        numbers = (folder / _NUMBERS).read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise DraftError(
            f"{folder} holds no n-gram cache that can be read: {error}. Save it again."
        ) from error
    kinds = {"version": int, "pair": str, "clock": int, "settings": dict, "sha256": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(rest.get(key), kind)]
    if wrong or {*rest["settings"]} != SETTINGS:
        raise DraftError(
            f"{folder / _REST} is damaged: check {list_names(wrong or ['settings'], 9)}. "
            "Save the cache again."
        )
    if rest["version"] != VERSION:
        raise DraftError(
            f"{folder / _REST} has version {rest['version']}, this release reads {VERSION}. "
            "Collect a new cache."
        )
    if rest["pair"] != pair.fingerprint:
        raise DraftError(
            f"The n-gram cache in {folder} belongs to another pair of vocabularies: "
            f"{rest.get('vocabularies', '?')} This pair: {pair} Collect a new cache for it."
        )
    if hashlib.sha256(numbers).hexdigest() != rest["sha256"]:
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
    return table, rest["settings"], rest["clock"]
