"""A finished folder takes the place of an older one, and what killed runs left half done is put right.

A folder is replaced by two renames: the old one to `.NAME.old`, the new one to NAME. If the second fails, the
first is undone. A process that is killed between them leaves only `.NAME.old`: readers look there
(`read_folder`), and the next writer puts it back (`recover`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qlib.errors import FileError, QlibError
from qlib.models.disk.disk_errors import file_error
from qlib.models.disk.flush import flush, sync
from qlib.models.disk.lock import prefix_of

log = logging.getLogger(__name__)


LONGEST = 255  # bytes of a file's name, on all usual file systems
Owned = Callable[[Path], Sequence[str]]
"""From a folder to the names in it that we wrote and may remove, what identifies it last; raises a QlibError
where the folder is not ours."""


def install(fresh: Path, folder: Path, ours: Owned) -> None:
    """Put a finished folder in the place of another, of which only what is ours goes. Hold the lock."""
    mine = ours(folder) if folder.exists() else ()
    _check_names(fresh, folder, mine)
    flush(fresh)
    old = next(place for place in old_places(folder) if not os.path.lexists(place))
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    _settle(old, folder, mine)


def recover(folder: Path, ours: Owned) -> None:
    """Put back, or clear away, what a run left that was killed while it replaced a folder. Hold the lock."""
    for old in old_places(folder):
        if old.is_symlink() or not old.is_dir():
            continue
        with contextlib.suppress(OSError):
            old.rmdir()  # all of it was cleared, but for the folder itself
            continue
        try:
            mine = ours(old)
        except QlibError:
            continue  # somebody else's
        if folder.exists():
            _settle(old, folder, mine)
        else:
            log.warning("%s was being replaced by a run that was killed; the older one is back", folder)
            old.rename(folder)


def old_places(folder: Path) -> Iterator[Path]:
    """Yield names for a folder that has to step aside; somebody else may use the first."""
    first = f".{folder.name}.old"
    if len(os.fsencode(first)) <= LONGEST:
        yield folder.with_name(first)
    for number in range(10):
        yield folder.with_name(f"{prefix_of(folder)}.old{number or ''}")


def _settle(old: Path, folder: Path, mine: Sequence[str]) -> None:
    """Move what is not ours from a replaced folder into the new one, and remove the rest.

    The new folder is in place, so trouble here is no failure: the next writer tries again.
    """
    try:
        if not old.exists():
            return
        for entry in sorted(old.iterdir()):
            if entry.name not in mine and not os.path.lexists(folder / entry.name):
                entry.rename(folder / entry.name)
        for name in mine:
            if (old / name).is_dir() and not (old / name).is_symlink():
                shutil.rmtree(old / name)
            else:
                (old / name).unlink(missing_ok=True)
        old.rmdir()
    except OSError as error:
        log.warning(
            "%s is written, but what was there before could not be cleared from %s: %s", folder, old, error
        )


def check_replaceable(folder: Path) -> None:
    """Raise a FileError before the work begins where the folder could not be renamed at its end."""
    if not folder.is_dir():
        return
    here = Path(os.path.realpath(os.curdir))
    if folder == here or folder in here.parents:
        raise FileError(
            f"{folder} is the current folder and cannot be replaced. Choose a folder inside of it."
        )
    if folder.is_mount():
        raise FileError(f"{folder} is a mount point and cannot be replaced. Choose a folder inside of it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise file_error("write", folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _check_names(fresh: Path, folder: Path, mine: Sequence[str]) -> None:
    """Raise a FileError where a file of the user's has the name of one of ours."""
    theirs = {entry.name for entry in folder.iterdir()} - {*mine} if folder.exists() else set()
    if both := sorted(theirs & {entry.name for entry in fresh.iterdir()}):
        raise FileError(
            f"{folder} holds a {both[0]} that is not ours and would be overwritten. Move it away, or choose "
            "another folder."
        )
