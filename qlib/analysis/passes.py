"""Teacher-forced passes through a model of which a part was replaced, begun where that part begins.

Whatever comes before a replaced layer writes what it wrote before. So the hidden states that arrive at a
block are computed once, by `walk_blocks`, and each replacement inside of it costs the blocks after alone:

    for visit in walk_blocks(model, batches):
        for modules in replacements:
            with replaced(model, modules):
                kl = mean_kl(reference, model.finish, last_hidden(visit))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qlib.calibrate import Visit
from qlib.models.structure import Model


def shared_copy(model: Model) -> Model:
    """Return a model with modules of its own, in which others can be put, and the tensors of this one."""
    shared = [*model.parameters(), *model.buffers(), getattr(model, "tokenizer", None)]
    return copy.deepcopy(model, {id(each): each for each in shared})


@contextmanager
def replaced(model: Model, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in the place of those of the same names; the old ones are back when the context ends."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.replace(name, module)
        yield
    finally:
        for name, module in before.items():
            model.replace(name, module)


def first_visit(model: Model, batches: Sequence[Any]) -> Visit:
    """Return the visit from which `last_hidden` runs the whole model."""
    stage = model.stages()[0]
    return Visit(model, stage.blocks[0], stage, [stage.enter(each) for each in batches], list(batches))


def entered(visit: Visit) -> Visit:
    """Return the visit of a stage's first block with inputs computed anew, as a replaced embedding asks."""
    return replace(visit, inputs=[visit.stage.enter(each) for each in visit.batches])


def last_hidden(visit: Visit) -> Iterator[Tensor]:
    """Yield what the last block writes at the tokens that count, [tokens, D], batch by batch.

    Gradients flow where the caller lets them.
    """
    stages = visit.model.stages()
    number = [stage.name for stage in stages].index(visit.stage.name)
    for hidden, batch in zip(visit.inputs, visit.batches, strict=True):
        blocks = visit.stage.blocks[visit.stage.blocks.index(visit.name) :]
        for later, stage in enumerate(stages[number:]):
            if later:  # a decoder: it begins with its own tokens, and reads what the encoder wrote
                batch = stages[number + later - 1].leave(hidden, batch)
                hidden, blocks = stage.enter(batch), stage.blocks
            for name in blocks:
                hidden = stage.run(visit.model.get_submodule(name), hidden, batch)
        yield hidden[stages[-1].valid(batch, "hidden")]


def kl_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Return KL(p || q) in nats of each token, [tokens], float64, for logits [tokens, V] of p and of q.

    >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> round(kl_divergence(p, q).item(), 4)  # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
    0.1438
    """
    # float64: a small divergence is a small difference of large sums.
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def mean_kl(
    expected: Iterable[Tensor],
    found: Iterable[Tensor],
    head: Callable[[Tensor], Tensor],
    other_head: Callable[[Tensor], Tensor],
) -> float:
    """Return the mean over all tokens of KL(float || changed), in nats.

    Parameters
    ----------
    expected, found : iterable of Tensor
        What the last block writes, [tokens, D] of each batch: hidden states are kept, and not logits, which
        are a hundred times as large.
    head, other_head : callable
        `Model.finish` of the float model, and of the other one.
    """
    total, tokens = 0.0, 0
    for before, after in zip(expected, found, strict=True):
        divergence = kl_divergence(head(before), other_head(after))
        total += float(divergence.sum())
        tokens += len(divergence)
    return total / tokens
