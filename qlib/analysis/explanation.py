"""A WER that rose, taken apart: the figures, and the sentence that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlib.analysis.made_up import MadeUp
from qlib.asr.comparison import compare
from qlib.asr.wer import WerResult
from qlib.models.table import align

MOST = 0.5  # share from which on one thing counts as the cause of a whole


@dataclass(frozen=True)
class Effect:
    """The float model with one part of the quantized one in it."""

    part: str
    kl: float  # nats per token, from the float model
    result: WerResult


@dataclass(frozen=True)
class Restored:
    """The quantized model with some of its layers put back into float."""

    layers: tuple[str, ...]  # this step's, in addition to those of the steps before
    grid: str  # that the first of them was rounded on
    kl: float  # nats per token, what is left
    result: WerResult


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why a quantized model makes more errors than the float model; `print` it."""

    cause: str  # one sentence
    before: WerResult  # of the float model
    after: WerResult  # of the quantized model
    kl: float  # nats per token between the two, teacher-forced
    effects: tuple[Effect, ...]  # by part, and for weights and inputs
    restored: tuple[Restored, ...]  # step by step
    made_up: tuple[MadeUp, ...]  # clips with a loop or invented text that the float model does not have
    clamped: tuple[tuple[str, float], ...]  # layers and the share of their inputs outside of a static range
    utterances: int  # that the divergence was measured on

    def __str__(self) -> str:
        return "\n".join(
            filter(None, [self.cause, self._rise(), self._parts(), self._steps(), self._clips()])
        )

    def __repr__(self) -> str:
        return f"Explanation({self.cause})"

    def record(self) -> dict[str, Any]:
        """Return all figures as plain data, without the texts."""
        return {
            "cause": self.cause,
            "before": self.before.rates(),
            "after": self.after.rates(),
            "comparison": asdict(compare(self.before, self.after)),
            "kl": self.kl,
            "kl_utterances": self.utterances,
            "effects": [{"part": e.part, "kl": e.kl, **e.result.rates()} for e in self.effects],
            "restored": [
                {"layers": e.layers, "grid": e.grid, "kl": e.kl, **e.result.rates()} for e in self.restored
            ],
            "made_up": [
                {"utterance": e.utterance, "loop": None if e.loop is None else str(e.loop), "words": e.words}
                for e in self.made_up
            ],
            "clamped": dict(self.clamped),
        }

    def _rise(self) -> str:
        kinds = ("substitutions", "deletions", "insertions")
        counts = (f"{kind} {getattr(self.before, kind)} -> {getattr(self.after, kind)}" for kind in kinds)
        return (
            f"WER {self.before.wer:.2f} -> {self.after.wer:.2f} % ({', '.join(counts)}, of "
            f"{self.before.words} {self.before.unit}). {compare(self.before, self.after)}."
        )

    def _parts(self) -> str:
        rows = [["the float model with ... of the quantized one", "KL", "WER", "sub", "del", "ins"]]
        rows.append(["nothing", *_figures(0.0, self.before)])
        rows += [[each.part, *_figures(each.kl, each.result)] for each in self.effects]
        rows.append(["everything", *_figures(self.kl, self.after)])
        return f"\nKL in nats per token, over {self.utterances} utterances:\n{align(rows)}"

    def _steps(self) -> str:
        rows = [["put back into float, in this order", "KL", "WER", "sub", "del", "ins"]]
        rows += [[_named(each), *_figures(each.kl, each.result)] for each in self.restored]
        return f"\n{align(rows)}"

    def _clips(self) -> str:
        lines = [
            f"{each.utterance}: "
            + (f"a loop, {each.loop}" if each.loop else f"{each.words} words that nobody said")
            for each in self.made_up
        ]
        lines += [
            f"{name}: {percent(share)} of its inputs lie outside of its range"
            for name, share in self.clamped[:3]
        ]
        return "\n" + "\n".join(lines) if lines else ""


def _figures(kl: float, result: WerResult) -> list[str]:
    counts = (result.substitutions, result.deletions, result.insertions)
    return [f"{kl:.4f}", f"{result.wer:.2f}", *map(str, counts)]


def _named(step: Restored) -> str:
    others = f" and {len(step.layers) - 1} tied to it" if len(step.layers) > 1 else ""
    return f"{step.layers[0]}{others} ({step.grid})"


def main_cause(
    before: WerResult,
    after: WerResult,
    kl: float,
    parts: Sequence[Effect],
    split: tuple[float, float],
    first: Restored,
    made_up: Sequence[MadeUp],
    narrow: Sequence[tuple[str, float]],
) -> str:
    """Return the main cause in one sentence.

    Parameters
    ----------
    before, after : WerResult
        Of the float and the quantized model.
    kl : float
        Between the two, nats per token.
    parts : sequence of Effect
        Of the components alone.
    split : (float, float)
        The KL that the weights make alone, and that of rounding the inputs.
    first : Restored
        The layer that helps most in float.
    made_up : sequence of MadeUp
        Clips with loops or invented text that the float model does not have.
    narrow : sequence of (str, float)
        Layers whose static input range is too narrow, and the share of the values that it cuts off.
    """
    worst = max(parts, key=lambda each: each.kl)
    share = 1 - first.kl / kl if kl > 0 else 0.0
    sentence = f"Main cause: the weights of the {worst.part}"
    if split[1] > split[0]:
        sentence = f"Main cause: {_inputs(narrow)}"
    if share >= MOST:
        sentence += f"; {_named(first)} put back into float takes {share:.0%} of the divergence away"
    else:
        sentence += f"; no single layer: the {worst.part} alone diverges by {worst.kl:.3g} of {kl:.3g} nats"
    errors = sum(after.utterance_errors) - sum(before.utterance_errors)
    if errors <= 0:
        return f"No more errors than in float. What differs most: {sentence.removeprefix('Main cause: ')}."
    invented = sum(each.words for each in made_up)
    if invented >= MOST * errors:
        clip = made_up[0]
        kind = f"a loop ({clip.loop})" if clip.loop else "invented text"
        others = len(made_up) - 1
        more = f" and {others} more clip{'s' * (others > 1)}" if others else ""
        sentence += f"; it shows as {kind} in clip {clip.utterance}{more}"
    return f"{sentence}."


def _inputs(narrow: Sequence[tuple[str, float]]) -> str:
    """Say what is wrong with the rounding of inputs."""
    if not narrow:
        return "the rounding of inputs"
    name, share = narrow[0]
    return f"static input ranges that are too narrow: {name} cuts off {percent(share)} of its values"


def percent(share: float) -> str:
    """Return a share as a percentage of two digits, however small it is.

    >>> percent(0.563), percent(0.00002)
    ('56%', '0.002%')
    """
    return f"{100 * share:.2g}%"
