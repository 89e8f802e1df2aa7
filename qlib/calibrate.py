"""Calibration: walk through a model block by block and watch what each linear layer reads.

    for visit in walk(model, batches):
        stats = visit.collect(needs)
        ...change the layers of this block, using stats...

Each block sees the output of the blocks before it as they are *now*, so once they are quantized, the next
statistics contain their errors, and a method that compensates can make up for them. For an
encoder-decoder the encoder comes first; the decoder then reads the quantized encoder's output.

Memory: the hidden states of all batches, one set at a time (each block overwrites its input), and the
statistics of one block. Statistics are sums over a fixed number of tokens at a time, however these were
split into batches: 8 or 8,000 utterances need the same room for them, and the split changes no bit.
Layers that share an input share its statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qlib.errors import QuantError
from qlib.histogram import Histogram
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.hessian import gram
from qlib.models.structure import LayerGroup, Model, Stage

ROWS = 2048  # input vectors that are multiplied at once for a Hessian


@dataclass
class Visit:
    """One block of the walk, and the data that arrives there."""

    model: Model
    name: str
    stage: Stage
    inputs: list[Tensor]  # hidden states of each batch, from the model as it is now
    batches: list[Any]
    targets: list[Tensor] = field(default_factory=list)  # what the float model's block writes, if asked for

    @property
    def block(self) -> nn.Module:
        """The module itself."""
        return self.model.get_submodule(self.name)

    @property
    def groups(self) -> list[LayerGroup]:
        """Groups with a layer in this block."""
        return [group for group in self.model.groups() if self.mine(group)]

    def mine(self, group: LayerGroup) -> list[str]:
        """Return the layers of a group that lie in this block."""
        return [layer for layer in group.layers if layer.startswith(self.name + ".")]

    def begins(self, group: LayerGroup) -> bool:
        """Return whether this is the first block with a layer of the group."""
        return group.layers[0].startswith(self.name + ".")

    def collect(self, needs: Needs) -> dict[str, LayerStats]:
        """Run the block over all batches; return the statistics of each of its linear layers.

        Raises
        ------
        QuantError
            A layer's input is not finite; the message names layer and utterance.
        """
        sums = {self.mine(group)[0]: Sums(needs) for group in self.groups}
        self._watch(lambda layer, rows: sums[layer].add(rows))
        stats = {layer: found.finish() for layer, found in sums.items()}
        return {layer: stats[self.mine(group)[0]] for group in self.groups for layer in self.mine(group)}

    def histograms(self, without: Mapping[str, Tensor]) -> dict[str, Histogram]:
        """Run the block over all batches; return the histogram of each of its linear layers' inputs.

        `without` gives input columns of some layers that do not count: those that are never rounded.
        """
        found = {self.mine(group)[0]: Histogram() for group in self.groups}

        def see(layer: str, rows: Tensor) -> None:
            counted = torch.ones(rows.shape[1], dtype=torch.bool, device=rows.device)
            if layer in without:
                counted[without[layer]] = False
            found[layer].add(rows[:, counted])

        self._watch(see)
        return {layer: found[self.mine(group)[0]] for group in self.groups for layer in self.mine(group)}

    def _watch(self, see: Callable[[str, Tensor], None]) -> None:
        """Show every input of the first layer of each group, without padding [tokens, inputs]."""
        source = {self.mine(group)[0]: group.source for group in self.groups}
        modules = {layer: self.model.get_submodule(layer) for layer in source}
        for hidden, batch in zip(self.inputs, self.batches, strict=True):
            unseen = set(modules)

            def check(layer: str, inputs: Tensor, batch: Any = batch, unseen: set[str] = unseen) -> None:
                rows = self.stage.seen(inputs, batch, source[layer])
                if not rows.isfinite().all():
                    raise QuantError(
                        f"The input of {layer} is not finite for {batch.where}: "
                        f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} vectors. Check the recording "
                        "and the checkpoint, and whether a layer before it was quantized too coarsely."
                    )
                see(layer, rows)
                unseen.discard(layer)
                if not unseen:
                    raise _AllSeen  # the last layer's own product, a fifth of the block, is not needed

            with torch.no_grad(), suppress(_AllSeen), watch_inputs(modules, check):
                self.stage.counted(self.block, hidden, batch)


class _AllSeen(Exception):  # noqa: N818  (not an error: it ends a pass)
    """Every watched input has been seen."""


class Sums:
    """Adds up the statistics of one input, `ROWS` vectors at a time, so that no split into batches shows."""

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.stats = LayerStats()
        self.waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add input vectors [tokens, inputs]."""
        self.waiting.append(rows.float())
        if sum(map(len, self.waiting)) >= ROWS:
            rows = torch.cat(self.waiting)
            whole = len(rows) - len(rows) % ROWS
            for start in range(0, whole, ROWS):
                self._add(rows[start : start + ROWS])
            self.waiting = [rows[whole:].clone()]

    def finish(self) -> LayerStats:
        """Return the statistics of everything added."""
        if self.waiting and len(rest := torch.cat(self.waiting)):
            self._add(rest)
        self.waiting = []
        return self.stats

    def _add(self, rows: Tensor) -> None:
        """Add vectors to the sums: products in float32, sums in float64."""
        stats, needs = self.stats, self.needs
        first = stats.tokens == 0
        stats.tokens += len(rows)
        if Needs.HESSIAN in needs:
            product = gram(rows)
            stats.hessian = product.double() if stats.hessian is None else stats.hessian.add_(product)
        if Needs.RANGE in needs:
            low, high = rows.amin(0), rows.amax(0)
            stats.low = low if first or stats.low is None else stats.low.minimum(low)
            stats.high = high if first or stats.high is None else stats.high.maximum(high)
        if Needs.MAGNITUDE in needs:
            total = rows.abs().sum(0, dtype=torch.float64)
            stats.absolute = total if stats.absolute is None else stats.absolute.add_(total)


