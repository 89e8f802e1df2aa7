"""What a method promises: the whole surface that a new one has to fill in.

A list of methods is any number of transformations and then at most one rounding method:

    Transform      moves scales (`scale_group`), float output unchanged           SmoothQuant, AWQ
    Clip           narrows a weight's range before it is rounded (`clip_layer`)   AWQ
    BlockMethod    learns new float parameters for a whole block (`fit`)          OmniQuant
    WeightMethod   rounds one weight (`quantize_layer`)                           RTN, HQQ, GPTQ, SpQR, QUIK

Each names what it `needs` to know of the inputs. That is collected, and that is what it is handed; whatever
others need is None for it. Any of them may have more methods:

    check_weights(weights, grid)   refuses, before the work begins, what it could not round: weights by the
                                   names of their layers, once for each grid, and for each token table
    settings()                     returns what decides its result, but for its code, as plain data; a
                                   dataclass needs none
    before(rounding)               returns it with the settings that it takes in front of the rounding method
                                   of that name: one that chooses ranges itself should see weights unclipped
    scale_mixed(weights, stats, grids), fit_mixed(task)
                                   as `scale_group` and `fit`, for layers that do not share one grid. A
                                   method without them is refused such layers before the work begins
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from qlib.grid import Grid
from qlib.models.structure import LayerGroup, fold
from qlib.quantized_weight import QuantizedWeight


class Needs(Flag):
    """What a method wants to know about the inputs of a layer."""

    NOTHING = 0
    HESSIAN = auto()
    RANGE = auto()  # smallest and largest value of each channel
    MAGNITUDE = auto()  # mean of |x| of each channel
    BLOCK = auto()  # the inputs of each block, and its outputs in float: what `fit` must name


@dataclass
class LayerStats:
    """What calibration saw at the input of one layer.

    Parameters
    ----------
    tokens : int
        Number of input vectors; padding is not counted.
    hessian : Tensor or None
        Sum over the tokens of x x^T, [inputs, inputs], float64.
    low, high : Tensor or None
        Smallest and largest value of each channel, [inputs], float32 (float64 from
        `statistics` of inputs in float64).
    absolute : Tensor or None
        Sum over the tokens of |x|, [inputs], float64.
    """

    tokens: int = 0
    hessian: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    absolute: Tensor | None = None

    @property
    def absmax(self) -> Tensor | None:
        """Largest |x| of each channel, [inputs]."""
        return None if self.low is None or self.high is None else self.high.maximum(-self.low)

    @property
    def magnitude(self) -> Tensor | None:
        """Mean |x| of each channel, [inputs]."""
        return None if self.absolute is None else self.absolute / max(self.tokens, 1)

    def copy_for(self, needs: Needs) -> LayerStats:
        """Return what a method with these needs may read, in tensors of its own: layers share statistics."""
        tensors = (
            (self.hessian, Needs.HESSIAN), (self.low, Needs.RANGE), (self.high, Needs.RANGE),
            (self.absolute, Needs.MAGNITUDE),
        )  # fmt: skip
        kept = (None if each is None or need not in needs else each.clone() for each, need in tensors)
        return LayerStats(self.tokens, *kept)

    def scaled(self, scale: Tensor) -> LayerStats:
        """Return the statistics of x / s, for a scale [inputs] that has been folded away."""
        wide = scale.double()
        return replace(
            self,
            hessian=None if self.hessian is None else self.hessian / wide / wide[:, None],
            low=None if self.low is None else self.low / scale,
            high=None if self.high is None else self.high / scale,
            absolute=None if self.absolute is None else self.absolute / wide,
        )


@runtime_checkable
class WeightMethod(Protocol):
    """Rounds the weight of one layer at a time. `name` stands in reports, `needs` steers calibration."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Return the codes of a weight [outputs, inputs]; the weight itself is left as it is."""
        ...


