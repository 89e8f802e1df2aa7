"""The place where a file or folder is made before it takes its target's place.

What is being made lies beside its target in `.quantdraft-TAG-XXXXXXXX`, TAG a hash of the target's name: so a
name of any length works, and two writers never share a place. They take turns, by the lock of the target
(`lock`): whatever lies there while nobody holds the lock is what a killed run left, and the next writer
removes it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlib.models.disk.lock import PREFIX, free, locked, prefix_of, take


@contextmanager
def work_place(target: Path, *, holder: str | None = None) -> Iterator[Path]:
    """Hold the lock of a path and yield an empty folder beside it, removed at the end.

    What killed runs left there is removed first.
    """
    with locked(target, holder=holder or f"another process that writes {target}"):
        clean(target)
        work = Path(tempfile.mkdtemp(prefix=f"{prefix_of(target)}-", dir=target.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def clean(target: Path) -> None:
    """Remove work places that killed runs left beside a path. Call it with the lock of the path held."""
    for place in target.parent.glob(f"{prefix_of(target)}-????????"):
        shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, whatever they wrote there; what is in use stays."""
    names = {entry.name for entry in folder.glob(f"{PREFIX}????????[-.]*")}
    for prefix in {name[: len(PREFIX) + 8] for name in names}:
        place = folder / f"{prefix}.lock"
        if (file := take(place)) is not None:
            for work in folder.glob(f"{prefix}-????????"):
                shutil.rmtree(work, ignore_errors=True)
            free(file, place)


def subfolder(work: Path) -> Path:
    """Return a folder with the usual rights; the work place itself is closed to others."""
    fresh = work / "new"
    fresh.mkdir()
    return fresh
