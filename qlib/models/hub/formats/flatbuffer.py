"""Reader of flatbuffers, as far as it takes to find tables, vectors and texts in one; all little-endian.

    file    u32 offset of the root table | 4 bytes that name the schema | ...
    table   i32 distance back to its vtable | fields
    vtable  u16 own bytes | u16 table's bytes | u16 offset of each field within the table, 0: absent
    vector  u32 length | items
    text    a vector of UTF-8 bytes

A field is known by its place in the vtable: 4 for the first, 6 for the second, and so on. Numbers stand in
the table itself; for all else there is a u32, the distance from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib.errors import ModelError


class Table:
    """A table within a flatbuffer.

    Parameters
    ----------
    path : Path
        The file, for error messages.
    data : ndarray
        uint8, the whole file; what is read from it are views.
    at : int
        Byte at which the table begins.
    """

    def __init__(self, path: Path, data: NDArray[np.uint8], at: int):
        self.path, self.data, self.at = path, data, at
        self.vtable = at - int(self._array("<i4", at, 1)[0])
        self.vtable_size = self._number("<u2", self.vtable)

    @classmethod
    def root(cls, path: str | Path, identifier: bytes) -> Table:
        """Return the root table of a file.

        Raises
        ------
        ModelError
            The file is missing, or is not a flatbuffer with this identifier of four bytes.
        """
        path = Path(path)
        try:
            data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: mmap refuses an empty file
            raise ModelError(f"Cannot read {path}: {error}.") from error
        if data[4:8].tobytes() != identifier:
            raise ModelError(
                f"{path} begins with {data[:8].tobytes()!r}, not with an offset and {identifier!r}: it is "
                "damaged or of another format. Fetch or copy it again."
            )
        return cls(path, data, int(data[:4].view("<u4")[0]))

    def number(self, place: int, dtype: str, default: int = 0) -> int:
        """Return an integer field of a numpy dtype, for example ``"<i4"``."""
        field = self._field(place)
        return default if field is None else self._number(dtype, field)

    def text(self, place: int) -> str:
        """Return a text field, empty where it is absent."""
        field = self._field(place)
        return "" if field is None else self._text(field)

    def texts(self, place: int) -> list[str]:
        """Return a field that is a vector of texts."""
        return [self._text(item) for item in self._references(place)]

    def table(self, place: int) -> Table | None:
        """Return a field that is a table, None where it is absent."""
        field = self._field(place)
        return None if field is None else self._at(self._follow(field))

    def tables(self, place: int) -> list[Table]:
        """Return a field that is a vector of tables."""
        return [self._at(self._follow(item)) for item in self._references(place)]

    def numbers(self, place: int, dtype: str) -> NDArray[Any]:
        """Return a field that is a vector of numbers, a view of the file."""
        field = self._field(place)
        return np.empty(0, dtype) if field is None else self._vector(field, dtype)

    def _at(self, at: int) -> Table:
        return Table(self.path, self.data, at)

    def _field(self, place: int) -> int | None:
        offset = self._number("<u2", self.vtable + place) if place < self.vtable_size else 0
        return self.at + offset if offset else None

    def _references(self, place: int) -> list[int]:
        field = self._field(place)
        if field is None:
            return []
        first = self._follow(field) + 4
        return [first + 4 * i for i in range(len(self._vector(field, "<u4")))]

    def _text(self, field: int) -> str:
        return self._vector(field, "<u1").tobytes().decode(errors="replace")

    def _vector(self, field: int, dtype: str) -> NDArray[Any]:
        start = self._follow(field)
        return self._array(dtype, start + 4, self._number("<u4", start))

    def _follow(self, at: int) -> int:
        return at + self._number("<u4", at)

    def _number(self, dtype: str, at: int) -> int:
        return int(self._array(dtype, at, 1)[0])

    def _array(self, dtype: str, at: int, count: int) -> NDArray[Any]:
        end = at + count * np.dtype(dtype).itemsize
        if not 0 <= at <= end <= len(self.data):
            raise ModelError(
                f"{self.path} is damaged: it points to bytes {at} to {end} of {len(self.data)}. "
                "Fetch or copy it again."
            )
        return self.data[at:end].view(dtype)
