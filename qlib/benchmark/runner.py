"""Running a study: cell by cell, stopped at any moment, and gone on with.

    FOLDER/results.jsonl       one line a cell in the order of the study; no times: the same study gives the
                               same file, however often it was stopped
    FOLDER/cells/KEY.json      a finished cell: its row, what was written, and how long it took
    FOLDER/work/KEY            finished blocks of a cell that is being quantized

1. read all lists, hash all models: what is wrong with them is said before any work
2. what is finished under the same key is taken; what another normalizer or aligner scored is scored again
3. the others run, here or in other processes or on other machines; each is written as soon as it is done
4. a cell that fails is recorded with its error, and tried again by the next call
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from qlib.benchmark.cells import Cell, Data, Row, cells_of, is_scored_now, key_of, run, scored_again
from qlib.benchmark.config import Study
from qlib.benchmark.memory import hash_of
from qlib.errors import DataError, QlibError, require_extra, whole_number
from qlib.models.disk.disk_errors import disk_errors
from qlib.models.disk.folders import make_folder, working_folder
from qlib.models.disk.hashes import SEAL, digest_of, sealed
from qlib.models.disk.work_place import sweep
from qlib.models.files import atomic_file, parse_json, write_json
from qlib.models.progress import progress_bar

log = logging.getLogger(__name__)
TIMEOUT = 10  # seconds to wait for a scheduler


@dataclass(frozen=True)
class Outcome:
    """What a call did: how many cells were there already, were computed now, and failed."""

    known: int
    computed: int
    failed: tuple[tuple[str, str], ...]  # (cell, error)

    def __str__(self) -> str:
        lines = [f"{self.known} cells were there, {self.computed} are new, {len(self.failed)} failed"]
        return "\n".join([*lines, *(f"  {name}: {error}" for name, error in self.failed)])


def run_study(
    study: Study,
    folder: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = True,
) -> Outcome:
    """Compute all cells of a study that are not there yet.

    Parameters
    ----------
    study : Study
        What to compute.
    folder : str or Path
        Of the results; created.
    workers : int
        Processes on this machine, which share its threads out; 1 computes in this one, with its threads.
    scheduler : str, optional
        Address of a Dask scheduler, ``tcp://host:8786``: its workers compute, and must see the same files.
    progress : bool
        Show a progress bar over the cells.

    Raises
    ------
    DataError
        A list or model cannot be used, or somebody else is at work in the folder; see `Data.of`.
    FileError
        The disk is full, or may not be written: what was finished before is there.
    """
    workers = whole_number(workers, "workers", DataError, 1)
    data = Data.of(study)  # 1
    hashes = {name: hash_of(name) for name in study.models}
    cells = cells_of(study)
    keys = {cell: key_of(cell, study, data, hashes[cell.model]) for cell in cells}
    place = Path(folder)
    busy = DataError(f"Another run is at work in {place}. Wait until it ends, or choose another folder.")
    with working_folder(place, busy):
        make_folder(place / "cells")
        rows = _finished(place, keys, study)  # 2
        missing = [cell for cell in cells if rows[cell] is None]
        _clean(place, [keys[cell] for cell in cells if rows[cell] is not None])
        failed: dict[Cell, str] = {}
        bar = progress_bar(show=progress, total=len(cells), initial=len(cells) - len(missing), unit="cell")
        with bar, _executor(workers, scheduler) as pool:
            threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
            tasks = {cell: (run, cell, study, data, keys[cell], place.resolve(), threads) for cell in missing}
            for cell, found in _results(pool, tasks):  # 3
                if isinstance(found, str):
                    failed[cell] = found  # 4
                    log.warning("%s failed: %s", cell.name, found)
                else:
                    rows[cell] = _write(place, keys[cell], found)
                _write_results(place, cells, rows, failed)
                bar.update()
                bar.set_postfix_str(cell.name)
        _write_results(place, cells, rows, failed)
    told = tuple((cell.name, error) for cell, error in failed.items())
    return Outcome(len(cells) - len(missing), len(missing) - len(failed), told)


# --- who computes


Task = tuple[Any, ...]


class _Here(Executor):
    """Computes in this process, when it is asked to."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """Yield what computes."""
    if scheduler is not None:
        distributed = require_extra("distributed", "dask", "A scheduler on other machines")
        try:
            client = distributed.Client(scheduler, timeout=TIMEOUT)
        except OSError as error:
            raise DataError(
                f"No scheduler answers at {scheduler}: {error}. Start one, or leave it out."
            ) from error
        with client, client.get_executor() as pool:
            yield pool
        return
    with _pool(workers) as pool:
        yield pool


def _pool(workers: int) -> AbstractContextManager[Executor]:
    if workers == 1:
        return _Here()
    # "spawn": a process that PyTorch has computed in must not be forked.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_the_study)


def _end_with_the_study() -> None:
    """Let a worker end when the study is killed: else it goes on, and the next call finds its cell locked."""
    study = parent_process()
    assert study is not None

    def wait() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _results(pool: Executor, tasks: dict[Cell, Task]) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Yield each cell with what it gave, or with its error.

    A process that dies takes all tasks of its pool along. They are tried once more, each alone: then the one
    that kills its process is known.
    """
    if isinstance(pool, _Here):
        for cell, task in tasks.items():
            yield cell, _outcome(pool.submit(*task))
        return
    lost = []
    futures = {pool.submit(*task): cell for cell, task in tasks.items()}
    for future in as_completed(futures):
        if isinstance(future.exception(), BrokenExecutor):
            lost.append(futures[future])
        else:
            yield futures[future], _outcome(future)
    for cell in lost:
        with _pool(2) as single:
            yield cell, _outcome(single.submit(*tasks[cell]))


