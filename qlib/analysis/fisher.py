"""What rounding will cost in KL, estimated from gradients alone: no rounded model is run.

Paper: the second-order view of Optimal Brain Damage (LeCun et al. 1989) with the Fisher information in the
    place of the Hessian, as in Theis et al. 2018 (arXiv 1801.05787).
Problem: the KL divergence between a model and one whose weights moved by E, without running the second.
Rule: KL(p || p_E) = 1/2 mean of (g . E)^2, plus terms of third order, where g is the gradient of log p(y)
    with respect to the weights, and y is drawn from the model.
Why it works: at E = 0 the divergence is 0 and smallest, so its first derivative vanishes; its second one is
    the Fisher information, the mean of g g^T. Drawn tokens make the gradients of two positions uncorrelated,
    so one backward pass of the sum over all positions serves them all. With the transcript's own tokens (the
    "empirical" Fisher information) the order of layers is about the same, the values are too small.
Shapes: E and g [outputs, inputs] of each layer; g . E is the sum of the products.
Left out: higher orders. The order of layers is right at 2 bits too; the worst are then far worse than said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qlib.analysis.passes import first_visit, last_hidden, shared_copy
from qlib.models.structure import Model

DRAWS = 2  # texts drawn for each batch: a draw more costs one backward pass


def drawn_gradients(
    model: Model, layers: Iterable[str], batches: Sequence[Any], seed: int
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Yield gradients of -log p(y) by layer, y drawn at each token that counts, and the number of tokens.

    Parameters
    ----------
    model : Model
        A float model; neither its weights nor their gradients are touched.
    layers : iterable of str
        Full paths of the layers whose gradients are wanted.
    batches : sequence
        What the model's stages read. Each gives `DRAWS` gradients.
    seed : int
        Of the draws.
    """
    work = shared_copy(model)
    wanted = {name: nn.Parameter(work.get_parameter(f"{name}.weight").detach()) for name in layers}
    for module in work.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
    for name, weight in wanted.items():
        work.get_submodule(name).weight = weight
    for head, embedding in work.tied.items():  # one tensor again, so that its gradient has both parts
        if head.removesuffix(".weight") in wanted:
            owner = embedding.removesuffix(".weight")
            work.get_submodule(owner).weight = wanted[head.removesuffix(".weight")]
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        with torch.enable_grad():
            logits = work.finish(next(last_hidden(first_visit(work, [batch])))).float()
        probabilities = logits.detach().softmax(-1).cpu()
        for draw in range(DRAWS):
            tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
            with torch.enable_grad():
                loss = cross_entropy(logits, tokens, reduction="sum")
            found = torch.autograd.grad(
                loss, list(wanted.values()), retain_graph=draw + 1 < DRAWS, allow_unused=True
            )
            yield {n: g for n, g in zip(wanted, found, strict=True) if g is not None}, len(tokens)


def second_order_kl(
    gradients: Iterable[tuple[Mapping[str, Tensor], int]], errors: Sequence[Mapping[str, Tensor]]
) -> list[float]:
    """Return 1/2 mean (g . E)^2 for each E, in nats per token.

    Parameters
    ----------
    gradients : iterable of (mapping, int)
        Of `drawn_gradients`: gradients by layer, and how many tokens each is the sum over.
    errors : sequence of mappings
        Each an E: what some layers' weights move by, [outputs, inputs] by layer.

    Examples
    --------
    >>> ones = torch.ones(1, 2)
    >>> second_order_kl([({"fc": 2 * ones}, 4)], [{"fc": 0.5 * ones}])  # (2 0.5 + 2 0.5)^2 / 2 / 4
    [0.5]
    """
    totals, tokens = [0.0] * len(errors), 0
    for found, count in gradients:
        tokens += count
        for i, moved in enumerate(errors):
            step = sum(float((found[name] * E).sum()) for name, E in moved.items() if name in found)
            totals[i] += step**2
    return [total / 2 / tokens for total in totals]
