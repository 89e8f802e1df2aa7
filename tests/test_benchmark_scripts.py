"""The scripts of examples/benchmarks: each explains itself; the one on long audio on a miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from code_rules import ROOT
from speech_fixtures import utterances

from qlib.models.tiny import tiny_whisper, write_folder

FOLDER = ROOT / "examples" / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_says_how_it_is_called(script: str) -> None:
    lines = run(script, "--help")
    assert lines[0].startswith(f"usage: {script}") and any("options" in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_over_long_audio(tmp_path: Path) -> None:
    write_folder(tiny_whisper(5), tmp_path / "model")
    listed = utterances(tmp_path)  # 3.8 s in all
    rows = [{"audio": each.audio.name, "text": each.text} for each in listed if isinstance(each.audio, Path)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--model", str(tmp_path / "model"), "--test", str(tmp_path / "list.jsonl")]
    arguments += ["--hours=0.01", "--every=0.1", "--threads=1"]
    heading, *samples, memory, speed, _ = run("long_audio.py", *arguments)
    assert heading.split()[0] == "minutes"
    assert len(samples) == 6  # of 36 s, one every 6 s
    found = [[float(cell.replace(",", "")) for cell in line.split()] for line in samples]
    assert all(100 < resident <= 1.01 * peak for _, _, resident, peak, _ in found)
    assert "spread" in memory and "peak grew by" in memory
    assert "times as fast as speech; WER" in speed
    assert "39 utterances" in speed  # 36 s of 3.8 s a turn, four recordings in each