def _outcome(future: Future[Any]) -> dict[str, Any] | str:
    try:
        found: dict[str, Any] = future.result()
        return found
    except BrokenExecutor:
        return "its process was killed, twice: by the system for want of memory, or by somebody"
    except Exception as error:
        known = isinstance(error, QlibError)
        return str(error) if known else f"{type(error).__name__}: {error}"


# --- what is kept


def _write(place: Path, key: str, found: dict[str, Any]) -> Row:
    """Keep a finished cell, and return its row; what it was made with is removed."""
    write_json(place / "cells" / f"{key}.json", sealed(found))
    _clear(place, key)
    row: Row = found["row"]
    return row


def _clean(place: Path, keys: Sequence[str]) -> None:
    """Remove what killed runs left: files half written, and what finished cells were made with."""
    for name in ("cells", "work"):
        with disk_errors("write", place / name):
            sweep(place / name)
    for key in keys:
        _clear(place, key)


def _clear(place: Path, key: str) -> None:
    """Remove what a cell was made with; what cannot be removed now is by the next run."""
    for each in (place / "work").glob(f"{key}*"):
        shutil.rmtree(each, ignore_errors=True)


def read_cell(place: Path, key: str) -> dict[str, Any] | None:
    """Return a finished cell; None where there is none, or a damaged one."""
    path = place / "cells" / f"{key}.json"
    if not path.exists():
        return None
    try:
        found = parse_json(path.read_bytes(), path)
        if found.get(SEAL) == digest_of(found):
            return found
    except QlibError:
        pass
    log.warning("%s is damaged, and is computed again", path)
    return None


def _finished(place: Path, keys: dict[Cell, str], study: Study) -> dict[Cell, Row | None]:
    """Return the row of each finished cell, None for others; what other packages scored is scored again."""
    rows: dict[Cell, Row | None] = {}
    again = 0
    for cell, key in keys.items():
        found = read_cell(place, key)
        rows[cell] = None if found is None else found["row"]
        if found is not None and not is_scored_now(found["row"]):
            rows[cell], again = _write(place, key, scored_again(found, study)), again + 1
    if again:
        log.warning("%d cells were scored by other packages, and are scored again from their texts", again)
    return rows


def _write_results(
    place: Path, cells: Sequence[Cell], rows: dict[Cell, Row | None], failed: dict[Cell, str]
) -> None:
    """Write the file of results; an empty cell has no line."""
    lines = []
    for cell in cells:
        row = rows[cell]
        if row is not None:
            lines.append(row)
        elif cell in failed:
            lines.append({**asdict(cell), "error": failed[cell]})
    with atomic_file(place / "results.jsonl") as fresh:
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
        fresh.write_text(text, encoding="utf-8")
