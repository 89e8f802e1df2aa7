"""The recordings that ship with the examples: complete, small, licensed, and what the manifest says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import soundfile

from qlib.asr.datasets import read_manifest

SPEECH = Path(__file__).parents[1] / "examples" / "data" / "speech"
ROWS = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[row["audio"] for row in ROWS])
def test_each_recording_is_as_its_line_says(row: dict) -> None:
    assert set(row) == {"audio", "text", "source", "license", "split", "duration"}
    info = soundfile.info(SPEECH / row["audio"])
    assert info.frames / info.samplerate == pytest.approx(row["duration"], abs=1e-3)
    assert (info.format, info.channels) == ("FLAC", 1)
    assert info.samplerate == (48_000 if row["audio"] == "two-cities.flac" else 16_000)
    assert row["text"].strip()


def test_every_file_is_listed_once() -> None:
    listed = sorted(row["audio"] for row in ROWS)
    assert listed == sorted(path.name for path in SPEECH.glob("*.flac"))


def test_every_source_has_its_licence() -> None:
    page = (SPEECH / "LICENSES.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    assert set(sections) == {row["source"] for row in ROWS}
    for source, section in sections.items():
        assert "- Licence: " in section, source
        assert "- Origin: " in section, source
        count = sum(row["source"] == source for row in ROWS)
        assert f"({count})" in section or count == 1
    assert "Attribution: Asterisk sound files, voice Allison Smith" in sections["asterisk-core-sounds-en"]
    assert "Copyright (c) 2025 Moonshine AI" in sections["moonshine-voice"]


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) < 4_000_000
    assert 120 < sum(row["duration"] for row in ROWS) < 240


def test_the_split_is_as_the_page_says() -> None:
    page = (SPEECH / "LICENSES.md").read_text()
    total = sum(row["duration"] for row in ROWS)
    for split, share in (("calibration", 0.4), ("test", 0.6)):
        rows = [row for row in ROWS if row["split"] == split]
        seconds = sum(row["duration"] for row in rows)
        words = sum(len(row["text"].split()) for row in rows)
        assert seconds / total == pytest.approx(share, abs=0.03)
        assert f"| `{split}` | {len(rows)} | {seconds:.0f} | {words} |" in page
        assert len({row["source"] for row in rows}) >= 2
    assert {row["split"] for row in ROWS} == {"calibration", "test"}


def test_one_test_recording_is_longer_than_a_window() -> None:
    assert [row["audio"] for row in ROWS if row["duration"] > 30 and row["split"] == "test"] == [
        "two-cities.flac"
    ]


def test_the_library_reads_all_of_it() -> None:
    utterances = read_manifest(SPEECH / "manifest.jsonl")
    assert len(utterances) == len(ROWS)
    for utterance in utterances:
        audio = utterance.read()
        assert len(audio) / 16_000 == pytest.approx(utterance.duration, abs=1e-3)
        assert 0.05 < audio.abs().max() <= 1.0
