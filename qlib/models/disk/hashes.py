"""How a file is known again: its SHA-256, the seal of a JSON object, and what the system says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "digest"  # where a JSON object keeps its own hash


def sha256_of(content: Path | bytes) -> str:
    """Return the SHA-256 of a file, or of bytes, in hexadecimal."""
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, however it is laid out; its own seal does not count."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return sha256_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own hash in it; `digest_of` tells whether it was changed since."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content)))  # as it will be read: tuples become lists
    return plain | {SEAL: digest_of(plain)}


def identity(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
