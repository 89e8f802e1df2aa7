"""Lists of recordings with their transcripts: manifests and the LibriSpeech folder layout.

Three layouts, one result, a list of `Utterance`:

- JSON lines (``.jsonl``, ``.json``): one object a line, ``{"audio": "a.flac", "text": "..."}``;
- TSV (``.tsv``) with a header line, as Common Voice has it: columns ``path`` and ``sentence``, no quoting;
- LibriSpeech: ``speaker/chapter/speaker-chapter.trans.txt`` beside the flac files.

Names understood, the first one present counts: the audio is ``audio``, ``audio_filepath`` or ``path``; the
text is ``text``, ``sentence`` or ``transcript``. Optional: ``id``, ``source``, ``split``, ``duration`` (s).

Everything that can be wrong with a list is found while it is read: every line is parsed and every audio file
looked up before the first one is opened, so that a long evaluation cannot fail at its last line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from qlib.asr.audio import read_audio
from qlib.errors import DataError

AUDIO_KEYS = ("audio", "audio_filepath", "path")
TEXT_KEYS = ("text", "sentence", "transcript")


@dataclass(frozen=True)
class Utterance:
    """One recording of a list, and what is said in it."""

    audio: Path  # the file
    text: str | None  # what is said; None where the list does not tell
    id: str  # as the list has it, else the file's name without its ending
    source: str = ""  # where the recording comes from
    split: str = ""  # what it is for, such as "calibration" or "test"
    duration: float | None = None  # seconds, as the list has it
    where: str = ""  # file and line of the list, for error messages

    def read(self) -> Tensor:
        """Read the recording: ``[samples]`` float32 at 16 kHz.

        Raises
        ------
        DataError
            As `qlib.asr.audio.read_audio`, with file and line of the list in front.
        """
        try:
            return read_audio(self.audio)
        except DataError as error:
            raise DataError(f"{self.where}: {error}" if self.where else str(error)) from error


def read_manifest(
    path: str | Path, limit: int | None = None, audio_root: str | Path | None = None
) -> list[Utterance]:
    """Read a manifest in JSON lines or TSV (the module's docstring has both layouts).

    Parameters
    ----------
    path : str or Path
        The manifest, ``.jsonl``, ``.json`` or ``.tsv``, in UTF-8.
    limit : int, optional
        Take the first so many lines only.
    audio_root : str or Path, optional
        The folder that audio paths are relative to; the manifest's own if not given.

    Returns
    -------
    list of Utterance
        In the manifest's order, at least one.

    Raises
    ------
    DataError
        The manifest is missing, empty or damaged, or an audio file does not exist; names file and line.
    """
    path = Path(path)
    root = path.parent if audio_root is None else Path(audio_root)
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".tsv": _tsv_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: {path.suffix or 'no ending'} is not a manifest. Use .jsonl, .json or .tsv.")
    rows = readers[path.suffix.lower()](path)
    return _checked((_utterance(row, root, where) for where, row in rows), path, limit)


def read_librispeech(folder: str | Path, limit: int | None = None) -> list[Utterance]:
    """Read a folder in LibriSpeech's layout, such as ``LibriSpeech/test-clean`` or one above it.

    Parameters
    ----------
    folder : str or Path
        Searched with all its subfolders for ``*.trans.txt``: lines ``id TEXT``, the audio ``id.flac`` beside.
    limit : int, optional
        Take the first so many utterances only.

    Returns
    -------
    list of Utterance
        Sorted by path, at least one.

    Raises
    ------
    DataError
        No such folder, no transcript in it, or an audio file that does not exist; names file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give the one that holds the speakers' folders.")
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(f"{folder}: no *.trans.txt in it or below. Give a folder in LibriSpeech's layout.")
    return _checked((u for path in transcripts for u in _librispeech_chapter(path)), folder, limit)


def require_text(utterances: Sequence[Utterance]) -> list[str]:
    """Return the transcripts of all utterances, or say which one has none.

    Raises
    ------
    DataError
        An utterance has no transcript: names its file and line.
    """
    texts = []
    for utterance in utterances:
        if utterance.text is None:
            place = utterance.where or utterance.id
            raise DataError(f"{place}: no transcript. Add it under one of the names {', '.join(TEXT_KEYS)}.")
        texts.append(utterance.text)
    return texts


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, line) of every line that is not blank."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path.")
    try:
        # utf-8-sig: a byte order mark, as spreadsheets write it, would otherwise become part of a name.
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error
    # Not splitlines(): it also splits at characters that JSON allows inside a string, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error}). Write one object a line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not an object. Write one {{...}} a line.")
        yield where, row


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    lines = _lines(path)
    header = next(lines, ("", ""))[1].split("\t")
    for where, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} columns, the header has {len(header)}. Use single tabs, no quotes."
            )
        # An empty optional cell is one that is not there.
        yield where, {k: v for k, v in zip(header, cells, strict=True) if v or k in TEXT_KEYS}


def _utterance(row: dict[str, object], root: Path, where: str) -> Utterance:
    audio = _first(row, AUDIO_KEYS)
    if audio is None:
        raise DataError(
            f"{where}: no audio path (found: {', '.join(row) or 'nothing'}). Call it {AUDIO_KEYS[0]!r}."
        )
    text = _first(row, TEXT_KEYS)
    for value in (audio, text):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{where}: {value!r} is not text. Put the audio path and the transcript in quotes."
            )
    if not audio:
        raise DataError(f"{where}: the audio path is empty. Name a file.")
    return Utterance(
        audio=root / str(audio),
        text=None if text is None else str(text),
        id=str(row.get("id") or Path(str(audio)).stem),
        source=str(row.get("source") or ""),
        split=str(row.get("split") or ""),
        duration=_seconds(row.get("duration"), where),
        where=where,
    )


def _first(row: dict[str, object], names: Iterable[str]) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _seconds(value: object, where: str) -> float | None:
    if value is None:
        return None
    try:
        return float(str(value))
    except ValueError:
        raise DataError(
            f"{where}: duration {value!r} is not a number. Give seconds, or leave it out."
        ) from None


def _librispeech_chapter(path: Path) -> Iterator[Utterance]:
    for where, line in _lines(path):
        name, _, text = line.partition(" ")
        yield Utterance(path.parent / f"{name}.flac", text.strip(), name, source="librispeech", where=where)


def _checked(utterances: Iterator[Utterance], origin: Path, limit: int | None) -> list[Utterance]:
    if limit is not None and limit < 1:
        raise DataError(f"{origin}: limit={limit} leaves nothing to read. Use 1 or more, or None for all.")
    found = list(islice(utterances, limit))
    if not found:
        raise DataError(f"{origin}: no utterance in it. Write one a line.")
    missing = [u for u in found if not u.audio.is_file()]
    if missing:
        raise DataError(
            f"{missing[0].where}: no such audio file {missing[0].audio} "
            f"({len(missing)} of {len(found)} are missing). "
            "Check the paths, and the folder that they are relative to."
        )
    return found
