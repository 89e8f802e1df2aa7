"""The picture of the structure map: which operation absorbs the scale of which layers' input."""

from __future__ import annotations

from chart import BLUE, GREEN, RED, TEXT, Picture

from qlib.models.tiny import tiny_whisper

STEP = 36.0


def scales_that_move() -> Picture:
    """Draw the groups of layers of a Whisper with one block on either side, and where a scale can go."""
    groups = tiny_whisper(layers=1).groups()
    title = "Where a scale can move in Whisper: into a norm or the values, never through GELU"
    picture = Picture(title, 76 + STEP * len(groups))
    picture.text(30, 50, "absorbs 1 / s", size=11)
    picture.text(400, 50, "layers that read the same input, times s", size=11)
    for i, group in enumerate(groups):
        y = 60 + STEP * i
        names = ", ".join(name.rpartition(".")[2] for name in group.layers)
        _box(picture, 400, y, 330, f"{_where(group.layers[0])}: {names}", BLUE)
        if group.before is None:
            picture.text(30, y + 18, "nothing: gelu(x / s) is not gelu(x) / s", colour=RED)
            picture.line([(332, y + 6), (350, y + 22)], RED, 2.5)
            picture.line([(332, y + 22), (350, y + 6)], RED, 2.5)
            continue
        _box(picture, 30, y, 270, f"{_where(group.before)}: {group.before.rpartition('.')[2]}", GREEN)
        picture.arrow((304, y + 14), (396, y + 14), GREEN, 2)
    return picture


def _where(name: str) -> str:
    """Return the part of the model that a module belongs to."""
    parts = name.split(".")
    kinds = {"self_attn": "self-attention", "encoder_attn": "cross-attention"}
    found = [kinds[part] for part in parts if part in kinds]
    return " ".join([parts[1], *found])


def _box(picture: Picture, x: float, y: float, width: float, text: str, colour: str) -> None:
    picture.box(x, y, width, 28, colour, outline=True)
    picture.text(x + 10, y + 18, text, colour=TEXT)
