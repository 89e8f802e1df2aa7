"""The look of the lessons' pictures, and where they go: out/lessons/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlib.errors import require_extra

INK, GREY, PALE = "#1f2933", "#8a97a6", "#e4e8ed"
BLUE, ORANGE, GREEN, RED, PURPLE = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#6b46c1"

STYLE = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titlepad": 10, "axes.titleweight": "bold",
    "axes.grid": True, "grid.color": PALE, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "legend.frameon": False, "legend.fontsize": 9, "savefig.dpi": 150,
}  # fmt: skip


def canvas(width: float, height: float) -> Any:
    """Return an empty figure, in inches; it needs no screen."""
    matplotlib = require_extra("matplotlib", "plots", "The picture of a lesson")
    matplotlib.rcParams.update(STYLE)
    return require_extra("matplotlib.figure", "plots", "The picture of a lesson").Figure(
        figsize=(width, height), layout="constrained"
    )


def save(figure: Any, name: str) -> None:
    """Write the picture and say where it is."""
    path = Path("out") / "lessons" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"\nThe picture is in {path}")
