"""Lessons as notebooks, run cell by cell as Jupyter would, and the page of all lessons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LESSONS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
SHORT = ("01", "19")
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
RUN = """
import json, pathlib, sys
cells = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]
code = [cell for cell in cells if cell["cell_type"] == "code"]
names = {"__name__": "__main__"}
for number, cell in enumerate(code):
    if cell["metadata"].get("tags") != ["picture"]:  # it needs IPython
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """Import the two scripts, which are no part of a package."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield {name: __import__(name) for name in ("notebooks", "lesson_page")}
    monkeypatch.undo()


def notebook(examples: dict[str, ModuleType], path: Path) -> dict[str, Any]:
    module = examples["notebooks"]
    return module.notebook(module.cells_of(path.read_text(encoding="utf-8"), path.stem))  # type: ignore[no-any-return]


def run(content: dict[str, Any], folder: Path) -> str:
    """Run the cells in order in a folder inside the repository's reach; return what they print."""
    (folder / "lesson.ipynb").write_text(json.dumps(content), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{EXAMPLES}",
        "OMP_NUM_THREADS": "1",
        "QUANTDRAFT_CACHE": str(folder / "cache"),  # nothing is fetched: the short form of each lesson
    }
    command = [sys.executable, "-W", "error", "-c", RUN, "lesson.ipynb"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@every_lesson
def test_a_notebook_has_all_of_its_lesson(examples: dict[str, ModuleType], path: Path) -> None:
    content = notebook(examples, path)
    assert content["nbformat"] == 4
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    text = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown"]
    for cell in code:
        compile(cell, path.name, "exec")
    assert text[0].startswith(f"# Lesson {int(path.name[:2])}: ")
    assert "Try this" in text[-2] and text[-1].startswith("1. ")
    assert f"{path.stem}.png" in code[-1]
    assert "def main" not in "".join(code) and "__file__" not in "".join(code)  # a cell has no file
    assert len(code) >= 4  # where the modules are, functions, a part of main, the picture
    script = path.read_text(encoding="utf-8").split('"""', 2)[2]
    written = {line.strip() for cell in content["cells"] for line in "".join(cell["source"]).splitlines()}
    left_out = ("def main", '"""Print', 'if __name__ == "__main__"', "main()", "#")
    lines = (line.strip() for line in script.splitlines())
    assert [line for line in lines if line and line not in written and not line.startswith(left_out)] == []


def test_the_cells_of_a_small_lesson(examples: dict[str, ModuleType]) -> None:
    script = (
        '"""Lesson 1: x.\n\nLearn.\nPage: docs/x.md\nRun: y\n"""\n\nimport sys\n\n\n# %% 1. One\n'
        "def f() -> int:\n    return 1\n\n\n"
        'def main() -> None:\n    """Print."""\n    # %% 2. Two\n    print(f())\n    # why\n'
        "    print(2)\n\n\n# %% Try this\n# 1. Why?\n\nif __name__ == '__main__':\n    main()\n"
    )
    cells = examples["notebooks"].cells_of(script, "01_x")
    assert [(cell.kind, cell.text) for cell in cells if not cell.tag] == [
        ("markdown", "# Lesson 1: x.\n\nLearn.\n\nPage: [docs/x.md](../../docs/x.md)\n\nRun: y"),
        ("code", "import sys"),
        ("markdown", "## 1. One"),
        ("code", "def f() -> int:\n    return 1"),
        ("markdown", "## 2. Two"),
        ("code", "print(f())\n# why\nprint(2)"),
        ("markdown", "## Try this"),
        ("markdown", "1. Why?"),
    ]


def test_the_first_cell_finds_the_modules_of_the_lessons(
    examples: dict[str, ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "drawing.py").touch()
    folder = tmp_path / "out" / "notebooks"
    folder.mkdir(parents=True)
    code = examples["notebooks"].SETUP + "\nprint(sys.path[:2], sys.argv)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == f"{[str(tmp_path), str(tmp_path / 'examples')]} ['lesson']"


@pytest.mark.parametrize(
    "path", [path for path in LESSONS if path.name[:2] in SHORT], ids=lambda path: path.stem
)
def test_short_notebooks_run(examples: dict[str, ModuleType], path: Path, tmp_path: Path) -> None:
    assert len(run(notebook(examples, path), tmp_path).splitlines()) >= 6
    assert (tmp_path / "out" / "lessons" / f"{path.stem}.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in LESSONS if path.name[:2] not in SHORT], ids=lambda path: path.stem
)
def test_all_other_notebooks_run(examples: dict[str, ModuleType], path: Path, tmp_path: Path) -> None:
    assert len(run(notebook(examples, path), tmp_path).splitlines()) >= 6


def test_notebooks_are_written(
    examples: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples["notebooks"].main()
    written = sorted((tmp_path / "out" / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in written] == [path.stem for path in LESSONS]
    assert all(json.loads(path.read_text(encoding="utf-8"))["cells"] for path in written)


def test_the_page_has_header_table_and_picture(examples: dict[str, ModuleType]) -> None:
    module = examples["lesson_page"]
    page = module.page(
        [module.Output("01_a", "Lesson 1: a < b.\n\nLearn & run docs/x.md", " x   y\n 1 < 2\n")]
    )
    assert '<h2 id="01_a">Lesson 1: a &lt; b.</h2>' in page and '<a href="#01_a">' in page
    assert 'Learn &amp; run <a href="../../docs/x.md">docs/x.md</a>' in page
    assert '<img src="01_a.png"' in page and "x   y\n 1 &lt; 2</pre>" in page


def test_a_lesson_that_does_not_exist_is_refused(
    examples: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lesson_page.py", "3", "99"])
    with pytest.raises(SystemExit):
        examples["lesson_page"].main()
    assert "there is no lesson 99; they are 01 to 27" in capsys.readouterr().err


@pytest.mark.slow
def test_one_lesson_makes_a_page(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / "lesson_page.py"), "1"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
    page = (tmp_path / "out" / "lessons" / "index.html").read_text(encoding="utf-8")
    assert "Lesson 1: one number, one grid." in page and "weight / scale" in page
    assert (tmp_path / "out" / "lessons" / "01_one_number_one_grid.png").is_file()
