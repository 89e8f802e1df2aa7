"""The pages: links and anchors lead somewhere, code blocks run and print what they claim, doctests pass.

A fence that says more than its language has a meaning here: ```python no-run is left out (it needs a
checkpoint), and ```text output is exactly what the python block before it prints.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from code_rules import PACKAGES, ROOT

from qlib.benchmark.results import read_results

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [page for folder in ("docs", "examples") for page in sorted((ROOT / folder).rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*(.*?)\s*$")
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*(\S+)")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced code block: its info string, its text and the line where the text begins."""

    info: str
    text: str
    line: int


def split(text: str) -> tuple[list[tuple[int, str]], list[Block]]:
    """Return the numbered lines outside of fenced blocks, and the blocks.

    Raises
    ------
    ValueError
        A block is not closed.
    """
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence, info, start, body = "", "", 0, [""]
    for number, line in enumerate(text.split("\n"), start=1):
        match = FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not match[2]:
                blocks.append(Block(info, "\n".join(body), start))
                fence = ""
            else:
                body.append(line)
        elif match:
            fence, info, start, body = match[1], match[2], number + 1, []
        else:
            prose.append((number, line))
    if fence:
        raise ValueError(f"the block that begins at line {start} is not closed")
    return prose, blocks


# --- links


def anchors(text: str) -> set[str]:
    """Return the anchors of a page: its headings as GitHub names them, and explicit ids."""
    prose, _ = split(text)
    found: set[str] = set()
    for _, line in prose:
        found.update(re.findall(r"<[^>]*\b(?:id|name)=\"([^\"]+)\"", line))
        if match := re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$", line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            name, count = slug, 0
            while name in found:
                count += 1
                name = f"{slug}-{count}"
            found.add(name)
    return found


