"""The pictures of what is measured: rounding of inputs, memory of calibration, word error rates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any

import torch
from chart import BLUE, COLOURS, GREEN, ORANGE, PURPLE, RED, TEXT, Axes, Picture
from tables import table

from qlib.activation import PerTensor, PerToken
from qlib.asr.comparison import compare
from qlib.asr.timestamps import cut_into_pieces
from qlib.asr.wer import score


def token_grids() -> Picture:
    """Draw the error of each token, on a grid of its own and on one for all."""
    inputs = torch.randn(24, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs[9] *= 30
    picture = Picture(
        "One large token spoils the grid that all share; a grid per token leaves them alone", 280
    )
    axes = Axes(picture, 60, 64, 560, 150, (-0.6, 23.6), (0.002, 1), log_y=True)
    axes.frame(
        (0, 5, 9, 15, 20), (0.01, 0.1, 1), "token; number 9 is 30 times as large", "relative error at 8 bits"
    )
    for rounding, colour, shift in ((PerTensor(dynamic=True), ORANGE, -4), (PerToken(), BLUE, 4)):
        errors = ((rounding(inputs) - inputs).norm(dim=1) / inputs.norm(dim=1)).tolist()
        for token, error in enumerate(errors):
            x, y = axes.at(token, error)
            picture.box(x + shift - 3.5, y, 7, axes.top + axes.height - y, colour)
    picture.legend(640, 110, [(ORANGE, "per tensor"), (BLUE, "per token")])
    return picture


def calibration_memory() -> Picture:
    """Draw megabytes over the number of recordings, for whisper-tiny.en, by the formulas of the page."""
    width, hidden, positions = 384, 1536, 1500
    statistics = 8 * (3 * width**2 + hidden**2) / 1e6
    states = positions * width * 4 / 1e6
    picture = Picture("Calibration: statistics keep their size, hidden states grow with the recordings", 280)
    axes = Axes(picture, 60, 64, 420, 160, (0, 128), (0, 700))
    axes.frame((0, 32, 64, 96, 128), (0, 200, 400, 600), "recordings", "MB, whisper-tiny.en")
    sums = [("statistics of one block", GREEN, statistics, 0.0)]
    sums += [("+ hidden states of recordings", BLUE, statistics, states)]
    sums += [("+ the encoder's output, at the decoder", ORANGE, statistics, 2 * states)]
    for i, (label, colour, fixed, each) in enumerate(sums):
        axes.curve([(n, fixed + n * each) for n in (0, 128)], colour, dots=False)
        picture.legend(500, 180 - 28 * i, [(colour, label)])
    return picture


def stored_bits() -> Picture:
    """Draw what a weight takes on several grids, by its parts: the page's own table."""
    _, *rows = table("checkpoints.md", "| | per weight | scales |")
    picture = Picture(
        "A weight takes more bits than its code: scales and zero points of small groups add up",
        80 + 30 * len(rows),
    )
    axes = Axes(picture, 250, 44, 440, 30.0 * len(rows), (0, 9), (0, len(rows)))
    axes.frame(range(0, 10), (), "stored bits per weight")
    for i, (name, *parts, total) in enumerate(rows):
        y, left = axes.top + 30 * i + 6, axes.left
        picture.text(axes.left - 8, y + 14, name.replace("`", ""), anchor="end")
        for part, colour in zip(parts, (BLUE, ORANGE, PURPLE), strict=True):
            width = axes.width / 9 * (0 if part == "-" else float(part))
            picture.box(left, y, width, 18, colour)
            left += width
        picture.text(left + 8, y + 14, total, style="bold")
    for i, (colour, label) in enumerate(((BLUE, "codes"), (ORANGE, "scales"), (PURPLE, "zero points"))):
        picture.legend(590, 64 + 18 * i, [(colour, label)])
    return picture


