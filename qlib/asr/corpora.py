"""Speech corpora by folder: what is in it is found out, and utterances come one by one, without their sound.

Four layouts:

- parquet files whose column ``audio`` holds the sound, as the Hub has them (extra ``parquet``); among them
  the corpora of the open ASR leaderboard, known by name (`CORPORA`), one folder each;
- an audio folder of the Hub: ``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` and the text;
- LibriSpeech's own tree (`read_librispeech`);
- a single manifest (`read_manifest`) or parquet file.

What can be known without sound is checked before the first utterance comes: that all shards are there and
readable, their columns, and of lists each line and file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qlib.asr.datasets import LANGUAGE_KEYS, read_librispeech, read_manifest
from qlib.asr.manifest_rows import Row
from qlib.asr.parquet import Shard, StoredSound
from qlib.asr.utterance import Utterance, as_seconds
from qlib.errors import DataError, describe, did_you_mean, list_names, whole_number


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies in the leaderboard's data set."""

    folder: str
    part: str = ""  # of its splits: "clean" of test.clean and test-clean


CORPORA = {
    "ami": Corpus("ami"),
    "earnings22": Corpus("earnings22"),
    "gigaspeech": Corpus("gigaspeech"),
    "librispeech-clean": Corpus("librispeech", "clean"),
    "librispeech-other": Corpus("librispeech", "other"),
    "spgispeech": Corpus("spgispeech"),
    "tedlium": Corpus("tedlium"),
    "voxpopuli": Corpus("voxpopuli"),
}
FOLDERS = {corpus.folder for corpus in CORPORA.values()}
READ = ("id", "dataset", "audio_length_s", *LANGUAGE_KEYS)  # columns beside the text, where they are there
METADATA = ("metadata.csv", "metadata.jsonl")  # of an audio folder

# test-00000-of-00003.parquet; older ones have a hash after that.
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?")


