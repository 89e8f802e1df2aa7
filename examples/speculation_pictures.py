"""The pictures of the lessons 19, 20 and 24: they draw what the lessons found, and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save
from torch import Tensor

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED)


def draw_speculation(
    texts: Mapping[str, Mapping[str, float]],
    tokens: Mapping[float, Sequence[float]],
    speeds: Mapping[float, Sequence[float]],
) -> None:
    """Draw the distribution of texts, tokens per round, and tokens in the time of one pass, over k."""
    figure = canvas(13, 4)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.4, 1, 1])
    for i, ((name, found), color) in enumerate(zip(texts.items(), (GREY, ORANGE, BLUE), strict=True)):
        left.bar([place + 0.27 * (i - 1) for place in range(len(found))], found.values(), 0.27,
                 color=color, label=name)  # fmt: skip
    names = list(next(iter(texts.values())))
    left.set_xticks(range(len(names)), names)
    left.set(title="Whatever the drafter says, the text is the target's", xlabel="first two tokens",
             ylabel="probability")  # fmt: skip
    left.legend()
    for (a, line), color in zip(tokens.items(), COLORS, strict=False):
        middle.plot(range(len(line)), line, "o-", color=color, markersize=4, label=f"a = {a:g}")
    middle.set(title="Each further token is worth less", xlabel="draft tokens k", ylabel="tokens per round")
    middle.legend()
    for (c, line), color in zip(speeds.items(), COLORS, strict=False):
        best = max(range(len(line)), key=line.__getitem__)
        right.plot(range(len(line)), line, color=color, label=f"c = {c:g}, best k = {best}")
        right.plot(best, line[best], "o", color=color)
    right.axhline(1, color=GREY, linestyle="--")
    right.set_ylim(0.5, 5.5)
    right.set(title="So there is a best k (a = 0.8)", xlabel="draft tokens k",
              ylabel="tokens in the time of one pass")  # fmt: skip
    right.legend()
    save(figure, "19_speculative_decoding")


def draw_noise(
    points: Sequence[tuple[float, float, float]], race: Mapping[str, Tensor], names: Sequence[str]
) -> None:
    """Draw acceptance over TV for many pairs (rejection's is the line), and one race of Gumbel numbers."""
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2)
    line = [k / 100 for k in range(101)]
    left.plot(line, [1 - tv for tv in line], color=INK, label="rejection: 1 - TV, the best possible")
    left.plot(line, [(1 - tv) / (1 + tv) for tv in line], "--", color=GREY, label="(1 - TV) / (1 + TV)")
    tvs, shared, independent = zip(*points, strict=True)
    left.plot(tvs, shared, ".", color=BLUE, label="shared noise")
    left.plot(tvs, independent, ".", color=ORANGE, label="independent draws")
    left.set(title="Shared noise loses little against rejection", xlabel="TV(p, q)",
             ylabel="how often the draft token is accepted")  # fmt: skip
    left.legend()
    for i, ((name, numbers), color) in enumerate(zip(race.items(), (BLUE, ORANGE), strict=True)):
        places = [place + 0.4 * i for place in range(len(names))]
        bars = right.bar(places, numbers.tolist(), 0.4, color=color, label=name)
        bars[int(numbers.argmax())].set_edgecolor(INK)
        bars[int(numbers.argmax())].set_linewidth(2)
    right.set_xticks([place + 0.2 for place in range(len(names))], names)
    right.set(title="One position: both draw the largest (framed)", xlabel="token", ylabel="log p + g")
    right.legend()
    save(figure, "20_shared_noise")


def draw_rounds(phases: Mapping[str, Sequence[float]], alone: Sequence[Any], drafted: Sequence[Any]) -> None:
    """Draw the seconds of each round by phase, and the tokens written over the time, alone and drafted."""
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2)
    rounds = len(next(iter(phases.values())))
    bottom = [0.0] * rounds
    for (name, values), color in zip(phases.items(), (ORANGE, BLUE, GREY), strict=True):
        left.bar(range(1, rounds + 1), values, 0.8, bottom, color=color, label=name)
        bottom = [low + high for low, high in zip(bottom, values, strict=True)]
    left.set(title="Where the time of a round goes", xlabel="round", ylabel="milliseconds")
    left.legend()
    for name, points, color in (("alone", alone, GREY), ("with the drafter", drafted, BLUE)):
        right.step(*zip(*points, strict=True), color=color, where="post", label=name)
    right.set(title="The same text, sooner", xlabel="seconds, prompt left out", ylabel="tokens written")
    right.legend()
    save(figure, "24_a_real_pair_round_by_round")