def layer_ranking() -> Picture:
    """Draw how well each measure ranks the layers of two models: the page's own table."""
    head, *rows = table("explain.md", "| measure | whisper-tiny.en, 3 bits |")
    picture = Picture(
        "Measures without gradients rank the layers badly, the Fisher estimate ranks them well",
        90 + 34 * len(rows),
    )
    axes = Axes(picture, 300, 44, 420, 34.0 * len(rows), (-0.2, 1), (0, len(rows)))
    axes.frame((-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1), (), "rank correlation with the true KL divergence, 3 bits")
    picture.line([axes.at(0, 0), axes.at(0, len(rows))], width=1)
    for i, (name, whisper, _, moonshine, _) in enumerate(rows):
        y = axes.top + 34 * i
        short = re.split(r", tr\(|: sum", name)[0].replace("`", "")
        short = short.removeprefix("absolute ").removesuffix(" of the output")
        picture.text(axes.left - 8, y + 21, short, anchor="end", size=11)
        for value, colour, top in ((whisper, BLUE, 5), (moonshine, ORANGE, 17)):
            (x, _), (zero, _) = axes.at(float(value), 0), axes.at(0, 0)
            picture.box(min(x, zero), y + top, abs(x - zero), 11, colour)
    for i, (colour, column) in enumerate(((BLUE, 1), (ORANGE, 3))):
        picture.legend(12 + 150 * i, 80 + 34 * len(rows), [(colour, head[column].partition(",")[0])])
    return picture


def windows() -> Picture:
    """Draw two windows of a long recording: the second begins where the last finished segment ends."""
    first = 50_363  # <|0.00|> of whisper-tiny.en; one more for each 20 ms
    said = [first, 11, first + 420, first + 420, 12, first + 1180, first + 1180, 13]  # the last has no end
    pieces, seek = cut_into_pieces(said, first - 1, sound_steps=1500)
    picture = Picture(
        "A segment without an end is dropped; the next window begins after the last finished one", 196
    )
    axes = Axes(picture, 110, 50, 620, 96, (0, 54), (0, 1))
    axes.frame(range(0, 51, 10), (), "seconds of the recording")
    begin = 0.02 * seek
    for label, start, y in (("window 1", 0.0, 58), ("window 2", begin, 104)):
        picture.text(100, y + 18, label, anchor="end")
        (left, _), (right, _) = axes.at(start, 0), axes.at(start + 30, 0)
        picture.box(left, y, right - left, 28, TEXT, outline=True)
    ends = [(0.02 * piece.start, 0.02 * piece.end, GREEN) for piece in pieces] + [(begin, 30.0, RED)]
    for number, (start, end, colour) in enumerate(ends, 1):
        (left, _), (right, _) = axes.at(start, 0), axes.at(end, 0)
        picture.box(left + 3, 62, right - left - 6, 20, colour, opacity=0.35)
        text = f"segment {number}" if colour == GREEN else "dropped"
        picture.text((left + right) / 2, 76, text, anchor="middle", colour=colour, size=11)
    left, _ = axes.at(begin, 0)
    picture.arrow((left, 88), (left, 103), BLUE)
    picture.text(left + 8, 122, "decoded again from here", size=11, colour=BLUE)
    return picture


def wer_intervals() -> Picture:
    """Draw two systems with overlapping intervals, and their paired difference: the example of the page."""
    said = [f"this is sentence number {i} of the test" for i in range(40)]
    base = [text.replace("test", "text") if i % 2 else text for i, text in enumerate(said)]
    worse = [text.replace("sentence", "sentences") if i % 8 == 0 else text for i, text in enumerate(base)]
    a, b = score(said, base), score(said, worse)
    paired = compare(a, b)
    picture = Picture("Two intervals that overlap, and a paired difference that is not 0 all the same", 216)
    axes = Axes(picture, 100, 58, 300, 90, (3, 12), (0, 3))
    axes.frame((4, 6, 8, 10, 12), (), "word error rate, %, with its 95 % interval")
    for name, result, colour, y in (("baseline", a, BLUE, 2.1), ("other system", b, ORANGE, 0.9)):
        _interval(axes, y, result.wer, result.interval, colour)
        picture.text(94, axes.at(0, y)[1] + 4, name, anchor="end")
    right = Axes(picture, 480, 58, 250, 90, (-1, 4), (0, 3))
    right.frame((-1, 0, 1, 2, 3, 4), (), "difference on the same clips, points")
    picture.line([right.at(0, 0), right.at(0, 3)], TEXT, 1, "4 3")
    _interval(right, 1.5, paired.difference, paired.interval, PURPLE)
    return picture


def _interval(axes: Axes, y: float, value: float, interval: tuple[float, float], colour: str) -> None:
    axes.picture.line([axes.at(interval[0], y), axes.at(interval[1], y)], colour, 3)
    axes.picture.circle(*axes.at(value, y), colour, 6)


