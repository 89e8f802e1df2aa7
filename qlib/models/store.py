"""Folders of the cache: made aside, moved into place at once, guarded by a lock that dies with its holder.

<cache>/models/<name>/            a finished model
<cache>/models/.partial/<name>/   work in progress; whatever lies here while nobody holds the lock is waste
<cache>/models/.partial/<name>.lock
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return `$QUANTDRAFT_CACHE`, else `$XDG_CACHE_HOME/quantdraft`, else `~/.cache/quantdraft`."""
    if own := os.environ.get("QUANTDRAFT_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quantdraft"


def model_dir(name: str) -> Path:
    """Return the folder of a finished model; it need not exist."""
    return cache_dir() / "models" / name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of one model: others wait here. The system frees it when its holder is killed."""
    path = _partial() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not _try_lock(file):
            log.info("waiting for another fetch of %s", name)
            while not _try_lock(file):
                time.sleep(0.1)
        yield


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """Yield an empty folder on the cache's disk, removed at the end. Call it with the lock held.

    Folders left by killed runs are removed first.
    """
    shutil.rmtree(_partial() / name, ignore_errors=True)
    folder = _partial() / name / str(os.getpid())  # a killed run's downloader may still write into its own
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def install(built: Path, name: str) -> Path:
    """Move a finished folder into place; an older one goes away. Call it with the lock held.

    A reader finds the old folder, none for a moment, or the new one, never a mixture.
    """
    final = model_dir(name)
    if final.exists():
        final.replace(built.parent / "old")  # removed with the workspace
    return built.replace(final)


def _partial() -> Path:
    return cache_dir() / "models" / ".partial"


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
        return True
