"""Calibration: walk through a model block by block and watch what each linear layer reads.

    for visit in walk_blocks(model, batches):
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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qlib.errors import QuantError
from qlib.histogram import Histogram
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.hessian import gram
from qlib.models.call import call
from qlib.models.fast.laid_out import laid_out
from qlib.models.structure import LayerGroup, Model, Source, Stage, select

T = TypeVar("T")
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
        return [group for group in self.model.groups() if self.layers_here(group)]

    @property
    def layers(self) -> list[str]:
        """All linear layers of this block."""
        return [layer for group in self.groups for layer in self.layers_here(group)]

    def layers_here(self, group: LayerGroup) -> list[str]:
        """Return the layers of a group that lie in this block. The first one stands for all of them."""
        return [layer for layer in group.layers if layer.startswith(self.name + ".")]

    def is_first_block_of(self, group: LayerGroup) -> bool:
        """Return whether this is the first block with a layer of the group."""
        return group.first.startswith(self.name + ".")

    def collect(self, needs: Needs) -> dict[str, LayerStats]:
        """Run the block over all batches; return the statistics of each of its linear layers.

        Raises
        ------
        QuantError
            A layer's input is not finite; the message names layer and utterance.
        """
        statistics = {self.layers_here(group)[0]: InputStatistics(needs) for group in self.groups}
        self._each_input(lambda layer, rows: statistics[layer].add(rows))
        return self._shared({layer: each.finish() for layer, each in statistics.items()})

    def histograms(self, without: Mapping[str, Tensor]) -> dict[str, Histogram]:
        """Run the block over all batches; return the histogram of each of its linear layers' inputs.

        `without` gives input columns of some layers that do not count: those that are never rounded.
        """
        found = {self.layers_here(group)[0]: Histogram() for group in self.groups}

        def add(layer: str, rows: Tensor) -> None:
            counts = torch.ones(rows.shape[1], dtype=torch.bool, device=rows.device)
            if layer in without:
                counts[without[layer]] = False
            found[layer].add(rows[:, counts])

        self._each_input(add)
        return self._shared(found)

    def _shared(self, found: Mapping[str, T]) -> dict[str, T]:
        """Give what was found at the first layer of each group to all of its layers."""
        return {
            layer: found[self.layers_here(group)[0]]
            for group in self.groups
            for layer in self.layers_here(group)
        }

    def _each_input(self, take: Callable[[str, Tensor], None]) -> None:
        """Give the first layer of each group and its input [tokens, inputs] to `take`, without padding.

        That happens batch by batch, and at the moment when the layer reads it: what a block does with it
        later does not show.
        """
        sources = {self.layers_here(group)[0]: group.source for group in self.groups}

        def check(layer: str, rows: Tensor) -> None:
            if not rows.isfinite().all():
                raise QuantError(
                    f"The input of {layer} is not finite for {batch.where}: "
                    f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} vectors. Check the "
                    "recording and the checkpoint, and whether a layer before it was quantized too "
                    "coarsely."
                )
            take(layer, rows)

        with laid_out(self.block):
            for hidden, batch in zip(self.inputs, self.batches, strict=True):
                self._run_and_watch(hidden, batch, sources, check)

    @torch.no_grad()
    def _run_and_watch(
        self, hidden: Tensor, batch: Any, sources: Mapping[str, Source], take: Callable[[str, Tensor], None]
    ) -> None:
        """Run the block over one batch as far as needed; give `take` what each of these layers reads."""
        missing = set(sources)

        def keep(layer: str, inputs: Tensor) -> None:
            take(layer, select(inputs, self.stage.valid(batch, sources[layer])))
            missing.discard(layer)
            if not missing:
                raise _AllInputsSeen

        modules = {layer: self.model.get_submodule(layer) for layer in sources}
        with suppress(_AllInputsSeen), watch_inputs(modules, keep):
            self.stage.run(self.block, hidden, batch, self.stage.valid(batch, "hidden"))


class _AllInputsSeen(Exception):  # noqa: N818  (not an error)
    """Ends the pass of a block once every input is known.

    An exception is the only way out of the middle of a block. It saves the product of the last layer, about a
    fifth of a block's time.
    """


@dataclass
class TableVisit(Visit):
    """A token table, visited after the last block: one layer, and no part of any group."""

    @property
    def groups(self) -> list[LayerGroup]:
        """The layer alone. Nothing may move into it: its weight may be that of the embedding."""
        return [LayerGroup((self.name,), None, "a token table is left alone")]

    def layers_here(self, group: LayerGroup) -> list[str]:
        """Return the layer."""
        return list(group.layers)

    @torch.no_grad()
    def _run_and_watch(
        self, hidden: Tensor, batch: Any, sources: Mapping[str, Source], take: Callable[[str, Tensor], None]
    ) -> None:
        """Give `take` what the head reads: the last block's output, normed."""
        norm = self.model.get_submodule(self.model.token_layers.norm)
        take(self.name, select(call(norm, hidden), self.stage.valid(batch, "hidden")))


class InputStatistics:
    """Adds up the statistics of one input, `ROWS` vectors at a time, so that no split into batches shows."""

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.stats = LayerStats()
        self.waiting: list[Tensor] = []  # fewer than `ROWS` vectors

    def add(self, rows: Tensor) -> None:
        """Add input vectors [tokens, inputs]. They may be changed afterwards: nothing of them is kept."""
        self.waiting.append(rows.float())
        if sum(map(len, self.waiting)) < ROWS:
            self.waiting[-1] = rows.to(torch.float32, copy=True)  # the model may write there: x += layer(x)
        else:
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


def walk_blocks(
    model: Model, batches: Sequence[Any], original: Model | None = None, tables: Collection[str] = ()
) -> Iterator[Visit]:
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
    tables : collection of str
        Names in `Model.tables`: these layers are visited after the last block, as `TableVisit`. The head's
        inputs are its last hidden states, normed.
    """
    changing = _HiddenStates(model, batches)
    unchanged = None if original is None else _HiddenStates(original, batches)
    both = [changing] if unchanged is None else [changing, unchanged]
    stages = model.stages()
    last = stages[-1].blocks[-1]
    for number, stage in enumerate(stages):
        for states in both:
            states.enter(number)
        for name in stage.blocks:
            visit = Visit(model, name, stage, changing.hidden, changing.batches)
            if unchanged is not None:
                unchanged.run(name)
                visit.targets = list(unchanged.hidden)
            yield visit
            if name != last or tables:  # else nothing reads what that one writes
                changing.run(name)
        for states in both:
            states.leave()
    for name in tables:
        yield TableVisit(model, name, stages[-1], changing.hidden, changing.batches)


def count_blocks(model: Model) -> int:
    """Return how many blocks `walk_blocks` will yield."""
    return sum(len(stage.blocks) for stage in model.stages())


@contextmanager
def watch_inputs(modules: dict[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `keep(name, input)` whenever one of the modules is run; the hooks go when the context ends."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: keep(name, inputs[0])

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(hook(name)))
        yield


class _HiddenStates:
    """The hidden states of all batches on their way through one model."""

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
        with laid_out(block):
            for i, batch in enumerate(self.batches):
                self.hidden[i] = self.stage.run(block, self.hidden[i], batch)

    @torch.no_grad()
    def leave(self) -> None:
        self.batches = [
            self.stage.leave(hidden, batch) for hidden, batch in zip(self.hidden, self.batches, strict=True)
        ]
