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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from qlib.activation import Activation, KeepColumns, PerTensor, PerToken, describe, reset_counts
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.datasets import Utterance
from qlib.block_task import block_task
from qlib.calibrate import Visit, count_blocks, walk
from qlib.checkpoint import save_quantized
from qlib.errors import DataError, QuantError
from qlib.grid import Grid, QuantizedWeight
from qlib.linear import FakeQuantLinear
from qlib.methods.contracts import BlockMethod, Clip, LayerStats, Transform
from qlib.models.structure import LayerGroup, Model, apply_fold, fold
from qlib.models.text import TextModel
from qlib.plan import Chain, Method, check_layers, choose_layers, make_chain
from qlib.report import LayerReport, QuantReport, output_error, weight_error
from qlib.resume import finished_blocks
from qlib.stored_layer import put, stored_bits
from qlib.text import fingerprint_texts, text_batches


@dataclass(frozen=True)
class Result:
    """A quantized model and the story of how it came about."""

    model: Model
    report: QuantReport
    settings: dict[str, Any] = field(repr=False)  # methods, grids, seed, calibration: what the manifest keeps

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that `load_quantized` reads back bit for bit; see `qlib.checkpoint`."""
        return save_quantized(self.model, folder, self.settings)


def quantize(  # noqa: PLR0913  (each argument is a decision that only the caller can make)
    model: Model,
    methods: Sequence[Method] = (),
    *,
    weight: Grid,
    activation: PerToken | PerTensor | None = None,
    calib: Sequence[Utterance] | Sequence[str] | None = None,
    skip: Sequence[str] = (),
    seed: int = 0,
    work: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Return a quantized copy of a model; the model itself is not touched.

    Parameters
    ----------
    model : Model
        A float model.
    methods : sequence
        Any number of transformations, then at most one rounding method; without one, weights are rounded to
        nearest. `qlib.METHODS` lists them.
    weight : Grid
        Bits, group and symmetry of the weights.
    activation : PerToken or PerTensor, optional
        Rounds the input of every quantized layer while the model runs.
    calib : sequence of Utterance, or of str for a text model
        Recordings and transcripts, or texts, for methods that look at the inputs. Keep them apart from test
        data.
    skip : sequence of str
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
        Anything that cannot be done as asked, before the work begins: unknown methods or an impossible
        chain, a pattern that matches nothing, nothing left to quantize, a group larger than a layer, a NaN
        weight, a missing calibration list, a work folder of another run or in use by one. The message names
        the layers.
    DataError
        A calibration recording that cannot be used.
    """
    started = time.perf_counter()
    chain = make_chain(methods)
    layers, skipped = choose_layers(model, skip)
    check_layers(layers, weight)
    looks = bool(chain.needs) or _is_static(activation)
    if looks and calib is None:
        raise QuantError(
            f"{chain.name if chain.needs else activation} looks at the inputs of the layers. Pass calib=..., "
            "for example 32 utterances of qlib.read_manifest(...)."
        )
    texts = [each for each in calib or () if isinstance(each, str)]
    speech = [each for each in calib or () if isinstance(each, Utterance)]
    settings = {
        "methods": chain.describe(),
        "weight": asdict(weight),
        "activation": describe(activation),
        "skip": list(skip),
        "seed": seed,
        "calibration": None if calib is None else {"utterances": len(calib), "sha256": _hash(texts, speech)},
    }
    with contextlib.ExitStack() as held:
        finished = held.enter_context(finished_blocks(work, settings, model))
        batches = _batches(model, texts, speech) if looks else []
        quantized = copy.deepcopy(model)
        reports: list[LayerReport] = []
        bar = held.enter_context(
            tqdm(total=count_blocks(model), desc=f"{chain.name} {weight}", unit="block", disable=not progress)
        )

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


def _batches(model: Model, texts: Sequence[str], speech: Sequence[Utterance]) -> list[Any]:
    """Return calibration data as the model's stages read it."""
    if isinstance(model, TextModel):
        if speech:
            raise DataError("A text model is calibrated with texts: pass calib=[...] of strings.")
        return list(text_batches(model, texts))
    if texts:
        raise DataError("A speech recognizer is calibrated with recordings: pass calib=[...] of utterances.")
    return list(speech_batches(model, speech))


def _hash(texts: Sequence[str], speech: Sequence[Utterance]) -> str:
    """Return a sha256 over calibration data."""
    return fingerprint_texts(texts) if texts else fingerprint(speech)


@dataclass
class _Work:
    """What is done to each block."""

    chain: Chain
    grid: Grid
    activation: PerToken | PerTensor | None
    layers: frozenset[str]  # those to be quantized
    show: Callable[[float], None]
    changed: set[str] = field(default_factory=set)  # float parameters that the current block changed

    def block(self, visit: Visit) -> list[LayerReport]:
        """Transform and round one block; return the reports of its layers."""
        self.changed = set()
        needs = self.chain.needs
        names = [name for group in visit.groups for name in visit.mine(group)]
        stats = visit.collect(needs) if needs else {name: LayerStats() for name in names}
        names = [name for name in names if name in self.layers]
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
            try:
                scale = group.tie(method.scale_group(weights, stats[first], self.grid))
            except QuantError as error:
                raise QuantError(f"{first}: {error}") from error
            self._write(visit.model, fold(parameters, group, scale.to(weights[0].dtype)))
            scaled = stats[first].scaled(scale)
            stats.update({layer: scaled for layer in visit.mine(group)})

    def _clip(self, method: Clip, visit: Visit, stats: Mapping[str, LayerStats]) -> None:
        """Clip this block's weights, queries and keys excepted: errors of scores are another matter."""
        scores = {name for pair in visit.model.query_keys() for name in (pair.query, pair.key)}
        for name in (name for name in stats if name in self.layers and name not in scores):
            weight = _linear(visit.model, name).weight.detach()
            self._write(visit.model, {f"{name}.weight": method.clip_layer(weight, stats[name], self.grid)})

    def _learn(self, method: BlockMethod, visit: Visit, stats: Mapping[str, LayerStats]) -> None:
        """Let a method learn this block's parameters."""
        names = tuple(name for name in stats if name in self.layers)
        if not names:
            return
        task = block_task(
            visit.model, visit.stage, visit.name, names, visit.inputs, visit.targets, visit.batches, stats,
            None if _is_static(self.activation) else self.activation,
        )  # fmt: skip
        self._write(visit.model, method.fit(replace(task, progress=self.show), self.grid))

    def _write(self, model: Model, changed: Mapping[str, Tensor]) -> None:
        apply_fold(model, changed)
        self.changed |= set(changed)

    def _round(self, model: Model, name: str, stats: LayerStats) -> QuantizedWeight:
        try:
            return self.chain.rounding.quantize_layer(_linear(model, name).weight.detach(), stats, self.grid)
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from error

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
        weight, values = linear.weight, replacement.weight
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
