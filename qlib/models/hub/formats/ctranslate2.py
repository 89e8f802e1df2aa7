"""Reader of CTranslate2's `model.bin` (binary version 6): named variables.

Layout, little-endian, nothing aligned or padded:

    u32 version | str spec | u32 revision | u32 variables
    per variable: str name | u8 rank | u32 dims[rank] | u8 dtype | u32 bytes | data, row-major
    u32 aliases | per alias: str alias | str target | end of file
    str = u16 length with the closing NUL, bytes, NUL

Left out: other versions of the layout, and int8 weights with their scales (such a variable is an error).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib.errors import ModelError

VERSION = 6
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # 5, bfloat16, is unknown to numpy
_BFLOAT16 = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a `model.bin` holds.

    Attributes
    ----------
    spec : str
        Kind of model, for example ``"WhisperSpec"``.
    variables : dict of str to ndarray
        Arrays that read from the mapped file; settings are arrays of rank 0. bfloat16 is widened to float32.
    """

    spec: str
    variables: dict[str, Array]


class _Cursor:
    """A position in the file; every step past its end is an error that says where and in what."""

    def __init__(self, path: Path):
        self.path = path
        self.at = 0
        try:
            self.data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: mmap refuses an empty file
            raise ModelError(f"Cannot read {path}: {error}.") from error

    def fail(self, what: str, where: str) -> ModelError:
        return ModelError(
            f"{self.path} is damaged or not a CTranslate2 model: {what} "
            f"at byte {self.at} of {self.data.size}, in {where}. Fetch or copy it again."
        )

    def take(self, count: int, where: str) -> Array:
        if self.at + count > self.data.size:
            raise self.fail(f"{count} bytes expected, {self.data.size - self.at} left", where)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, where: str) -> int:
        return int.from_bytes(self.take(size, where).tobytes(), "little")

    def text(self, where: str) -> str:
        raw = self.take(self.number(2, where), where).tobytes()
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not name.endswith("\0"):
            raise self.fail("a name is not text that ends with NUL", where)
        return name[:-1]


def read(path: str | Path) -> Checkpoint:
    """Read a `model.bin`; the arrays stay in the mapped file until they are used.

    Raises
    ------
    ModelError
        The file is missing, truncated, of another version or another format; the message says at which
        byte and in which variable.
    """
    cursor = _Cursor(Path(path))
    version = cursor.number(4, "the header")
    if version != VERSION:
        raise ModelError(
            f"{path} is not a CTranslate2 model of binary version {VERSION}: it starts with {version}. "
            "Convert the model again with CTranslate2 3 or 4."
        )
    spec = cursor.text("the header")
    cursor.number(4, "the header")  # revision of that kind of model: every one so far has these variables
    variables: dict[str, Array] = {}
    for index in range(cursor.number(4, "the number of variables")):
        name, values = _variable(cursor, index)
        if variables.setdefault(name, values) is not values:
            raise cursor.fail("a name that was used before", f"variable {index} ({name})")
    for index in range(
        cursor.number(4, "the number of aliases")
    ):  # tied weights, which our models tie as well
        alias = cursor.text(f"alias {index}")
        target = cursor.text(f"alias {index} ({alias})")
        if target not in variables:
            raise cursor.fail(f"the unknown target {target!r}", f"alias {index} ({alias})")
    if cursor.at != cursor.data.size:
        raise cursor.fail(f"{cursor.data.size - cursor.at} bytes too many", "the end of the file")
    return Checkpoint(spec, variables)


def _variable(cursor: _Cursor, index: int) -> tuple[str, Array]:
    name = cursor.text(f"the name of variable {index}")
    where = f"variable {index} ({name})"
    shape = [cursor.number(4, where) for _ in range(cursor.number(1, where))]
    code, size = cursor.number(1, where), cursor.number(4, where)
    if code not in _DTYPES and code != _BFLOAT16:
        raise cursor.fail(f"the unknown dtype {code}", where)
    dtype = np.dtype(_DTYPES.get(code, "<u2"))
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize  # object: no overflow on absurd sizes
    if size != expected:
        raise cursor.fail(f"{size} bytes stated for shape {shape}, which takes {expected},", where)
    data = cursor.take(size, where).view(dtype)
    try:
        values = data.reshape(shape)
    except ValueError as error:  # more axes than numpy can count
        raise cursor.fail(f"the impossible shape {shape[:8]} of rank {len(shape)}", where) from error
    if code == _BFLOAT16:  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return name, values
