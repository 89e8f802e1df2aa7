"""Reading a folder that others may replace meanwhile: the old one or the new one, never parts of both."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qlib.errors import FileError
from qlib.models.disk.hashes import identity
from qlib.models.disk.lock import locked
from qlib.models.disk.replace_folder import old_places

log = logging.getLogger(__name__)

ATTEMPTS = 20  # to read a folder that others replace meanwhile
FREE_ATTEMPTS = 3  # of them without making the writers wait

Result = TypeVar("Result")


def current(folder: Path, mark: str) -> Path:
    """Return where a folder can be read now: there, or where it lies while it is being replaced.

    `mark` names a file by which a folder of ours is known. A folder that is nowhere is returned as it is.
    """
    target = Path(os.path.realpath(folder))
    for _ in range(2):  # between two looks, a writer may have finished
        if folder.exists():
            return folder
        for place in old_places(target):
            if (place / mark).is_file():
                return place
    return folder


def read_whole(folder: Path, mark: str, read: Callable[[Path], Result]) -> Result:
    """Return what `read` makes of a folder that others may replace meanwhile: of one folder, never of parts.

    Parameters
    ----------
    folder : Path
        Where the user says that it lies.
    mark : str
        The file by which a folder of ours is known; each writer makes a new one.
    read : callable
        Gets the folder's place now. It must raise an error for files that do not fit together.

    Raises
    ------
    Exception
        What `read` raises of a folder that nobody has touched.
    FileError
        The folder is replaced again and again, and cannot be locked.
    """
    for attempt in range(ATTEMPTS):
        with contextlib.ExitStack() as held:
            if attempt >= FREE_ATTEMPTS:
                with contextlib.suppress(OSError):  # the disk may be one that can only be read
                    target = Path(os.path.realpath(folder))
                    held.enter_context(locked(target, holder=f"another process that writes {target}"))
            place = current(folder, mark)
            before = identity(place / mark)
            try:
                return read(place)
            except Exception:  # of a folder that vanishes under it, any part may raise anything
                if current(folder, mark) == place and identity(place / mark) == before:
                    raise
                log.info("%s was replaced while it was read; reading it again", folder)
    raise FileError(f"{folder} was replaced {ATTEMPTS} times while it was read. Wait for who writes there.")
