"""Charts as SVG text: they stand in a page that opens without a network, in light and dark.

Colours are those of the page's style sheet (`var(--c0)` ...), so that they follow its theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

from qlib.analysis.heat_map import DECADES, cells
from qlib.benchmark.results import Losses, Record, pareto

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 56, 16, 14, 44
COLOURS = 8
SIDE, GAP, NAMES = 15, 26, 96  # of a heat map: a cell's side, between two maps, for the names of rows


def scatter(records: Sequence[Record], title: str) -> str:
    """Return word error rate against megabytes, one dot a record, with the Pareto front as a line.

    Rates beyond twice the median are cut off at the upper edge, and say so when pointed at.
    """
    found = [each for each in records if each.bytes]
    if not found:
        return ""
    sizes = [(each.bytes or 0) / 1e6 for each in found]
    rates = sorted(each.wer for each in found)
    top = min(rates[-1], 2 * rates[len(rates) // 2]) * 1.05 + 0.5
    x, y = (
        _Axis(min(sizes) * 0.97, max(sizes) * 1.03, LEFT, WIDTH - RIGHT),
        _Axis(0.9 * rates[0], top, 340, TOP),
    )
    methods = list(dict.fromkeys(each.method for each in found))
    parts = [_frame(x, y, 340, "megabytes of the file", "WER, %")]
    front = pareto([(size, each.wer) for size, each in zip(sizes, found, strict=True)])
    line = " ".join(f"{x(sizes[i]):.1f},{y(min(found[i].wer, top)):.1f}" for i in front)
    parts.append(f'<polyline class="front" points="{line}"/>')
    for size, each in zip(sizes, found, strict=True):
        colour = f"var(--c{methods.index(each.method) % COLOURS})"
        text = f"{each.name}: WER {each.wer:.2f} %, {size:.1f} MB"
        parts.append(
            f'<circle cx="{x(size):.1f}" cy="{y(min(each.wer, top)):.1f}" r="5" fill="{colour}">'
            f"<title>{escape(text)}</title></circle>"
        )
    for i, method in enumerate(methods):
        left = LEFT + 10 + 130 * (i % 5)
        height = 340 + BOTTOM + 8 + 18 * (i // 5)
        parts.append(
            f'<circle cx="{left}" cy="{height}" r="5" fill="var(--c{i % COLOURS})"/>'
            f'<text x="{left + 10}" y="{height + 4}">{escape(method)}</text>'
        )
    return _svg(parts, 340 + BOTTOM + 20 + 18 * ceil(len(methods) / 5), title)


def intervals(records: Sequence[Record], title: str) -> str:
    """Return the difference to float with its interval, one line a record."""
    if not records:
        return ""
    low = min(min(each.difference_interval[0] for each in records), 0.0)
    high = max(sorted(each.difference_interval[1] for each in records)[: max(1, ceil(0.9 * len(records)))])
    left, bottom = 190, TOP + 22 * len(records)
    x = _Axis(low - 0.5, max(high, 1.0) * 1.05, left, WIDTH - RIGHT)
    parts = [_frame(x, None, bottom, "difference to float, points", "")]
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for i, each in enumerate(records):
        height, ends = TOP + 22 * i + 11, [min(x(value), WIDTH - RIGHT) for value in each.difference_interval]
        text = f"{each.name}: {each.difference:+.2f} [{each.difference_interval[0]:+.2f}, "
        text += f"{each.difference_interval[1]:+.2f}]"
        at = min(x(each.difference), WIDTH - RIGHT)
        parts.append(
            f'<text x="{left - 8}" y="{height + 4}" text-anchor="end">{escape(each.name)}</text>'
            f'<line class="bar" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{height}" y2="{height}"/>'
            f'<circle cx="{at:.1f}" cy="{height}" r="4.5" fill="var(--c0)">'
            f"<title>{escape(text)}</title></circle>"
        )
    return _svg(parts, bottom + BOTTOM, title)


def heat_maps(found: Losses, title: str) -> str:
    """Return a map for each grid: a row a block, a column a kind of layer, the darker the larger its loss.

    All maps have one scale, logarithmic over `DECADES` powers of ten.
    """
    largest = max(max(each) for each in found.losses.values())
    maps = [
        (grid, cells({layer: each[i] for layer, each in found.losses.items()}))
        for i, grid in enumerate(found.grids)
    ]
    rows, columns, _ = maps[0][1]
    width, height = SIDE * len(columns) + GAP, SIDE * len(rows) + 62
    side_by_side = max(1, min(len(maps), (WIDTH - NAMES) // width))
    parts = []
    for i, (grid, (_, _, table)) in enumerate(maps):
        left, top = NAMES + width * (i % side_by_side), TOP + 10 + height * (i // side_by_side)
        parts.append(f'<text x="{left}" y="{top - 8}">{escape(grid)}</text>')
        for j, row in enumerate(rows):
            y = top + SIDE * j
            if i % side_by_side == 0:
                parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(row)}</text>')
            parts += [
                _heat_cell(left + SIDE * k, y, table[row, column], largest, f"{row} {column}, {grid}")
                for k, column in enumerate(columns)
                if (row, column) in table
            ]
        bottom = top + SIDE * len(rows)
        parts += [
            f'<text x="{left + SIDE * (k - 0.5):g}" y="{bottom + 14}" text-anchor="middle">{k}</text>'
            for k in range(1, len(columns) + 1)
        ]
    lines = ceil(len(maps) / side_by_side)
    return _svg(parts, TOP + height * lines - 36, title)


def heat_legend(found: Losses) -> str:
    """Say in words what the numbers of the columns and the shades of `heat_maps` are."""
    names = cells({layer: each[0] for layer, each in found.losses.items()})[1]
    largest = max(max(each) for each in found.losses.values())
    columns = ", ".join(f"{k} {name or 'the layer itself'}" for k, name in enumerate(names, 1))
    return (
        f"Each layer alone rounded to nearest: KL divergence in nats a token, estimated from gradients on "
        f"{found.recordings} recordings that calibrate. The strongest shade is {largest:.2g}; shades fade "
        f"out over {DECADES} powers of ten. Columns: {columns}."
    )


def _heat_cell(x: float, y: float, loss: float, largest: float, name: str) -> str:
    shade = max(0.0, 1 + log10(loss / largest) / DECADES) if loss > 0 else 0.0
    return (
        f'<rect class="heat" x="{x}" y="{y}" width="{SIDE - 1}" height="{SIDE - 1}" '
        f'fill-opacity="{0.04 + 0.96 * shade:.2f}"><title>{escape(name)}: {loss:.3g}</title></rect>'
    )


class _Axis:
    """From a value to a place on the paper."""

    def __init__(self, low: float, high: float, start: float, stop: float):
        self.low, self.high, self.start, self.stop = low, high if high > low else low + 1, start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return about five round numbers on the axis."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** floor(log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = ceil(self.low / step)
        return [step * i for i in range(first, floor(self.high / step) + 1)]


def _frame(x: _Axis, y: _Axis | None, bottom: float, below: str, beside: str) -> str:
    parts = [f'<line class="axis" x1="{x.start}" x2="{x.stop}" y1="{bottom}" y2="{bottom}"/>']
    for value in x.ticks():
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    middle = (x.start + x.stop) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(below)}</text>')
    if y is not None:
        for value in y.ticks():
            parts.append(
                f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
                f'<text x="{x.start - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
            )
        parts.append(f'<text x="4" y="{TOP - 2}">{escape(beside)}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
