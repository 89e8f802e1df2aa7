"""The command line: results on stdout, errors on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qlib.errors import FetchError
from qlib.models.__main__ import main
from qlib.models.hub import registry


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTDRAFT_CACHE", str(tmp_path))


def test_list_shows_every_model_and_whether_it_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "size", "licence", "here"]
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert set(rows) == set(registry.ENTRIES)
    assert rows["whisper-tiny.en"][1:] == ["37,760,256", "79", "MB", "MIT", "no"]
    assert rows["drafter-7m"][-1] == "yes"


def test_path_prints_the_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path", "drafter-7m"]) == 0
    assert capsys.readouterr().out == f"{registry.path('drafter-7m')}\n"


def test_errors_go_to_stderr_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path", "whisper-base"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: whisper-base is not there in ")
    assert shown.err.endswith("Run: python -m qlib.models fetch whisper-base\n")


@pytest.mark.parametrize(("flags", "progress"), [([], True), (["--quiet"], False)])
def test_fetch_takes_several_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], progress: bool
) -> None:
    asked: list[tuple[str, bool]] = []

    def fetch(name: str, *, progress: bool) -> Path:
        asked.append((name, progress))
        return Path("/folder") / name

    monkeypatch.setattr(registry, "fetch", fetch)
    assert main(["fetch", "whisper-base", "drafter-7m", *flags]) == 0
    assert asked == [("whisper-base", progress), ("drafter-7m", progress)]
    assert capsys.readouterr().out.split() == [
        str(Path("/folder/whisper-base")),
        str(Path("/folder/drafter-7m")),
    ]


def test_a_misspelt_name_stops_before_any_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "fetch", lambda name, progress: pytest.fail("downloaded"))
    assert main(["fetch", "whisper-base", "wisper-base"]) == 1
    assert "Unknown model 'wisper-base'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(FetchError("no network"), 1), (KeyboardInterrupt(), 130)])
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(name: str, *, progress: bool) -> Path:
        raise error

    monkeypatch.setattr(registry, "fetch", fail)
    assert main(["fetch", "whisper-base"]) == code
    assert capsys.readouterr().err in (
        "error: no network\n",
        "interrupted; nothing half-done was left behind\n",
    )


@pytest.mark.parametrize("arguments", [[], ["fetch"], ["path"], ["remove", "x"], ["fetch", "x", "--loud"]])
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m qlib.models" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qlib.models", "path", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: Unknown model 'nothing'. Known: whisper-tiny.en, ")
