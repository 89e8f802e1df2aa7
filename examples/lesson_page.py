"""Runs lessons and puts all tables and pictures on one page: `make lessons` writes out/lessons/index.html.

python examples/lesson_page.py          all lessons
python examples/lesson_page.py 03 19    two of them
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from notebooks import PATH

from qlib.models.files import atomic_file

EXAMPLES = Path(__file__).parent
PAGE = Path("out") / "lessons" / "index.html"
STYLE = """body { font: 16px/1.5 sans-serif; color: #1f2933; max-width: 70em; margin: 2em auto }
pre { background: #f4f6f8; padding: 1em; overflow-x: auto; font-size: 13px } img { max-width: 100% }
h2 { margin-top: 3em } nav a { display: block }"""


@dataclass(frozen=True)
class Output:
    """What one lesson said and printed; its picture is beside the page."""

    stem: str
    header: str
    printed: str

    @property
    def title(self) -> str:
        """The first line of the header."""
        return self.header.partition("\n")[0]


def run(path: Path) -> Output:
    """Run a lesson in a process of its own, and print what it prints.

    Raises
    ------
    subprocess.CalledProcessError
        The lesson failed.
    """
    header = path.read_text(encoding="utf-8").split('"""')[1]
    done = subprocess.run([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    return Output(path.stem, header.strip(), done.stdout)


def page(lessons: list[Output]) -> str:
    """Return the page."""
    links = "\n".join(f'<a href="#{each.stem}">{html.escape(each.title)}</a>' for each in lessons)
    parts = [
        f'<h2 id="{each.stem}">{html.escape(each.title)}</h2>\n'
        f"<pre>{_linked(each.header.partition(chr(10))[2].strip())}</pre>\n"
        f'<img src="{each.stem}.png" alt="{html.escape(each.title)}">\n'
        f"<pre>{html.escape(each.printed.strip())}</pre>"
        for each in lessons
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Lessons</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>Lessons</h1>\n<nav>{links}</nav>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _linked(text: str) -> str:
    """Return a header with links to the files that it names."""
    return PATH.sub(r'<a href="../../\1">\1</a>', html.escape(text))


def main() -> None:
    """Run the lessons and write the page."""
    parser = argparse.ArgumentParser(
        description="Run lessons, and write all tables and pictures on one page."
    )
    parser.add_argument("numbers", nargs="*", help="lessons to run, such as 03; all if none is given")
    numbers = [number.zfill(2) for number in parser.parse_args().numbers]
    paths = {path.name[:2]: path for path in sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))}
    if unknown := [number for number in numbers if number not in paths]:
        parser.error(f"there is no lesson {unknown[0]}; they are {min(paths)} to {max(paths)}")
    found = []
    for path in [paths[number] for number in numbers] or list(paths.values()):
        print(f"== {path.name}", flush=True)
        found.append(run(path))
    with atomic_file(PAGE) as target:
        target.write_text(page(found), encoding="utf-8")
    print(f"All of it is on the page {PAGE}")


if __name__ == "__main__":
    main()
