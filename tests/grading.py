"""What the graders of the exercises share: the file that is graded, and a comparison that gives a hint."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

STUBS = Path(__file__).parents[1] / "examples" / "exercises"
SOLUTIONS = STUBS / "solutions"


def asked_for(markers: str) -> bool:
    """Whether `pytest -m MARKERS` asks for graders: ``ex04``, ``ex04 or ex05``, ``exercises``."""
    return re.search(r"(?<!not )\bex(\d\d|ercises)\b", markers or "") is not None


def load(number: str, folder: Path | None = None) -> ModuleType:
    """Import the one file of an exercise, ``ex04``; with SOLUTIONS=1 in the environment, its solution."""
    folder = folder or (SOLUTIONS if os.environ.get("SOLUTIONS") else STUBS)
    (path,) = folder.glob(f"{number}_*.py")
    return from_text(path.read_text(encoding="utf-8"), path)


def from_text(text: str, path: Path) -> ModuleType:
    """Run the text of a file as a module of its own."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def grader(number: str) -> ModuleType:
    """Import the grader of an exercise."""
    path = Path(__file__).parent / "exercises" / f"grade_{number}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(found: Any, right: Any, hint: str, tolerance: float = 1e-6) -> None:
    """Fail with a hint and both values where a result is not the right one."""
    __tracebackhide__ = True
    right = torch.as_tensor(right).double()
    if not isinstance(found, Tensor | float | int | bool):
        raise AssertionError(
            f"{hint}\n  yours: {found!r} (a {type(found).__name__})\n  right: {_shown(right)}"
        )
    found = torch.as_tensor(found).detach().double()
    if found.shape != right.shape:
        raise AssertionError(
            f"{hint}\n  yours has the shape {list(found.shape)}\n  right: {list(right.shape)}"
        )
    if not torch.allclose(found, right, rtol=tolerance, atol=tolerance):
        raise AssertionError(f"{hint}\n  yours: {_shown(found)}\n  right: {_shown(right)}")


def true(condition: bool, hint: str) -> None:
    """Fail with a hint where a condition does not hold."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(hint)


def _shown(values: Tensor) -> str:
    """Return the first numbers of a tensor."""
    numbers = [f"{value:.6g}" for value in values.flatten()[:6].tolist()]
    return ", ".join(numbers) + (" ..." if values.numel() > 6 else "")
