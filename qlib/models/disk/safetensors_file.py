"""Opening a safetensors file, with errors that name the file and what to do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qlib.errors import ModelError
from qlib.models.disk.hashes import identity


class open_safetensors:  # noqa: N801  (reads as a function)
    """`safe_open` whose errors name the file and what to do."""

    def __init__(self, path: Path):
        self.path = path
        self.held = contextlib.ExitStack()

    def __enter__(self) -> Any:
        try:
            self.file: Any = safe_open(self._utf8(), framework="pt")
            return self.file.__enter__()  # type: ignore[no-untyped-call]
        except FileNotFoundError as error:
            raise ModelError(f"{self.path} is missing. Download or convert the model again.") from error
        except (SafetensorError, OSError, RuntimeError) as error:  # the last: torch, of a file that has gone
            self.held.close()
            size = (identity(self.path) or (0, 0, 0))[2]
            raise ModelError(
                f"{self.path} ({size:,} bytes) is damaged or truncated: {error}. "
                "Download or convert it again."
            ) from error

    def __exit__(self, *exception: Any) -> None:
        self.file.__exit__(*exception)
        self.held.close()

    def _utf8(self) -> str | Path:
        """Return the path, or another way to the file where safetensors cannot read the path's bytes."""
        try:
            os.fsencode(self.path).decode("utf-8")
        except UnicodeDecodeError:
            return f"/dev/fd/{self.held.enter_context(self.path.open('rb')).fileno()}"
        return self.path