def read_corpus(
    path: str | Path, name: str | None = None, *, split: str | None = "test", limit: int | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a corpus; the sound of each is read when it is used.

    Parameters
    ----------
    path : str or Path
        A folder in one of the module's layouts, or a single manifest or parquet file.
    name : str, optional
        A corpus of the open ASR leaderboard, one of `CORPORA`: of a folder that holds several, that one is
        read.
    split : str, optional
        Of a folder with several: files named ``test...``, folders named so, or lines whose field `split` says
        so (lines that do not tell are taken). None for all that is there.
    limit : int, optional
        Take the first so many utterances only. The leaderboard's files are sorted: its longest come first.

    Yields
    ------
    Utterance
        In the files' order. ``list(...)`` of them holds texts, and no sound.

    Raises
    ------
    DataError
        No such folder, corpus or split, more than one that fits, a shard that is missing or damaged, a column
        that is missing, or no utterance; names file and row, or file and line.
    MissingExtraError
        The files are parquet, and the extra ``parquet`` is not installed.
    """
    if not isinstance(path, str | Path):
        raise DataError(f"read_corpus: path is {describe(path)}. Give a folder as a text or a Path.")
    if not isinstance(split, str | None):
        raise DataError(
            f'read_corpus: split is {describe(split)}. Give a name such as "test", or None for all.'
        )
    if limit is not None:
        limit = whole_number(limit, "read_corpus: limit", DataError, 1, remedy="Use None for all utterances.")
    corpus, path = _known(name), Path(path)
    if path.is_dir():
        found = _of_folder(_folder_of(path, corpus), corpus, split, name or "")
    elif path.suffix.lower() == ".parquet":
        found = _of_shards([path], name or "", "")
    else:
        found = iter(_of_list(path, split))
    return islice(found, limit)


def _known(name: str | None) -> Corpus:
    """Return the corpus of a name."""
    if name is None:
        return Corpus("")
    if name not in CORPORA:
        near = did_you_mean(str(name).lower(), CORPORA)
        raise DataError(f"read_corpus: there is no corpus {name!r}.{near} Known: {', '.join(CORPORA)}.")
    return CORPORA[name]


def _folder_of(path: Path, corpus: Corpus) -> Path:
    """Return the folder of one corpus, given that or the one above."""
    if not corpus.folder or path.name == corpus.folder:
        return path
    others = {each.name for each in path.iterdir() if each.is_dir()} | {path.name}
    if corpus.folder in others:
        return path / corpus.folder
    if others & FOLDERS:  # never one corpus under the name of another
        raise DataError(
            f"{path}: no folder {corpus.folder!r} in it (there: {', '.join(sorted(others & FOLDERS))}). "
            "Fetch that corpus, or give the folder that holds it."
        )
    return path


def _of_folder(folder: Path, corpus: Corpus, split: str | None, name: str) -> Iterator[Utterance]:
    """Find out a folder's layout, and read it."""
    if lists := _metadata(folder):
        return iter(_of_list(lists[0], split))
    if lists := [path for each in sorted(folder.iterdir()) if each.is_dir() for path in _metadata(each)]:
        chosen = _chosen({path.parent.name for path in lists}, split, corpus.part, folder)
        return iter([u for path in lists if path.parent.name in chosen for u in _of_list(path, None)])
    if shards := sorted(folder.rglob("*.parquet")):
        return _of_splits(shards, folder, corpus, split, name)
    if next(folder.rglob("*.trans.txt"), None):
        parts = {each.name: each for each in folder.iterdir() if re.match("(train|dev|test)-", each.name)}
        chosen = _chosen(parts, split, corpus.part, folder) if parts else []
        return iter(
            [u for each in [parts[part] for part in chosen] or [folder] for u in read_librispeech(each)]
        )
    raise DataError(
        f"{folder}: no corpus in it. Looked for *.parquet, {', '.join(METADATA)} and *.trans.txt; for other "
        "lists, give the file and not its folder."
    )


def _metadata(folder: Path) -> list[Path]:
    """Return the list of an audio folder, or nothing."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{folder}: both {' and '.join(METADATA)}. Give the one that is meant, or remove the other."
        )
    return found


def _chosen(splits: Collection[str], split: str | None, part: str, folder: Path) -> list[str]:
    """Return which of the splits that are there is meant: one, or all if `split` is None."""

    def fits(each: str) -> bool:
        head, _, tail = each.replace(".", "-").partition("-")
        return split in (None, head, each) and part in ("", tail.partition("-")[0])

    found = sorted(each for each in splits if fits(each))
    if not found or (split is not None and len(found) > 1):
        wanted = " ".join(filter(None, ("" if split is None else repr(split), part)))
        count = "no split" if not found else f"{len(found)} splits fit"
        raise DataError(
            f"{folder}: {count} {wanted}. There: {', '.join(sorted(splits))}. Pass one of them as split, or "
            "None for all."
        )
    return found


def _of_list(path: Path, split: str | None) -> Sequence[Utterance]:
    """Return the utterances of a manifest that belong to a split, or do not say."""
    listed = read_manifest(path)
    found = [each for each in listed if split is None or each.split in ("", split)]
    if not found:
        there = ", ".join(sorted({each.split for each in listed}))
        raise DataError(
            f"{path}: no line of split {split!r}. There: {there}. Pass one of them, or None for all."
        )
    return found


# --- parquet


def _of_splits(
    shards: Iterable[Path], folder: Path, corpus: Corpus, split: str | None, name: str
) -> Iterator[Utterance]:
    """Return the utterances of one split of a folder of parquet files."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in shards:
        groups.setdefault(_group_of(path), []).append(path)
    folders = sorted({place for place, _ in groups})
    if len(folders) > 1:
        names = list_names([str(each.relative_to(folder)) for each in folders], 8)
        raise DataError(
            f"{folder}: parquet files of {len(folders)} data sets: {names}. Give the folder of one."
        )
    chosen = _chosen({part for _, part in groups}, split, corpus.part, folder)
    found = [_of_shards(groups[folders[0], part], name, part) for part in chosen]
    return (utterance for each in found for utterance in each)


def _group_of(path: Path) -> tuple[Path, str]:
    """Return folder and split: of ``test-0-of-1.parquet``, ``test.parquet`` or ``test/0.parquet``."""
    match = SHARD.fullmatch(path.stem)
    if path.stem.isdigit():
        return path.parent.parent, path.parent.name
    return path.parent, match["split"] if match else path.stem


def _of_shards(paths: Sequence[Path], name: str, split: str) -> Iterator[Utterance]:
    """Check all shards of a split; then return their utterances."""
    if split:
        _check_complete(paths)
    shards = [Shard(path) for path in paths]
    if not any(shard.rows for shard in shards):
        raise DataError(
            f"{paths[0]}: no utterance in it, {len(paths)} files have 0 rows. Fetch the corpus again."
        )
    return (
        _as_utterance(shard, number, row, name, split)
        for shard in shards
        for number, row in enumerate(shard.texts(READ))
    )


def _check_complete(paths: Sequence[Path]) -> None:
    """Refuse a split of which shards are missing: its error rate would be that of another corpus."""
    matches = [match for path in paths if (match := SHARD.fullmatch(path.stem))]
    count = max((int(match["count"]) for match in matches), default=0)
    missing = sorted(set(range(count)) - {int(match["number"]) for match in matches})
    if missing:
        raise DataError(
            f"{paths[0].parent}: {len(missing)} of {count} shards of {matches[0]['split']} are missing, "
            f"numbers {list_names(map(str, missing))}. Fetch them; or give single files."
        )


def _as_utterance(shard: Shard, number: int, row: Row, name: str, split: str) -> Utterance:
    """Return the utterance of a row, counted from 0."""
    known = "" if row.get("id") is None else str(row["id"])
    where = f"{shard.path}, row {number + 1}" + (f", id {known}" if known else "")
    text = row[shard.text]
    if not isinstance(text, str | None):
        raise DataError(
            f"{where}: {shard.text} is {describe(text)}, not a text. Store what is said as a string."
        )
    return Utterance(
        audio=StoredSound(shard.path, number, shard),
        text=text,
        id=known,
        source=name or str(row.get("dataset") or ""),
        split=split,
        duration=as_seconds(row.get("audio_length_s"), "duration", where),
        where=where,
        language=next((code for key in LANGUAGE_KEYS if isinstance(code := row.get(key), str)), ""),
    )
