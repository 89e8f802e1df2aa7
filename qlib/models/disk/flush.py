"""Bringing what was written to the disk itself, so that a power cut finds it there."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def flush(folder: Path) -> None:
    """Bring the files of a folder to the disk, with the usual rights: safetensors makes private files."""
    for place, _, names in os.walk(folder):
        rights = Path(place).stat().st_mode & 0o666
        for name in names:
            file = Path(place, name)
            if not file.is_symlink():
                file.chmod(file.stat().st_mode | rights)
                sync(file, os.O_RDWR)
        sync(Path(place))


def sync(path: Path, mode: int = os.O_RDONLY) -> None:
    """Bring a file, or the names in a folder, to the disk: a power cut then finds them."""
    try:
        number = os.open(path, mode)
    except PermissionError:  # Windows opens no folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(number)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP)):
            raise  # some file systems cannot sync a folder
    finally:
        os.close(number)
