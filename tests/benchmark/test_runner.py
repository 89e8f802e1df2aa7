"""Studies on miniatures: every cell, stopped and gone on with, failed and repeated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import utterances

import qlib
from qlib.__main__ import main
from qlib.asr.hypotheses import score_hypotheses
from qlib.asr.wer import scorer_versions
from qlib.benchmark import cells, memory, runner
from qlib.benchmark.config import Study, read_study
from qlib.benchmark.page import write_report
from qlib.benchmark.runner import Outcome, read_cell, run_study
from qlib.errors import DataError, FileError, ModelError, QuantError
from qlib.models.disk.folders import working_folder
from qlib.models.tiny import tiny_moonshine, tiny_whisper, write_folder

reads_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recognizers, recordings, and lists of them."""
    root = tmp_path_factory.mktemp("study")
    write_folder(tiny_whisper(5), root / "whisper")
    write_folder(tiny_moonshine(2), root / "moonshine")
    rows = [{"audio": each.audio.name, "text": each.text, "id": each.id} for each in utterances(root)]
    for name, part in (("calib", rows[:1]), ("test", rows[1:]), ("all", rows)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return root


def study(place: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "models": (str(place / "whisper"), str(place / "moonshine")),
        "data": {"test": str(place / "test.jsonl"), "all": str(place / "all.jsonl")},
        "methods": ("rtn", "awq + gptq"),
        "schemes": ("W4A16G8", "W3A8G8"),
        "calib": str(place / "calib.jsonl"),
    }
    return Study(**{**settings, **changes})


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    outcome = run_study(study(place), folder, progress=False)
    assert (outcome.known, outcome.computed, outcome.failed) == (0, 10, ())
    assert torch.get_num_threads() == threads
    return folder


def test_a_cell_is_what_the_library_computes(place: Path, finished: Path) -> None:
    found = rows(finished)
    assert [(row["method"], row["scheme"]) for row in found[:5]] == [
        ("float", "float"),
        *((method, scheme) for scheme in ("W4A16G8", "W3A8G8") for method in ("rtn", "awq + gptq")),
    ]
    model = qlib.load_model(str(place / "whisper"))
    row = next(row for row in found if (row["method"], row["scheme"]) == ("awq + gptq", "W3A8G8"))
    result = qlib.quantize(
        model,
        [qlib.AWQ(), qlib.GPTQ()],
        weight=qlib.Grid(3, 8),
        activation=qlib.PerToken(8),
        calib=qlib.read_manifest(place / "calib.jsonl"),
        progress=False,
    )
    listed = qlib.read_manifest(place / "test.jsonl")
    expected = qlib.evaluate_wer(result.model, listed, progress=False)
    assert row["tests"]["test"]["wer"] == expected.wer
    assert row["tests"]["test"]["signature"] == expected.signature
    assert row["tests"]["all"]["utterances"] == 3  # the recording that calibrates is in no test
    assert row["bits_per_weight"] == result.report.bits_per_weight
    cell = read_cell(finished, row["key"])
    assert cell is not None and [each["pred_text"] for each in cell["texts"]["test"]] == list(
        expected.hypotheses
    )
    costs = qlib.cost(result.model, 10, 40, float_bits=16)
    assert row["cost"]["bit_operations"] == round(costs.total.bit_operations)
    assert row["cost"]["file_bytes"] == costs.size.file_bytes < row["bytes"]
    assert not list((finished / "work").iterdir())


def test_a_further_run_has_a_scheme_of_its_own(place: Path, tmp_path: Path) -> None:
    runs = ("rtn W4A16G8", "rtn W4A16G8S16E3")
    one = study(place, models=(str(place / "whisper"),), methods=(), runs=runs, calib="")
    run_study(one, tmp_path, progress=False)
    found = rows(tmp_path)
    assert [(row["method"], row["scheme"]) for row in found[1:]] == [tuple(run.split()) for run in runs]
    sizes = [row["cost"]["file_bytes"] for row in found]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_numbers_of_16_bits_make_small_files(place: Path, tmp_path: Path) -> None:
    sizes = []
    for dtype in ("float32", "float16"):
        models = (str(place / "whisper"),)
        run_study(study(place, models=models, methods=(), dtype=dtype), tmp_path / dtype, progress=False)
        sizes.append(rows(tmp_path / dtype)[0]["cost"]["file_bytes"])
    assert sizes[1] == sizes[0] / 2


def test_nothing_is_computed_twice(place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "results.jsonl").read_bytes()
    monkeypatch.setattr(runner, "run", lambda *task: pytest.fail("computed again"))
    outcome = run_study(study(place), finished, progress=False)
    assert (outcome.known, outcome.computed) == (10, 0)
    assert (finished / "results.jsonl").read_bytes() == before


def wrong(hypotheses: Any, *rest: Any) -> Any:
    """Score as if all texts were empty: the rates of a package that had an error."""
    return score_hypotheses([replace(each, pred_text="") for each in hypotheses], *rest)


@pytest.mark.parametrize(
    ("older", "value"),
    [
        ("qlib.asr.wer.scorer_versions", lambda: {"whisper-normalizer": "0.0.1", "jiwer": version("jiwer")}),
        ("qlib.asr.wer.scorer_versions", lambda: {**scorer_versions(), "jiwer": "4"}),
        ("qlib.benchmark.cells.GREEDY", "unknown"),
    ],
    ids=["normalizer", "aligner", "decoding"],
)
def test_what_other_versions_scored_is_scored_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: str, value: Any
) -> None:
    one = study(place, models=(str(place / "whisper"),), methods=("rtn",), schemes=("W4A16G8",))
    run_study(one, tmp_path / "fresh", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(older, value)
        patch.setattr(cells, "score_hypotheses", wrong)
        run_study(one, tmp_path / "old", progress=False)
    assert {row["tests"]["test"]["wer"] for row in rows(tmp_path / "old")} == {100.0}
    monkeypatch.setattr(runner, "run", lambda *task: pytest.fail("computed again"))
    outcome = run_study(one, tmp_path / "old", progress=False)
    assert (outcome.known, outcome.computed, outcome.failed) == (2, 0, ())
    fresh = (tmp_path / "fresh" / "results.jsonl").read_bytes()
    assert (tmp_path / "old" / "results.jsonl").read_bytes() == fresh
    monkeypatch.setattr(runner, "scored_again", lambda *_: pytest.fail("scored twice"))
    run_study(one, tmp_path / "old", progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 1},
        {"language": "en"},
        {"dtype": "float16"},
        {"calib": ""},
        {"data": {"other": "{}/test.jsonl"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_other_cells(place: Path, finished: Path, changes: dict[str, Any]) -> None:
    changes = {k: {"other": str(place / "test.jsonl")} if k == "data" else v for k, v in changes.items()}
    one, other = study(place), study(place, **changes)
    keys = [
        {cells.key_of(cell, each, cells.Data.of(each), "weights") for cell in cells.cells_of(each)}
        for each in (one, other)
    ]
    assert not keys[0] & keys[1]


def test_other_weights_are_other_cells(tmp_path: Path) -> None:
    hashes = {memory.hash_of(str(write_folder(tiny_whisper(i), tmp_path / str(i)))) for i in (1, 2)}
    assert len(hashes) == 2


def test_a_failed_cell_is_recorded_and_tried_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner.run

    def failing(cell: cells.Cell, *task: Any) -> Any:
        if cell.method == "rtn":
            raise QuantError("layer fc1: a reason") if cell.scheme == "W4A16G8" else ZeroDivisionError("why")
        return run(cell, *task)

    monkeypatch.setattr(runner, "run", failing)
    one = study(place, models=(str(place / "whisper"),), data={"test": str(place / "test.jsonl")})
    outcome = run_study(one, tmp_path, progress=False)
    assert (outcome.computed, len(outcome.failed)) == (3, 2)
    assert [row["error"] for row in rows(tmp_path) if "error" in row] == [
        "layer fc1: a reason",
        "ZeroDivisionError: why",
    ]
    assert "2 failed" in str(outcome) and "layer fc1: a reason" in str(outcome)
    monkeypatch.undo()
    outcome = run_study(one, tmp_path, progress=False)
    assert (outcome.known, outcome.computed, outcome.failed) == (3, 2, ())
    assert not any("error" in row for row in rows(tmp_path))


def test_a_damaged_cell_is_computed_again(place: Path, tmp_path: Path) -> None:
    one = study(place, models=(str(place / "whisper"),), methods=())
    run_study(one, tmp_path, progress=False)
    (path,) = (tmp_path / "cells").iterdir()
    before = (tmp_path / "results.jsonl").read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"wer":', b'"wfr":'))
    assert run_study(one, tmp_path, progress=False).computed == 1
    assert (tmp_path / "results.jsonl").read_bytes() == before


# --- which layers hurt


def test_layers_are_judged_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(place, models=(str(place / "whisper"),), methods=("rtn",), runs=("rtn W4A16G4E3",))
    run_study(one, tmp_path, progress=False)
    plain = rows(tmp_path)
    asked = replace(one, sensitivity=True)
    outcome = run_study(asked, tmp_path, progress=False)
    assert (outcome.known, outcome.computed, outcome.failed) == (4, 1, ())
    *others, row = rows(tmp_path)
    assert others == plain
    grids = [qlib.Grid(4, 8), qlib.Grid(3, 8)]
    calib = qlib.read_manifest(place / "calib.jsonl")
    model = qlib.load_model(str(place / "whisper"))
    expected = qlib.sensitivity(model, grids, calib, measure="fisher", progress=False)
    assert row["grids"] == list(map(str, grids)) and row["recordings"] == 1
    assert row["losses"].keys() == expected.losses.keys()
    for layer, found in row["losses"].items():
        assert found == pytest.approx([expected.losses[layer][grid] for grid in grids], rel=1e-4)
    monkeypatch.setattr(runner, "run", lambda *task: pytest.fail("computed again"))
    assert run_study(asked, tmp_path, progress=False).known == 5
    run_study(one, tmp_path, progress=False)
    assert rows(tmp_path) == plain  # not asked for: no figure of another run


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"limit": 1}, True),  # what is tested does not matter
        ({"methods": ("gptq",)}, True),
        ({"schemes": ("W4A8G8", "W3A16G8")}, True),  # the same grids
        ({"schemes": ("W4A16G8",)}, False),
        ({"runs": ("rtn W2A16G8",)}, True),
        ({"calib": "{}/all.jsonl"}, False),
        ({"dtype": "float16"}, False),
    ],
    ids=str,
)
def test_what_decides_about_the_losses(place: Path, changes: dict[str, Any], same: bool) -> None:
    changes = {k: v.format(place) if k == "calib" else v for k, v in changes.items()}
    changes |= {"data": {"other": str(place / "test.jsonl")}} if "calib" not in changes else {}
    changes |= {"calib_limit": 2} if "calib" in changes else {}
    keys = [
        cells.key_of(cells.cells_of(each)[-1], each, cells.Data.of(each), "weights")
        for each in (study(place, sensitivity=True), study(place, sensitivity=True, **changes))
    ]
    assert (keys[0] == keys[1]) == same
    assert keys[0] != cells.key_of(
        cells.cells_of(study(place))[0], study(place), cells.Data.of(study(place)), "weights"
    )


