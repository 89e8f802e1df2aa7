"""The results of a study, read back: one record a cell and test set, with the difference to float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qlib.asr.bootstrap import percentile_interval, resampled_rates
from qlib.benchmark.cells import FLOAT
from qlib.benchmark.runner import read_cell
from qlib.errors import DataError
from qlib.models.files import parse_json

RESAMPLES = 2000
LOOP = 10  # errors more than words: what is short and misheard has a few
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Run:
    """What transcribing a recording costs, as `qlib.cost` counts it, with 16 bits a number in float.

    Attributes
    ----------
    audio_seconds, tokens : float, int
        Of the recording.
    bytes_moved, bit_operations : int
        Sums of the run.
    file_bytes : int
        Of the model.
    bits_per_parameter : float
        Average over the whole file.
    """

    audio_seconds: float
    tokens: int
    bytes_moved: int
    bit_operations: int
    file_bytes: int
    bits_per_parameter: float

    @property
    def name(self) -> str:
        """What is transcribed."""
        return f"{self.audio_seconds:g} s of audio and {self.tokens} tokens"


@dataclass(frozen=True)
class Losses:
    """What each layer of a model is estimated to cost when it alone is rounded.

    Attributes
    ----------
    model : str
        Name.
    recordings : int
        That it was estimated on.
    grids : tuple of str
        That the layers are rounded on.
    losses : dict of str to tuple of float
        Of each layer one a grid, in nats a token.
    """

    model: str
    recordings: int
    grids: tuple[str, ...]
    losses: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Record:
    """One cell on one test set. Rates are in percent, differences in points.

    Attributes
    ----------
    model, method, scheme, test : str
        Method and scheme are "float" for the model as it is.
    wer : float
        Word error rate.
    interval : (float, float)
        95 %, bootstrap over recordings, of `wer`.
    difference : float
        To float on the same recordings; 0 for float.
    difference_interval : (float, float)
        95 %, paired bootstrap.
    substitutions, deletions, insertions, words, clips : int
        Counts.
    bits_per_weight, bytes : float or None
        As stored, over the quantized layers; of the file. None for float, whose file is as it came.
    cost : Run or None
        What a run costs; None in a cell that was recorded without it.
    errors : tuple of int
        Of each recording.
    loops : int
        Recordings with ten errors more than words, or more: the model repeats itself there.
    key : str
        Of the cell.
    """

    model: str
    method: str
    scheme: str
    test: str
    wer: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    substitutions: int
    deletions: int
    insertions: int
    words: int
    clips: int
    bits_per_weight: float | None
    bytes: int | None
    cost: Run | None
    errors: tuple[int, ...]
    loops: int
    key: str

    @property
    def name(self) -> str:
        """Method and scheme."""
        return self.method if self.method == FLOAT else f"{self.method} {self.scheme}"


@dataclass(frozen=True)
class Clip:
    """A recording whose text changed.

    Attributes
    ----------
    id, audio : str
        Of the recording.
    said, before, after : str
        The reference, what the float model wrote, and what the quantized one wrote.
    more : int
        Errors more than in float; below 0 where it became better.
    """

    id: str
    audio: str
    said: str
    before: str
    after: str
    more: int


def read_results(folder: Path) -> list[Record]:
    """Return all records of a study, in its order; failed cells have none.

    Parameters
    ----------
    folder : Path
        Of the study, or a copy of its results.jsonl alone.

    Raises
    ------
    DataError
        The folder holds no results, or none that did not fail.
    """
    rows = [row for row in _rows(folder) if "tests" in row]
    floats = {row["model"]: row for row in rows if row["method"] == FLOAT}
    found = [record for row in rows for record in _records(row, floats.get(row["model"]))]
    if not found:
        raise DataError(
            f"{folder / RESULTS} holds no finished cell. See its errors, and run the study again."
        )
    return found


def read_losses(folder: Path) -> list[Losses]:
    """Return the layers' losses of a study's models; none where it was run without them.

    Raises
    ------
    DataError
        The folder holds no results.
    """
    return [
        Losses(
            model=Path(row["model"]).name,
            recordings=row["recordings"],
            grids=tuple(row["grids"]),
            losses={layer: tuple(each) for layer, each in row["losses"].items()},
        )
        for row in _rows(folder)
        if "losses" in row
    ]


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder if folder.suffix == ".jsonl" else folder / RESULTS
    if not path.is_file():
        raise DataError(f"{path} is missing. Run a study first: python -m qlib benchmark --output {folder}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse_json(line.encode(), path) for line in lines]


def _records(row: dict[str, Any], reference: dict[str, Any] | None) -> Iterator[Record]:
    for test, result in row["tests"].items():
        plain = None if reference is None else reference["tests"].get(test)
        difference, interval = (0.0, (0.0, 0.0)) if plain is None else _difference(plain, result)
        yield Record(
            model=Path(row["model"]).name,
            method=row["method"],
            scheme=row["scheme"],
            test=test,
            wer=result["wer"],
            interval=tuple(result["interval"]),
            difference=difference,
            difference_interval=interval,
            **{name: result[name] for name in ("substitutions", "deletions", "insertions", "words")},
            clips=result["utterances"],
            bits_per_weight=row.get("bits_per_weight"),
            bytes=row.get("bytes"),
            cost=_run(row.get("cost")),
            errors=tuple(result["utterance_errors"]),
            loops=sum(
                errors >= words + LOOP
                for errors, words in zip(result["utterance_errors"], result["utterance_words"], strict=True)
            ),
            key=row["key"],
        )


def _run(row: dict[str, Any] | None) -> Run | None:
    return None if row is None else Run(**{each.name: row[each.name] for each in fields(Run)})


def file_bytes(record: Record) -> int | None:
    """Return the size of a cell's file, for float as its checkpoint would be; None where nothing says it."""
    if record.bytes is None:
        return None if record.cost is None else record.cost.file_bytes
    return record.bytes


