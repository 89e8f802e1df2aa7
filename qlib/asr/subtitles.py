"""Transcripts as files: plain text, WebVTT, SubRip, tab-separated values and JSON.

Each format is a function from a transcript to the file's content, in the form that OpenAI's Whisper writes.
`write_transcript` puts it on disk, `write_transcripts` those of many recordings into one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from qlib.asr.transcript import Segment, Transcript
from qlib.errors import DataError, did_you_mean
from qlib.models.files import atomic_file


def to_txt(transcript: Transcript) -> str:
    """Return the text, one line for each segment; without timestamps in one line."""
    parts = [transcript.text] if transcript.segments is None else [each.text for each in transcript.segments]
    return "".join(f"{_one_line(text)}\n" for text in parts)


def to_vtt(transcript: Transcript) -> str:
    """Return WebVTT. Times are 00:01.500, with hours in front from the first hour on."""
    cues = "".join(f"{_cue(each, '.', hours=False)}\n" for each in _segments(transcript, "vtt"))
    return f"WEBVTT\n\n{cues}"


def to_srt(transcript: Transcript) -> str:
    """Return SubRip. Cues are numbered from 1, times are 00:00:01,500."""
    segments = enumerate(_segments(transcript, "srt"), 1)
    return "".join(f"{number}\n{_cue(each, ',', hours=True)}\n" for number, each in segments)


def to_tsv(transcript: Transcript) -> str:
    """Return start, end (in milliseconds) and text of each segment, separated by tabs, under a header."""
    rows = ["start\tend\ttext\n"]
    for each in _segments(transcript, "tsv"):
        rows.append(f"{_milliseconds(each.start)}\t{_milliseconds(each.end)}\t{_one_line(each.text)}\n")
    return "".join(rows)


def to_json(transcript: Transcript) -> str:
    """Return an object with ``text``, ``segments`` (id, start, end, text, tokens) and ``language``."""
    segments = [
        {"id": i, "start": each.start, "end": each.end, "text": each.text, "tokens": each.tokens}
        for i, each in enumerate(_segments(transcript, "json"))
    ]
    content = {"text": transcript.text, "segments": segments, "language": transcript.language}
    return json.dumps(content, ensure_ascii=False)


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "vtt": to_vtt,
    "srt": to_srt,
    "tsv": to_tsv,
    "json": to_json,
}
WITH_TIMES = ("vtt", "srt", "tsv", "json")  # the formats that need segments


def write_transcript(transcript: Transcript, path: str | Path) -> Path:
    """Write a transcript in the format that the path's suffix names; an existing file is replaced at once.

    Parameters
    ----------
    transcript : Transcript
        Of `qlib.transcribe` with ``timestamps=True``; for ``.txt`` without as well.
    path : str or Path
        Ends in ``.txt``, ``.vtt``, ``.srt``, ``.tsv`` or ``.json``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        The suffix names no format, or the format needs segments and there are none.
    FileError
        The file cannot be written.
    """
    path = Path(path)
    name = path.suffix.lower().removeprefix(".")
    if name not in FORMATS:
        known = ", ".join(f".{each}" for each in FORMATS)
        raise DataError(
            f"{path}: the suffix {path.suffix!r} names no format.{did_you_mean(name, FORMATS)} Use {known}."
        )
    content = FORMATS[name](transcript)
    with atomic_file(path) as fresh:
        fresh.write_bytes(content.encode("utf-8"))  # bytes: line ends stay as they are on every system
    return path


def write_transcripts(
    transcripts: Mapping[str, Transcript], folder: str | Path, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Write transcripts into a folder, each as ``STEM.FORMAT``; existing files are replaced, each at once.

    Parameters
    ----------
    transcripts : mapping of str to Transcript
        By the path of the recording, whose stem the files have: ``talks/a.flac`` becomes ``a.srt``.
    folder : str or Path
        It must exist.
    formats : sequence of str
        Of `FORMATS`.

    Returns
    -------
    dict of str to list of Path
        The files of each recording.

    Raises
    ------
    DataError
        Two recordings have one stem, or a format needs segments and a transcript has none.
    FileError
        A file cannot be written.
    """
    check_stems(transcripts)
    return {
        recording: [
            write_transcript(transcript, Path(folder) / f"{Path(recording).stem}.{each}") for each in formats
        ]
        for recording, transcript in transcripts.items()
    }


def check_stems(recordings: Iterable[str]) -> None:
    """Refuse recordings whose files would have one name; upper and lower case are one on some systems.

    Raises
    ------
    DataError
        Names the two.
    """
    seen: dict[str, str] = {}
    for each in recordings:
        stem = Path(each).stem
        if other := seen.get(stem.casefold()):
            raise DataError(
                f"{other} and {each}: the transcripts of both would be called {stem}. Write them into two "
                "folders, one after the other."
            )
        seen[stem.casefold()] = each


def _segments(transcript: Transcript, name: str) -> tuple[Segment, ...]:
    if transcript.segments is None:
        raise DataError(
            f"The {name} format needs segments, and this transcript of {transcript.seconds:g} s has none. "
            "Transcribe with timestamps=True, or write .txt."
        )
    return transcript.segments


def _cue(segment: Segment, decimal_mark: str, hours: bool) -> str:
    """Return a cue of VTT or SRT without its number: times, text, line end."""
    start, end = (_clock(seconds, decimal_mark, hours) for seconds in (segment.start, segment.end))
    text = _one_line(segment.text).replace("-->", "->")  # an arrow marks a line of times
    return f"{start} --> {end}\n{text}\n"


def _clock(seconds: float, decimal_mark: str, hours: bool) -> str:
    """Return a time as 01:02:03.400; without `hours`, as 02:03.400 where it is less than one."""
    rest, milliseconds = divmod(_milliseconds(seconds), 1000)
    minutes, whole_seconds = divmod(rest, 60)
    whole_hours, minutes = divmod(minutes, 60)
    front = f"{whole_hours:02d}:" if hours or whole_hours else ""
    return f"{front}{minutes:02d}:{whole_seconds:02d}{decimal_mark}{milliseconds:03d}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _one_line(text: str) -> str:
    """Return the text without tabs and line ends, which separate fields and cues."""
    return " ".join(text.split())
