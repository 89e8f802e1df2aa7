"""Errors of the disk in words: which path, the reason, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from qlib.errors import FileError, QlibError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Make room, or choose a folder on another disk"),
    errno.EDQUOT: ("your share of the disk is full", "Make room, or choose a folder on another disk"),
    errno.EACCES: ("no right to do that there", "Choose a folder of your own, or change its rights"),
    errno.EPERM: ("no right to do that there", "Choose a folder of your own, or change its rights"),
    errno.EROFS: ("the disk can only be read", "Choose a folder on another disk"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
    errno.ENOTDIR: ("a part of the path is a file", "Choose another folder"),
    errno.EEXIST: ("a part of the path is a file", "Choose another folder"),
    errno.EISDIR: ("it is a folder", "Choose another name"),
    errno.EBUSY: ("it is in use, perhaps as a mount point", "Choose a folder inside of it"),
}


def file_error(what: str, path: Path, error: Exception) -> FileError:
    """Return the FileError that says which path could not be written (or read), why, and what to do."""
    code = getattr(error, "errno", None)
    text = getattr(error, "strerror", None) or str(error)
    if code is None and isinstance(error, SafetensorError):  # it tells the number in words only
        code = next((each for each in _REASONS if f"os error {each})" in text), None)
    reason, remedy = _REASONS.get(code or 0, ("the disk refused", "Check the path and the disk"))
    found = FileError(f"Cannot {what} {path}: {reason} ({text}). {remedy}.")
    found.errno = code
    return found


@contextmanager
def disk_errors(what: str, path: Path) -> Iterator[None]:
    """Turn errors of the disk into a FileError: "Cannot `what` `path`: the disk is full ..."."""
    try:
        yield
    except QlibError:
        raise
    except (OSError, SafetensorError) as error:
        raise file_error(what, path, error) from error