def broken_links(page: Path, root: Path) -> list[str]:
    """Return every relative link of a page that leads nowhere, or out of the repository."""
    prose, _ = split(page.read_text(encoding="utf-8"))
    complaints = []
    for number, line in prose:
        outside_code = re.sub(r"`[^`]*`", "``", line)
        links = [pattern.findall(outside_code) for pattern in (LINK, DEFINITION, HTML)]
        for link in (link for found in links for link in found):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):  # another site
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or not target.is_relative_to(root.resolve()):
                complaints.append(f"{page.name}:{number}: {link} does not exist")
            elif (
                anchor
                and target.suffix == ".md"
                and anchor not in anchors(target.read_text(encoding="utf-8"))
            ):
                complaints.append(f"{page.name}:{number}: {link} has no such heading")
    return complaints


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, ROOT) == []


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - set(LINK.findall(index)) == {"index.md"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("see [a](missing.md)", "missing.md does not exist"),
        ("see [a `b`](missing.md)", "missing.md does not exist"),
        ("![plot](missing.png)", "missing.png does not exist"),
        ('<img src="missing.png">', "missing.png does not exist"),
        ("[a]: missing.md", "missing.md does not exist"),
        ("[a](#no-heading)", "#no-heading has no such heading"),
        ("[a](other.md#no-heading)", "no such heading"),
        ("[a](../outside.md)", "../outside.md does not exist"),
    ],
)
def test_a_broken_link_is_reported(tmp_path: Path, line: str, expected: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.md").touch()
    (root / "other.md").write_text("# Other\n```\n# no-heading\n```\n")
    (root / "page.md").write_text(f"# Page\n\n{line}\n")
    (complaint,) = broken_links(root / "page.md", root)
    assert complaint.startswith("page.md:3")
    assert expected in complaint


@pytest.mark.parametrize(
    "line",
    [
        "[a](other.md)",
        "[a](other.md#why-not-faster)",
        "[a](other.md#why-not-faster-1)",
        "[a](#page)",
        "[a](https://example.org/none)",
        "in code `[a](missing.md)`",
        "```\n[a](missing.md)\n```",
    ],
)
def test_a_good_link_is_not(tmp_path: Path, line: str) -> None:
    (tmp_path / "other.md").write_text("## Why not *faster*?\n## Why not faster\n")
    (tmp_path / "page.md").write_text(f"# Page\n\n{line}\n")
    assert broken_links(tmp_path / "page.md", tmp_path) == []


# --- code blocks


def run_blocks(page: Path) -> int:
    """Run the python blocks of a page in one namespace; return how many there were.

    Raises
    ------
    AssertionError
        What a block printed is not the text below it.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed, count = None, 0
    for block in split(page.read_text(encoding="utf-8"))[1]:
        if block.info == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed, count = output.getvalue(), count + 1
        elif block.info == "text output":
            assert printed is not None, (
                f"{page.name}:{block.line}: no block that ran stands before this output"
            )
            assert printed.rstrip() == block.text.rstrip(), f"{page.name}:{block.line}: other output"
        else:
            printed = None
    return count


@every_page
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@every_page
def test_fences_say_what_is_understood(page: Path) -> None:
    """A misspelt `no-run` would run, and an unmarked block would never be tested."""
    for block in split(page.read_text(encoding="utf-8"))[1]:
        language, _, rest = block.info.partition(" ")
        assert (language, rest) in {("python", ""), ("python", "no-run"), ("text", "output")} or not rest, (
            block
        )
        assert language, f"{page.name}:{block.line}: say the language of this block, for example text"


def test_a_page_that_teaches_has_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks(ROOT / "docs" / "methods" / "gptq.md") >= 2


class TestRunBlocks:
    def page(self, folder: Path, text: str) -> Path:
        (folder / "page.md").write_text(text)
        return folder / "page.md"

    def test_blocks_share_a_namespace(self, tmp_path: Path) -> None:
        text = "```python\nx = 1\n```\n```python\nprint(x)\n```\n```text output\n1\n```\n"
        assert run_blocks(self.page(tmp_path, text)) == 2

    def test_an_error_names_page_and_line(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError) as error:
            run_blocks(self.page(tmp_path, "# Title\n\n```python\nx = 1\n1 / 0\n```\n"))
        assert error.traceback[-1].lineno + 1 == 5
        assert error.traceback[-1].path == tmp_path / "page.md"

    def test_other_output_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"page\.md:5: other output"):
            run_blocks(self.page(tmp_path, "```python\nprint(1)\n```\n```text output\n2\n```\n"))

    def test_output_of_nothing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="no block that ran"):
            run_blocks(self.page(tmp_path, "```python no-run\nprint(2)\n```\n```text output\n2\n```\n"))

    def test_marked_blocks_do_not_run(self, tmp_path: Path) -> None:
        assert run_blocks(self.page(tmp_path, "```python no-run\n1 / 0\n```\n```bash\nexit 1\n```\n")) == 0

    def test_an_open_block_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="line 2 is not closed"):
            run_blocks(self.page(tmp_path, "```python\nx = 1\n"))


def test_a_page_links_the_lessons_that_it_explains() -> None:
    """The curriculum names a page for each lesson; results.md is a table of numbers, and links none."""
    text, missing = (ROOT / "docs" / "curriculum.md").read_text(encoding="utf-8"), []
    rows = re.findall(r"^\| \[\d+\]\(\.\./(\S+\.py)\) \|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    for lesson, cell in rows:
        for page in set(re.findall(r"\]\(([^)\s]+\.md)\)", cell)) - {"results.md", "benchmark.md"}:
            content = (ROOT / "docs" / page).read_text(encoding="utf-8")
            missing += [] if f"{lesson})" in content else [f"{page}: {lesson}"]
    assert rows and missing == []


# --- formulas and excerpts of the source

FORMULA = re.compile(r"^\$\$\n(.*?)^\$\$$", re.DOTALL | re.MULTILINE)


def script(name: str) -> ModuleType:
    """Return a script of the folder docs as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def excerpts() -> ModuleType:
    return script("excerpts")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


@every_page
def test_excerpts_are_what_the_source_says(excerpts: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^<!-- source ", text, re.MULTILINE)) == len(excerpts.EXCERPT.findall(text)), (
        "a block must follow the comment"
    )
    assert excerpts.refreshed(text) == text, "the source has changed: run python docs/excerpts.py"


def test_every_method_page_has_a_formula_and_an_excerpt(excerpts: ModuleType) -> None:
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert FORMULA.search(text) and excerpts.EXCERPT.search(text), page.name


@every_page
def test_formulas_survive_markdown(page: Path) -> None:
    """A backslash before punctuation is taken for an escape and removed: \\, becomes a comma."""
    text = page.read_text(encoding="utf-8")
    assert not len(re.findall(r"^\$\$$", text, re.MULTILINE)) % 2
    for formula in FORMULA.findall(text):
        assert not re.search(r"\\[^a-zA-Z\n]", formula), formula
        assert not re.search(r"^\s*([=+*-]|\d+\.)\s", formula, re.MULTILINE), formula  # a heading or a list
        assert formula.count("{") == formula.count("}"), formula


@every_page
def test_tables_are_what_the_results_say(tables: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = tables.TABLE.findall(text)
    assert len(re.findall(r"^<!-- table ", text, re.MULTILINE)) == len(found), "a table has no end"
    if found:
        fresh = tables.refreshed(text, read_results(tables.DATA))
        assert fresh == text, "the results have changed: run python docs/tables.py"


def test_a_table_by_hand(tables: ModuleType, tmp_path: Path) -> None:
    tests = {"wer": 50.0, "interval": [0, 100], "substitutions": 1, "deletions": 0, "insertions": 0}
    tests |= {"words": 2, "utterances": 2, "utterance_errors": [1, 0], "utterance_words": [1, 1]}
    cost = {"audio_seconds": 10, "tokens": 40, "bytes_moved": 3e6, "bit_operations": 2e12}
    cost |= {"file_bytes": 1e6, "bits_per_parameter": 9.0}
    row = {"model": "a/m", "key": "k", "cost": cost, "tests": {"t": tests}}
    worse = {"utterance_errors": [1, 1], "wer": 100.0}
    rows = [
        {**row, "method": "float", "scheme": "float"},
        {**row, "method": "rtn", "scheme": "W4A16", "bits_per_weight": 4.5, "tests": {"t": tests | worse}},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read_results(tmp_path / "x.jsonl")
    text = "<!-- table summary -->\nold\n<!-- end of table -->\n"
    assert tables.refreshed(text, records).splitlines()[1:-1] == [
        "|  | m | bits per weight |",
        "|---|---|---|",
        "| float | 50.00 | 16.0 |",
        "| RTN w4a16 | 100.00 | 4.5 |",
    ]
    assert tables.schemes(records, "m").splitlines()[2] == "| RTN | 100.00 (+0.0 to +100.0) | 4.50 |"
    assert tables.files(records, "m").splitlines()[3] == (
        "| RTN W4A16 | 4.50 | 9.00 | 1.00 | 3 | 2.00 | 100.00 (+0.0 to +100.0) | 50 % |"
    )


class TestExcerpts:
    def test_lines_from_and_to(self, excerpts: ModuleType) -> None:
        lines = excerpts.excerpt("qlib/methods/rtn.py", "# 1. Fit", "params =").splitlines()
        assert len(lines) == 2 and lines[1].startswith("params = fit_scale(")  # without its indentation

    def test_an_old_block_is_replaced(self, excerpts: ModuleType) -> None:
        comment = '<!-- source qlib/methods/rtn.py: "# 1. Fit" to "params =" -->\n'
        fresh = excerpts.refreshed(f"{comment}```python no-run\nold\n```\nmore\n")
        assert "old" not in fresh and fresh.endswith("```\nmore\n")

    @pytest.mark.parametrize(("first", "last"), [("no such line", "x"), ("# 1. Fit", "no such end")])
    def test_lines_that_are_gone_are_an_error(self, excerpts: ModuleType, first: str, last: str) -> None:
        with pytest.raises(ValueError, match=r"rtn\.py"):
            excerpts.excerpt("qlib/methods/rtn.py", first, last)


# --- doctests


def modules() -> list[str]:
    found = list(PACKAGES)
    for package in PACKAGES:
        walked = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        found += [module.name for module in walked]
    return found


def run_doctests(module: ModuleType) -> doctest.TestResults:
    """Run a module's examples; those of methods find `torch` even where the module does not import it."""
    finder, output = doctest.DocTestFinder(exclude_empty=True), io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in finder.find(module, extraglobs={"torch": torch}):
        runner.run(test, out=output.write)
    assert not runner.failures, output.getvalue()
    return runner.summarize(verbose=False)


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    run_doctests(importlib.import_module(name))


def test_there_are_doctests() -> None:
    assert run_doctests(importlib.import_module("qlib.grid")).attempted >= 5
    assert run_doctests(importlib.import_module("qlib.grid.definition")).attempted >= 2  # of methods


def test_a_wrong_doctest_is_reported() -> None:
    module = ModuleType("wrong", ">>> int(torch.ones(1))\n2\n")
    with pytest.raises(AssertionError, match=r"Expected:\s+2\s+Got:\s+1"):
        run_doctests(module)
