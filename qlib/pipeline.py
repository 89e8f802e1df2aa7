"""`quantize`: a float model and a list of methods in, a quantized copy and a report out.

1. check everything that can be checked: methods, patterns, grids, weights, calibration list
2. copy the model
3. block by block, in order of computation: collect what the method needs, round each layer, put a
   `FakeQuantLinear` in its place
4. report each layer's error, and what was left in float and why
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from qlib.activation import PerToken
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.datasets import Utterance
from qlib.calibrate import count_blocks, walk
from qlib.checkpoint import save_quantized, stored_bits
from qlib.errors import QuantError, list_names
from qlib.grid import Grid, check_weight
from qlib.linear import FakeQuantLinear
from qlib.methods import METHODS
from qlib.methods.contracts import LayerStats, Needs, WeightMethod
from qlib.methods.rtn import RTN
from qlib.models.whisper import Whisper
from qlib.report import LayerReport, QuantReport, output_error, weight_error

DEFAULT_SKIP = ("proj_out",)


@dataclass(frozen=True)
class Result:
    """A quantized model and the story of how it came about."""

    model: Whisper
    report: QuantReport
    settings: dict[str, Any] = field(repr=False)  # methods, grids, seed, calibration: what the manifest keeps

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that `load_quantized` reads back bit for bit; see `qlib.checkpoint`."""
        return save_quantized(self.model, folder, self.settings)


