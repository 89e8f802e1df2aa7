"""The pictures of the lessons 25 to 27: they draw what the lessons found, and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save

from draftlib import Step


def draw_learning(prompts: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    """Draw accepted tokens per round over prompts learned from, a line for each loss."""
    figure = canvas(7, 4)
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), (BLUE, ORANGE), strict=True):
        axes.plot(prompts, curve, color=color, marker="o", label=f'loss="{name}"')
        axes.axhline(curve[0], color=GREY, linestyle="--")
    axes.set(
        title="A drafter that learns is accepted more often",
        xlabel="prompts learned from (dashed: without learning)",
        ylabel="accepted tokens per round",
        xticks=prompts,
        ylim=(0, None),
    )
    axes.legend()
    save(figure, "25_a_drafter_that_learns")


def draw_lengths(fixed: Sequence[tuple[float, float]], rules: Mapping[str, tuple[float, float]]) -> None:
    """Draw tokens per pass over draft tokens per round: a line of fixed lengths, a point for each rule."""
    figure = canvas(7, 4.5)
    axes = figure.subplots()
    axes.plot(*zip(*fixed, strict=True), color=GREY, marker=".", label="fixed length")
    colors = cycle((BLUE, PURPLE, RED, GREEN, INK, ORANGE))
    for (name, point), color in zip(rules.items(), colors, strict=False):
        axes.plot(*point, color=color, marker="o", linestyle="", label=name)
    axes.axhline(1, color=GREY, linestyle="--")
    axes.set(
        title="Rules against fixed lengths",
        xlabel="draft tokens per round",
        ylabel="tokens per time of a pass (dashed: target alone)",
    )
    axes.legend()
    save(figure, "26_how_far_to_draft")


def draw_proposers(answers: Mapping[str, Sequence[Step]]) -> None:
    """Draw a bar for each round of some answers: its tokens, in the colour of who proposed."""
    colors = {"draft": BLUE, "suffix": GREEN, "answers": PURPLE, "recycle": ORANGE, "tail": RED, "": GREY}
    figure = canvas(10, 5)
    for axes, (title, steps) in zip(figure.subplots(2, 2, sharey=True).flat, answers.items(), strict=True):
        for who, color in colors.items():
            bars = {step.number: len(step.tokens) for step in steps if step.source == who}
            if bars:
                axes.bar(bars.keys(), bars.values(), color=color, label=who or "nobody")
        axes.set(title=title, xlabel="round", ylabel="tokens")
        axes.legend()
    save(figure, "27_drafts_for_nothing")
