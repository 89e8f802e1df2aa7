"""One block: collect, transform, round, put in place.

    quantizer = BlockQuantizer(chain, grids, activations)
    for visit in walk_blocks(model, batches):
        done = quantizer.quantize(visit)

1. collect the statistics of each layer's input
2. apply the transformations in order: learn, or scale and clip; the statistics follow
3. round each weight to its grid
4. choose how each layer's input is rounded
5. put a `FakeQuantLinear` in each layer's place, and report its errors
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from qlib.activation import Activation, PerTensor, Rounding
from qlib.block_task import block_task
from qlib.calibrate import Visit
from qlib.chain import Chain, Method
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.linear import FakeQuantEmbedding, FakeQuantLinear, FakeQuantWeight
from qlib.methods.contracts import BlockMethod, BlockTask, Clip, Fold, LayerStats, Transform, apply_folds
from qlib.models.structure import LayerGroup, Model, apply_fold, fold
from qlib.quantized_weight import QuantizedWeight
from qlib.report import LayerReport, output_error, weight_error
from qlib.returned import check_clipped, check_fitted, check_rounded, check_scale
from qlib.selection import Layer

FAILURES = (  # of methods
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class QuantizedBlock:
    """What was done to a block: a report of each rounded layer, and the float parameters that changed."""

    reports: tuple[LayerReport, ...]
    changed: frozenset[str]  # full names; those of layers that were rounded afterwards are among them


@dataclass(frozen=True)
class BlockQuantizer:
    """Quantizes one block after the other.

    Parameters
    ----------
    chain : Chain
        The methods.
    grids : mapping
        Every layer of the model that is to be rounded, by full name, and its grid.
    activations : mapping
        How the input of each of these layers is rounded; None or no entry: it stays in float.
    show_loss : callable
        Called now and then with the loss of a method that learns.
    """

    chain: Chain
    grids: Mapping[str, Grid]
    activations: Mapping[str, Rounding] = field(default_factory=dict)
    show_loss: Callable[[float], None] = lambda loss: None

    def quantize(self, visit: Visit) -> QuantizedBlock:
        """Transform and round one block, in place.

        Raises
        ------
        QuantError
            A method failed or returned something else than it promised; the message names layer and method.
        """
        needs = self.chain.needs
        names = [name for name in visit.layers if name in self.grids]
        block = _Block(visit, {f"{name}.weight": _weight(visit.model, name).clone() for name in names})

        # 1. Statistics of each layer's input
        block.stats = visit.collect(needs) if needs else {name: LayerStats() for name in visit.layers}

        # 2. Transformations, in the order given
        for method in self.chain.preparations:
            if isinstance(method, BlockMethod):
                self._learn(method, block)
                block.stats = visit.collect(needs)
            if isinstance(method, Transform):
                self._scale(method, block)
            if isinstance(method, Clip):
                self._clip(method, block)

        # 3. Integer codes of each weight
        codes = {name: self._round(block, name) for name in names}

        # 4. Rounding of each input
        inputs = self._round_inputs(visit, codes)

        # 5. Quantized layers in the place of float ones
        reports = [self._replace(block, name, codes[name], inputs[name]) for name in names]
        return QuantizedBlock(tuple(reports), frozenset(block.changed))

    # --- step 2

    def _learn(self, method: BlockMethod, block: _Block) -> None:
        """Let a method learn this block's parameters."""
        visit = block.visit
        grids = {name: self.grids[name] for name in block.stats if name in self.grids}
        if not grids:
            return
        activations: dict[str, Activation | None] = {}
        for name in grids:
            activations[name] = spec = self.activations.get(name)
            if isinstance(spec, PerTensor) and is_static(spec):
                # Its range is that of the layer's input once all is learned: learn with the nearest that is
                # known by then.
                activations[name] = dynamic = PerTensor(spec.bits, spec.symmetric, dynamic=True)
                block.notes = (f"{method.name} learned with inputs rounded by {dynamic}, for static ranges",)
        stats = {name: each.copy_for(method.needs) for name, each in block.stats.items()}
        task = replace(block_task(visit, grids, stats, activations), progress=self.show_loss)
        with _named_errors(method, visit.name):
            found = _fit(method, task)
            fitted = check_fitted(found, task.parameters, method.name)
        for moved in fitted.folds:
            block.fold_reference(moved)
        block.write(fitted)

    def _scale(self, method: Transform, block: _Block) -> None:
        """Fold the method's scales into this block: W s, x / s. The statistics become those of x / s."""
        visit = block.visit
        for group in visit.groups:
            rounded = [layer for layer in group.layers if layer in self.grids]
            if group.before is None or not rounded or not visit.is_first_block_of(group):
                continue
            parameters, first = _parameters(visit.model, group), visit.layers_here(group)[0]
            weights = [parameters[f"{layer}.weight"] for layer in group.layers]
            # A layer that stays in float takes part in the search like the first that is rounded.
            grids = [self.grids.get(layer, self.grids[rounded[0]]) for layer in group.layers]
            with _named_errors(method, first):
                stats = block.stats[first].copy_for(method.needs)
                found = _scale_group(method, [w.clone() for w in weights], stats, grids)
                scale = group.tie(check_scale(found, weights[0], method.name))
            moved = Fold(group, scale.to(weights[0].dtype))
            block.fold_reference(moved)
            block.write(fold(parameters, group, moved.scale))
            scaled = block.stats[first].scaled(scale)
            block.stats.update({layer: scaled for layer in visit.layers_here(group)})

    def _clip(self, method: Clip, block: _Block) -> None:
        """Clip this block's weights, queries and keys excepted: errors of scores are another matter."""
        scores = {layer for group in block.visit.groups for layer in group.scores}
        for name in (name for name in block.stats if name in self.grids and name not in scores):
            weight = _weight(block.visit.model, name)
            with _named_errors(method, name):
                stats = block.stats[name].copy_for(method.needs)
                clipped = method.clip_layer(weight.clone(), stats, self.grids[name])
                clipped = check_clipped(clipped, weight, method.name)
            block.write({f"{name}.weight": clipped})

    # --- steps 3 to 5

    def _round(self, block: _Block, name: str) -> QuantizedWeight:
        """Return the codes of one layer."""
        weight, method, grid = _weight(block.visit.model, name), self.chain.rounding, self.grids[name]
        with _named_errors(method, name):
            # A copy: the float block still runs, to find static ranges of inputs.
            rounded = method.quantize_layer(weight.clone(), block.stats[name].copy_for(method.needs), grid)
            rounded = check_rounded(rounded, weight, grid, method.name)
        return replace(rounded, notes=(*rounded.notes, *block.notes))

    def _round_inputs(
        self, visit: Visit, codes: Mapping[str, QuantizedWeight]
    ) -> dict[str, Activation | None]:
        """Return how each layer's input is rounded; ranges are calibrated without the columns in float."""
        chosen: dict[str, Activation | None] = {name: self.activations.get(name) for name in codes}
        static = {n: spec for n, spec in chosen.items() if isinstance(spec, PerTensor) and is_static(spec)}
        if static:
            kept = {name: weight.columns for name, weight in codes.items() if weight.columns is not None}
            found = visit.histograms(kept)
            chosen |= {name: spec.calibrated(found[name]) for name, spec in static.items()}
        return chosen

    def _replace(
        self, block: _Block, name: str, quantized: QuantizedWeight, activation: Activation | None
    ) -> LayerReport:
        """Put one quantized layer in place; report how far it is from the weight that the user had."""
        model, grid, stats = block.visit.model, self.grids[name], block.stats[name]
        old = _layer(model, name)
        layer: FakeQuantWeight
        if isinstance(old, nn.Embedding):
            layer = FakeQuantEmbedding(quantized, grid, old.weight.dtype)
        else:
            layer = FakeQuantLinear.from_linear(old, quantized, grid, activation)
        model.replace(name, layer)
        weight, values = block.reference[f"{name}.weight"], layer.weight
        return LayerReport(
            name=name,
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            method=self.chain.name,
            grid=str(grid),
            activation="float" if layer.activation is None else str(layer.activation),
            bits_per_weight=quantized.bits(grid) / weight.numel(),
            weight_error=weight_error(weight, values),
            output_error=None if stats.hessian is None else output_error(weight, values, stats.hessian),
            tokens=stats.tokens,
            notes=quantized.notes,
        )


