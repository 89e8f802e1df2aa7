"""The pictures of the lessons 10 to 13 and 16: they draw what the lessons found, and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save
from torch import Tensor

COLORS = (BLUE, GREY, ORANGE, GREEN, PURPLE, RED, INK, "#0e7490", "#b7791f", "#9d174d")


def draw_roundings(
    sizes: Tensor, errors: Mapping[str, Tensor], widths: Sequence[int], bits: Mapping[str, Sequence[float]]
) -> None:
    """Draw the error of each token over its size, and the mean error over bits, a line for each rounding."""
    figure = canvas(11, 4)
    left, right = figure.subplots(1, 2)
    for (name, found), color in zip(errors.items(), COLORS, strict=False):
        left.plot(sizes, found, ".", color=color, markersize=4, label=name)
    left.set(title="One range for all: the small tokens pay", xlabel="size of a token",
             ylabel="relative error of the token", xscale="log", yscale="log")  # fmt: skip
    left.legend()
    for (name, line), color in zip(bits.items(), COLORS, strict=False):
        right.plot(widths, line, "o-", color=color, label=name)
    right.set(title="A range of its own is worth some bits", xlabel="bits of an input",
              ylabel="mean error of the small tokens", yscale="log")  # fmt: skip
    right.legend()
    save(figure, "10_rounding_inputs")


def draw_calibration(title: str, errors: Mapping[str, float]) -> None:
    """Draw a bar for each way to calibrate."""
    figure = canvas(7, 4)
    axes = figure.subplots()
    axes.bar(list(errors), list(errors.values()), 0.6, color=[BLUE, ORANGE, ORANGE, ORANGE])
    axes.set(title=title, ylabel="error on other recordings, %")
    save(figure, "11_calibrating_an_encoder_decoder")


def draw_intervals(
    rates: Mapping[str, Any], widths: Mapping[str, Sequence[float]], clips: Sequence[int]
) -> None:
    """Draw the bootstrapped rates of two systems, their difference, and how intervals shrink with clips."""
    figure = canvas(13, 4)
    left, middle, right = figure.subplots(1, 3)
    systems, differences = list(rates.items())[:2], list(rates.items())[2:]
    for (name, drawn), color in zip(systems, (BLUE, ORANGE), strict=True):
        left.hist(drawn, bins=40, color=color, alpha=0.6, label=name)
    left.set(title="Each alone: the two overlap", xlabel="WER, %", ylabel="resamples")
    left.legend()
    for (name, drawn), color in zip(differences, (GREEN, PURPLE, RED), strict=False):
        middle.hist(drawn, bins=40, color=color, alpha=1 if len(differences) == 1 else 0.6, label=name)
    if len(differences) > 1:
        middle.legend()
    middle.axvline(0, color=INK, linewidth=1.5)
    middle.set(title="The same clips for both: clear of 0", xlabel="difference, percentage points")
    for (name, line), color in zip(widths.items(), (BLUE, GREEN), strict=True):
        right.plot(clips, line, "o-", color=color, label=name)
    right.set(title="Four times the clips, half the width", xlabel="clips",
              ylabel="half of the 95 % interval", xscale="log", yscale="log")  # fmt: skip
    right.legend()
    right.set_xticks(clips, map(str, clips))
    right.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    right.minorticks_off()
    save(figure, "12_word_error_rate_and_its_interval")


def draw_methods(curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw the error over stored bits, a line for each method."""
    figure = canvas(8, 4.5)
    axes = figure.subplots()
    for (name, points), color in zip(curves.items(), COLORS, strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
    axes.set(title="What a bit buys", xlabel="stored bits per weight", ylabel="logit error, %", yscale="log")
    axes.legend(ncols=2)
    save(figure, "13_quantize_whisper")


def draw_stored(
    parts: Mapping[str, Mapping[str, float]], curves: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Draw what a weight stores, part upon part, and the error over stored bits for each kind of scale."""
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    bottom = [0.0] * len(parts)
    kinds = list(dict.fromkeys(kind for each in parts.values() for kind in each))
    for kind, color in zip(kinds, (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        heights = [each.get(kind, 0.0) for each in parts.values()]
        left.bar(range(len(parts)), heights, 0.7, bottom, color=color, label=kind)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    left.set_xticks(range(len(parts)), parts, rotation=20, ha="right", fontsize=8)
    left.set(title="What is stored for a weight", ylabel="bits per weight", ylim=(0, max(bottom) * 1.35))
    left.legend(ncols=2, loc="upper left")
    for (name, points), color in zip(curves.items(), (GREY, BLUE, GREEN), strict=False):
        right.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=name)
    right.set(title="Short scales pay for small groups", xlabel="stored bits per weight",
              ylabel="relative error of the weights")  # fmt: skip
    right.legend()
    save(figure, "16_bits_on_disk")
