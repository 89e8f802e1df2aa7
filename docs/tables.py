"""Bring the tables that come from docs/data/benchmark.jsonl up to date: python docs/tables.py.

The file is the results.jsonl of `python -m qlib benchmark examples/benchmarks/study.toml`. On a page a
comment names a table, and another one ends it: tests/test_docs.py fails where page and file differ.

    <!-- table schemes whisper-base -->        a row per method, a column per scheme
    <!-- table files whisper-base -->          size, memory I/O and bit operations of single settings
    <!-- table summary -->                     the table of README.md
    <!-- end of table -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from qlib.benchmark.cells import FLOAT
from qlib.benchmark.results import Record, read_results

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data" / "benchmark.jsonl"
TABLE = re.compile(r"(<!-- table (?P<kind>\w+) ?(?P<model>\S*) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SCHEMES = ("W8A8", "W4A16", "W4A8", "W3A16", "W3A8", "W2A16")
SUMMARY = (
    *(FLOAT, "rtn W8A8", "gptq W8A8", "rtn W4A16", "gptq W4A16", "awq + gptq W4A16", "spqr W4A16G16"),
    *("gptq W4A16S16E4", "rtn W3A16", "gptq W3A16", "awq + gptq W3A16", "quik W3A16", "spqr W3A16G16"),
)
STAR = r"\*"  # a recording in a loop
SHOWN = {"rtn": "RTN", "hqq": "HQQ", "smoothquant": "SmoothQuant", "awq": "AWQ", "omniquant": "OmniQuant"}
SHOWN |= {"gptq": "GPTQ", "quik": "QUIK", "spqr": "SpQR", FLOAT: "float"}


def shown(method: str) -> str:
    """Return a chain as pages write it: "awq + gptq" -> "AWQ + GPTQ"."""
    return " + ".join(SHOWN[name] for name in method.split(" + "))


def rate(record: Record | None) -> str:
    """Return a rate with a star for each recording in a loop, three at most; "" where none was computed."""
    return "" if record is None else f"{record.wer:.2f}{STAR * min(record.loops, 3)}"


def rate_and_difference(record: Record | None) -> str:
    """Return a rate, and the interval of its difference to float."""
    if record is None:
        return ""
    low, high = record.difference_interval
    return f"{rate(record)} ({low:+.1f} to {high:+.1f})"


def markdown(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table, the first one as its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def schemes(records: list[Record], model: str) -> str:
    """Return the methods of the study by its schemes: rates, differences, and bits per weight."""
    found = {(each.method, each.scheme): each for each in records if each.model == model}
    used = [scheme for scheme in SCHEMES if any(scheme == each for _, each in found)]
    stored = ", ".join(each.lower() for each in used if each.endswith("A16"))
    rows = [["", *(each.lower() for each in used), f"bits per weight: {stored}"]]
    for method in dict.fromkeys(method for method, scheme in found if scheme in used):
        cells = [found.get((method, scheme)) for scheme in used]
        bits = [each.bits_per_weight for each in cells if each is not None and each.scheme.endswith("A16")]
        rows.append(
            [
                shown(method),
                *map(rate_and_difference, cells),
                ", ".join(f"{each:.2f}" for each in bits if each),
            ]
        )
    return markdown(rows)


def files(records: list[Record], model: str) -> str:
    """Return what single settings take: the file, what a run moves and computes, and the rate."""
    heading = ["", "bits per weight", "bits per parameter", "file MB", "MB moved", "10^12 bit operations"]
    rows = [[*heading, "WER (difference to float)", "clips no worse"]]
    here = [each for each in records if each.model == model]
    plain = next(each for each in here if each.method == FLOAT)
    for each in here:
        if each.cost is not None and (each.method == FLOAT or "A16" in each.scheme):
            cost = each.cost
            worse = 100 * sum(b <= a for a, b in zip(plain.errors, each.errors, strict=True)) / each.clips
            sizes = (cost.bits_per_parameter, cost.file_bytes / 1e6)
            work = f"{cost.bytes_moved / 1e6:,.0f}", f"{cost.bit_operations / 1e12:.2f}"
            bits = "" if each.bits_per_weight is None else f"{each.bits_per_weight:.2f}"
            name = shown(each.method) + ("" if each.method == FLOAT else f" {each.scheme}")
            row = [
                name,
                bits,
                *(f"{size:.2f}" for size in sizes),
                *work,
                rate_and_difference(each),
                f"{worse:.0f} %",
            ]
            rows.append(row)
    return markdown(rows)


def summary(records: list[Record], _: str) -> str:
    """Return some settings of all models side by side."""
    models = list(dict.fromkeys(each.model for each in records))
    found = {(each.model, each.name): each for each in records}
    rows = [["", *models, "bits per weight"]]
    for name in SUMMARY:
        cells = [found.get((model, name)) for model in models]
        if not any(cells):
            continue
        bits = [each.bits_per_weight or 16 for each in cells if each is not None]
        method, _, scheme = name.rpartition(" ") if name != FLOAT else (FLOAT, "", "")
        rows.append([f"{shown(method)} {scheme.lower()}".strip(), *map(rate, cells), f"{min(bits):.1f}"])
    return markdown(rows)


TABLES: dict[str, Callable[[list[Record], str], str]] = {
    "schemes": schemes,
    "files": files,
    "summary": summary,
}


def refreshed(text: str, records: list[Record]) -> str:
    """Return a page with all of its tables as the results are now."""
    return TABLE.sub(
        lambda found: f"{found[1]}{TABLES[found['kind']](records, found['model'])}{found[4]}", text
    )


def main() -> None:
    """Refresh README.md and all pages."""
    records = read_results(DATA)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if (fresh := refreshed(text, records)) != text:
            page.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
