"""A study on a disk that fails: what was finished stays, and the next run goes on to the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from failing_disk import Action, Disk, cannot_be_removed, emptied, failing, names, try_all
from speech_fixtures import utterances

from qlib.benchmark.config import Study
from qlib.benchmark.page import write_report
from qlib.benchmark.results import read_results
from qlib.benchmark.runner import Outcome, read_cell, run_study
from qlib.errors import FileError
from qlib.models.tiny import tiny_whisper, write_folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Float and one method, one recording that calibrates and one that tests."""
    root = tmp_path_factory.mktemp("failing_study")
    write_folder(tiny_whisper(5, width=8, layers=1, mels=8), root / "whisper")
    for name, each in zip(("calib", "test"), utterances(root)[::2], strict=True):
        row = {"audio": each.audio.name, "text": each.text, "id": each.id}
        (root / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return Study(
        models=(str(root / "whisper"),),
        data={"test": str(root / "test.jsonl")},
        methods=("gptq",),
        schemes=("W4A16G4",),
        calib=str(root / "calib.jsonl"),
    )


def run(study: Study, folder: Path) -> Outcome:
    """Run a study; a cell that failed is an error here."""
    outcome = run_study(study, folder, progress=False)
    if outcome.failed:
        raise FileError(str(outcome))
    return outcome


def finished(folder: Path) -> list[Any] | None:
    """Return the rows of all finished cells, each with the texts that are kept of it."""
    path = folder / "results.jsonl"
    if not path.exists():
        return None
    found: list[Any] = []
    for row in map(json.loads, path.read_text().splitlines()):
        if "error" in row:
            continue
        cell = read_cell(folder, row["key"])
        assert cell is not None and cell["row"] == row
        found.append((row, [each["pred_text"] for each in cell["texts"]["test"]]))
    return found


def only_float(study: Study) -> Study:
    return Study(models=study.models, data=study.data, calib=study.calib)


@pytest.mark.slow
def test_a_study_that_is_extended(small: Study, tmp_path: Path) -> None:
    folder, calm = tmp_path / "in" / "study", tmp_path / "calm"
    run(small, calm)
    after = finished(calm)
    assert after is not None and len(after) == 2

    def prepare() -> None:
        emptied(folder.parent)
        run(only_float(small), folder)

    def tidy() -> None:
        assert (folder / "results.jsonl").read_bytes() == (calm / "results.jsonl").read_bytes()
        assert names(folder) == ["cells", "results.jsonl", "work"] and not names(folder / "work")
        assert names(folder / "cells") == names(calm / "cells")

    action = Action(
        prepare, lambda: run(small, folder), lambda: finished(folder), after[:1], after,
        lambda: run(small, folder), tidy,
    )  # fmt: skip
    try_all(action, few=8)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_reports(small: Study, tmp_path: Path, name: str) -> None:
    study, place = tmp_path / "study", tmp_path / "in" / "report"
    run(only_float(small), study)
    write_report(study, tmp_path / "old")
    run(small, study)
    write_report(study, tmp_path / "new")

    def prepare() -> None:
        emptied(place.parent)
        place.mkdir()
        for each in ("report.html", "report.md"):
            (place / each).write_bytes((tmp_path / "old" / each).read_bytes())

    def tidy() -> None:
        assert names(place.parent) == ["report"] and names(place) == ["report.html", "report.md"]

    def write() -> None:
        write_report(study, place)

    old, new = ((tmp_path / each / name).read_text() for each in ("old", "new"))
    assert old != new
    try_all(Action(prepare, write, (place / name).read_text, old, new, write, tidy))


@pytest.mark.parametrize("at", [0, 5, 12])
def test_a_full_disk_keeps_the_cells_before_it(small: Study, tmp_path: Path, at: int) -> None:
    """From some step of the second cell on nothing can be written."""
    run(only_float(small), tmp_path)
    before = finished(tmp_path)
    with failing(Disk(at, "on")), pytest.raises(FileError, match="the disk is full"):
        run_study(small, tmp_path, progress=False)
    assert finished(tmp_path) == before and len(read_results(tmp_path)) == 1
    assert len(run(small, tmp_path).failed) == 0
    found = finished(tmp_path)
    assert found is not None and found[:1] == before and len(found) == 2


def test_what_cannot_be_cleared_away_at_once_is_later(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cannot_be_removed(monkeypatch, ".safetensors")
    run(small, tmp_path)
    assert names(tmp_path / "work")
    monkeypatch.undo()
    for part in ("cells", "work"):  # as a run that is killed while it writes there leaves one
        (tmp_path / part / ".quantdraft-0123abcd-s2d3nm5b").mkdir()
    assert run(small, tmp_path).computed == 0
    assert not names(tmp_path / "work") and len(names(tmp_path / "cells")) == 2
