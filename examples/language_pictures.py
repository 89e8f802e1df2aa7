"""The picture of lesson 15: it draws what the lesson found, and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save
from torch import Tensor


def draw_language_model(
    float_value: float,
    points: Mapping[str, Sequence[tuple[float, float]]],
    shares: Tensor,
    errors: Mapping[str, Tensor],
) -> None:
    """Draw perplexity over stored bits, and the errors of one layer's columns over their inputs' shares."""
    top = int(shares.argmax())
    spoilt = float(errors["HQQ"][top]) > float(errors["RTN"][top])  # as with SmolLM2, not with drafter-7m
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2)
    for (name, line), color in zip(points.items(), (GREY, RED, BLUE, GREEN, PURPLE, ORANGE), strict=False):
        left.plot(*zip(*line, strict=True), "o-", color=color, label=name)
    left.axhline(float_value, color=INK, linestyle="--", linewidth=1, label="float")
    left.set(title="Smaller weight error, larger perplexity: HQQ" if spoilt else "Methods at 3 and 4 bits",
             xlabel="stored bits per weight", ylabel="perplexity", yscale="log")  # fmt: skip
    highest = max(value for line in points.values() for _, value in line)
    ticks = [value for value in (30, 40, 60, 80, 100, 120, 150, 200, 300, 400, 600)
             if 0.9 * float_value < value < 1.3 * highest]  # fmt: skip
    left.set_yticks(ticks, map(str, ticks))
    left.minorticks_off()
    left.legend()
    for (name, found), color in zip(errors.items(), (GREY, RED), strict=True):
        right.scatter(shares, found, s=10, color=color, label=name)
    highest = max(float(each[top]) for each in errors.values())
    right.annotate(
        f"input {top}", (float(shares[top]), highest), xytext=(-50, 12), textcoords="offset points"
    )
    title = (
        "One input decides, and HQQ errs more there" if spoilt else "HQQ errs less, at the largest input too"
    )
    right.set(title=title, xlabel="share of the input's energy",
              ylabel="error of the column / size of a weight", xscale="log")  # fmt: skip
    right.legend()
    save(figure, "15_a_language_model_in_four_bits")
