"""Writing the files of a folder that is still being made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qlib.models.files import json_text


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that other users of the machine may read, like its neighbours."""
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # it is created for its owner only


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a folder that is still being made."""
    path.write_text(json_text(content), encoding="utf-8")
