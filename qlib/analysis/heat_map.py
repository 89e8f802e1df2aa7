"""Losses of a model's layers as a map: a row for each block, a column for each layer inside of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlib.errors import FileError, QuantError, require_extra
from qlib.models.table import align

SHADES = " .:-=+*#%@"  # from the smallest loss to the largest, on a logarithmic scale
DECADES = 4  # losses smaller than the largest by more than 10^4 are blank
KINDS = (".svg", ".png", ".pdf")


def shade(loss: float, largest: float) -> str:
    """Return the character of a loss.

    >>> [shade(loss, 1.0) for loss in (1.0, 0.1, 1e-3, 1e-5, 0.0)]
    ['@', '#', ':', ' ', ' ']
    """
    if loss <= 0 or largest <= 0:
        return SHADES[0]
    height = 1 + math.log10(loss / largest) / DECADES
    return SHADES[max(0, min(len(SHADES) - 1, int(height * len(SHADES))))]


def place(part: str) -> tuple[str, str]:
    """Return row and column of a part: its block, and what it is inside of it.

    >>> place("model.encoder.layers.3.self_attn.q_proj")
    ('encoder.3', 'self_attn.q_proj')
    >>> place("decoder cross-attention")
    ('decoder cross-attention', '')
    """
    match = re.fullmatch(r"(?:model\.)?(.*?)\.?layers\.(\d+)\.(.+)", part)
    if match is None:
        return part, ""
    return f"{match[1] or 'layers'}.{match[2]}", match[3]


def cells(losses: Mapping[str, float]) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Return rows, columns and the loss in each cell that there is."""
    table = {place(part): loss for part, loss in losses.items()}
    return (
        list(dict.fromkeys(row for row, _ in table)),
        list(dict.fromkeys(column for _, column in table)),
        table,
    )


def shaded(losses: Mapping[str, float]) -> str:
    """Return the map as text; columns are numbered, and named below."""
    rows, columns, table = cells(losses)
    largest = max(losses.values())
    lines = [["", *(str(i) for i in range(1, len(columns) + 1))]]
    for row in rows:
        found = (table.get((row, column)) for column in columns)
        lines.append([row, *("" if loss is None else 2 * shade(loss, largest) for loss in found)])
    names = ", ".join(f"{i} {column}" for i, column in enumerate(columns, 1) if column)
    scale = f"{SHADES[-1]} {largest:.3g}, each shade {10 ** (DECADES / len(SHADES)):.1f} times less"
    return "\n".join(filter(None, [align(lines), names, scale]))


def draw(losses: Mapping[str, float], title: str, unit: str, path: str | Path) -> Path:
    """Draw the map and return where it is.

    Raises
    ------
    MissingExtraError
        The ``plots`` extra is not installed.
    QuantError
        The file's ending is none of .svg, .png and .pdf.
    FileError
        The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise QuantError(f"{path}: the ending {path.suffix!r} is no picture. Use {', '.join(KINDS)}.")
    figures = require_extra("matplotlib.figure", "plots", "The picture of a heat map")
    colors = require_extra("matplotlib.colors", "plots", "The picture of a heat map")
    rows, columns, table = cells(losses)
    largest = max(max(losses.values()), 1e-300)
    grid = [
        [max(table.get((row, column), math.nan), largest / 10**DECADES) for column in columns] for row in rows
    ]
    figure: Any = figures.Figure(
        figsize=(2.5 + 0.45 * len(columns), 1.8 + 0.22 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    picture = axes.imshow(
        grid, cmap="OrRd", norm=colors.LogNorm(largest / 10**DECADES, largest), aspect="auto"
    )
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(picture, label=unit)
    try:
        figure.savefig(path)
    except OSError as error:
        raise FileError(
            f"{path}: the picture cannot be written ({error}). Check folder and rights."
        ) from error
    return path
