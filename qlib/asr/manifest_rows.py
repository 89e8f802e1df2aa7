"""The rows of a manifest, line by line, each with its place for messages: JSON lines, JSON, TSV and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from qlib.errors import DataError, list_names

TEXT_KEYS = ("text", "sentence", "transcript", "transcription")

Row = dict[str, object]


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path.")
    try:
        # utf-8-sig: a byte order mark, as spreadsheets write it, would otherwise become part of a name.
        # newline: line ends inside a quoted text stay as they are.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, line) of every line that is not blank."""
    # Not splitlines(): it also splits at characters that JSON allows inside a string, such as U+2028.
    text = _text(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def rows_of_json(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of JSON lines with their places."""
    for where, line in lines_of(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error}). Write one object a line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not an object. Write one {{...}} a line.")
        yield where, row


def rows_of_tsv(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a tab-separated table with their places."""
    lines = ((where, line.split("\t")) for where, line in lines_of(path))
    return _table_rows(lines, "Use single tabs, no quotes.")


def rows_of_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a comma-separated table with their places."""
    text = _text(path)
    header = next(iter(text.lstrip().splitlines()), "")
    # Spreadsheets of many countries write semicolons, for the comma is in their numbers.
    delimiter = ";" if ";" in header and "," not in header else ","
    return _table_rows(
        _csv_lines(path, text, delimiter), 'Put a text that holds the separator in double quotes ("...").'
    )


def _csv_lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"  # a quoted text may go on for several lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where}: not CSV ({error}). Close all quotes, and double those in a text."
            ) from error
        if any(cell.strip() for cell in cells):
            yield where, cells


def _table_rows(lines: Iterator[tuple[str, list[str]]], remedy: str) -> Iterator[tuple[str, Row]]:
    where, header = next(lines, ("", []))
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        raise DataError(f"{where}: the header has {list_names(map(repr, twice))} more than once. Rename one.")
    for where, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} columns, the header has {len(header)}. {remedy}")
        # An empty optional cell is one that is not there.
        yield where, {k: v for k, v in zip(header, cells, strict=True) if v or k in TEXT_KEYS}
