"""What each part of a model costs when it alone is rounded: four measures of it.

    output    |X (W - Q(W))^T| / |X W^T| of its layers: what arrives after the layer, whatever follows
    fisher    1/2 E[(g . E)^2], nats per token: the KL that gradients predict (`qlib/analysis/fisher.py`)
    kl        KL(float || rounded), nats per token, teacher-forced: what the text's probabilities feel
    wer       the change of the word error rate, percentage points: what the reader sees

From the first to the last they cost more and say more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qlib.analysis.fisher import drawn_gradients, second_order_kl
from qlib.analysis.parts import first_block, head_of, linear_layers, tied_head
from qlib.analysis.passes import entered, first_visit, last_hidden, mean_kl, replaced, shared_copy
from qlib.asr.transcribe import evaluate_wer
from qlib.asr.utterance import Utterance
from qlib.calibrate import InputStatistics, walk_blocks, watch_inputs
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.output_error import squared_output_error
from qlib.models.structure import Model
from qlib.quantized_weight import QuantizedWeight

Losses = dict[str, dict[Grid, float]]
Parts = Mapping[str, tuple[str, ...]]  # layers of each part


@dataclass
class Rounded:
    """The layers of a float model on each grid, and what that does to their outputs."""

    model: Model
    grids: Sequence[Grid]
    codes: dict[tuple[str, Grid], QuantizedWeight] = field(default_factory=dict)
    # |X E^T|^2 of each layer on each grid, and |X W^T|^2 of each layer; empty unless asked for
    errors: dict[tuple[str, Grid], float] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)

    def modules(self, layers: Sequence[str], grid: Grid) -> dict[str, nn.Module]:
        """Return what takes the place of some layers; for a head that is tied, of the embedding too."""
        found: dict[str, nn.Module] = {}
        for name, linear in linear_layers(self.model, layers).items():
            rounded = FakeQuantLinear.from_linear(linear, self.codes[name, grid], grid)
            found[name] = rounded
            rows, width = rounded.weight.shape
            if (tied := tied_head(self.model)) and tied[0] == name:
                found[tied[1]] = nn.Embedding(rows, width, _weight=rounded.weight)
        return found

    def moved(self, layers: Sequence[str], grid: Grid) -> dict[str, Tensor]:
        """Return E = Q(W) - W [outputs, inputs] of some layers."""
        linears = linear_layers(self.model, layers)
        return {
            name: self.codes[name, grid].decode().to(linear.weight) - linear.weight.detach()
            for name, linear in linears.items()
        }


@torch.no_grad()
def round_layers(
    model: Model,
    layers: Sequence[str],
    grids: Sequence[Grid],
    method: WeightMethod,
    batches: Sequence[Any],
    outputs: bool,
) -> Rounded:
    """Round each layer on each grid, as it stands in the float model.

    Parameters
    ----------
    model : Model
        Stays as it is.
    layers : sequence of str
        Full paths, a head among them or not.
    grids : sequence of Grid
        Every layer is rounded on each of them.
    method : WeightMethod
        Rounds; what it needs to know of the inputs is collected.
    batches : sequence
        What the model's stages read.
    outputs : bool
        Measure the squared errors of the layers' outputs as well.

    Raises
    ------
    QuantError
        The method cannot round a layer on a grid; the message names both.
    """
    rounded = Rounded(model, grids)
    needs = method.needs | (Needs.HESSIAN if outputs else Needs.NOTHING)

    def add(name: str, stats: LayerStats) -> None:
        weight = linear_layers(model, [name])[name].weight.detach()
        for grid in grids:
            try:
                codes = method.quantize_layer(weight, stats.copy_for(method.needs), grid)
            except QuantError as error:
                raise QuantError(f"{name} on {grid}: {error}") from error
            rounded.codes[name, grid] = codes
            if outputs and stats.hessian is not None:
                E = weight.double() - codes.decode().double()
                rounded.errors[name, grid] = float(squared_output_error(E, stats.hessian))
                rounded.energies[name] = float(squared_output_error(weight.double(), stats.hessian))

    for visit in walk_blocks(model, batches if needs else []):
        here = [name for name in visit.layers if name in layers]
        stats = visit.collect(needs) if needs and here else dict.fromkeys(here, LayerStats())
        for name in here:
            add(name, stats[name])
    if (head := head_of(model)) in layers:
        add(head, _head_inputs(model, batches, needs))
    return rounded


def _head_inputs(model: Model, batches: Sequence[Any], needs: Needs) -> LayerStats:
    """Return the statistics of what the head reads: it comes after all blocks."""
    statistics, head = InputStatistics(needs), head_of(model)
    if needs:
        with watch_inputs({head: model.get_submodule(head)}, lambda name, rows: statistics.add(rows)):
            for hidden in last_hidden(first_visit(model, batches)):
                model.finish(hidden)
    return statistics.finish()


# --- the measures


def output_losses(rounded: Rounded, parts: Parts) -> Losses:
    """Return the relative error of the outputs of each part's layers, all of them together."""
    return {
        part: {
            grid: (
                sum(rounded.errors[name, grid] for name in layers)
                / (sum(rounded.energies[name] for name in layers) or 1.0)
            )
            ** 0.5
            for grid in rounded.grids
        }
        for part, layers in parts.items()
    }


def fisher_losses(rounded: Rounded, parts: Parts, batches: Sequence[Any], seed: int) -> Losses:
    """Return the KL that gradients predict for each part; layers of a part may add up or make up."""
    keys = [(part, grid) for part in parts for grid in rounded.grids]
    layers = list(dict.fromkeys(name for names in parts.values() for name in names))
    errors = [rounded.moved(parts[part], grid) for part, grid in keys]
    found = second_order_kl(drawn_gradients(rounded.model, layers, batches, seed), errors)
    losses: Losses = {part: {} for part in parts}
    for (part, grid), loss in zip(keys, found, strict=True):
        losses[part][grid] = loss
    return losses


@torch.no_grad()
def kl_losses(rounded: Rounded, parts: Parts, batches: Sequence[Any], done: Callable[[], object]) -> Losses:
    """Return the KL divergence of the model's logits with each part rounded; `done` is called after each."""
    model, work = rounded.model, shared_copy(rounded.model)
    expected = list(last_hidden(first_visit(model, batches)))
    starts: dict[str, list[str]] = {}
    for part, layers in parts.items():
        # A head and its embedding stand outside of the blocks: they change what enters the last stage.
        start = first_block(model, layers) or model.stages()[-1].blocks[0]
        starts.setdefault(start, []).append(part)
    losses: Losses = {part: {} for part in parts}
    for visit in walk_blocks(work, batches):
        for part in starts.get(visit.name, []):
            for grid in rounded.grids:
                with replaced(work, rounded.modules(parts[part], grid)):
                    begin = visit if first_block(model, parts[part]) else entered(visit)
                    losses[part][grid] = mean_kl(expected, last_hidden(begin), model.finish, work.finish)
                done()
    return losses


def wer_losses(
    rounded: Rounded, parts: Parts, utterances: Sequence[Utterance], done: Callable[[], object]
) -> Losses:
    """Return by how many percentage points the WER changes with each part rounded."""
    work = shared_copy(rounded.model)
    before = evaluate_wer(work, utterances, progress=False).wer
    losses: Losses = {part: {} for part in parts}
    for part, layers in parts.items():
        for grid in rounded.grids:
            with replaced(work, rounded.modules(layers, grid)):
                losses[part][grid] = evaluate_wer(work, utterances, progress=False).wer - before
            done()
    return losses
