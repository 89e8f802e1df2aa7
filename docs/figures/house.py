"""Draw the map of the modules: a block for each folder, an arrow from a block to each that it imports.

    python docs/figures/house.py            writes docs/figures/house.svg

The picture is made from the import statements alone, so it is what the code is. The drawing is in three
steps: `read` finds blocks and arrows, `layout` gives each block a level and a place, `svg` writes it down.
"""

from __future__ import annotations

import ast
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
FOLDERS = {  # a folder or file that is drawn in another block
    "qlib/models/hub/formats": "qlib/models/hub",
    "qlib/models/__main__.py": "qlib/models/hub",  # the command line of the registry
}
# A package's own files, by subject; those that no line names are in the last block.
TOP: dict[str, list[tuple[str, str, set[str]]]] = {
    "qlib": [
        (
            "qlib: numbers",
            "Quantized weights, rounding of inputs, and the layer that has both.",
            {"quantized_weight", "packing", "linear", "activation", "histogram"},
        ),
        (
            "qlib: results",
            "Errors layer by layer, and a quantized model on disk.",
            {"report", "checkpoint", "stored_layer", "resume", "version"},
        ),
        ("qlib: quantizing", "From a float model and methods to a quantized copy.", set()),
    ],
    "draftlib": [("draftlib: the round", "Draft, translate, verify, learn; who takes part.", set())],
}
EVERYWHERE = "qlib/errors.py"  # imported by every block: drawn at the bottom, without arrows

WIDTH, MARGIN, GAP, LEVEL_GAP = 980, 14, 20, 52
BOX, WIDE_BOX, MANY = 192, 280, 14  # a block with many files gets a wide box
LINE, PAD, PASSAGE = 15, 10, 8  # height of a line; around a text; the width of an arrow that passes a level
MONO, SANS = 6.7, 6.4  # width of a letter at 11 and 12 pixels, rather too much than too little
FILL = {"qlib/models/": "#fbf1dd", "qlib": "#e8f3ea", "draftlib": "#e6effa"}
INK, GREY, EDGE = "#1f2933", "#52606d", "#7b8794"


@dataclass
class Block:
    """A box of the picture: title, one sentence, names of files; then its place."""

    title: str
    sentence: str
    files: list[str] = field(default_factory=list)
    level: int = 0
    x: float = 0.0  # of the left side
    y: float = 0.0

    @property
    def passage(self) -> bool:
        """Whether this is no block, but the place where an arrow passes a level."""
        return not self.title

    @property
    def width(self) -> int:
        """Pixels."""
        return PASSAGE if self.passage else WIDE_BOX if len(self.files) > MANY else BOX

    @property
    def centre(self) -> float:
        """From the left, in pixels."""
        return self.x + self.width / 2

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """The lines of the sentence, and those of the names."""
        inside = self.width - 2 * PAD
        sentence = textwrap.wrap(self.sentence, int(inside / SANS))
        names = " ".join(f"{name}," for name in self.files).rstrip(",")
        return sentence, textwrap.wrap(names, int(inside / MONO), break_long_words=False)

    @property
    def height(self) -> int:
        """Pixels."""
        return 0 if self.passage else 2 * PAD + LINE * (1 + sum(map(len, self.texts))) + 6


Arrow = tuple[str, str]  # from the block that imports to the imported one, by title


# --- read: blocks and arrows


def read(root: Path = ROOT) -> tuple[dict[str, Block], Counter[Arrow]]:
    """Return the blocks by title, and for each pair of blocks how many imports lead from one to the other."""
    paths = [path.relative_to(root).as_posix() for package in TOP for path in (root / package).rglob("*.py")]
    trees = {path: ast.parse((root / path).read_text(encoding="utf-8")) for path in sorted(paths)}
    blocks: dict[str, Block] = {}
    for path in trees:
        title, sentence = _block_of(path, trees)
        block = blocks.setdefault(title, Block(title, sentence))
        if not path.endswith("__init__.py") and path != EVERYWHERE:
            block.files.append(PurePosixPath(path).stem)
    blocks = {title: block for title, block in blocks.items() if block.files}
    arrows: Counter[Arrow] = Counter()
    for path, tree in trees.items():
        if path.endswith("__init__.py"):  # it collects the names of its folder
            continue
        for target in _imports(path, tree, trees):
            arrow = _block_of(path, trees)[0], _block_of(target, trees)[0]
            if target != EVERYWHERE and arrow[0] != arrow[1] and set(arrow) <= blocks.keys():
                arrows[arrow] += 1
    return blocks, arrows