@reads_toml
def test_sensitivity_by_option(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Study] = []
    monkeypatch.setattr(
        "qlib.__main__.run_study", lambda one, *_, **__: asked.append(one) or Outcome(0, 0, ())
    )
    path = toml(place)
    main(["benchmark", str(path), "--output", str(tmp_path)])
    main(["benchmark", str(path), "--output", str(tmp_path), "--sensitivity"])
    path.write_text("sensitivity = true\n" + path.read_text())
    main(["benchmark", str(path), "--output", str(tmp_path)])
    options = ["--model", "a", "--data", "b.jsonl", "--calib", "c.jsonl", "--output", str(tmp_path)]
    main(["benchmark", *options, "--sensitivity"])
    assert [one.sensitivity for one in asked] == [False, True, True, True]


# --- processes


COMMAND = """
import sys
from pathlib import Path
from qlib.__main__ import main
sys.exit(main(["benchmark", sys.argv[1], "--output", sys.argv[2], "--workers", sys.argv[3], "--quiet"]))
"""


KILLED = """
import os, signal, sys, time
from qlib.benchmark.runner import _pool
if __name__ == "__main__":
    with _pool(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signal")
def test_workers_end_with_a_killed_study(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    process = subprocess.run([sys.executable, "killed.py"], cwd=tmp_path, capture_output=True, timeout=120)
    worker, until = int(process.stdout), time.monotonic() + 60
    assert process.returncode == -signal.SIGKILL
    while time.monotonic() < until:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {worker} goes on")


def toml(place: Path) -> Path:
    path = place / "study.toml"
    path.write_text(
        'models = ["./whisper", "./moonshine"]\nmethods = ["rtn", "awq + gptq"]\n'
        'schemes = ["W4A16G8", "W3A8G8"]\ncalib = "calib.jsonl"\n'
        '[data]\ntest = "test.jsonl"\nall = "all.jsonl"\n'
    )
    return path


@reads_toml
def test_a_study_from_a_file(place: Path) -> None:
    found = read_study(toml(place))
    assert found == study(place, models=(str(place / "./whisper"), str(place / "./moonshine")))


@reads_toml
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_at_random_the_result_is_the_same_file(place: Path, finished: Path, tmp_path: Path) -> None:
    generator, killed = random.Random(0), 0
    while True:
        arguments = [sys.executable, "-c", COMMAND, str(toml(place)), str(tmp_path), "1"]
        process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
        # At some moment after the next finished cell, so that every run gets further than the one before it.
        while process.poll() is None and len(list(tmp_path.glob("cells/*.json"))) <= killed:
            time.sleep(0.005)
        time.sleep(0.1 * generator.random())
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        if (code := process.wait()) != -signal.SIGKILL:
            break
    assert code == 0
    assert killed >= 3
    assert (tmp_path / "results.jsonl").read_bytes() == (finished / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_same_file(place: Path, finished: Path, tmp_path: Path) -> None:
    outcome = run_study(study(place), tmp_path, workers=2, progress=False)
    assert (outcome.computed, outcome.failed) == (10, ())
    assert (tmp_path / "results.jsonl").read_bytes() == (finished / "results.jsonl").read_bytes()


def die(cell: cells.Cell, *task: Any) -> Any:
    """A task whose process is killed."""
    if cell.method == "rtn":
        os.kill(os.getpid(), signal.SIGKILL)
    return cells.run(cell, *task)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_lost_process_is_one_failed_cell(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run", die)
    one = study(place, models=(str(place / "whisper"),), schemes=("W4A16G8",))
    outcome = run_study(one, tmp_path, workers=2, progress=False)
    assert outcome.computed == 2
    assert [error for _, error in outcome.failed] == [
        "its process was killed, twice: by the system for want of memory, or by somebody"
    ]


def run_slowly(cell: cells.Cell, *task: Any) -> Any:
    """A task that takes long enough to be killed in the middle, on the worker that does it first."""
    time.sleep(1.0)
    return cells.run(cell, *task)


@pytest.mark.slow
def test_a_cluster_of_which_a_worker_is_lost(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "run", run_slowly)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        pids = list(distributed.Client(cluster).run(os.getpid).values())
        timer = threading.Timer(3.0, os.kill, (pids[0], signal.SIGKILL))
        timer.start()
        outcome = run_study(study(place), tmp_path, scheduler=cluster.scheduler_address, progress=False)
        timer.join()
    assert (outcome.computed, outcome.failed) == (10, ())
    assert (tmp_path / "results.jsonl").read_bytes() == (finished / "results.jsonl").read_bytes()


def test_no_scheduler_answers(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "TIMEOUT", 0.2)
    one = study(place, models=(str(place / "whisper"),), methods=())
    with pytest.raises(DataError, match="No scheduler answers"):
        run_study(one, tmp_path, scheduler="tcp://127.0.0.1:1", progress=False)


# --- errors


def test_a_model_too_large_for_memory(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    one = study(place, models=(str(place / "whisper"),), methods=())
    outcome = run_study(one, tmp_path, progress=False)
    assert "GB to quantize, and 0.0 GB are free" in outcome.failed[0][1]
    count = memory.count_weights(str(place / "whisper"))
    assert count == sum(each.numel() for each in qlib.load_model(str(place / "whisper")).parameters())


def test_a_folder_that_cannot_be_made_is_one_error(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a part of the path is a file"):
        run_study(study(place), tmp_path / "file" / "study", progress=False)


def test_two_runs_in_one_folder(place: Path, tmp_path: Path) -> None:
    with working_folder(tmp_path, DataError("")), pytest.raises(DataError, match="Another run is at work"):
        run_study(study(place), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ()}, "no models"),
        ({"models": ("{}/none",)}, "none"),
        ({"models": ("a", "a")}, "twice"),
        ({"models": ("one/whisper", "other/whisper")}, "two models are called whisper"),
        ({"models": 7}, "models is the int 7"),
        ({"data": {}}, "Name test sets"),
        ({"schemes": ("4bit",)}, r"is no scheme\. Write W<bits>A<bits>\[G<group> \| C\]"),
        ({"runs": ("spqr 4bit",)}, r"is no scheme\. Write W<bits>A<bits>"),
        ({"language": "germn"}, "study: language: unknown language 'germn'.*Did you mean 'german'"),
        ({"methods": ("gptk",)}, "no method 'gptk'"),
        ({"limit": 0}, "limit"),
        ({"dtype": "half"}, "dtype='half' is unknown"),
        ({"runs": ("W4A16",)}, "no method and scheme"),
        ({"runs": ("rtn W4A16G8",)}, "rtn W4A16G8 would be computed twice"),
        ({"sensitivity": 1}, "sensitivity is the int 1, neither True nor False"),
        ({"sensitivity": True, "calib": ""}, "recordings that calibrate"),
        ({"data": {"test": "{}/calib.jsonl"}}, "none is left to test"),
        ({"data": {"test": "{}/none.jsonl"}}, "there is no such file"),
    ],
    ids=str,
)
def test_what_cannot_be_run(place: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    if isinstance(changes.get("data"), dict):
        changes = {"data": {name: path.format(place) for name, path in changes["data"].items()}}
    if isinstance(changes.get("models"), tuple):
        changes = {"models": tuple(name.format(place) for name in changes["models"])}
    with pytest.raises((DataError, QuantError, ModelError), match=words):
        run_study(study(place, **changes), tmp_path, progress=False)
    assert not (tmp_path / "results.jsonl").exists()


def refused(place: Path, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the error of a test set, which must come before any cell runs."""
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("a cell ran"))
    with pytest.raises(DataError) as found:
        run_study(study(place, data={"test": str(data)}), folder / "out", progress=False)
    assert not (folder / "out").exists()
    return str(found.value)


