"""Shared fixtures: one thread a worker, seeded random numbers, checkpoints that no test fetches."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from grading import asked_for
from shelf import shelf  # noqa: F401  (a fixture for all)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("quantdraft", deadline=None)
hypothesis.settings.load_profile("quantdraft")
if sys.version_info < (3, 11):  # pathlib kept the functions of `os` then; tests put others in their place

    def _looked_up(name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: getattr(os, name)(*arguments, **options)

    for _name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(pathlib._NormalAccessor, _name, staticmethod(_looked_up(_name)))
SPEECH = Path(__file__).parents[1] / "examples" / "data" / "speech"


def pytest_configure(config: pytest.Config) -> None:
    """A grader's hint stands in its last line: the reader need not see how it came about."""
    if asked_for(config.option.markexpr) and config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`pytest -m ex04` collects the graders of the exercises and nothing else; other runs leave them out."""
    if collection_path.suffix != ".py":
        return None
    is_grader = collection_path.name.startswith("grade_ex")
    return True if is_grader != asked_for(config.option.markexpr) else None


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two workers share two cores: more threads would only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test has the same random numbers, whichever tests ran before it in the same worker."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """Find the folder of a checkpoint; where it was not fetched, skip the test and say how to fetch it."""
    from qlib.errors import ModelError
    from qlib.models.hub import registry

    def find(name: str) -> Path:
        try:
            return registry.path(name)
        except ModelError as error:
            pytest.skip(str(error))

    return find


@pytest.fixture
def speech() -> Path:
    """The folder of real recordings that ships with the examples."""
    return SPEECH
