"""Folders of the cache: made aside and moved into place at once, by `qlib.models.disk`.

<cache>/models/<name>/             a finished model
<cache>/models/.quantdraft-.../    work in progress; what a killed run left there is removed by the next fetch
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlib.errors import QlibError
from qlib.models.disk.folders import mend
from qlib.models.disk.hashes import SEAL, digest_of, sealed, sha256_of
from qlib.models.disk.replace_folder import install as install_folder
from qlib.models.disk.replace_folder import recover
from qlib.models.disk.work_place import work_place
from qlib.models.files import read_json
from qlib.models.hub.converted_files import write_json

ORIGIN = "origin.json"


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
    with work_place(folder, holder=f"another fetch of {name}") as work:
        recover(folder, _everything)
        shutil.rmtree(
            folder.parent / ".partial" / name, ignore_errors=True
        )  # where releases up to 0.1 worked
        yield work


def tidy(name: str) -> None:
    """Remove what killed fetches of one model left, unless a fetch is at work now."""
    folder = model_dir(name)
    mend(folder, _everything, wait=False)
    shutil.rmtree(folder.parent / ".partial" / name, ignore_errors=True)


def install(built: Path, name: str) -> Path:
    """Move a finished folder into place; an older one goes away. Call it in the model's workspace.

    A reader finds the old folder, none for a moment, or the new one, never a mixture.
    """
    final = model_dir(name)
    install_folder(built, final, _everything)
    return final


def write_origin(built: Path, about: Mapping[str, Any]) -> None:
    """Write what a finished folder was made of, with size and hash of each of its files."""
    made = sorted(built.iterdir())
    sizes = {file.name: file.stat().st_size for file in made}
    hashes = {file.name: sha256_of(file) for file in made}
    write_json(built / ORIGIN, sealed({**about, "files": sizes, "sha256": hashes}))


def problem(folder: Path, about: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a folder, as the end of a sentence; None if it is the one that was made.

    `about` holds the entries of origin.json that decide whether it was made of the right things.
    """
    if not folder.is_dir():
        return "is not there"
    try:
        found = read_json(folder / ORIGIN)
    except QlibError:
        return f"is incomplete (no readable {ORIGIN})"
    sizes, hashes = found.get("files"), found.get("sha256", {})
    if not isinstance(sizes, dict) or not isinstance(hashes, dict):
        return f"is incomplete (no readable {ORIGIN})"
    if found.get(SEAL) != (digest_of(found) if SEAL in found or hashes else None):
        return f"is damaged ({ORIGIN} was changed)"
    if any(found.get(key) != value for key, value in about.items()):
        return f"was made by another version of this library (its {ORIGIN} says)"
    return _damage(folder, sizes, hashes)


def _damage(folder: Path, sizes: Mapping[str, Any], hashes: Mapping[str, Any]) -> str | None:
    """Name the first file that is not as it was made; folders of earlier releases know no hashes."""
    for name, size in sizes.items():
        file = folder / name
        there = file.stat().st_size if file.is_file() else 0
        if there != size:
            return f"is damaged ({name} has {there} bytes instead of {size})"
        if name in hashes and sha256_of(file) != hashes[name]:
            return f"is damaged ({name} was changed: it has another sha256)"
    return None


def _everything(folder: Path) -> Sequence[str]:
    """All that lies in a folder of the cache is ours."""
    return sorted(path.name for path in folder.iterdir())
