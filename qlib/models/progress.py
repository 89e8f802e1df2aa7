"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

LOG_SECONDS = 30.0  # from one line of a log file to the next; tqdm's own tenth of a second fills it

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item] | None = None, *, show: bool, **settings: Any) -> tqdm[Item]:
    """Return tqdm's bar; where stderr is no terminal, it writes a line every `LOG_SECONDS` at most.

    Parameters
    ----------
    items : iterable, optional
        What is gone through; without it, call `update`.
    show : bool
        False for no bar at all.
    **settings
        As for `tqdm`: desc, total, unit, ...
    """
    pace = {} if sys.stderr.isatty() else {"mininterval": LOG_SECONDS, "ascii": True}
    return tqdm(items, disable=not show, **(pace | settings))
