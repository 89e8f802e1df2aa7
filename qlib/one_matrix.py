"""Any method, or a list of them, on one matrix: no model, no calibration, one signature for all.

    stats = statistics(X)                                            X [tokens, inputs]
    for method in (RTN(), HQQ(), GPTQ(), SmoothQuant(), AWQ(), OmniQuant(), SpQR(), QUIK()):
        W_hat = quantize_matrix(W, stats, grid, method).decode()     [outputs, inputs]

A transformation returns a scale s, and what is rounded is W s. The inputs have to be divided by s, which in a
model the operation before the layer does. Here s is part of the result, and `decode` divides by it:
Q(W s) (x / s) = (Q(W s) / s) x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.chain import Method, make_chain
from qlib.errors import QuantError
from qlib.grid import Grid, as_compute_dtype, check_weight_on
from qlib.methods.checks import check_hessian, check_stats
from qlib.methods.contracts import BlockMethod, BlockTask, Clip, LayerStats, Transform
from qlib.models.structure import LayerGroup
from qlib.quantized_weight import QuantizedWeight
from qlib.returned import check_clipped, check_fitted, check_rounded, check_scale

NORM, LAYER = "norm.weight", "layer.weight"
PARTS = 8  # of the inputs: a method that learns takes a step for each


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight that was rounded after its columns were scaled.

    Parameters
    ----------
    quantized : QuantizedWeight
        Codes of W s.
    scale : Tensor
        s [inputs]; ones where no method scales.
    """

    quantized: QuantizedWeight
    scale: Tensor

    def decode(self) -> Tensor:
        """Return what stands in for W, [outputs, inputs]: Q(W s) / s."""
        return self.quantized.decode() / self.scale


def quantize_matrix(
    weight: Tensor, stats: LayerStats, grid: Grid, methods: Method | Iterable[Method] = ()
) -> QuantizedMatrix:
    """Apply methods to one weight, as `quantize` applies them to a layer that is neither queries nor keys.

    (Those two are not clipped by `quantize`.)

    Parameters
    ----------
    weight : Tensor
        W [outputs, inputs], float32 or float64. Left as it is.
    stats : LayerStats
        What the methods need of the inputs; `statistics(X)` has all of it.
    grid : Grid
        Where the weight is rounded.
    methods : method or list of methods
        Transformations, then at most one rounding method, with their settings. Without one: to nearest.

    Raises
    ------
    QuantError
        A method that cannot round this weight on this grid, statistics of another layer, or a result that its
        contract does not allow.

    Examples
    --------
    >>> from qlib.methods import AWQ
    >>> from qlib.methods.hessian import statistics
    >>> W, X = torch.tensor([[1.0, 0.3, -0.8]]), torch.tensor([[1.0, 25.0, 1.0]])
    >>> error = [X @ (quantize_matrix(W, statistics(X), Grid(3), m).decode() - W).T for m in ([], AWQ())]
    >>> bool(error[1].abs() < 0.1 * error[0].abs())
    True
    """
    check_weight_on(weight, grid)
    check_stats(stats, "quantize_matrix")
    chain = make_chain(methods)
    W, s = as_compute_dtype(weight.detach()).clone(), torch.ones_like(weight[0])
    for method in chain.methods:
        if callable(check := getattr(method, "check_weights", None)):
            check({"the weight": W}, grid)
    for method in chain.preparations:
        # 1. Learn scales and ranges, or
        if isinstance(method, BlockMethod):
            more, W = _learned(method, W, stats, grid)
            s, stats = s * more, stats.scaled(more)
        # 2. take a scale, and let weight and statistics follow;
        if isinstance(method, Transform):
            scale = method.scale_group([W.clone()], stats.copy_for(method.needs), grid)
            scale = check_scale(scale, W, method.name)
            s, W, stats = s * scale.to(W), W * scale.to(W), stats.scaled(scale)
        # 3. clip what was scaled.
        if isinstance(method, Clip):
            clipped = method.clip_layer(W.clone(), stats.copy_for(method.needs), grid)
            W = check_clipped(clipped, W, method.name)
    # 4. Round it.
    last = chain.rounding
    rounded = last.quantize_layer(W, stats.copy_for(last.needs), grid)
    return QuantizedMatrix(check_rounded(rounded, W, grid, last.name), s.to(W))


def _learned(method: BlockMethod, W: Tensor, stats: LayerStats, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the scale and the weight that a method learns for a block of one layer after a norm.

    Its tokens are as many as there are inputs: rows of the root of H. They have the output error of all.
    """
    if stats.hessian is None:
        raise QuantError(
            f"{method.name} learns from the outputs, and they follow from H. Pass statistics(X)."
        )
    check_hessian(stats.hessian, W.shape[1])
    values, vectors = torch.linalg.eigh(stats.hessian)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()).T  # X', with X'^T X' = H
    tokens = root.to(W).chunk(PARTS)

    def output(given: Mapping[str, Tensor], k: int) -> Tensor:
        p = {**own, **given}
        return (tokens[k] * p[NORM]) @ p[LAYER].T

    own = {NORM: torch.ones_like(W[0]), LAYER: W}
    task = BlockTask(
        {name: value.clone() for name, value in own.items()}, ("layer",), (LayerGroup(("layer",), "norm"),),
        {"layer": stats.copy_for(method.needs)}, len(tokens), output, target=lambda k: tokens[k] @ W.T,
        grids={"layer": grid},
    )  # fmt: skip
    fitted = {**own, **check_fitted(method.fit(task, grid), own, method.name)}
    s: Tensor = 1 / fitted[NORM].detach()
    return s, fitted[LAYER].detach()