def walk(model: Model, batches: Sequence[Any], original: Model | None = None) -> Iterator[Visit]:
    """Yield each block in order of computation. The caller changes it before it asks for the next one.

    Parameters
    ----------
    model : Model
        Its blocks are run in inference mode; nothing is changed here.
    batches : sequence
        What the model's stages read, for example `speech_batches(model, utterances)`. May be empty: then
        blocks come without data.
    original : Model, optional
        The float model: each visit then holds what its block writes as well.
    """
    now = _Stream(model, batches)
    past = None if original is None else _Stream(original, batches)
    stages = model.stages()
    last = stages[-1].blocks[-1]
    for number, stage in enumerate(stages):
        for stream in filter(None, (now, past)):
            stream.enter(number)
        for name in stage.blocks:
            visit = Visit(model, name, stage, now.hidden, now.batches)
            if past is not None:
                past.run(name)
                visit.targets = list(past.hidden)
            yield visit
            if name != last:  # nothing reads what that one writes
                now.run(name)
        for stream in filter(None, (now, past)):
            stream.leave()


def count_blocks(model: Model) -> int:
    """Return how many blocks `walk` will yield."""
    return sum(len(stage.blocks) for stage in model.stages())


@contextmanager
def watch_inputs(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(name, input)` whenever one of the modules is run; the hooks go when the context ends."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: see(name, inputs[0])

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(hook(name)))
        yield


class _Stream:
    """The batches on their way through one model."""

    def __init__(self, model: Model, batches: Sequence[Any]) -> None:
        self.model = model
        self.batches = list(batches)
        self.hidden: list[Tensor] = []

    @torch.no_grad()
    def enter(self, number: int) -> None:
        self.stage = self.model.stages()[number]
        self.hidden = [self.stage.enter(batch) for batch in self.batches]

    @torch.no_grad()
    def run(self, name: str) -> None:
        block = self.model.get_submodule(name)
        for i, batch in enumerate(self.batches):
            self.hidden[i] = self.stage.run(block, self.hidden[i], batch)

    @torch.no_grad()
    def leave(self) -> None:
        self.batches = [
            self.stage.leave(hidden, batch) for hidden, batch in zip(self.hidden, self.batches, strict=True)
        ]
