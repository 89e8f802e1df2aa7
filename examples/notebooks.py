"""The lessons as notebooks: `make notebooks` writes one for each into out/notebooks.

A lesson is a script with cells that begin with `# %%`, at the top level and in `main`. A notebook has its
header as text, what stands before the first cell (imports, constants), then each cell; `main` is taken apart,
so that each of its cells shows what it prints. "Try this" becomes text again. The picture comes last.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlib.models.files import atomic_file

EXAMPLES = Path(__file__).parent
FOLDER = Path("out") / "notebooks"
PATH = re.compile(r"(?<![\w/])((?:docs|qlib|draftlib|examples/exercises)/[\w/]+\.(?:md|py))")
MARK = re.compile(r"\s*# %% ?(.*)")
SETUP = """# Where the lesson's own modules are, and no options of a command line.
import sys
from pathlib import Path

for folder in (Path.cwd(), *Path.cwd().parents):
    if (folder / "examples" / "drawing.py").is_file():
        sys.path[:0] = [str(folder), str(folder / "examples")]
        break
sys.argv = ["lesson"]"""
PICTURE = 'from IPython.display import Image\n\nImage("out/lessons/{stem}.png")'


@dataclass(frozen=True)
class Cell:
    """Text in Markdown, or code; the tag says what is not the lesson's own."""

    kind: str  # "markdown" or "code"
    text: str
    tag: str = ""  # "setup", "picture" or ""

    def record(self) -> dict[str, Any]:
        """Return the cell as a notebook stores it."""
        found: dict[str, Any] = {
            "cell_type": self.kind,
            "metadata": {"tags": [self.tag]} if self.tag else {},
            "source": self.text.splitlines(keepends=True),
        }
        return found if self.kind == "markdown" else {**found, "execution_count": None, "outputs": []}


def cells_of(script: str, stem: str) -> list[Cell]:
    """Return the cells of a lesson, given its text and the name of its file without ending."""
    tree = ast.parse(script)
    lines = script.splitlines()
    header = ast.get_docstring(tree) or ""
    title, _, rest = header.partition("\n")
    found = [Cell("markdown", f"# {title}\n{_as_markdown(rest)}"), Cell("code", SETUP, "setup")]
    start = tree.body[0].end_lineno or 0  # behind the header
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            found += _split(lines[start : node.lineno - 1])
            body = lines[node.body[0].end_lineno : node.end_lineno]  # without its docstring
            found += _split(textwrap.dedent("\n".join(body)).splitlines())
            start = node.end_lineno or 0
        elif isinstance(node, ast.If):  # if __name__ == "__main__"
            found += _split(lines[start : node.lineno - 1])
            break
    return [*found, Cell("code", PICTURE.format(stem=stem), "picture")]


def _as_markdown(text: str) -> str:
    """Return the rest of a header with its lines "Page: ..." apart, and links to the files that they name."""
    text = re.sub(r"^((?:Papers?|Pages?|Source|Exercises?|Run): )", r"\n\1", text, flags=re.MULTILINE)
    return PATH.sub(r"[\1](../../\1)", text)


def _split(lines: list[str]) -> Iterator[Cell]:
    """Yield the cells of some lines; a cell of comments alone is text."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        if match := MARK.fullmatch(line):
            parts.append((match[1], []))
        else:
            parts[-1][1].append(line)
    for title, body in parts:
        text = "\n".join(body).strip("\n")
        if title:
            yield Cell("markdown", f"## {title}")
        if text and all(line.startswith("#") or not line.strip() for line in body):
            yield Cell("markdown", "\n".join(line.removeprefix("#").strip() for line in body).strip("\n"))
        elif text:
            yield Cell("code", text)


def notebook(cells: list[Cell]) -> dict[str, Any]:
    """Return a notebook of format 4, without outputs."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [each.record() for each in cells],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def main() -> None:
    """Write a notebook for each lesson."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in sorted(EXAMPLES.glob("[0-9][0-9]_*.py")):
        content = notebook(cells_of(path.read_text(encoding="utf-8"), path.stem))
        target = FOLDER / f"{path.stem}.ipynb"
        with atomic_file(target) as path_to_write:
            path_to_write.write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        print(target)


if __name__ == "__main__":
    main()