# --- the study

FLOAT_INPUTS = re.compile(r"W\d+A16(G\d+)?$", re.IGNORECASE)  # of linear layers alone
METHODS = {
    "rtn": "RTN",
    "hqq": "HQQ",
    "smoothquant": "SmoothQuant",
    "awq": "AWQ",
    "omniquant": "OmniQuant",
    "gptq": "GPTQ",
    "quik": "QUIK",
    "spqr": "SpQR",
}
NEAR = 10  # points above the float model, on every model: near it
Row = Mapping[str, Any]


def wer_over_bits(results: Path) -> Picture:
    """Draw word error rate over stored bits per weight, a panel per model, of a study's results.jsonl.

    Rates are over all test sets of the study together; inputs in float. Single methods, each a line.
    """
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "tests" in row]  # neither failed nor a map of sensitivity
    plain = {row["model"]: pooled(row) for row in rows if row["method"] == "float"}
    rows = [row for row in rows if row["method"] in METHODS and FLOAT_INPUTS.match(row["scheme"])]
    used = [name for name in METHODS if any(row["method"] == name for row in rows)]
    picture = Picture(_title(rows, plain), 400, width=max(760, 40 + 270 * len(plain)))
    low, top = 10 * floor(min(plain.values()) / 11), 10 * ceil(max(plain.values()) / 5)
    for i, (model, rate) in enumerate(plain.items()):
        axes = Axes(picture, 46 + 270 * i, 74, 220, 220, (2.3, 9.5), (low, top), log_x=True)
        axes.frame((3, 4, 5, 6, 8), range(low, top + 1, 10), "stored bits per weight", "WER, %" * (not i))
        picture.text(46 + 270 * i + 110, 60, Path(model).name, anchor="middle", style="bold")
        picture.line([axes.at(2.3, rate), axes.at(9.5, rate)], TEXT, 1.4, "5 4")
        for k, name in enumerate(used):
            _method_line(axes, [row for row in rows if (row["model"], row["method"]) == (model, name)], k)
    for k, name in enumerate(used):
        x, y = 46 + 130 * (k % 4), 352 + 18 * (k // 4)
        picture.line([(x, y - 4), (x + 22, y - 4)], COLOURS[k], 2.5)
        picture.text(x + 28, y, METHODS[name])
    clips = sum(each["utterances"] for each in rows[0]["tests"].values())
    note = f"{clips} clips; inputs in float; dashes: the float model; arrows: above {top} %; "
    picture.text(46, 392, note + f"near: within {NEAR} points on every model", size=11)
    return picture


def pooled(row: Row) -> float:
    """Return the word error rate of a cell over all of its test sets, percent."""
    tests = row["tests"].values()
    errors = sum(each["substitutions"] + each["deletions"] + each["insertions"] for each in tests)
    return 100 * float(errors) / float(sum(each["words"] for each in tests))


def _title(rows: Sequence[Row], plain: Mapping[str, float]) -> str:
    """Return which method stays near every float model with the fewest stored bits, and RTN's fewest."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["scheme"]), []).append(row)
    fewest: dict[str, float] = {}
    for (method, _), found in cells.items():
        bits = max(row["bits_per_weight"] for row in found)
        if all(pooled(row) <= plain[row["model"]] + NEAR for row in found):
            fewest[method] = min(bits, fewest.get(method, bits))
    best = min(fewest, key=lambda method: fewest[method], default="rtn")
    if best == "rtn" or "rtn" not in fewest:
        return "Word error rate over the bits per weight that each method really stores"
    best_bits, plain_bits = f"{fewest[best]:.1f}", f"{fewest['rtn']:.1f}"
    name = METHODS[best]
    return (
        f"{name} stays near the float model down to {best_bits} stored bits per weight, RTN to {plain_bits}"
    )


def _method_line(axes: Axes, rows: Sequence[Row], number: int) -> None:
    points = sorted((row["bits_per_weight"], pooled(row)) for row in rows)
    shown = [point for point in points if point[1] <= axes.y[1]]
    if shown:
        axes.curve(shown, COLOURS[number])
    for bits in (bits for bits, rate in points if rate > axes.y[1]):
        x, y = axes.at(bits, axes.y[1])
        axes.picture.arrow((x, y + 12), (x, y - 2), COLOURS[number])