@dataclass
class _Block:
    """A block on its way: what its layers read now, and what has become of its parameters."""

    visit: Visit
    # The weights that will be rounded as the user had them, with the folds: what errors are counted from.
    reference: dict[str, Tensor]
    stats: dict[str, LayerStats] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)  # names of float parameters
    notes: tuple[str, ...] = ()  # for every layer of the block

    def fold_reference(self, moved: Fold) -> None:
        """Fold a scale into the reference too: the float function is the same, and no error."""
        changed = apply_folds({**_parameters(self.visit.model, moved.group), **self.reference}, [moved])
        self.reference = {name: changed[name] for name in self.reference}

    def write(self, changed: Mapping[str, Tensor]) -> None:
        """Write float parameters into the model."""
        apply_fold(self.visit.model, changed)
        self.changed |= set(changed)


def _scale_group(method: Transform, weights: list[Tensor], stats: LayerStats, grids: list[Grid]) -> object:
    """Return the scale of a method for weights that share an input; `Chain.check_mixed` saw that it can."""
    if len(set(grids)) == 1:
        return method.scale_group(weights, stats, grids[0])
    return method.scale_mixed(weights, stats, grids)  # type: ignore[attr-defined]


def _fit(method: BlockMethod, task: BlockTask) -> object:
    """Return what a method learned for a block whose layers share a grid, or do not."""
    first, *others = set(task.grids.values())
    return method.fit_mixed(task) if others else method.fit(task, first)  # type: ignore[attr-defined]


def is_static(activation: object) -> bool:
    """Return whether ranges of inputs have to be calibrated."""
    return isinstance(activation, PerTensor) and not activation.dynamic


@contextmanager
def _named_errors(method: Method, where: str) -> Iterator[None]:
    """Let errors of a method say at which layer or block it failed."""
    try:
        yield
    except QuantError as error:
        raise QuantError(f"{where}: {error}") from error
    except FAILURES as error:
        why = f"{type(error).__name__}: {error}".rstrip(". :")
        raise QuantError(
            f"{where}: {method.name} failed with {why}. "
            f"Its needs are {method.needs}: statistics that they do not name are None."
        ) from error


def _weight(model: Model, name: str) -> Tensor:
    return _layer(model, name).weight.detach()


def _layer(model: Model, name: str) -> Layer:
    layer = model.get_submodule(name)
    assert isinstance(layer, Layer)
    return layer


def _parameters(model: Model, group: LayerGroup) -> dict[str, Tensor]:
    """Return the tensors that a fold of this group touches, by full name."""
    return {
        f"{module}.{name}": value.detach()
        for module in (group.before, *group.layers)
        if module is not None
        for name, value in model.get_submodule(module).named_parameters()
    }
