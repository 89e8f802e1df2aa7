"""`quantize`: a float model and a list of methods in, a quantized copy and a report out.

1. check everything that can be checked: methods, patterns, grids, weights, calibration list
2. copy the model
3. block by block, in order of computation: collect what the methods need, transform the float weights,
   round each layer, put a `FakeQuantLinear` in its place
4. report each layer's error, and what was left in float and why
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qlib.activation import Activation, KeepColumns, PerTensor, PerToken, describe, reset_counts
from qlib.arguments import as_activation, as_calibration, as_folder, as_grid, as_model, as_patterns
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.datasets import Utterance
from qlib.block_task import block_task
from qlib.calibrate import Visit, count_blocks, walk
from qlib.chain import Chain, Method, check_layers, choose_layers, make_chain
from qlib.checkpoint import save_quantized
from qlib.errors import QuantError, true_or_false, whole_number
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import BlockMethod, Clip, Fold, LayerStats, Transform, apply_folds
from qlib.models.progress import progress_bar
from qlib.models.structure import LayerGroup, Model, apply_fold, fold
from qlib.models.text import TextModel
from qlib.quantized_weight import QuantizedWeight
from qlib.report import LayerReport, QuantReport, output_error, weight_error
from qlib.resume import finished_blocks
from qlib.returned import check_clipped, check_fitted, check_rounded, check_scale
from qlib.stored_layer import put, stored_bits
from qlib.text import fingerprint_texts, text_batches


@dataclass(frozen=True, repr=False)
class Result:
    """A quantized model and the story of how it came about."""

    model: Model
    report: QuantReport
    settings: dict[str, Any]  # methods, grids, seed, calibration: what the manifest keeps

    def __str__(self) -> str:
        """Return the report."""
        return str(self.report)

    def __repr__(self) -> str:
        """Return one line."""
        layers = self.report.layers
        return (
            f"Result({type(self.model).__name__}, {len(layers)} layers by {layers[0].method} to "
            f"{layers[0].grid}, {self.report.bits_per_weight:.2f} bits per weight)"
        )

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that `load_quantized` reads back bit for bit; see `qlib.checkpoint`."""
        return save_quantized(self.model, folder, self.settings)


