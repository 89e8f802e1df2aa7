"""The writer of the pictures: SVG text that reads on light and on dark pages alike.

There is no background, and every colour has about the same contrast to white as to a dark grey, so no picture
needs to know the theme of the page that it stands on. Coordinates have one decimal, so that the last bits
of a computation do not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

TEXT = "#747b85"
BLUE, ORANGE, GREEN, RED, PURPLE = "#3d85c6", "#d0742c", "#3a9a5b", "#cf4f5c", "#8f6bd0"
COLOURS = (TEXT, ORANGE, "#9a7d4a", GREEN, RED, BLUE, "#2a979c", PURPLE)
MONO = "Menlo, Consolas, monospace"
MARGIN, TITLE_SIZE = 12, 15
PLAIN_LETTER, BOLD_LETTER, MONO_LETTER = 0.52, 0.56, 0.61  # mean width of a letter, of its size

Point = tuple[float, float]


class Picture:
    """A drawing of a given size; its title states the point and stands in the first line.

    Raises
    ------
    ValueError
        A text does not fit into the width.
    """

    def __init__(self, title: str, height: float, width: float = 760) -> None:
        self.title, self.width, self.height = title, width, height
        self._parts: list[str] = []
        self.text(MARGIN, 22, title, size=TITLE_SIZE, style="bold")

    def text(
        self, x: float, y: float, text: str, *, size: float = 12, anchor: str = "start",
        colour: str = TEXT, style: str = "",
    ) -> None:  # fmt: skip
        """Write one line; x is its start, middle or end (`anchor`); `style`: bold, mono, struck."""
        letter = MONO_LETTER if "mono" in style else BOLD_LETTER if "bold" in style else PLAIN_LETTER
        length = letter * size * len(text)
        left = x - {"start": 0, "middle": length / 2, "end": length}[anchor]
        if left < -2 or left + length > self.width + 2:
            raise ValueError(f"{text!r} reaches from {left:.0f} to {left + length:.0f} of {self.width}")
        parts = [f'x="{x:.1f}" y="{y:.1f}" fill="{colour}"']
        parts += [f'font-size="{size:g}"'] if size != 12 else []
        parts += [f'text-anchor="{anchor}"'] if anchor != "start" else []
        parts += ['font-weight="bold"'] if "bold" in style else []
        parts += [f'font-family="{MONO}"'] if "mono" in style else []
        parts += ['text-decoration="line-through"'] if "struck" in style else []
        self._parts.append(f"<text {' '.join(parts)}>{escape(text)}</text>")

    def line(self, points: Iterable[Point], colour: str = TEXT, width: float = 2, dash: str = "") -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
        )

    def circle(self, x: float, y: float, colour: str, radius: float = 4, filled: bool = True) -> None:
        """Draw a dot, or a ring."""
        fill = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}" stroke-width="1.5"'
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {fill}/>')

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, *,
        opacity: float = 1, outline: bool = False,
    ) -> None:  # fmt: skip
        """Draw a rectangle, filled or as an outline."""
        size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        fill = f'fill="none" stroke="{colour}" stroke-width="1.5" rx="4"' if outline else f'fill="{colour}"'
        faint = "" if opacity == 1 else f' opacity="{opacity:.2f}"'
        self._parts.append(f"<rect {size} {fill}{faint}/>")

    def arrow(self, start: Point, stop: Point, colour: str = TEXT, width: float = 1.4) -> None:
        """Draw an arrow."""
        (x, y), (u, v) = start, stop
        length = ((u - x) ** 2 + (v - y) ** 2) ** 0.5
        a, b = (u - x) / length, (v - y) / length
        self.line([start, (u - 5 * a, v - 5 * b)], colour, width)
        corners = [stop, (u - 8 * a - 4 * b, v - 8 * b + 4 * a), (u - 8 * a + 4 * b, v - 8 * b - 4 * a)]
        path = " ".join(f"{p:.1f},{q:.1f}" for p, q in corners)
        self._parts.append(f'<polygon points="{path}" fill="{colour}"/>')

    def legend(self, x: float, y: float, entries: Iterable[tuple[str, str]], step: float = 18) -> None:
        """Write (colour, text) below one another, each behind a small square."""
        for i, (colour, text) in enumerate(entries):
            self.box(x, y + step * i - 9, 10, 10, colour)
            self.text(x + 16, y + step * i, text)

    def svg(self) -> str:
        """Return the file."""
        title = escape(self.title, quote=True)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="Helvetica, Arial, sans-serif" '
            f'font-size="12" role="img" aria-label="{title}">'
        )
        return "\n".join([head, f"<title>{title}</title>", *self._parts, "</svg>\n"])


@dataclass(frozen=True)
class Axes:
    """A rectangle of a picture with two axes, from values to places.

    Parameters
    ----------
    picture : Picture
        Where it stands.
    left, top, width, height : float
        The place.
    x, y : (float, float)
        Values at both ends.
    log_x, log_y : bool
        Whether equal ratios have equal distances.
    """

    picture: Picture
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False
    log_y: bool = False

    def at(self, x: float, y: float) -> Point:
        """Return the place of a pair of values."""
        across = _share(x, self.x, self.log_x)
        return self.left + self.width * across, self.top + self.height * (1 - _share(y, self.y, self.log_y))

    def frame(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], below: str, above: str = "",
        form: str = "{:g}",
    ) -> None:  # fmt: skip
        """Draw the axes with their ticks, what x is below, and what y is above."""
        bottom, middle = self.top + self.height, self.left + self.width / 2
        for value in y_ticks:
            _, place = self.at(self.x[0], value)
            self.picture.line([(self.left, place), (self.left + self.width, place)], TEXT + "40", width=1)
            self.picture.text(self.left - 6, place + 4, form.format(value), anchor="end", size=11)
        self.picture.line([(self.left, bottom), (self.left + self.width, bottom)], width=1)
        for value in x_ticks:
            place, _ = self.at(value, self.y[0])
            self.picture.line([(place, bottom), (place, bottom + 4)], width=1)
            self.picture.text(place, bottom + 16, f"{value:g}", anchor="middle", size=11)
        self.picture.text(middle, bottom + 33, below, anchor="middle")
        self.picture.text(self.left - 30, self.top - 10, above)

    def curve(
        self, points: Iterable[Point], colour: str, *, dots: bool = True, dash: str = "", width: float = 2
    ) -> None:
        """Draw a line through pairs of values, with or without dots."""
        places = [self.at(*point) for point in points]
        self.picture.line(places, colour, width, dash)
        for place in places if dots else []:
            self.picture.circle(*place, colour, 3.2)


def _share(value: float, ends: tuple[float, float], log: bool) -> float:
    low, high = ends
    if log:
        value, low, high = log10(value), log10(low), log10(high)
    return (value - low) / (high - low)
