"""Every lesson runs as a reader would run it, warnings being errors: prints a table, leaves a picture."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qlib
from qlib.models.tiny import tiny_whisper

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))


CURRICULUM = ROOT / "docs" / "curriculum.md"


def test_lessons_are_numbered_without_a_gap() -> None:
    assert [path.name[:2] for path in LESSONS] == [f"{k:02d}" for k in range(1, len(LESSONS) + 1)]


def curriculum_rows() -> list[list[str]]:
    """Return the cells of each lesson's row."""
    lines = CURRICULUM.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| [")]


def test_every_lesson_stands_in_the_curriculum_in_its_order() -> None:
    named = [re.fullmatch(r"\[(\d\d)\]\(\.\./examples/(.+)\)", row[0]) for row in curriculum_rows()]
    assert [match and match[2] for match in named] == [path.name for path in LESSONS]
    assert all(match and match[2].startswith(match[1]) for match in named)


@pytest.mark.parametrize("row", curriculum_rows(), ids=lambda row: row[0][1:3])
def test_a_row_of_the_curriculum_names_page_source_and_test(row: list[str]) -> None:
    _, what, page, source, _, test, exercise = row  # that the links lead somewhere is tested with all pages
    links = {
        name: re.findall(r"\]\(([^)]+)\)", cell)
        for name, cell in (("page", page), ("source", source), ("test", test))
    }
    assert what and re.search(r"\]\(\.\./examples/exercises/ex\d\d_\w+\.py\)", exercise)
    assert all(link.endswith(".md") for link in links["page"]) and links["page"]
    assert all(re.match(r"\.\./(qlib|draftlib)/", link) for link in links["source"]) and links["source"]
    assert all(link.startswith("../tests/") for link in links["test"]) and links["test"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_is_short_and_says_what_it_teaches(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    assert text.startswith(f'"""Lesson {int(path.name[:2])}: ')
    assert "What you will learn" in text.split('"""')[1]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_links_to_its_page_source_and_exercise_and_asks_questions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text.split('"""')[1]
    named = re.findall(r"\b(?:docs|qlib|draftlib)/[\w/]+\.(?:md|py)", header)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert any(name.startswith("docs/") for name in named)
    assert any(name.endswith(".py") for name in named)
    exercises = re.findall(r"\bex\d\d_\w+\.py", header)
    assert exercises
    assert [name for name in exercises if not (ROOT / "examples" / "exercises" / name).is_file()] == []
    questions = text.split("# %% Try this: predict first, then run\n")[1]
    assert len(re.findall(r"^# \d\. ", questions, re.MULTILINE)) == 3


def run_lesson(path: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-W", "error", str(path)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs(path: Path, tmp_path: Path) -> None:
    run = run_lesson(path, tmp_path, QUANTDRAFT_CACHE=str(tmp_path / "cache"))  # as if nothing were fetched
    assert run.returncode == 0, run.stderr
    picture = tmp_path / "out" / "lessons" / f"{path.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture.relative_to(tmp_path)) in run.stdout
    assert len(run.stdout.splitlines()) >= 6  # a table of some rows
    assert "nan" not in run.stdout


@pytest.mark.slow
def test_the_texts_of_lesson_12_have_the_errors_of_its_table(tmp_path: Path) -> None:
    (path,) = (path for path in LESSONS if path.name.startswith("12"))
    out = run_lesson(path, tmp_path).stdout
    (by_hand,) = re.findall(r"^difference +([+-]\S+) ", out, re.MULTILINE)
    assert f"WER difference {by_hand} " in out
    assert "substitutions, +0 deletions, +0 insertions" in out  # one wrong word for one right word


@pytest.mark.slow
def test_lesson_18_counts_float_numbers_of_16_bits_like_its_page(tmp_path: Path) -> None:
    (path,) = (path for path in LESSONS if path.name.startswith("18"))
    out = run_lesson(path, tmp_path).stdout
    found = qlib.cost(tiny_whisper(width=64), audio_seconds=10, tokens=40, float_bits=16)
    (per_token,) = re.findall(r"^float +\S+ +\S+ +(\S+)", out, re.MULTILINE)
    assert per_token == f"{found.per_token.weight_bytes / 1e6:.3g}"
    assert "float numbers of 16 bits" in out


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("number", ["24", "27"])
def test_lesson_runs_on_a_real_pair(number: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint("smollm2-135m-instruct")
    (path,) = (path for path in LESSONS if path.name.startswith(number))
    run = run_lesson(path, tmp_path)
    assert run.returncode == 0, run.stderr
    assert "target smollm2-135m-instruct, drafter drafter-7m" in run.stdout


@pytest.mark.weights
@pytest.mark.slow
def test_hqq_is_worse_than_rounding_where_inputs_are_enormous(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lesson 15 says: the weights are better, the model is worse, and a few hundred columns do it."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    lesson = importlib.import_module("15_a_language_model_in_four_bits")
    calib, test = lesson.passages()
    model = qlib.load_model(checkpoint("smollm2-135m-instruct"))
    shares = lesson.input_shares(model, calib)
    results = [
        qlib.quantize(model, method, weight=qlib.Grid(3, 64), progress=False)
        for method in (qlib.RTN(), qlib.HQQ())
    ]
    errors = [sum(layer.weight_error for layer in result.report.layers) for result in results]
    rtn, hqq = (result.model for result in results)
    trials = rtn, hqq, lesson.with_columns(hqq, rtn, shares), lesson.with_columns(rtn, hqq, shares)
    of_rtn, of_hqq, repaired, spoilt = (qlib.perplexity(each, test, progress=False).value for each in trials)
    assert errors[1] < errors[0] and of_hqq > 2 * of_rtn
    assert repaired < of_hqq / 2 and spoilt > 2 * of_rtn
    assert sum(int((share > lesson.LARGE).sum()) for share in shares.values()) < 1000  # of 149,760
