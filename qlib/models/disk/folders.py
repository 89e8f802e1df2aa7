"""Writing a folder: what stands there is the old folder or the new one, never a part.

    with atomic_folder(folder, ours) as fresh:   fill `fresh`; at the end `folder` becomes it

What we did not write there survives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qlib.errors import QlibError
from qlib.models.disk.disk_errors import disk_errors
from qlib.models.disk.lock import BusyError, locked
from qlib.models.disk.replace_folder import Owned, check_replaceable, install, recover
from qlib.models.disk.work_place import clean, subfolder, sweep, work_place


@contextmanager
def atomic_folder(folder: Path, ours: Owned) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it becomes `folder` at once. After an error nothing changes.

    Parameters
    ----------
    folder : Path
        Parents are created. A link stays a link: what it points to is replaced. Files in it that we did not
        write move into the new folder.
    ours : callable
        Tells which files of the folder we wrote, or raises the error for a folder that is not ours.

    Raises
    ------
    FileError
        The disk is full, or may not be written: the message names the path, the reason and the remedy.
    QlibError
        What `ours` raises.
    """
    with disk_errors("write", folder):
        if folder.exists():
            ours(folder)  # names the folder as the user did, and before anything is touched
        target = Path(os.path.realpath(folder))
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with work_place(target) as work:
            recover(target, ours)
            if target.exists():
                ours(target)  # again: somebody may have put something else there while we waited
            fresh = subfolder(work)
            yield fresh
            install(fresh, target, ours)


def mend(folder: Path, ours: Owned, *, wait: bool = True) -> None:
    """Put a folder in order without writing to it: what killed runs left is put back or removed."""
    target = Path(os.path.realpath(folder))
    if target.parent.is_dir():
        with disk_errors("write", folder), locked(target, wait=wait, holder=f"another writer of {target}"):
            clean(target)
            recover(target, ours)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; one that is there stays. Raises FileError where that cannot be."""
    with disk_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def working_folder(folder: Path, busy: QlibError) -> Iterator[None]:
    """Create a folder for a long run, keep other runs out of it, and remove what killed ones left.

    Raises
    ------
    QlibError
        `busy`, at once, where another run is at work there.
    FileError
        The folder may not be written.
    """
    make_folder(folder)
    with ExitStack() as held:
        try:
            with disk_errors("write", folder):
                held.enter_context(locked(folder / "run", wait=False))
        except BusyError as error:
            raise busy from error
        sweep(folder)
        yield
