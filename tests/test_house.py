"""The map of the modules is what the imports say, and readable: nothing overlaps, texts fit their boxes."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from code_rules import ROOT

FIGURES = ROOT / "docs" / "figures"
Box = tuple[float, float, float, float]  # left, top, width, height


@pytest.fixture(scope="module")
def house() -> Iterator[ModuleType]:
    monkeypatch = pytest.MonkeyPatch()
    spec = importlib.util.spec_from_file_location("house", FIGURES / "house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "house", module)  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


@pytest.fixture(scope="module")
def picture(house: ModuleType) -> str:
    return str(house.svg())


def boxes_of(picture: str) -> list[Box]:
    pattern = r'<rect class="block" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"'
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in re.findall(pattern, picture)]


def texts_of(picture: str) -> list[tuple[float, float, int, bool, str]]:
    """Return left side or middle, baseline, size, whether it is the middle, and text."""
    found = re.findall(r'<text x="(\d+)" y="(\d+)" font-size="(\d+)"([^>]*)>([^<]*)<', picture)
    return [(float(x), float(y), int(size), "middle" in rest, text) for x, y, size, rest, text in found]


def arrows_of(picture: str) -> list[list[tuple[float, float]]]:
    """Return points along each arrow, some pixels from one to the next."""
    lines = []
    for path in re.findall(r'<path class="arrow" d="([^"]+)"', picture):
        line: list[tuple[float, float]] = []
        for command, numbers in re.findall(r"([MLC])([\d. -]+)", path):
            values = [float(number) for number in numbers.split()]
            corners = list(zip(values[::2], values[1::2], strict=True))
            if command == "M":
                line += corners
                continue
            start = line[-1]
            bent = [start, *corners] if command == "C" else [start, start, corners[0], corners[0]]
            for step in range(1, 41):
                t = step / 40
                weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                line.append(
                    (
                        sum(w * x for w, (x, _) in zip(weights, bent, strict=True)),
                        sum(w * y for w, (_, y) in zip(weights, bent, strict=True)),
                    )
                )
        lines.append(line)
    return lines


def inside(point: tuple[float, float], box: Box) -> bool:
    (x, y), (left, top, width, height) = point, box
    return left + 1 < x < left + width - 1 and top + 1 < y < top + height - 1


def test_the_committed_picture_is_that_of_the_code(picture: str) -> None:
    stored = (FIGURES / "house.svg").read_text(encoding="utf-8")
    assert stored == picture, "imports have changed: run python docs/figures/house.py"


def test_every_file_is_in_it_once(house: ModuleType) -> None:
    blocks, _ = house.read()
    drawn = sorted(name for block in blocks.values() for name in block.files)
    paths = [path for package in ("qlib", "draftlib") for path in (ROOT / package).rglob("*.py")]
    names = sorted(path.stem for path in paths if path.name != "__init__.py")
    assert drawn == [name for name in names if name != "errors"]


def test_boxes_are_apart_and_within_the_picture(picture: str) -> None:
    boxes = boxes_of(picture)
    assert len(boxes) >= 12
    for i, (x, y, width, height) in enumerate(boxes):
        assert x >= 0 and x + width <= 1000
        for left, top, wide, high in boxes[:i]:
            apart = x + width <= left or left + wide <= x or y + height <= top or top + high <= y
            assert apart, f"boxes at {x},{y} and {left},{top} overlap"


def test_texts_fit(picture: str) -> None:
    boxes = boxes_of(picture)
    for x, y, size, middle, text in texts_of(picture)[:-1]:  # the last is the legend, below the boxes
        width = len(text) * size * 0.56
        start = x - width / 2 if middle else x
        (box,) = (box for box in boxes if inside((x, y), box))
        assert inside((start, y - size + 2), box) and inside((start + width, y + 2), box), text
    legend = texts_of(picture)[-1]
    assert len(legend[4]) * legend[2] * 0.56 < 980


def test_arrows_touch_no_other_box(picture: str) -> None:
    arrows = arrows_of(picture)
    assert len(arrows) >= 12
    for line in arrows:
        assert not [(point, box) for point in line for box in boxes_of(picture) if inside(point, box)]


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_blocks_and_arrows_are_those_of_the_imports(house: ModuleType, tmp_path: Path) -> None:
    files = {
        "qlib/__init__.py": '"""A."""\nfrom qlib.pipeline import quantize',
        "qlib/errors.py": "",
        "qlib/packing.py": "from qlib.errors import E",
        "qlib/pipeline.py": "from qlib.methods import RTN\ndef f():\n    import qlib.packing",
        "qlib/methods/__init__.py": '"""Methods. More."""\nfrom qlib.methods.rtn import RTN',
        "qlib/methods/rtn.py": "from ..packing import pack\nimport torch",
        "draftlib/__init__.py": '"""D."""',
        "draftlib/plain.py": "from qlib import quantize",
    }
    blocks, arrows = house.read(write(tmp_path, files))
    assert blocks["qlib/methods/"].sentence == "Methods."
    assert {title: block.files for title, block in blocks.items()} == {
        "qlib: numbers": ["packing"],
        "qlib: quantizing": ["pipeline"],
        "qlib/methods/": ["rtn"],
        "draftlib: the round": ["plain"],
    }
    assert dict(arrows) == {
        ("qlib: quantizing", "qlib/methods/"): 1,
        ("qlib: quantizing", "qlib: numbers"): 1,
        ("qlib/methods/", "qlib: numbers"): 1,
        ("draftlib: the round", "qlib: quantizing"): 1,
    }
    assert ("qlib: quantizing", "qlib: numbers") not in house.without_implied(arrows)


def test_blocks_that_import_one_another_have_one_line(house: ModuleType) -> None:
    arrows = {("a", "b"): 2, ("b", "a"): 5, ("a", "c"): 1}
    assert house.without_implied(arrows) == set(arrows)
    assert house.downward(set(arrows), arrows) == [("b", "a"), ("a", "c")]
