"""Files of this library: JSON read and written, and one file replaced at once. The room `disk` has the rest.

    with atomic_file(path) as fresh:             write to `fresh`; at the end `path` becomes it

What is written is the old file or the new one, never a part: see `disk.work_place` for how. The same for a
folder is `disk.folders.atomic_folder`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlib.errors import ModelError
from qlib.models.disk.disk_errors import disk_errors, file_error
from qlib.models.disk.flush import flush, sync
from qlib.models.disk.work_place import subfolder, work_place

# --- reading


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or malformed file is a ModelError that names it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing. A checkpoint folder in Hugging Face layout has it.") from error
    except OSError as error:
        raise file_error("read", path, error) from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in the content of a file; anything else is a ModelError that names the file."""
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # malformed JSON, or not UTF-8; nested without end
        raise ModelError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}, not a JSON object.")
    return values


# --- writing


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, UTF-8, indented; the file is the old one or the new one, never a part."""
    with atomic_file(path) as fresh:
        fresh.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object as it stands in a file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; at the end it becomes `path` at once. After an error nothing changes.

    Raises
    ------
    FileError
        The disk is full, or may not be written: the message names the path, the reason and the remedy.
    """
    with disk_errors("write", path), work_place(path) as work:
        fresh = subfolder(work) / path.name
        yield fresh
        flush(work)
        fresh.replace(path)
        sync(path.parent)
