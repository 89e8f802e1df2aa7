"""The page of a study: what stands in it, and how a browser shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qlib.__main__ import main
from qlib.benchmark.page import marked, write_report
from qlib.benchmark.results import changed_clips, pareto, read_results
from qlib.errors import DataError, FileError
from qlib.models.disk.hashes import sealed

SAID = ["the cat sat", "on <the> mat", "and then"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def result(errors: list[int], words: list[int]) -> dict[str, Any]:
    return {
        "wer": 100 * sum(errors) / sum(words),
        "interval": [1.0, 2.0],
        "substitutions": sum(errors),
        "deletions": 0,
        "insertions": 0,
        "words": sum(words),
        "utterances": len(words),
        "utterance_errors": errors,
        "utterance_words": words,
        "ids": ["a", "b", "c"],
    }


def write_study(folder: Path, audio: Path) -> Path:
    """A study with float, two cells and a failed one."""
    (folder / "cells").mkdir(parents=True)
    rows = []
    for method, scheme, errors, texts in (
        ("float", "float", [0, 1, 0], ["The cat sat.", "on the mad", "and then"]),
        ("rtn", "W3A16", [2, 0, 0], ["The hat set.", "on the mat", "and then"]),
        ("gptq", "W3A16", [0, 1, 0], ["The cat sat.", "on the mad", "and then"]),
    ):
        key = f"{method}-{scheme}"
        row = {"key": key, "model": "models/tiny", "method": method, "scheme": scheme}
        row["tests"] = {"other": result(errors, [3, 3, 2])}
        if method != "float":
            row |= {"bits_per_weight": 3.5, "bytes": 3_000_000 + len(method)}
        written = [
            {"id": name, "audio_filepath": str(audio), "text": said, "pred_text": text}
            for name, said, text in zip("abc", SAID, texts, strict=True)
        ]
        cell = sealed({"row": row, "texts": {"other": written}, "times": {}})
        (folder / "cells" / f"{key}.json").write_text(json.dumps(cell))
        rows.append(row)
    rows.append({"model": "models/tiny", "method": "spqr", "scheme": "W3A16", "error": "why"})
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    audio = tmp_path / "a.wav"
    soundfile.write(audio, [0.0] * 1600, 16000)
    return write_study(tmp_path / "study", audio)


class Page(HTMLParser):
    """Collects addresses, and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "input", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


def test_a_page_needs_nothing_but_itself(study: Path) -> None:
    path, _ = write_report(study)
    text = path.read_text()
    page = Page(text)
    assert (
        page.open == []
        and page.addresses
        and all(each.startswith("data:audio/wav") for each in page.addresses)
    )
    assert "http" not in text.replace("http-equiv", "")
    assert "on &lt;the&gt; mat" in text and "<the>" not in text  # texts are not markup


def test_differences_are_paired(study: Path) -> None:
    records = read_results(study)
    assert [(each.name, each.difference) for each in records] == [
        ("float", 0.0),
        ("rtn W3A16", 100 * 1 / 8),
        ("gptq W3A16", 0.0),
    ]
    assert records[2].difference_interval == (0.0, 0.0)
    low, high = records[1].difference_interval
    assert low < 0 < high


def test_clips_that_changed(study: Path) -> None:
    records = read_results(study)
    assert changed_clips(study, records, records[2]) == []
    worse, better = changed_clips(study, records, records[1])
    assert (worse.id, worse.more, worse.before, worse.after) == ("a", 2, "The cat sat.", "The hat set.")
    assert (better.id, better.more) == ("b", -1)
    assert marked("the cat sat", "The hat sat & so") == (
        "The <del>cat</del> <ins>hat</ins> sat <ins>&amp; so</ins>"
    )


def test_tables_in_markdown(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study)]) == 0
    html, markdown = map(Path, capsys.readouterr().out.split())
    assert html.name == "report.html"
    text = markdown.read_text()
    assert "## tiny, other, float 12.50" in text
    assert "| gptq | 12.50 (+0.0 to +0.0) |" in text and "spqr" not in text
    assert "other: 3 clips, 8 words" in text


def test_the_front_by_brute_force() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 2.0), (2.0, 3.0), (4.0, 1.0)]
    better = [all(not (x <= a and y <= b and (x, y) != (a, b)) for x, y in points) for a, b in points]
    assert sorted(pareto(points)) == [i for i, best in enumerate(better) if best]


def test_a_folder_that_cannot_be_made(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a part of the path is a file"):
        write_report(study, tmp_path / "file" / "report")


def test_without_results(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.jsonl is missing"):
        write_report(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"error": "why"}\n')
    with pytest.raises(DataError, match="no finished cell"):
        write_report(tmp_path)


# --- in a browser


def browse(page: Path, *, width: int, script: str = "") -> str:
    """Return the page's markup after its scripts, and one more, have run in chromium."""
    assert CHROMIUM is not None
    text = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    copy = page.with_name("copy.html")
    copy.write_text(text)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--dump-dom", "--virtual-time-budget=3000", copy.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return found.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500], ids=["desk", "phone"])
def test_a_browser_sorts_and_filters(study: Path, width: int) -> None:
    path, _ = write_report(study)
    script = """
    addEventListener("error", event => document.body.dataset.error = event.message);
    document.querySelectorAll("th button")[4].click();
    const filter = document.getElementById("filter");
    filter.value = "W3A16 rtn";
    filter.dispatchEvent(new Event("input"));
    const rows = [...document.querySelectorAll("#results tbody tr")];
    const methods = rows => rows.map(row => row.cells[2].textContent).join(" ");
    document.body.dataset.order = methods(rows);
    document.body.dataset.shown = methods(rows.filter(row => !row.hidden));
    document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
    document.body.dataset.dots = document.querySelectorAll("svg circle title").length;
    """
    found = browse(path, width=width, script=script)
    assert 'data-order="float gptq rtn"' in found  # by word error rate
    assert 'data-shown="rtn"' in found
    assert 'data-wide="false"' in found, "the page scrolls sideways"
    assert 'data-dots="4"' in found and "data-error" not in found
