"""Lists of recordings with their transcripts: manifests and the LibriSpeech folder layout.

Four layouts, one result, a list of `Utterance`:

- JSON lines (``.jsonl``, ``.json``): one object a line, ``{"audio": "a.flac", "text": "..."}``;
- CSV (``.csv``) with a header line, comma or semicolon, texts that hold one in double quotes;
- TSV (``.tsv``) with a header line, as Common Voice has it: columns ``path`` and ``sentence``, no quoting;
- LibriSpeech: ``speaker/chapter/speaker-chapter.trans.txt`` beside the flac files.

Names understood, the first one present counts: `AUDIO_KEYS`, `TEXT_KEYS` and `LANGUAGE_KEYS`. Optional:
``id``, ``source``, ``split``, and in seconds ``offset`` and ``duration``. These two mean what they mean in
NeMo's manifests: the utterance is that part of the recording, and no more than it is read.

Everything that can be wrong with a list is found while it is read: every line is parsed, every audio file
looked up, and every segment compared with its file's length before the first sound is read, so that a long
evaluation cannot fail at its last line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from qlib.asr.audio_file import audio_seconds, segment_seconds
from qlib.asr.manifest_rows import TEXT_KEYS, lines_of, rows_of_csv, rows_of_json, rows_of_tsv
from qlib.asr.utterance import Utterance, as_seconds
from qlib.errors import DataError, describe, list_names, whole_number

AUDIO_KEYS = ("audio", "audio_filepath", "path", "file_name", "audio_path")
LANGUAGE_KEYS = ("language", "lang", "locale")


log = logging.getLogger("qlib")


def read_manifest(
    path: str | Path, limit: int | None = None, audio_root: str | Path | None = None
) -> list[Utterance]:
    """Read a manifest in JSON lines, CSV or TSV (the module's docstring has the layouts).

    Parameters
    ----------
    path : str or Path
        The manifest, ``.jsonl``, ``.json``, ``.csv`` or ``.tsv``, in UTF-8.
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
        The manifest is missing, empty or damaged, an audio file does not exist, or a segment does not lie in
        its file; names file and line.
    """
    path = _path(path, "read_manifest", "a manifest")
    root = path.parent if audio_root is None else _path(audio_root, "read_manifest", "audio_root")
    readers = {".jsonl": rows_of_json, ".json": rows_of_json, ".csv": rows_of_csv, ".tsv": rows_of_tsv}
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a manifest. Name the file in it, or use read_corpus.")
    if not path.exists():
        raise DataError(f"{path}: there is no such file. Check the path.")
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: {path.suffix or 'no ending'} is not a manifest. Use .jsonl, .json, .csv or .tsv."
        )
    rows = readers[path.suffix.lower()](path)
    found = _checked((as_utterance(row, root, where) for where, row in rows), path, limit)
    _check_segments(found, path)
    return found


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
    folder = _path(folder, "read_librispeech", "a folder")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give the one that holds the speakers' folders.")
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(f"{folder}: no *.trans.txt in it or below. Give a folder in LibriSpeech's layout.")
    return _checked((u for path in transcripts for u in _librispeech_chapter(path)), folder, limit)


def check_utterances(utterances: Iterable[Utterance], caller: str) -> list[Utterance]:
    """Return utterances as a list, or say what was given instead and what to do.

    Raises
    ------
    DataError
        No list, an empty one, or an entry that is no `Utterance`: names its position.
    """
    if isinstance(utterances, str | Path):
        raise DataError(
            f"{caller}: utterances is {describe(utterances)}. Read a manifest first: qlib.read_manifest(...)."
        )
    if isinstance(utterances, Utterance) or not isinstance(utterances, Iterable):
        raise DataError(
            f"{caller}: utterances is {describe(utterances)}, not a list. Put a single utterance into a list."
        )
    found = list(utterances)
    if not found:
        raise DataError(f"{caller}: the list of utterances is empty. Pass one or more.")
    for number, each in enumerate(found, 1):
        if not isinstance(each, Utterance):
            raise DataError(
                f"{caller}: entry {number} of {len(found)} is {describe(each)}, not an utterance: what is "
                'said must be known. Pass qlib.Utterance("a.wav", "what is said") or qlib.read_manifest.'
            )
    return found


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
            names = ", ".join(TEXT_KEYS)
            raise DataError(f"{utterance.place}: no transcript. Add it under one of the names {names}.")
        texts.append(utterance.text)
    return texts


def _path(path: object, caller: str, name: str) -> Path:
    if not isinstance(path, str | Path):
        raise DataError(f"{caller}: {name} is {describe(path)}. Give the path as a text or a Path.")
    return Path(path)


def as_utterance(row: Mapping[str, object], root: Path, where: str) -> Utterance:
    """Return the utterance that a manifest's row describes; `where` goes in front of errors."""
    audio = _first(row, AUDIO_KEYS)
    if audio is None:
        raise DataError(
            f"{where}: no audio path (found: {', '.join(row) or 'nothing'}). Call it {AUDIO_KEYS[0]!r}; "
            "the first line of a table names its columns."
        )
    text, language = _first(row, TEXT_KEYS), _first(row, LANGUAGE_KEYS)
    for value in (audio, text):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{where}: {value!r} is not text. Put the audio path and the transcript in quotes."
            )
    if not audio:
        raise DataError(f"{where}: the audio path is empty. Name a file.")
    if not isinstance(language, str | None):
        raise DataError(f'{where}: language is {describe(language)}, not a text such as "de".')
    return Utterance(
        audio=root / str(audio),
        text=None if text is None else str(text),
        id=_name(row.get("id")),
        source=str(row.get("source") or ""),
        split=str(row.get("split") or ""),
        duration=as_seconds(row.get("duration"), "duration", where),
        where=where,
        offset=as_seconds(row.get("offset"), "offset", where),
        language=(language or "").strip(),
    )


