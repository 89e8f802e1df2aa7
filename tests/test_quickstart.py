"""The main job and the error paths of the whole library, as a user meets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.weights
@pytest.mark.slow
def test_quickstart_prints_the_table(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint("whisper-tiny.en")
    command = [
        sys.executable,
        str(ROOT / "examples" / "quickstart.py"),
        "--bits",
        "4",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("float", "rtn w4", "gptq w4"))}
    assert rows.keys() == {"float", "rtn", "gptq"}
    assert "4.56" in rows["rtn"] and "75.5" in rows["float"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "whisper-tiny.en-gptq-w4",
        "whisper-tiny.en-rtn-w4",
        "whisper-tiny.en-spqr-w4",
    ]
