"""Transcripts as files: every format written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib.asr.subtitles import (
    FORMATS,
    to_json,
    to_srt,
    to_tsv,
    to_txt,
    to_vtt,
    write_transcript,
    write_transcripts,
)
from qlib.asr.transcript import Segment, Transcript
from qlib.errors import DataError, FileError

SEGMENTS = (
    Segment(0.0, 1.5, "Good morning.", (100, 7, 175)),
    Segment(59.9996, 61.02, "a --> b\tc\n\nd", (100, 8, 151)),
    Segment(3599.5, 3661.25, "Grüße, 世界", (100, 9, 160)),
)
TRANSCRIPT = Transcript("Good morning. Grüße", (100, 7, 175), 3700.0, "de", 0.9, SEGMENTS)

TXT = "Good morning.\na --> b c d\nGrüße, 世界\n"
VTT = """WEBVTT

00:00.000 --> 00:01.500
Good morning.

01:00.000 --> 01:01.020
a -> b c d

59:59.500 --> 01:01:01.250
Grüße, 世界

"""
SRT = """1
00:00:00,000 --> 00:00:01,500
Good morning.

2
00:01:00,000 --> 00:01:01,020
a -> b c d

3
00:59:59,500 --> 01:01:01,250
Grüße, 世界

"""
TSV = "start\tend\ttext\n0\t1500\tGood morning.\n60000\t61020\ta --> b c d\n3599500\t3661250\tGrüße, 世界\n"


def test_each_format_by_hand() -> None:
    assert to_txt(TRANSCRIPT) == TXT
    assert to_vtt(TRANSCRIPT) == VTT
    assert to_srt(TRANSCRIPT) == SRT
    assert to_tsv(TRANSCRIPT) == TSV
    content = json.loads(to_json(TRANSCRIPT))
    assert list(content) == ["text", "segments", "language"]
    assert (content["text"], content["language"]) == ("Good morning. Grüße", "de")
    first = {"id": 0, "start": 0.0, "end": 1.5, "text": "Good morning.", "tokens": [100, 7, 175]}
    assert content["segments"][0] == first
    assert [each["id"] for each in content["segments"]] == [0, 1, 2] and "世界" in to_json(TRANSCRIPT)


def test_nothing_said() -> None:
    nothing = Transcript("", (), 1.0, None, None, ())
    found = {name: write(nothing) for name, write in FORMATS.items()}
    assert found["txt"] == found["srt"] == ""
    assert (found["vtt"], found["tsv"]) == ("WEBVTT\n\n", "start\tend\ttext\n")
    assert json.loads(found["json"]) == {"text": "", "segments": [], "language": None}


@given(st.integers(0, 100 * 3600 * 1000 - 1))
def test_clocks_are_read_back(milliseconds: int) -> None:
    segment = Segment(milliseconds / 1000, milliseconds / 1000, "a", ())
    transcript = Transcript("a", (), 1.0, segments=(segment,))
    for text in (to_srt(transcript).splitlines()[1], to_vtt(transcript).splitlines()[2]):
        start, _, end = text.partition(" --> ")
        *hours, minutes, seconds = start.replace(",", ".").split(":")
        whole, _, thousandths = seconds.partition(".")
        assert start == end and int(minutes) < 60 and int(whole) < 60 and len(thousandths) == 3
        total = 3600 * int((hours or ["0"])[0]) + 60 * int(minutes) + int(whole)
        assert 1000 * total + int(thousandths) == milliseconds


@pytest.mark.parametrize(("name", "text"), [("txt", TXT), ("vtt", VTT), ("SRT", SRT), ("tsv", TSV)])
def test_the_suffix_names_the_format(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / f"talk.{name}"
    path.write_text("old")
    assert write_transcript(TRANSCRIPT, str(path)) == path
    assert path.read_bytes() == text.encode("utf-8")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_errors_leave_what_was_there(tmp_path: Path) -> None:
    plain = Transcript("Good  morning.", (), 2.5)
    path = tmp_path / "talk.vtt"
    path.write_text("old")
    with pytest.raises(DataError, match=r"vtt format needs segments.* 2\.5 s has none.*timestamps=True"):
        write_transcript(plain, path)
    assert path.read_text() == "old"
    assert write_transcript(plain, tmp_path / "talk.txt").read_text() == "Good morning.\n"
    with pytest.raises(DataError, match=r"suffix '\.vtf' names no format\. Did you mean 'vtt'\? Use \.txt"):
        write_transcript(TRANSCRIPT, tmp_path / "talk.vtf")
    with pytest.raises(FileError, match="nowhere"):
        write_transcript(TRANSCRIPT, tmp_path / "nowhere" / "talk.txt")


# --- of many recordings


def test_a_file_for_each_recording_and_format(tmp_path: Path) -> None:
    other = Transcript("", (), 1.0, segments=())
    found = write_transcripts({"talks/a.b.flac": TRANSCRIPT, "c.wav": other}, tmp_path, ["srt", "txt"])
    assert found == {
        "talks/a.b.flac": [tmp_path / "a.b.srt", tmp_path / "a.b.txt"],
        "c.wav": [tmp_path / "c.srt", tmp_path / "c.txt"],
    }
    assert (tmp_path / "a.b.txt").read_text(encoding="utf-8") == TXT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.srt", "a.b.txt", "c.srt", "c.txt"]


@pytest.mark.parametrize("other", ["other/talk.flac", "TALK.wav"])
def test_recordings_of_one_stem(tmp_path: Path, other: str) -> None:
    with pytest.raises(DataError, match=r"talk\.wav and .*: the transcripts of both would be called"):
        write_transcripts({"talk.wav": TRANSCRIPT, other: TRANSCRIPT}, tmp_path, ["txt"])
    assert not list(tmp_path.iterdir())