def _first(row: Mapping[str, object], names: Iterable[str]) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _name(value: object) -> str:
    return "" if value is None else str(value)


def _librispeech_chapter(path: Path) -> Iterator[Utterance]:
    for where, line in lines_of(path):
        name, _, text = line.partition(" ")
        yield Utterance(path.parent / f"{name}.flac", text.strip(), name, source="librispeech", where=where)


def _checked(utterances: Iterator[Utterance], origin: Path, limit: int | None) -> list[Utterance]:
    if limit is not None:
        limit = whole_number(limit, f"{origin}: limit", DataError, 1, remedy="Use None for all lines.")
    found = list(islice(utterances, limit))
    if not found:
        raise DataError(f"{origin}: no utterance in it. Write one a line.")
    missing = [u for u in found if not u.path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0].where}: no such audio file {missing[0].path} "
            f"({len(missing)} of {len(found)} are missing). "
            "Check the paths, and the folder that they are relative to."
        )
    return found


def _check_segments(utterances: Sequence[Utterance], origin: Path) -> None:
    """Compare offsets and durations with the files, and utterances of one file with one another."""
    lengths: dict[Path, float] = {}
    seen: dict[tuple[Path, float | None, float | None], Utterance] = {}
    cut = []
    for each in utterances:
        place = (each.path, each.offset, each.duration if each.offset is not None else None)
        if (other := seen.setdefault(place, each)).text != each.text:
            raise DataError(
                f"{each.where}: the same recording {each.path.name} as in {other.where}, with another text. "
                "Tell where each of them is: offset and duration, in seconds."
            )
        if each.offset is None and each.duration is None:
            continue
        try:
            if each.path not in lengths:
                lengths[each.path] = audio_seconds(each.path)
            seconds = segment_seconds(each.path, lengths[each.path], each.offset, each.duration)
        except DataError as error:
            raise DataError(f"{each.where}: {error}") from error
        if seconds is not None and each.offset is None:
            cut.append(f"{each.where}: {seconds:g} of {lengths[each.path]:.2f} s")
    if cut:
        log.warning(
            "%s: %d of %d utterances have a duration shorter than their file, and no offset. Only that much "
            "is read, as in NeMo: %s. If the whole file is meant, leave the duration out.",
            origin, len(cut), len(utterances), list_names(cut, 1),
        )  # fmt: skip