def _block_of(path: str, trees: Mapping[str, ast.Module]) -> tuple[str, str]:
    """Return title and sentence of a file's block."""
    folder = PurePosixPath(path).parent.as_posix()
    folder = FOLDERS.get(path, FOLDERS.get(folder, folder))
    for title, sentence, names in TOP.get(folder, []):
        if not names or PurePosixPath(path).stem in names:
            return title, sentence
    about = ast.get_docstring(trees[f"{folder}/__init__.py"]) or ""
    return f"{folder}/", about.partition("\n")[0].partition(". ")[0].rstrip(".") + "."


def _imports(path: str, tree: ast.Module, trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield the files of both packages that a file imports, wherever the import stands in it."""
    package = list(PurePosixPath(path).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            names = [[*parents, *(node.module or "").split("."), alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if (target := _file_of([part for part in name if part], trees)) is not None:
                yield target


def _file_of(name: Sequence[str], trees: Mapping[str, ast.Module]) -> str | None:
    """Return the file in which a dotted name is defined, as far as imports tell, or None."""
    for end in (len(name), len(name) - 1):
        place = "/".join(name[:end])
        if f"{place}.py" in trees:
            return f"{place}.py"
        if (start := f"{place}/__init__.py") in trees:
            collected = [
                [*(node.module or "").split("."), alias.name]
                for node in trees[start].body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if end < len(name) and (alias.asname or alias.name) == name[end]
            ]
            return _file_of(collected[0], trees) if collected else start
    return None


# --- layout: levels, and places in them


def without_implied(arrows: Mapping[Arrow, int]) -> set[Arrow]:
    """Return the arrows without those that others imply: a to c is left out beside a to b and b to c."""
    kept = set(arrows)
    for arrow in sorted(arrows, key=lambda each: (arrows[each], each)):
        if arrow[1] in _reached(arrow[0], kept - {arrow}) and arrow[::-1] not in kept:
            kept.remove(arrow)
    return kept


def _reached(start: str, arrows: Iterable[Arrow]) -> set[str]:
    reached, todo = {start}, [start]
    while todo:
        here = todo.pop()
        new = {end for begin, end in arrows if begin == here} - reached
        reached |= new
        todo += new
    return reached


def downward(arrows: set[Arrow], counts: Mapping[Arrow, int]) -> list[Arrow]:
    """Return the arrows that may all point down: of blocks that import one another, the more frequent one."""
    chosen: list[Arrow] = []
    for arrow in sorted(arrows, key=lambda each: (-counts[each], each)):
        if arrow[0] not in _reached(arrow[1], chosen):
            chosen.append(arrow)
    return chosen


def layout(blocks: dict[str, Block], down: Sequence[Arrow]) -> tuple[list[list[Block]], list[list[Block]]]:
    """Place the blocks; return the levels, the highest first, and the way of each arrow through them."""
    for limit in range(WIDTH - 2 * MARGIN - 100, 0, -BOX):
        _give_levels(blocks, down, limit)
        levels, ways = _with_passages(blocks, down)
        if all(sum(block.width + GAP for block in level) <= WIDTH - 2 * MARGIN for level in levels):
            break
    _order(levels, ways)
    y = 2.0 * MARGIN
    for level in levels:
        for block in level:
            block.y = y
        y += max(block.height for block in level) + LEVEL_GAP
    return levels, ways


def _give_levels(blocks: Mapping[str, Block], down: Sequence[Arrow], limit: int) -> None:
    """Let each block stand above all that it imports, as low as it can in levels of limited width."""
    widths: Counter[int] = Counter()
    imported = {title: [end for begin, end in down if begin == title] for title in blocks}
    above = {title: len(_reached(title, [(end, begin) for begin, end in down])) for title in blocks}
    waiting = sorted(blocks, key=lambda title: (-above[title], title))  # what many stand on comes first
    while waiting:
        title = next(each for each in waiting if not set(imported[each]) & set(waiting))
        waiting.remove(title)
        block = blocks[title]
        block.level = max((blocks[end].level + 1 for end in imported[title]), default=0)
        while widths[block.level] and widths[block.level] + block.width + GAP > limit:
            block.level += 1
        widths[block.level] += block.width + GAP


def _with_passages(
    blocks: Mapping[str, Block], down: Sequence[Arrow]
) -> tuple[list[list[Block]], list[list[Block]]]:
    """Return the levels, the highest first, with passages for the arrows that go through; and the ways."""
    top = max(block.level for block in blocks.values())
    levels = [[block for block in blocks.values() if block.level == s] for s in range(top, -1, -1)]
    ways = []
    for begin, end in sorted(down):
        passages = [Block("", "", level=s) for s in range(blocks[begin].level - 1, blocks[end].level, -1)]
        for passage in passages:
            levels[top - passage.level].append(passage)
        ways.append([blocks[begin], *passages, blocks[end]])
    return levels, ways


def _order(levels: list[list[Block]], ways: list[list[Block]]) -> None:
    """Order each level by where the neighbours are, and keep the order with the shortest arrows."""
    pairs = [pair for way in ways for pair in itertools.pairwise(way)]
    for level in levels:
        level.sort(key=lambda block: block.title)
        _place(level, [0.0] * len(level))
    best, places = float("inf"), {}
    for sweep in range(24):
        for level in levels if sweep % 2 else reversed(levels):
            wishes = [_middle_of_neighbours(block, pairs) for block in level]
            order = sorted(range(len(level)), key=lambda i: (round(wishes[i], 6), level[i].title))
            level[:] = [level[i] for i in order]
            _place(level, [wishes[i] for i in order])
        length = sum(abs(a.centre - b.centre) for a, b in pairs) + 60 * _crossings(pairs)
        if length < best - 1e-6:
            best, places = length, {id(block): block.x for level in levels for block in level}
    for level in levels:
        for block in level:
            block.x = round(places[id(block)])
        level.sort(key=lambda block: block.x)


def _middle_of_neighbours(block: Block, pairs: Sequence[tuple[Block, Block]]) -> float:
    near = [a if b is block else b for a, b in pairs if block is a or block is b] or [block]
    return sum(each.centre for each in near) / len(near)


def _crossings(pairs: Sequence[tuple[Block, Block]]) -> int:
    return sum(
        a.level == c.level and (a.x - c.x) * (b.x - d.x) < 0
        for i, (a, b) in enumerate(pairs)
        for c, d in pairs[:i]
    )


def _place(level: list[Block], centres: Sequence[float]) -> None:
    """Put blocks from left to right as near as may be to where their centres should be, within the width."""
    offsets = [0.0]
    for block in level:
        offsets.append(offsets[-1] + block.width + GAP)
    free = WIDTH - 2 * MARGIN - (offsets[-1] - GAP)
    groups: list[list[float]] = []  # of blocks that touch: [sum of wished shifts, how many]
    for centre, offset, block in zip(centres, offsets, level, strict=False):
        groups.append([centre - block.width / 2 - MARGIN - offset, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    shifts = [total / count for total, count in groups for _ in range(int(count))]
    for block, offset, shift in zip(level, offsets, shifts, strict=False):
        block.x = MARGIN + offset + min(max(shift, 0.0), free)


# --- svg


def svg(root: Path = ROOT) -> str:
    """Return the picture."""
    blocks, counts = read(root)
    arrows = without_implied(counts)
    down = downward(arrows, counts)
    levels, ways = layout(blocks, down)
    both = {arrow for arrow in down if arrow[::-1] in arrows}
    lines = [_way(way, ways, levels, (way[0].title, way[-1].title) in both) for way in ways]
    boxes = [part for level in levels for block in level if not block.passage for part in _box(block)]
    bottom = levels[-1][0].y + max(block.height for block in levels[-1]) + 14
    legend = (
        "An arrow goes from a block to one that it imports; those that other arrows imply are left out. "
        "Names are files, without .py."
    )
    ground = f"{EVERYWHERE}: every block may import it"
    middle = WIDTH / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 66:.0f}" '
            f'viewBox="0 0 {WIDTH} {bottom + 66:.0f}" font-family="Helvetica, Arial, sans-serif">',
            "<title>The modules of qlib and draftlib, and who imports whom</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0 0.5 L8 4 L0 7.5 z" fill="{EDGE}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{bottom + 66:.0f}" fill="white"/>',
            *lines,
            *boxes,
            f'<rect class="block" x="{MARGIN}" y="{bottom:.0f}" width="{WIDTH - 2 * MARGIN}" height="26" '
            f'rx="4" fill="#eef0f2" stroke="{EDGE}"/>',
            f'<text x="{middle:.0f}" y="{bottom + 17:.0f}" font-size="12" text-anchor="middle" '
            f'fill="{INK}">{ground}</text>',
            f'<text x="{middle:.0f}" y="{bottom + 50:.0f}" font-size="12" text-anchor="middle" '
            f'fill="{GREY}">{legend}</text>',
            "</svg>\n",
        ]
    )


def _box(block: Block) -> Iterator[str]:
    fill = next(colour for start, colour in FILL.items() if block.title.startswith(start))
    yield (
        f'<rect class="block" x="{block.x:.0f}" y="{block.y:.0f}" width="{block.width}" '
        f'height="{block.height}" rx="6" fill="{fill}" stroke="{EDGE}"/>'
    )
    sentence, names = block.texts
    styles = [f'font-size="13" font-weight="bold" fill="{INK}"']
    styles += [f'font-size="12" fill="{GREY}"'] * len(sentence)
    styles += [f'font-size="11" font-family="Menlo, Consolas, monospace" fill="{INK}"'] * len(names)
    y = block.y + PAD + 11
    for i, (text, style) in enumerate(zip([block.title, *sentence, *names], styles, strict=True)):
        y += 6 if i == 1 + len(sentence) else 0
        yield f'<text x="{block.x + PAD:.0f}" y="{y:.0f}" {style}>{escape(text)}</text>'
        y += LINE


def _way(way: list[Block], ways: list[list[Block]], levels: list[list[Block]], both: bool) -> str:
    """Return an arrow: straight down through each level, a curve in the space between two."""
    x = _port(way[0], way[1], [other[:2] for other in ways])
    path = [f"M{x:.1f} {way[0].y + way[0].height:.0f}"]
    for upper, lower in itertools.pairwise(way):
        end = lower.centre
        if lower is way[-1]:
            end = _port(lower, upper, [[other[-1], other[-2]] for other in ways])
        above = max(block.height for block in levels[levels[0][0].level - upper.level])
        y, half = upper.y + above, (lower.y - upper.y - above) / 2
        path.append(f"L{x:.1f} {y:.0f}")
        path.append(f"C{x:.1f} {y + half:.0f} {end:.1f} {y + half:.0f} {end:.1f} {lower.y:.0f}")
        x = end
    start = ' marker-start="url(#head)"' if both else ""
    return (
        f'<path class="arrow" d="{" ".join(path)}" fill="none" stroke="{EDGE}" stroke-width="1.4" '
        f'marker-end="url(#head)"{start}/>'
    )


def _port(block: Block, other: Block, ends: Sequence[Sequence[Block]]) -> float:
    """Return where on a block's side an arrow begins or ends, so that those to the left are on the left."""
    others = sorted((end[1] for end in ends if end[0] is block), key=lambda each: each.centre)
    place = next(i for i, each in enumerate(others) if each is other)
    return block.x + block.width * (place + 1) / (len(others) + 1)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg(), encoding="utf-8")
