"""The page of a study: what stands in it, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qlib.__main__ import main
from qlib.benchmark.charts import SIDE, WIDTH, heat_maps
from qlib.benchmark.page import marked, write_report
from qlib.benchmark.results import Losses, changed_clips, pareto, read_losses, read_results
from qlib.errors import DataError, FileError
from qlib.models.disk.hashes import sealed

RUN = {"audio_seconds": 10, "tokens": 40, "bit_operations": 3_210_000_000_000, "bits_per_parameter": 9.0}
LOSSES = {
    "model.encoder.layers.0.self_attn.q_proj": [0.25, 2.0],
    "model.encoder.layers.0.fc1": [2e-6, 0.02],
    "model.decoder.layers.0.fc1": [0.0, 2e-3],
    "proj_out": [0.0002, 0.5],
}
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
        if method != "gptq":  # that one was recorded before costs were
            moved = 2_000_000 if method == "float" else 1_500_000
            row["cost"] = {**RUN, "bytes_moved": moved, "file_bytes": 9_400_000}
        if method != "float":
            row |= {"bits_per_weight": 3.5, "bytes": 3_000_000 + len(method)}
        written = [
            {"id": name, "audio_filepath": str(audio), "text": said, "pred_text": text}
            for name, said, text in zip("abc", SAID, texts, strict=True)
        ]
        cell = sealed({"row": row, "texts": {"other": written}, "times": {}})
        (folder / "cells" / f"{key}.json").write_text(json.dumps(cell))
        rows.append(row)
    judged = {"key": "s", "model": "models/tiny", "method": "sensitivity", "scheme": "sensitivity"}
    judged |= {"recordings": 8, "grids": ["w4 g64 <a>", "w3 g64"], "losses": LOSSES}
    rows.append({**judged, "measure": "fisher"})
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


def table(page: str) -> list[list[str]]:
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [re.findall("<td>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_columns_of_cost(study: Path) -> None:
    text = write_report(study)[0].read_text()
    assert [row[-3:] for row in table(text)] == [
        ["9.4", "2", "3.21"],  # of float, as its checkpoint would be
        ["3.0", "2", "3.21"],
        ["3.0", "", ""],  # recorded before costs were: empty, and not those of another run
    ]
    assert "Bytes moved and bit operations are those of 10 s of audio and 40 tokens." in text


def test_a_map_of_the_layers(study: Path) -> None:
    (found,) = read_losses(study)
    assert found.grids == ("w4 g64 <a>", "w3 g64") and found.losses["proj_out"] == (0.0002, 0.5)
    text = write_report(study)[0].read_text()
    shades = {
        title: float(shade) for shade, title in re.findall('opacity="(.*?)"><title>(.*?)</title>', text)
    }
    assert len(shades) == 8  # a cell for each layer and grid
    assert shades["encoder.0 self_attn.q_proj, w3 g64: 2"] == 1.0
    assert shades["encoder.0 fc1, w3 g64: 0.02"] == round(
        0.04 + 0.96 / 2, 2
    )  # a hundredth: half of 4 decades
    assert shades["proj_out , w4 g64 &lt;a&gt;: 0.0002"] == 0.04  # four decades below: the faintest
    assert shades["decoder.0 fc1, w4 g64 &lt;a&gt;: 0"] == 0.04
    assert "on 8 recordings that calibrate" in text and "1 self_attn.q_proj, 2 fc1" in text
    assert "the layer itself" in text


def test_maps_that_do_not_fit_stand_below_each_other() -> None:
    found = Losses("tiny", 8, tuple("abcde"), {f"layers.0.{kind}": (1.0,) * 5 for kind in range(20)})
    places = re.findall('<rect class="heat" x="(.*?)" y="(.*?)"', heat_maps(found, "t"))
    assert max(float(x) + SIDE for x, _ in places) <= WIDTH
    assert len(set(places)) == 100 and len({y for _, y in places}) == 5  # one map a line


def test_a_study_without_maps_has_none(study: Path) -> None:
    path = study / "results.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "losses" not in line))
    assert read_losses(study) == [] and "which layers hurt" not in write_report(study)[0].read_text()


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


def test_files_of_the_page_as_json_lines(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study), "--json"]) == 0
    files = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert files == [str(study / "report.html"), str(study / "report.md")]


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
    document.body.dataset.cells = document.querySelectorAll("svg rect.heat").length;
    document.body.dataset.fill = getComputedStyle(document.querySelector("rect.heat")).fill;
    document.body.dataset.dots = document.querySelectorAll("svg circle title").length;
    """
    found = browse(path, width=width, script=script)
    assert 'data-order="float gptq rtn"' in found  # by word error rate
    assert 'data-shown="rtn"' in found
    assert 'data-wide="false"' in found, "the page scrolls sideways"
    assert 'data-cells="8"' in found and 'data-fill="rgb(' in found
    assert 'data-dots="4"' in found and "data-error" not in found
