"""Calibration: walk through a model block by block and watch what each linear layer reads.

    for block, stats in walk(model, batches, needs):
        ...quantize the layers of this block, using stats...

Each block sees the output of the blocks before it as they are *now*, so once they are quantized, the next
statistics contain their errors, and a method that compensates can make up for them. For an
encoder-decoder the encoder comes first; the decoder then reads the quantized encoder's output.

Memory: the hidden states of all batches, one set at a time (each block overwrites its input), and the
statistics of one block. Statistics are sums, so 8 or 8,000 utterances need the same room for them, and the
split into batches does not matter. Layers that share an input share its statistics; those of
cross-attention, which read the same encoder output in every block, are collected once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qlib.errors import QuantError
from qlib.methods.contracts import LayerStats, Needs
from qlib.models.structure import LayerGroup, Stage


class BlockModel(Protocol):
    """A model that knows its own structure (`qlib.models.structure`)."""

    def stages(self) -> Sequence[Stage]:
        """Return the chains of blocks, in order."""
        ...

    def groups(self) -> list[LayerGroup]:
        """Return the linear layers by the input that they read."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a name."""
        ...


def walk(
    model: BlockModel, batches: Sequence[Any], needs: Needs
) -> Iterator[tuple[str, dict[str, LayerStats]]]:
    """Yield each block's name and the statistics of its linear layers by full name, in order of computation.

    The caller changes the block before it asks for the next one.

    Parameters
    ----------
    model : BlockModel
        Its blocks are run in inference mode; nothing is changed.
    batches : sequence
        What the model's stages read, for example `speech_batches(model, utterances)`.
    needs : Needs
        What to collect.

    Raises
    ------
    QuantError
        A layer's input is not finite; the message names layer and batch.
    """
    collected: dict[str, LayerStats] = {}
    remaining = list(batches)
    for stage in model.stages():
        with torch.inference_mode():
            hidden = [stage.enter(batch) for batch in remaining]
        for name in stage.blocks:
            groups = [
                group for group in model.groups() if any(_inside(layer, name) for layer in group.layers)
            ]
            collected |= _collect(model, stage, name, hidden, remaining, _unseen(groups, collected), needs)
            mine = [layer for group in groups for layer in group.layers if _inside(layer, name)]
            yield name, {layer: collected.pop(layer) for layer in mine}
            with torch.inference_mode():
                block = model.get_submodule(name)
                for i, batch in enumerate(remaining):
                    hidden[i] = stage.run(block, hidden[i], batch)
        with torch.inference_mode():
            for i, batch in enumerate(remaining):
                remaining[i] = stage.leave(hidden[i], batch)


def count_blocks(model: BlockModel) -> int:
    """Return how many blocks `walk` will yield."""
    return sum(len(stage.blocks) for stage in model.stages())


@contextmanager
def watch_inputs(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(name, input)` whenever one of the modules is run; the hooks go when the context ends."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: see(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_rows(stats: LayerStats, rows: Tensor, needs: Needs) -> None:
    """Add input vectors `rows [tokens, inputs]` to the statistics: products in float32, sums in float64."""
    stats.tokens += rows.shape[0]
    if Needs.HESSIAN in needs:
        product = rows.float().T @ rows.float()
        stats.hessian = product.double() if stats.hessian is None else stats.hessian + product


def _collect(
    model: BlockModel,
    stage: Stage,
    name: str,
    hidden: Sequence[Tensor],
    batches: Sequence[Any],
    groups: Sequence[LayerGroup],
    needs: Needs,
) -> dict[str, LayerStats]:
    """Run one block over all batches and return the statistics of the groups' layers, shared in a group."""
    watched = {next(layer for layer in group.layers if _inside(layer, name)): group for group in groups}
    stats = {layer: LayerStats() for layer in watched}
    for i, batch in enumerate(batches):

        def see(layer: str, inputs: Tensor, i: int = i, batch: Any = batch) -> None:
            rows = inputs[stage.valid(batch, watched[layer].source)]
            if not rows.isfinite().all():
                raise QuantError(
                    f"The input of {layer} is not finite in calibration batch {i} ({rows.shape[0]} vectors). "
                    "Check the checkpoint, and whether a layer before it was quantized too coarsely."
                )
            add_rows(stats[layer], rows, needs)

        with (
            torch.inference_mode(),
            watch_inputs({layer: model.get_submodule(layer) for layer in watched}, see),
        ):
            stage.run(model.get_submodule(name), hidden[i], batch)
    return {layer: stats[first] for first, group in watched.items() for layer in group.layers}


def _unseen(groups: Sequence[LayerGroup], collected: dict[str, LayerStats]) -> list[LayerGroup]:
    return [group for group in groups if not any(layer in collected for layer in group.layers)]


def _inside(layer: str, block: str) -> bool:
    return layer.startswith(block + ".")