def test_recordings_that_cannot_be_scored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, path = str(place / "noise1.wav"), tmp_path / "list.jsonl"
    path.write_text(json.dumps({"audio": audio}))
    assert "no transcript. Add it under one of the names" in refused(place, tmp_path, path, monkeypatch)
    lines = ({"audio": str(place / f"noise{i}.wav"), "text": text} for i, text in ((1, ""), (2, "uh")))
    path.write_text("\n".join(map(json.dumps, lines)))
    error = refused(place, tmp_path, path, monkeypatch)
    assert error.startswith(f"{path}: all 2 references are empty") and "no word to score" in error
    path.write_text("")
    assert str(path) in refused(place, tmp_path, path, monkeypatch)
    path.write_text(json.dumps({"audio": "gone.wav", "text": "the cat"}))
    assert "gone.wav" in refused(place, tmp_path, path, monkeypatch)


def test_parquet_files_that_cannot_be_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, sound = tmp_path / "x.parquet", {"bytes": (place / "noise1.wav").read_bytes(), "path": "a.wav"}

    def error(columns: dict[str, Any]) -> str:
        parquet.write_table(pyarrow.table(columns), path)
        return refused(place, tmp_path, path, monkeypatch)

    assert "x.parquet: no column with what is said (found: audio, words)" in error(
        {"audio": [sound], "words": ["the cat"]}
    )
    assert "x.parquet: no column 'audio' (found: text)" in error({"text": ["the cat"]})
    assert "x.parquet" in error({"audio": [sound], "text": [None]})
    path.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read as parquet" in refused(place, tmp_path, path, monkeypatch)


def test_recordings_without_one_that_can_be_heard(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "the cat"}))
    one = study(place, models=(str(place / "whisper"),), methods=("rtn",), schemes=("W4A16G8",))
    outcome = run_study(replace(one, data={"test": str(path)}), tmp_path / "out", progress=False)
    assert outcome.computed == 0 and [name for name, _ in outcome.failed] == [
        "whisper float",
        "whisper rtn W4A16G8",
    ]
    assert all("a.wav" in error and str(path) in error for _, error in outcome.failed)
    with pytest.raises(DataError, match="no finished cell"):
        write_report(tmp_path / "out")


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="reads TOML")
def test_python_3_10_says_that_it_reads_no_toml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"TOML files need Python 3\.11\. Pass the study as options"):
        read_study(tmp_path / "study.toml")


@reads_toml
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "no TOML"),
        ('models = ["a"]\n', "data is missing"),
        ('model = ["a"]\n[data]\na = "b"\n', "Did you mean 'models'"),
        ('models = ["a"]\n[data]\na = 7\n', "is no path"),
    ],
)
def test_what_is_no_study(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(DataError, match=words):
        read_study(tmp_path / "study.toml")
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path / "none.toml")