def _difference(plain: dict[str, Any], result: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """Return the difference of two word error rates on the same recordings, and its paired interval."""
    words = np.array(plain["utterance_words"])
    more = np.array(result["utterance_errors"]) - np.array(plain["utterance_errors"])
    interval = percentile_interval(resampled_rates(more, words, RESAMPLES, 0))
    return float(100 * more.sum() / words.sum()), interval


def changed_clips(folder: Path, records: Sequence[Record], record: Record, limit: int = 8) -> list[Clip]:
    """Return the recordings that became worse or better than in float, the most changed ones first.

    Parameters
    ----------
    folder : Path
        Of the study.
    records : sequence of Record
        All of them: the float one of the same model and test set is looked up.
    record : Record
        The quantized one.
    limit : int
        Most recordings.
    """
    same = (r for r in records if (r.model, r.test, r.method) == (record.model, record.test, FLOAT))
    plain = next(same, None)
    cells = [None if each is None else read_cell(folder, each.key) for each in (plain, record)]
    if plain is None or None in cells:
        return []
    before, after = (cell["texts"][record.test] for cell in cells if cell is not None)
    scored = {row["id"]: row for row in before}
    ids = cells[1]["row"]["tests"][record.test]["ids"]  # type: ignore[index]
    more = {name: b - a for name, a, b in zip(ids, plain.errors, record.errors, strict=True)}
    rows = [row for row in after if more.get(row["id"])]
    rows.sort(key=lambda row: -abs(more[row["id"]]))
    return [
        Clip(
            row["id"],
            row["audio_filepath"],
            row["text"],
            scored[row["id"]]["pred_text"],
            row["pred_text"],
            more[row["id"]],
        )
        for row in rows[:limit]
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other one beats in both numbers (smaller is better), by the first number.

    >>> pareto([(3, 1), (1, 5), (2, 2), (2, 3)])
    [1, 2, 0]
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    for i in order:
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front
