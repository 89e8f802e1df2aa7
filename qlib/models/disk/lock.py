"""The lock of a path: writers of the same place take turns.

The lock is a file beside the path. The system frees it when its holder dies, so a killed run blocks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qlib.errors import FileError
from qlib.models.disk.hashes import sha256_of

log = logging.getLogger(__name__)

WAIT = 0.01  # seconds between two attempts to get a lock
PREFIX = ".quantdraft-"


class BusyError(FileError):
    """Somebody else holds the lock, and we were not to wait."""


@contextmanager
def locked(target: Path, *, wait: bool = True, holder: str = "another process") -> Iterator[None]:
    """Hold the lock of a path: others wait here, or are refused.

    Parameters
    ----------
    target : Path
        What is locked; it need not exist, its folder must. The lock is a hidden file beside it that goes away
        at the end. The system frees it when its holder is killed.
    wait : bool
        False: a BusyError at once where somebody holds it.
    holder : str
        Who holds it, for the log.
    """
    place = target.with_name(f"{prefix_of(target)}.lock")
    told = False
    while (file := take(place)) is None:
        if not wait:
            raise BusyError(f"{target} is in use by {holder}.")
        if not told:
            log.info("waiting for %s", holder)
            told = True
        time.sleep(WAIT)
    try:
        yield
    finally:
        free(file, place)


def free(file: IO[bytes], place: Path) -> None:
    """Give a lock back and remove its file."""
    with contextlib.suppress(OSError):  # a file that stays locks nothing
        place.unlink()
    file.close()


def take(place: Path) -> IO[bytes] | None:
    """Return the locked file; None where somebody else has it."""
    file = place.open("a+b")
    try:
        # Its last holder may have removed it after we opened it: then another file is the lock now.
        if _try_lock(file) and _is_there(file, place):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _is_there(file: IO[bytes], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # A result of hours is worth more than the protection against a second writer.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("%s: this file system has no locks; do not write there twice at once", file.name)
        return True


def prefix_of(target: Path) -> str:
    """Return how the hidden names beside a path begin: a name of any length gives a short one."""
    return f"{PREFIX}{sha256_of(os.fsencode(target.name))[:8]}"
