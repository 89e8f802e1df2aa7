"""A disk that fails at one step of an action, once or from then on, or whose process dies there.

Each write, mkdir, rename, unlink, rmdir and fsync of an action is a point. `QUANTDRAFT_ROUNDS` tries every
point, else a few of each.
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
from storage_cases import ROUNDS

from qlib import checkpoint, resume
from qlib.errors import QlibError
from qlib.models.hub import converted_files

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


def cannot_be_removed(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Let every removal of a file with this ending fail: it is in use."""
    unlink = os.unlink

    def stubborn(path: Any, **options: Any) -> None:
        if str(path).endswith(ending):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", stubborn)
