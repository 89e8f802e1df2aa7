"""Why a WER rose: parts of the quantized model in the float one, and layers of it put back into float.

1. transcribe with both models
2. put parts of the quantized model into the float model, one at a time: encoder, decoder, the kinds of
   layers in it, the head; the weights without the rounding of inputs; that rounding without the weights
3. put layers back into float, the three that help most, one after the other
4. name the clips with loops or invented text, and the layers whose inputs leave their ranges
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qlib.activation_state import exceeded, reset_counts
from qlib.analysis.explanation import MOST, Effect, Explanation, Restored, main_cause
from qlib.analysis.hybrids import (
    Pair,
    components,
    pair,
    units,
    with_float_weights,
    with_wide_range,
    without_input_rounding,
)
from qlib.analysis.made_up import MadeUp, made_up
from qlib.analysis.parts import HEAD, first_block
from qlib.analysis.passes import (
    entered,
    first_visit,
    last_hidden,
    mean_kl,
    replaced,
    shared_copy,
)
from qlib.arguments import as_model
from qlib.asr.datasets import check_utterances, require_text
from qlib.asr.transcribe import as_speech_model, evaluate_wer
from qlib.asr.utterance import Utterance
from qlib.asr.wer import WerResult
from qlib.calibrate import walk_blocks
from qlib.errors import ModelError, QuantError, describe, true_or_false
from qlib.models.progress import progress_bar
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.pipeline import Result
from qlib.request import batches_of

UTTERANCES = 8  # at most, that the divergence is measured on
STEPS = 3  # layers that are put back
CLAMPED = 0.001  # share of an input's values outside of its range from which on the range is too narrow
SHORTLIST = 6  # layers that are tried in the second step and the third: those that helped most in the first


def explain(
    model: Model,
    quantized: Result | Model,
    data: Iterable[Utterance],
    *,
    progress: bool = True,
) -> Explanation:
    """Take a WER that rose apart: which part of the quantized model did it, and which layers to put back.

    Parameters
    ----------
    model : Model
        The float recognizer.
    quantized : Result or Model
        What `quantize` or `load_quantized` returned for it. Neither model is touched.
    data : iterable of Utterance
        Recordings with transcripts, those on which the WER rose. All of them are transcribed a dozen times;
        the KL divergence is measured on 8 of them at most, spread evenly over the list, teacher-forced on
        their transcripts.
    progress : bool
        Show a progress bar over the transcriptions and the search for layers.

    Raises
    ------
    QuantError
        The second model has no quantized layer, or the first one has.
    ModelError
        The models are not of one architecture, do not transcribe speech, or are packed.
    DataError
        No utterances, or one without a transcript.
    """
    model = as_model(model, "explain")
    other = as_model(quantized.model if isinstance(quantized, Result) else quantized, "explain")
    show = true_or_false(progress, "progress", QuantError, "Pass progress=True or progress=False.")
    if isinstance(model, TextModel):
        raise ModelError(
            f"explain: {describe(model)} is a text model, and an explanation is about word errors. "
            "qlib.perplexity_ratio says how much was lost, qlib.sensitivity which layers lose it."
        )
    as_speech_model(model)
    models = pair(model, other)
    models = replace(models, quantized=shared_copy(other))  # its static ranges count what they round
    utterances = check_utterances(data, "explain")
    require_text(utterances)
    chosen = _spread(utterances)
    parts = components(models)
    with progress_bar(show=show, desc="explain", unit="step") as bar:
        probe = _Probe(models, utterances, batches_of(model, chosen), bar.update)
        before, after = probe.transcribe(model), probe.transcribe(models.quantized)  # 1
        found = probe.parts(parts)  # 2
        split = probe.weights_and_inputs()
        restored = probe.restore(units(models))  # 3
        invented, clamped = _only_after(before, after), probe.clamped()  # 4
    kl = probe.divergence(models.quantized)
    weights = split[0].kl if split else kl
    rounding = split[1].kl if len(split) > 1 else max(kl - weights, 0.0)
    alone = [each for each in found if each.part in parts]
    narrow = probe.too_narrow(restored[0].layers[0], dict(clamped), kl)
    cause = main_cause(before, after, kl, alone, (weights, rounding), restored[0], invented, narrow)
    effects = (*found, *split)
    return Explanation(cause, before, after, kl, effects, restored, invented, clamped, len(chosen))


def _spread(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return `UTTERANCES` of a list at even distances, the first among them, or all if there are fewer."""
    count = min(UTTERANCES, len(utterances))
    return [utterances[i * len(utterances) // count] for i in range(count)]


def _only_after(before: WerResult, after: WerResult) -> tuple[MadeUp, ...]:
    """Return what the quantized model makes up in clips in which the float model does not."""
    known = {each.utterance for each in made_up(before)}
    return tuple(each for each in made_up(after) if each.utterance not in known)


class _Probe:
    """Both models, the data, and what the float model writes for it."""

    @torch.no_grad()
    def __init__(
        self, pair: Pair, utterances: Sequence[Utterance], batches: Sequence[Any], done: Callable[[], object]
    ) -> None:
        self.pair, self.utterances, self.batches, self.done = pair, utterances, batches, done
        self.expected: list[Tensor] = list(last_hidden(first_visit(pair.float, batches)))

    def transcribe(self, model: Model) -> WerResult:
        """Return the WER of a model."""
        result = evaluate_wer(model, self.utterances, progress=False)
        self.done()
        return result

    @torch.no_grad()
    def divergence(self, model: Model) -> float:
        """Return the KL from the float model, nats per token."""
        found = last_hidden(first_visit(model, self.batches))
        return mean_kl(self.expected, found, self.pair.float.finish, model.finish)

    def effect(self, part: str, modules: Mapping[str, nn.Module]) -> Effect:
        """Return what modules do in the float model."""
        work = shared_copy(self.pair.float)
        with replaced(work, modules):
            return Effect(part, self.divergence(work), self.transcribe(work))

    # --- step 2

    def parts(self, parts: Mapping[str, Sequence[str]]) -> list[Effect]:
        """Return the effect of each component, and of the decoder's together."""
        effects = [self.effect(part, self.pair.of_quantized(names)) for part, names in parts.items()]
        decoder = [part for part in parts if part not in ("encoder", HEAD)]
        if len(decoder) > 1:
            together = [name for part in decoder for name in parts[part]]
            effects.append(self.effect("decoder, all of these", self.pair.of_quantized(together)))
        return effects

    def weights_and_inputs(self) -> list[Effect]:
        """Return the effect of the weights alone and of rounded inputs alone; nothing if none are rounded."""
        if not self.pair.rounds_inputs:
            return []
        work = without_input_rounding(self.pair.quantized)
        weights = {name: work.get_submodule(name) for name in self.pair.modules}
        effects = [self.effect("weights, inputs in float", weights)]
        if (
            not self.pair.changed
        ):  # else the float weights do not fit the inputs, which scales were moved out of
            effects.append(self.effect("rounding of inputs, weights in float", with_float_weights(self.pair)))
        return effects

    # --- step 3

    def restore(self, candidates: Sequence[tuple[str, ...]]) -> tuple[Restored, ...]:
        """Put the layers back that lower the KL most, greedily."""
        left = self._each_alone(candidates)
        shortlist = sorted(left, key=left.__getitem__)[:SHORTLIST]
        work = shared_copy(self.pair.quantized)
        steps: list[Restored] = []
        for _ in range(min(STEPS, len(shortlist))):
            if steps:
                left = {unit: self._with_float(work, unit) for unit in shortlist}
            best = min(shortlist, key=left.__getitem__)
            shortlist.remove(best)
            for name, module in self.pair.of_float(best).items():
                work.replace(name, module)
            grid = str(getattr(self.pair.quantized.get_submodule(best[0]), "grid", "float"))
            steps.append(Restored(best, grid, left[best], self.transcribe(work)))
        return tuple(steps)

    def _with_float(self, work: Model, unit: Sequence[str]) -> float:
        with replaced(work, self.pair.of_float(unit)):
            return self.divergence(work)

    @torch.no_grad()
    def _each_alone(self, candidates: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        """Return the KL that is left with each unit alone in float; what precedes it runs once for all."""
        work, head = shared_copy(self.pair.quantized), self.pair.float.finish
        left = {}
        for visit in walk_blocks(work, self.batches):
            for unit in candidates:
                block = first_block(work, unit)
                if visit.name != (block or work.stages()[-1].blocks[0]):
                    continue
                with replaced(work, self.pair.of_float(unit)):
                    begin = visit if block else entered(visit)
                    left[unit] = mean_kl(self.expected, last_hidden(begin), head, work.finish)
            self.done()
        return left

    # --- step 4

    @torch.no_grad()
    def clamped(self) -> tuple[tuple[str, float], ...]:
        """Return the layers whose inputs leave their static range, and the share of values outside."""
        work = shared_copy(self.pair.quantized)
        reset_counts(work)
        for _ in last_hidden(first_visit(work, self.batches)):
            pass
        return tuple(exceeded(work).items())

    def too_narrow(self, first: str, shares: Mapping[str, float], kl: float) -> list[tuple[str, float]]:
        """Return the layer whose static range cuts off too much, with the share of its values, or nothing.

        `first`, the layer that helps most in float, counts before others. A few values far outside may matter
        more than many near by: a range that cuts off less than `CLAMPED` is too narrow all the same where the
        layer, rounded as finely but as widely as its inputs are, takes half of the divergence away.
        """
        name = first if first in shares else next(iter(shares), "")
        if not name:
            return []
        narrow = shares[name] >= CLAMPED
        if not narrow and name == first:
            work = shared_copy(self.pair.quantized)
            with replaced(work, with_wide_range(self.pair, name)):
                narrow = self.divergence(work) <= (1 - MOST) * kl
        return [(name, shares[name])] if narrow else []
