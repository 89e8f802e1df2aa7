"""The pictures of the lessons 15 to 17: they draw what the lessons found, and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drawing import BLUE, GREY, ORANGE, canvas, save


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
    save(figure, "15_a_drafter_that_learns")
