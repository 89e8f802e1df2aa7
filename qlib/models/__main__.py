"""Command line of the model registry: `python -m qlib.models fetch|list|path`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qlib.errors import QlibError
from qlib.models.hub import registry
from qlib.models.table import align


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 1 after an error on stderr. Wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def exit_code(run: Callable[[], object]) -> int:
    """Run a command; return 0, 1 after an error in one line on stderr, or 130 after Ctrl-C."""
    try:
        run()
    except QlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing half-done was left behind", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "list":
        print(table())
    elif options.command == "path":
        print(registry.path(options.name))
    else:
        for name in options.names:
            registry.entry(name)  # a misspelt second name is an error before the first download
        for name in options.names:
            print(registry.fetch(name, progress=not options.quiet))


def records() -> list[dict[str, Any]]:
    """Return the registered models as JSON objects; `here` says whether one can be used without `fetch`."""
    return [
        {
            "model": item.name,
            "parameters": item.parameters,
            "bytes": item.size,
            "licence": item.licence,
            "here": registry.is_there(item.name),
        }
        for item in registry.ENTRIES.values()
    ]


def table() -> str:
    """Return the registered models as text, one a line below a heading."""
    rows = [("name", "parameters", "size", "licence", "here")]
    for each in records():
        size, here = f"{each['bytes'] / 1e6:.0f} MB", "yes" if each["here"] else "no"
        rows.append((each["model"], f"{each['parameters']:,}", size, each["licence"], here))
    return align(rows, left=len(rows[0]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qlib.models", description="Ready-made models, by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="download, check and convert models; print their folders")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    fetch.add_argument("--quiet", action="store_true", help="no progress bars")
    commands.add_parser("list", help="show the models that are known and which of them are here")
    commands.add_parser("path", help="print the folder of a model").add_argument("name", metavar="NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
