"""The file that a grader grades: the reader's own, or the solution with SOLUTIONS=1."""

from __future__ import annotations

from types import ModuleType

import pytest
from grading import load


@pytest.fixture
def answer(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.path.stem.removeprefix("grade_"))