def quantize(  # noqa: PLR0913  (each argument is a decision that only the caller can make)
    model: Model,
    methods: Method | Iterable[Method] = (),
    *,
    weight: Grid,
    activation: PerToken | PerTensor | None = None,
    calib: Iterable[Utterance] | Iterable[str] | None = None,
    skip: str | Iterable[str] = (),
    seed: int = 0,
    work: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Return a quantized copy of a model; the model itself is not touched.

    Parameters
    ----------
    model : Model
        A float model.
    methods : method or iterable of methods
        Any number of transformations, then at most one rounding method; without one, weights are rounded to
        nearest. `qlib.METHODS` lists them.
    weight : Grid
        Bits, group and symmetry of the weights.
    activation : PerToken or PerTensor, optional
        Rounds the input of every quantized layer while the model runs.
    calib : iterable of Utterance, or of str for a text model
        Recordings and transcripts, or texts, for methods that look at the inputs. Keep them apart from test
        data.
    skip : str or iterable of str
        Layers to leave in float: names or patterns (``*``, ``?``) of whole paths, or of a path's end
        (``fc2``, ``encoder_attn.*``). A head that is tied to the embedding always stays.
    seed : int
        For methods that draw random numbers; kept in the manifest.
    work : str or Path, optional
        Folder for finished blocks: a killed run with the same arguments goes on from there, to the same
        codes.
    progress : bool
        Show a progress bar over the blocks.

    Raises
    ------
    QuantError
        Anything that cannot be done as asked, before the work begins: arguments of another type, unknown
        methods or an impossible chain, a grid or layer that a method cannot round, a pattern that matches
        nothing, nothing left to quantize, a group larger than a layer, a NaN weight, a missing calibration
        list, a work folder of another run or in use by one, a method that does not tell runs apart. The
        message names the layers. Later: a method that returns something else than it promised.
    DataError
        A calibration entry of another kind, or a recording that cannot be used; the message counts from 1.
    """
    started = time.perf_counter()
    model, chain, weight, activation = (
        as_model(model),
        make_chain(methods),
        as_grid(weight),
        as_activation(activation),
    )
    folder, patterns, data = as_folder(work), as_patterns(skip), as_calibration(calib, model)
    layers, skipped = choose_layers(model, patterns)
    check_layers(layers, weight)
    chain.check_weights(layers, weight)
    looks = bool(chain.needs) or _is_static(activation)
    if looks and data is None:
        examples = "128 texts" if isinstance(model, TextModel) else "32 utterances of qlib.read_manifest(...)"
        raise QuantError(
            f"{chain.name if chain.needs else activation} looks at the inputs of the layers. Pass calib=..., "
            f"for example {examples}."
        )
    settings = {
        "methods": chain.describe(),
        "weight": asdict(weight),
        "activation": describe(activation),
        "skip": list(patterns),
        "seed": whole_number(seed, "seed", QuantError, -(1 << 63), remedy="Pass seed=0, or leave it out."),
        "calibration": None if data is None else {"utterances": len(data), "sha256": _hash(data)},
    }
    show_bar = true_or_false(progress, "progress", QuantError, "Pass progress=True or progress=False.")
    if folder is not None:
        chain.check_resumable()
    with contextlib.ExitStack() as held:
        finished = held.enter_context(finished_blocks(folder, settings, model))
        batches = _batches(model, data or []) if looks else []
        quantized = copy.deepcopy(model)
        reports: list[LayerReport] = []
        blocks, title = count_blocks(model), f"{chain.name} {weight}"
        bar = held.enter_context(progress_bar(show=show_bar, total=blocks, desc=title, unit="block"))

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3g}")

        work_on = _Work(chain, weight, activation, frozenset(layers), show)
        for visit in walk(quantized, batches, model if chain.learns else None):
            done = None if finished is None else finished.load(visit.name, quantized)
            if done is None:
                done = work_on.block(visit)
                if finished is not None:
                    finished.save(visit.name, quantized, work_on.changed, done)
            reports += done
            bar.update()
            if done:
                bar.set_postfix(error=f"{done[-1].output_error or done[-1].weight_error:.4f}")
    reset_counts(quantized)  # calibration ran the finished blocks, static ranges and all
    return Result(quantized, QuantReport(tuple(reports), skipped, time.perf_counter() - started), settings)


def _batches(model: Model, data: Sequence[Utterance] | Sequence[str]) -> list[Any]:
    """Return calibration data as the model's stages read it."""
    if isinstance(model, TextModel):
        return list(text_batches(model, [each for each in data if isinstance(each, str)]))
    return list(speech_batches(model, [each for each in data if isinstance(each, Utterance)]))


def _hash(data: Sequence[Utterance] | Sequence[str]) -> str:
    """Return a sha256 over calibration data."""
    texts = [each for each in data if isinstance(each, str)]
    return fingerprint_texts(texts) if texts else fingerprint([e for e in data if isinstance(e, Utterance)])


@dataclass
class _Work:
    """What is done to each block."""

    chain: Chain
    grid: Grid
    activation: PerToken | PerTensor | None
    layers: frozenset[str]  # those to be quantized
    show: Callable[[float], None]
    changed: set[str] = field(default_factory=set)  # float parameters that the current block changed
    # The weights of the current block as the user had them, with the folds: what errors are counted from.
    wanted: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # for every layer of the current block

    def block(self, visit: Visit) -> list[LayerReport]:
        """Transform and round one block; return the reports of its layers."""
        needs = self.chain.needs
        names = [name for group in visit.groups for name in visit.mine(group)]
        stats = visit.collect(needs) if needs else {name: LayerStats() for name in names}
        names = [name for name in names if name in self.layers]
        self.changed, self.notes = set(), ()
        self.wanted = {f"{name}.weight": _weight(visit.model, name).clone() for name in names}
        for method in self.chain.preparations:
            if isinstance(method, BlockMethod):
                self._learn(method, visit, stats)
                stats = visit.collect(needs)
                continue
            if isinstance(method, Transform):
                self._scale(method, visit, stats)
            if isinstance(method, Clip):
                self._clip(method, visit, stats)
        codes = {name: self._round(visit.model, name, stats[name]) for name in names}
        inputs = self._inputs(visit, codes)
        return [self._put(visit.model, name, codes[name], inputs[name], stats[name]) for name in names]

    def _scale(self, method: Transform, visit: Visit, stats: dict[str, LayerStats]) -> None:
        """Fold the method's scales into this block; the statistics follow."""
        for group in visit.groups:
            if group.before is None or not visit.begins(group) or not self.layers.intersection(group.layers):
                continue
            parameters = _parameters(visit.model, group)
            first = visit.mine(group)[0]
            weights = [parameters[f"{layer}.weight"] for layer in group.layers]
            with _blamed(method, first):
                copies = [weight.clone() for weight in weights]
                scale = method.scale_group(copies, stats[first].copy(), self.grid)
                scale = group.tie(check_scale(scale, weights[0].shape[1], method.name))
            moved = Fold(group, scale.to(weights[0].dtype))
            self._follow(visit.model, moved)
            self._write(visit.model, fold(parameters, group, moved.scale))
            scaled = stats[first].scaled(scale)
            stats.update({layer: scaled for layer in visit.mine(group)})

    def _clip(self, method: Clip, visit: Visit, stats: Mapping[str, LayerStats]) -> None:
        """Clip this block's weights, queries and keys excepted: errors of scores are another matter."""
        scores = {layer for group in visit.groups for layer in group.scores}
        for name in (name for name in stats if name in self.layers and name not in scores):
            weight = _weight(visit.model, name)
            with _blamed(method, name):
                clipped = method.clip_layer(weight.clone(), stats[name].copy(), self.grid)
                clipped = check_clipped(clipped, weight.shape, method.name)
            self._write(visit.model, {f"{name}.weight": clipped})

    def _learn(self, method: BlockMethod, visit: Visit, stats: Mapping[str, LayerStats]) -> None:
        """Let a method learn this block's parameters."""
        names = tuple(name for name in stats if name in self.layers)
        if not names:
            return
        activation = self.activation
        if isinstance(activation, PerTensor) and _is_static(activation):
            # Its ranges are those of the layers' inputs once all is learned: learn with the nearest that is
            # known by then.
            activation = PerTensor(activation.bits, activation.symmetric, dynamic=True)
            self.notes = (f"{method.name} learned with inputs rounded by {activation}, for static ranges",)
        task = block_task(
            visit.model, visit.stage, visit.name, names, visit.inputs, visit.targets, visit.batches, stats,
            activation,
        )  # fmt: skip
        with _blamed(method, visit.name):
            found = method.fit(replace(task, progress=self.show), self.grid)
            fitted = check_fitted(found, task.parameters, method.name)
        for moved in fitted.folds:
            self._follow(visit.model, moved)
        self._write(visit.model, fitted)

    def _follow(self, model: Model, moved: Fold) -> None:
        """Fold a scale into the wanted weights too: the float function is the same, and no error."""
        changed = apply_folds({**_parameters(model, moved.group), **self.wanted}, [moved])
        self.wanted = {name: changed[name] for name in self.wanted}

    def _write(self, model: Model, changed: Mapping[str, Tensor]) -> None:
        apply_fold(model, changed)
        self.changed |= set(changed)

    def _round(self, model: Model, name: str, stats: LayerStats) -> QuantizedWeight:
        weight, method = _weight(model, name), self.chain.rounding
        with _blamed(method, name):  # the weight itself: what the method does to it is gone with the layer
            rounded = method.quantize_layer(weight, stats.copy(), self.grid)
            rounded = check_rounded(rounded, weight.shape, self.grid, method.name)
        return replace(rounded, notes=(*rounded.notes, *self.notes))

    def _inputs(self, visit: Visit, codes: Mapping[str, QuantizedWeight]) -> dict[str, Activation | None]:
        """Return how each layer's input is rounded: ranges calibrated, float columns left out."""
        spec = self.activation
        if spec is None:
            return dict.fromkeys(codes)
        columns = {name: weight.columns for name, weight in codes.items() if weight.columns is not None}
        chosen: dict[str, Activation | None] = dict.fromkeys(codes, spec)
        if isinstance(spec, PerTensor) and _is_static(spec):
            found = visit.histograms(columns)
            chosen = {name: spec.calibrated(found[name]) for name in codes}
        for name, kept in columns.items():
            inner = chosen[name]
            assert inner is not None
            chosen[name] = KeepColumns(inner, kept)
        return chosen

    def _put(
        self,
        model: Model,
        name: str,
        quantized: QuantizedWeight,
        activation: Activation | None,
        stats: LayerStats,
    ) -> LayerReport:
        """Put one rounded layer in place, and report."""
        linear = _linear(model, name)
        replacement = FakeQuantLinear.from_linear(linear, quantized, self.grid, activation)
        put(model, name, replacement)
        weight, values = self.wanted[f"{name}.weight"], replacement.weight
        return LayerReport(
            name=name,
            outputs=linear.out_features,
            inputs=linear.in_features,
            method=self.chain.name,
            grid=str(self.grid),
            activation="float" if activation is None else str(activation),
            bits_per_weight=stored_bits(replacement) / weight.numel(),
            weight_error=weight_error(weight, values),
            output_error=None if stats.hessian is None else output_error(weight, values, stats.hessian),
            tokens=stats.tokens,
            notes=quantized.notes,
        )


def _is_static(activation: object) -> bool:
    return isinstance(activation, PerTensor) and not activation.dynamic


@contextmanager
def _blamed(method: Method, where: str) -> Iterator[None]:
    """Let errors of a method say at which layer or block it failed."""
    try:
        yield
    except QuantError as error:
        raise QuantError(f"{where}: {error}") from error
    except (AttributeError, TypeError) as error:
        raise QuantError(
            f"{where}: {method.name} failed with {type(error).__name__}: {error}. "
            f"Its needs are {method.needs}: statistics that they do not name are None."
        ) from error


def _weight(model: Model, name: str) -> Tensor:
    return _linear(model, name).weight.detach()


def _linear(model: Model, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _parameters(model: Model, group: LayerGroup) -> dict[str, Tensor]:
    """Return the tensors that a fold of this group touches, by full name."""
    return {
        f"{module}.{name}": value.detach()
        for module in (group.before, *group.layers)
        if module is not None
        for name, value in model.get_submodule(module).named_parameters()
    }
