"""Pictures are what their script writes, small and readable, and each stands on a page with a text for it."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from code_rules import ROOT
from test_docs import PAGES

from draftlib.verification.noise import gumbel
from draftlib.verification.verify import choose

FIGURES = ROOT / "docs" / "figures"
SCRIPTS = ("architecture", "chart", "drafting", "make", "measures", "methods", "tables")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Import the scripts, which import one another by their names, and forget them again."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(FIGURES))
    for name in SCRIPTS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: __import__(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    monkeypatch.undo()


def stored() -> list[str]:
    return sorted(path.stem for path in FIGURES.glob("*.svg") if path.stem != "house")


def images() -> list[tuple[Path, str, str]]:
    """Return page, text and file of every picture on a page."""
    return [
        (page, text, link) for page in PAGES for text, link in IMAGE.findall(page.read_text(encoding="utf-8"))
    ]


def test_every_picture_has_a_script(scripts: dict[str, ModuleType]) -> None:
    assert stored() == sorted(scripts["make"].FIGURES)


@pytest.mark.parametrize("name", stored())
def test_the_stored_picture_is_what_the_script_writes(scripts: dict[str, ModuleType], name: str) -> None:
    text = (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    assert text == scripts["make"].FIGURES[name]().svg(), "run python docs/figures/make.py"


@pytest.mark.parametrize("name", stored())
def test_a_picture_is_small_and_valid(name: str) -> None:
    content = (FIGURES / f"{name}.svg").read_bytes()
    assert len(content) < 40_000
    root = ET.fromstring(content)
    title = root.findtext("{http://www.w3.org/2000/svg}title")
    assert title and title == root.get("aria-label")
    assert "background" not in content.decode() and 'fill="white"' not in content.decode()


def test_every_picture_stands_on_a_page() -> None:
    shown = {(page.parent / link).resolve() for page, _, link in images()}
    assert [name for name in stored() if (FIGURES / f"{name}.svg").resolve() not in shown] == []


def test_pictures_of_pages_exist_and_have_a_text() -> None:
    found = images()
    assert found
    wrong = [f"{page.name}: {link}" for page, text, link in found if len(text.split()) < 4]
    wrong += [f"{page.name}: {link}" for page, _, link in found if not (page.parent / link).exists()]
    assert wrong == []


class TestTheWriter:
    def test_a_text_that_does_not_fit_is_refused(self, scripts: dict[str, ModuleType]) -> None:
        with pytest.raises(ValueError, match="reaches from"):
            scripts["chart"].Picture("long " * 40, 100)

    def test_axes_map_values_to_places(self, scripts: dict[str, ModuleType]) -> None:
        picture = scripts["chart"].Picture("A title", 100)
        axes = scripts["chart"].Axes(picture, 10, 20, 100, 50, (0, 4), (1, 100), log_y=True)
        assert axes.at(0, 1) == (10, 70) and axes.at(4, 100) == (110, 20)
        assert axes.at(2, 10) == (60, 45)  # the middle of two powers of ten

    def test_texts_are_escaped(self, scripts: dict[str, ModuleType]) -> None:
        assert "&lt;b&gt;" in scripts["chart"].Picture("<b> & more", 50).svg()

    def test_a_table_that_is_not_there_is_an_error(self, scripts: dict[str, ModuleType]) -> None:
        with pytest.raises(ValueError, match="no table that begins with"):
            scripts["tables"].table("index.md", "| no such head |")


def test_how_often_shared_noise_agrees(scripts: dict[str, ModuleType]) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    noise = torch.stack([gumbel(seed, 0, 3) for seed in range(4000)])
    agree = (choose(p.log(), noise) == choose(q.log(), noise)).double().mean()
    expected = scripts["drafting"].gumbel_match(p, q)
    assert abs(float(agree) - expected) < 0.03  # four standard deviations
    assert 0.6 / 1.4 <= expected <= 0.6  # (1 - TV) / (1 + TV) and 1 - TV
    assert scripts["drafting"].gumbel_match(p, p) == pytest.approx(1)


class TestSteps:
    def test_the_parts_of_a_line(self, scripts: dict[str, ModuleType]) -> None:
        source, parts = scripts["drafting"].parse_step("   3  (suffix) a [·b] -c- -[d]- +·e")
        assert source == "suffix"
        assert parts == [
            ("accepted", "a"), ("merged", "·b"), ("rejected", "c"), ("rejected", "d"), ("own", "·e"),
        ]  # fmt: skip

    def test_another_line_is_refused(self, scripts: dict[str, ModuleType]) -> None:
        with pytest.raises(ValueError, match="no line of"):
            scripts["drafting"].parse_step("hello")


# --- the study


def cell(method: str, scheme: str, bits: float | None, errors: int, model: str = "a/tiny") -> dict[str, Any]:
    test = {"substitutions": errors, "deletions": 0, "insertions": 0, "words": 100, "utterances": 5}
    row: dict[str, Any] = {"model": model, "method": method, "scheme": scheme}
    row["tests"] = {"one": test, "two": test | {"substitutions": 0}}
    return row | ({} if bits is None else {"bits_per_weight": bits})


def study(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.jsonl"


class TestWordErrorsOverBits:
    ROWS = (
        cell("float", "float", None, 20), cell("rtn", "W4A16", 4.56, 24), cell("rtn", "W3A16", 3.55, 190),
        cell("rtn", "W4A8", 4.56, 77), cell("gptq", "w3a16g128", 3.56, 30),
        cell("gptq", "W3A16E3", 3.4, 31),
        cell("float", "float", None, 10, "b/base"), cell("rtn", "W4A16", 4.56, 12, "b/base"),
        {"model": "b/base", "method": "hqq", "scheme": "W4A16", "error": "no memory"},
        {"model": "b/base", "method": "sensitivity", "scheme": "sensitivity", "losses": {}},
    )  # fmt: skip

    def picture(self, scripts: dict[str, ModuleType], tmp_path: Path) -> str:
        return str(scripts["measures"].wer_over_bits(study(tmp_path, *self.ROWS)).svg())

    def test_rates_are_over_all_test_sets(self, scripts: dict[str, ModuleType]) -> None:
        assert scripts["measures"].pooled(self.ROWS[0]) == 10.0  # 20 of 200

    def test_the_title_says_who_needs_the_fewest_bits(
        self, scripts: dict[str, ModuleType], tmp_path: Path
    ) -> None:
        # RTN at 3 bits is far from the float model, at 4 bits near on both; GPTQ at 3 bits is near.
        title = "GPTQ stays near the float model down to 3.6 stored bits per weight, RTN to 4.6"
        assert f"<title>{title}</title>" in self.picture(scripts, tmp_path)
        rows = [cell("float", "float", None, 20), cell("rtn", "W4A16", 4.56, 24)]
        other = str(scripts["measures"].wer_over_bits(study(tmp_path, *rows)).svg())
        assert "<title>Word error rate over the bits" in other

    def test_a_panel_per_model_and_a_line_per_method(
        self, scripts: dict[str, ModuleType], tmp_path: Path
    ) -> None:
        picture = self.picture(scripts, tmp_path)
        assert ">tiny<" in picture and ">base<" in picture
        assert ">RTN<" in picture and ">GPTQ<" in picture and ">HQQ<" not in picture

    def test_inputs_in_float_only_and_what_is_cut_off_is_an_arrow(
        self, scripts: dict[str, ModuleType], tmp_path: Path
    ) -> None:
        picture = self.picture(scripts, tmp_path)
        assert picture.count("<circle") == 3  # rtn W4A16 twice, gptq W3A16; not the token embedding
        assert picture.count("<polygon") == 1  # rtn W3A16: 95 %
