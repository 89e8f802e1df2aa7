"""Every lesson runs as a reader would run it, warnings being errors: prints a table, leaves a picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))


def test_lessons_are_numbered_without_a_gap_and_listed_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\(examples/(\d\d_\w+\.py)\)", readme) == [path.name for path in LESSONS]
    assert [path.name[:2] for path in LESSONS] == [f"{k:02d}" for k in range(1, len(LESSONS) + 1)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_is_short_and_says_what_it_teaches(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "What you will learn" in text.split('"""')[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    picture = tmp_path / "out" / "lessons" / f"{path.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture.relative_to(tmp_path)) in run.stdout
    assert len(run.stdout.splitlines()) >= 6  # a table of some rows
    assert "nan" not in run.stdout