def quantize(
    model: Whisper,
    methods: Sequence[WeightMethod] = (),
    *,
    weight: Grid,
    activation: PerToken | None = None,
    calib: Sequence[Utterance] | None = None,
    skip: Sequence[str] = DEFAULT_SKIP,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Return a quantized copy of a model; the model itself is not touched.

    Parameters
    ----------
    model : Whisper
        A float model.
    methods : sequence
        At most one rounding method; without one, weights are rounded to nearest.
    weight : Grid
        Bits, group and symmetry of the weights.
    activation : PerToken, optional
        Rounds the input of every quantized layer while the model runs.
    calib : sequence of Utterance
        Recordings and transcripts for methods that look at the inputs. Keep them apart from test data.
    skip : sequence of str
        Layers to leave in float: names or patterns (``*``, ``?``) of whole paths, or of a path's end
        (``fc2``, ``encoder_attn.*``).
    seed : int
        For methods that draw random numbers; kept in the manifest.
    progress : bool
        Show a progress bar over the blocks.

    Raises
    ------
    QuantError
        Anything that cannot be done as asked, before the work begins: unknown or too many methods, a
        pattern that matches nothing, nothing left to quantize, a group larger than a layer, a NaN weight,
        a missing calibration list. The message names the layers.
    DataError
        A calibration recording that cannot be used.
    """
    started = time.perf_counter()
    method = _rounding_method(methods)
    layers, skipped = choose_layers(model, skip)
    _check_layers(layers, weight)
    if method.needs and calib is None:
        raise QuantError(
            f"{method.name} looks at the inputs of the layers. Pass calib=..., for example 32 utterances of "
            "qlib.read_manifest(...)."
        )
    batches = speech_batches(model, calib) if method.needs and calib is not None else []
    quantized = copy.deepcopy(model)
    reports = []
    with tqdm(
        total=count_blocks(model), desc=f"{method.name} {weight}", unit="block", disable=not progress
    ) as bar:
        for _, stats in _blocks(quantized, batches, method.needs):
            for name in (name for name in stats if name in layers):
                linear = quantized.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                reports.append(
                    _quantize_layer(quantized, name, linear, stats[name], method, weight, activation)
                )
            bar.update()
            bar.set_postfix(
                error=f"{reports[-1].output_error or reports[-1].weight_error:.4f}" if reports else ""
            )
    settings = {
        "methods": [{"name": method.name, **asdict(method)}],  # type: ignore[call-overload]
        "weight": asdict(weight),
        "activation": None if activation is None else asdict(activation),
        "skip": list(skip),
        "seed": seed,
        "calibration": None if calib is None else {"utterances": len(calib), "sha256": fingerprint(calib)},
    }
    return Result(quantized, QuantReport(tuple(reports), skipped, time.perf_counter() - started), settings)


def choose_layers(
    model: Whisper, skip: Sequence[str]
) -> tuple[dict[str, nn.Linear], tuple[tuple[str, str], ...]]:
    """Return the layers to quantize by name, and all other modules with weights, each with a reason.

    Raises
    ------
    QuantError
        The model is quantized already, a pattern matches no module, or no layer is left.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if done := [name for name, module in modules.items() if isinstance(module, FakeQuantLinear)]:
        raise QuantError(f"The model is quantized already: {list_names(done)}. Quantize the float model.")
    known = [layer for group in model.groups() for layer in group.layers]
    for pattern in skip:
        if not any(_matches(name, pattern) for name in modules):
            raise QuantError(
                f"skip pattern {pattern!r} matches no module. Layers are named {list_names(known)}."
            )
    reasons = {
        name: _reason_to_skip(model, name, module, skip)
        for name, module in modules.items()
        if list(module.parameters(recurse=False))
    }
    layers = {
        name: module for name in known if not reasons[name] and isinstance(module := modules[name], nn.Linear)
    }
    if not layers:
        raise QuantError(
            f"No layer is left to quantize: skip={list(skip)} covers all {len(known)}. Skip fewer."
        )
    return layers, tuple((name, reason) for name, reason in reasons.items() if reason)


def _reason_to_skip(model: Whisper, name: str, module: nn.Module, skip: Sequence[str]) -> str:
    """Return why a module with weights stays in float, or nothing."""
    if f"{name}.weight" in model.tied:
        return "shares its weight with the token embedding"
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__}, not a linear layer"
    return "skipped as asked" if any(_matches(name, pattern) for pattern in skip) else ""


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern covers a module path, or a module that contains it, from any dot on."""
    return fnmatch(f".{name}.", f"*.{pattern}.*")


def _rounding_method(methods: Sequence[WeightMethod]) -> WeightMethod:
    known = f"Known methods: {list_names(METHODS, 20)}, each an object such as qlib.GPTQ()."
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise QuantError(f"methods={methods!r} is not a list of methods. {known}")
    for method in methods:
        if isinstance(method, type) or not hasattr(method, "quantize_layer"):
            raise QuantError(f"{method!r} is not a quantization method. {known}")
    if len(methods) > 1:
        names = [method.name for method in methods]
        raise QuantError(f"{list_names(names)}: a weight can be rounded only once. Pass one rounding method.")
    return methods[0] if methods else RTN()


def _check_layers(layers: dict[str, nn.Linear], grid: Grid) -> None:
    """Refuse grids and weights that some layer cannot be rounded with, naming every such layer."""
    narrow = {
        name: layer.in_features for name, layer in layers.items() if layer.in_features < (grid.group or 1)
    }
    if narrow:
        grid.check(min(narrow.values()), list_names(narrow))
    for name, layer in layers.items():
        try:
            check_weight(layer.weight)
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from error


def _blocks(
    model: Whisper, batches: Sequence[Any], needs: Needs
) -> Iterator[tuple[str, dict[str, LayerStats]]]:
    """Yield blocks with statistics; without batches, yield the same blocks with empty statistics."""
    if batches:
        yield from walk(model, batches, needs)
        return
    names = [layer for group in model.groups() for layer in group.layers]
    for stage in model.stages():
        for block in stage.blocks:
            yield block, {name: LayerStats() for name in names if name.startswith(block + ".")}


def _quantize_layer(
    model: nn.Module,
    name: str,
    linear: nn.Linear,
    stats: LayerStats,
    method: WeightMethod,
    grid: Grid,
    activation: PerToken | None,
) -> LayerReport:
    """Round one layer, put it in place, and report."""
    try:
        quantized = method.quantize_layer(linear.weight.detach(), stats, grid)
    except QuantError as error:
        raise QuantError(f"{name}: {error}") from error
    replacement = FakeQuantLinear.from_linear(linear, quantized, grid, activation)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
    weight, values = linear.weight, replacement.weight
    return LayerReport(
        name=name,
        outputs=linear.out_features,
        inputs=linear.in_features,
        method=method.name,
        grid=str(grid),
        activation="float" if activation is None else str(activation),
        bits_per_weight=stored_bits(replacement) / weight.numel(),
        weight_error=weight_error(weight, values),
        output_error=None if stats.hessian is None else output_error(weight, values, stats.hessian),
        tokens=stats.tokens,
        notes=quantized.notes,
    )
