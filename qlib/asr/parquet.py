"""Parquet files of recordings as the Hub has them: rows with texts, and audio files inside a column.

    audio: struct{bytes, path} | text: string | id: string | audio_length_s: double | dataset: string

Texts are read without the sound, for a parquet file stores its columns apart. The sound of a row is read
when it is used. Rows stand in row groups, which cannot be entered in the middle: so a file remembers where
its last reading ended, and reading in order passes each row group once. One group is in memory at a time, as
it is stored and decompressed: 100 rows in the Hub's files.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from qlib.asr.manifest_rows import TEXT_KEYS, Row
from qlib.errors import DataError, require_extra

AUDIO_COLUMN = "audio"
TEXT_COLUMNS = (*TEXT_KEYS, "norm_text", "normalized_text")  # the first one present counts
TEXT_ROWS, SOUND_ROWS = 1024, 8  # decoded at once


class Shard:
    """One parquet file; opening it reads its footer only: columns, numbers of rows.

    Attributes
    ----------
    path : Path
        The file.
    text : str
        The column of what is said.
    columns : tuple of str
        All columns.
    rows : int
        How many rows it has.

    Raises
    ------
    DataError
        The file cannot be read, or lacks a column; names the file and its columns.
    MissingExtraError
        The extra ``parquet`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = self._opened()
        schema, metadata = file.schema_arrow, file.metadata
        self.columns = tuple(schema.names)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.starts = list(accumulate(sizes, initial=0))  # first row of each group, and the end of the last
        self.rows = self.starts[-1]
        self.text = self._check_columns(schema)
        self._place: _Place | None = None  # where the last reading ended

    def _check_columns(self, schema: Any) -> str:
        """Return the column of the texts."""
        found = ", ".join(self.columns) or "none"
        if AUDIO_COLUMN not in self.columns:
            raise DataError(
                f"{self.path}: no column {AUDIO_COLUMN!r} (found: {found}). Rename the one with the sound."
            )
        kind = schema.field(AUDIO_COLUMN).type
        if "bytes" not in {kind.field(i).name for i in range(kind.num_fields)}:
            raise DataError(
                f"{self.path}: column {AUDIO_COLUMN!r} is {kind}, not struct{{bytes, path}} with an audio "
                "file in each row. Save the data set with its sound in it, as the Hub does."
            )
        text = next((name for name in TEXT_COLUMNS if name in self.columns), None)
        if text is None:
            raise DataError(
                f"{self.path}: no column with what is said (found: {found}). Name it one of "
                f"{', '.join(TEXT_COLUMNS)}."
            )
        return text

    def texts(self, columns: Iterable[str]) -> Iterator[Row]:
        """Yield the rows in order, without their sound: what is said, and some columns if they are there."""
        names = [name for name in self.columns if name in (self.text, *columns)]
        file = self._opened()
        try:
            for batch in file.iter_batches(TEXT_ROWS, columns=names):
                yield from batch.to_pylist()
        except self._errors() as error:
            raise self._damaged(error) from error

    def sound(self, row: int) -> bytes:
        """Return the audio file in a row, counted from 0.

        Raises
        ------
        DataError
            The file is damaged or gone, or the row holds no bytes.
        """
        group = bisect_right(self.starts, row) - 1
        try:
            if self._place is None or group != self._place.group or row < self._place.first:
                file = self._opened()
                names = [f"{AUDIO_COLUMN}.bytes"]
                batches = file.iter_batches(SOUND_ROWS, row_groups=[group], columns=names)
                self._place = _Place(group, self.starts[group], next(batches), batches)
            found = self._place.sound(row)
        except self._errors() as error:
            raise self._damaged(error) from error
        if row == self.rows - 1:
            self._place = None  # a corpus has many shards: one that is done holds no sound and no open file
        if found is None:
            raise DataError(
                f"column {AUDIO_COLUMN!r} has no bytes in this row. Save the data set with its sound in it."
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: all but the place of the last reading."""
        return {**self.__dict__, "_place": None}

    def _opened(self) -> Any:
        parquet = require_extra("pyarrow.parquet", "parquet", f"{self.path}: reading a parquet file")
        try:
            # Without pre_buffer a row group is read as it is needed: with it, all of its sound at once.
            return parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
        except self._errors() as error:
            raise self._damaged(error) from error

    def _errors(self) -> tuple[type[Exception], ...]:
        pyarrow = require_extra("pyarrow", "parquet", f"{self.path}: reading a parquet file")
        return pyarrow.ArrowException, OSError

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: cannot be read as parquet ({error}). It is damaged, or was not fetched to its "
            "end: fetch it again."
        )


@dataclass
class _Place:
    """How far a row group has been read."""

    group: int
    first: int  # row of the file that the batch begins with
    batch: Any
    batches: Iterator[Any]

    def sound(self, row: int) -> bytes | None:
        """Return the bytes of a row of this group, `first` or later; None where it has none."""
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches)
        found: Mapping[str, bytes | None] | None = self.batch.column(0)[row - self.first].as_py()
        return None if found is None else found["bytes"]


@dataclass(frozen=True)
class StoredSound:
    """An audio file inside a parquet file, read when it is used."""

    path: Path  # of the parquet file
    row: int  # from 0
    shard: Shard = field(repr=False, compare=False)

    @property
    def stem(self) -> str:
        """The parquet file's name without its ending, and the row, from 1."""
        return f"{self.path.stem}-{self.row + 1}"

    def read(self) -> bytes:
        """Return the audio file's bytes; errors are those of `Shard.sound`."""
        return self.shard.sound(self.row)

    def sha256(self) -> str:
        """Return a hash of the audio file."""
        return hashlib.sha256(self.read()).hexdigest()
