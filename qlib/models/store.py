"""Folders of the cache: made aside and moved into place at once, by `qlib.models.files`.

<cache>/models/<name>/             a finished model
<cache>/models/.quantdraft-.../    work in progress; what a killed run left there is removed by the next fetch
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qlib.models import files


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
def workspace(name: str) -> Iterator[Path]:
    """Hold the lock of one model, and yield an empty folder on the cache's disk that is removed at the end.

    Others wait here. Folders left by killed runs are removed first.
    """
    folder = model_dir(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.work_place(folder, holder=f"another fetch of {name}") as work:
        files.recover(folder, _everything)
        shutil.rmtree(
            folder.parent / ".partial" / name, ignore_errors=True
        )  # where releases up to 0.1 worked
        yield work


def tidy(name: str) -> None:
    """Remove what killed fetches of one model left, unless a fetch is at work now."""
    folder = model_dir(name)
    files.mend(folder, _everything, wait=False)
    shutil.rmtree(folder.parent / ".partial" / name, ignore_errors=True)


def install(built: Path, name: str) -> Path:
    """Move a finished folder into place; an older one goes away. Call it in the model's workspace.

    A reader finds the old folder, none for a moment, or the new one, never a mixture.
    """
    final = model_dir(name)
    files.install(built, final, _everything)
    return final


def _everything(folder: Path) -> Sequence[str]:
    """All that lies in a folder of the cache is ours."""
    return sorted(path.name for path in folder.iterdir())
