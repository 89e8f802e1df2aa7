"""Numbers that pages hold already: a picture of a measurement reads the table that it stands beside."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]


def table(page: str, first: str) -> list[list[str]]:
    """Return the cells of a page's table whose first row begins with the cells `first`, that row included.

    Raises
    ------
    ValueError
        The page has no such table.
    """
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith(first)), None)
    if begin is None:
        raise ValueError(f"docs/{page} has no table that begins with {first!r}")
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if set("".join(cells)) - set("-: "):
            rows.append(cells)
    return rows