@runtime_checkable
class Transform(Protocol):
    """Moves scales from the input of a group of layers into their weights: float output unchanged."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]

    def scale_group(self, weights: Sequence[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        """Return s [inputs], > 0, for weights [outputs, inputs] that share an input; W s and x / s follow."""
        ...


@runtime_checkable
class Clip(Protocol):
    """Narrows the range of a weight, so that a finer grid fits what is left.

    `quantize` does not clip queries and keys: their errors meet in the scores. A clip in front of a rounding
    method that chooses ranges itself is a loss: see ``before`` in the module.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]

    def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        """Return the clipped weight [outputs, inputs]; the weight itself is left as it is."""
        ...


@dataclass(frozen=True)
class Fold:
    """A scale [inputs], and an offset, that moved out of a group's input; see `structure.fold`."""

    group: LayerGroup
    scale: Tensor
    shift: Tensor | None = None


class Fitted(dict[str, Tensor]):
    """The changed float parameters of a block by full name, and the folds among the changes.

    Folds leave the float model as it is; whatever else was changed counts as error in the report.
    """

    def __init__(self, parameters: Mapping[str, Tensor], folds: Sequence[Fold] = ()) -> None:
        super().__init__(parameters)
        self.folds = tuple(folds)

    def without(self, parameters: Mapping[str, Tensor]) -> Fitted:
        """Leave out the tensors that are those of the block itself."""
        return Fitted({n: value for n, value in self.items() if value is not parameters[n]}, self.folds)


def apply_folds(parameters: Mapping[str, Tensor], folds: Sequence[Fold]) -> dict[str, Tensor]:
    """Return parameters with folds in them, one after the other; those given are left as they are."""
    folded = dict(parameters)
    for each in folds:
        folded |= fold(folded, each.group, each.scale, each.shift)
    return folded


@dataclass(frozen=True)
class BlockTask:
    """One block as a function of its parameters, and what it should compute: the problem of a BlockMethod.

    Parameters
    ----------
    parameters : mapping
        The block's float tensors by full name. Left as they are.
    layers : tuple of str
        Linear layers that will be rounded.
    groups : tuple of LayerGroup
        Groups that lie inside the block with all their layers and `before`, and so may be folded.
    stats : mapping
        Statistics of each layer's input: what the method needs of them.
    samples : int
        Number of utterances.
    output : callable
        `output(parameters, sample)` -> [time, width] for the positions that count, differentiable in the
        parameters given; the inputs of the layers are rounded as they will be at run time, with gradients
        passed straight through.
    target : callable
        `target(sample)` -> what the float model computes there, [time, width].
    progress : callable
        Call `progress(loss)` now and then; it is shown to the user.
    rounds_inputs : bool
        Whether `output` rounds the inputs of the layers, so that it pays to make their ranges smaller.
    grids : mapping
        The grid that each of `layers` will be rounded to. May be empty where all share the one that `fit`
        is given.
    """

    parameters: Mapping[str, Tensor]
    layers: tuple[str, ...]
    groups: tuple[LayerGroup, ...]
    stats: Mapping[str, LayerStats]
    samples: int
    output: Callable[[Mapping[str, Tensor], int], Tensor]
    target: Callable[[int], Tensor]
    progress: Callable[[float], None] = field(default=lambda loss: None)
    rounds_inputs: bool = False
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def grid_of(self, name: str, otherwise: Grid) -> Grid:
        """Return the grid of a layer, or of its weight; the other one where `grids` does not name it."""
        return self.grids.get(name.removesuffix(".weight"), otherwise)


@runtime_checkable
class BlockMethod(Protocol):
    """Learns scales, offsets and ranges for all layers of a block together; `needs` names `Needs.BLOCK`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]

    def fit(self, task: BlockTask, grid: Grid) -> dict[str, Tensor]:
        """Return the block's changed float parameters by full name, ready to be rounded.

        A method that moves scales or offsets returns a `Fitted`, which names them.
        """
        ...
