"""Bring the excerpts of the source on the pages up to date: python docs/excerpts.py.

On a page a comment says which lines stand in the block below it, by how the first and the last line begin:

    <!-- source qlib/methods/gptq.py: "for j in range(len(W))" to "W[j:] -= " -->

The first line that begins so, and the next one that begins as the last, so many of them that no wording of a
page can miss a change: tests/test_docs.py fails where page and source differ.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCERPT = re.compile(
    r'(<!-- source (?P<path>\S+): "(?P<first>[^"\n]+)" to "(?P<last>[^"\n]+)" -->\n)'
    r"```python no-run\n.*?```\n",
    re.DOTALL,
)


def excerpt(path: str, first: str, last: str) -> str:
    """Return the lines of a file from one that begins with `first` to the next that begins with `last`.

    Raises
    ------
    ValueError
        The file has no such lines.
    """
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    begin = next((i for i, line in enumerate(lines) if line.lstrip().startswith(first)), None)
    if begin is None:
        raise ValueError(f"{path} has no line that begins with {first!r}. Change the comment of the excerpt.")
    after = range(begin, len(lines))
    end = next((i for i in after if lines[i].lstrip().startswith(last)), None)
    if end is None:
        raise ValueError(f"{path}:{begin + 1}: no line after it begins with {last!r}.")
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


def refreshed(text: str) -> str:
    """Return a page with all of its excerpts as the source is now."""
    return EXCERPT.sub(
        lambda found: (
            f"{found[1]}```python no-run\n{excerpt(found['path'], found['first'], found['last'])}\n```\n"
        ),
        text,
    )


def main() -> None:
    """Refresh all pages."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (fresh := refreshed(text)) != text:
            page.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
