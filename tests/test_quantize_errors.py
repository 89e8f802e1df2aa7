"""Natural mistakes with `quantize`, grids, activations, methods and pure functions: what the message says.

Each case is a call and the words that its message must hold: what is wrong, where, the numbers, what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qlib
from qlib.activation import FixedRange
from qlib.errors import QlibError
from qlib.grid import Grid, encode, fit_float_zero, fit_minmax
from qlib.methods.awq import awq_clip, awq_scale
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.gptq import gptq, hessian, inverse_factor
from qlib.methods.hqq import hqq
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.methods.spqr import spqr
from qlib.models.tiny import tiny_llama, tiny_whisper
from qlib.quantized_weight import QuantizedWeight
from qlib.testing import check_method

GRID = Grid(4, 8)
UTTERANCE = qlib.Utterance(Path("a.wav"), "a", "a")
GENERATOR = torch.Generator().manual_seed(0)
W, X = torch.randn(6, 16, generator=GENERATOR), torch.randn(40, 16, generator=GENERATOR)
H, SQUARE = hessian(X), torch.randn(16, 16, generator=GENERATOR)
STATS = LayerStats(40, H, X.amin(0), X.amax(0), X.abs().sum(0))


def run(methods: Any = (), model: Any = None, **options: Any) -> qlib.Result:
    model = tiny_whisper() if model is None else model
    return qlib.quantize(model, methods, **{"weight": GRID, "progress": False, **options})


def text(methods: Any = (), **options: Any) -> qlib.Result:
    return run(methods, tiny_llama(), **options)


# --- methods from outside


class Outside:
    """A method that returns what it is told."""

    name = "outside"
    paper = "none"
    needs = Needs.NOTHING

    def __init__(self, **does: Callable[..., Any]) -> None:
        self.__dict__ |= does


def rounding(change: Callable[[QuantizedWeight], Any]) -> list[Any]:
    """A rounding method whose result is changed on the way back."""
    return [Outside(quantize_layer=lambda weight, stats, grid: change(rtn(weight, grid)))]


def learning(fit: Callable[..., Any]) -> qlib.Result:
    return text([Outside(fit=fit, needs=Needs.BLOCK)], calib=["the cat"])


def with_codes(change: Callable[[Tensor], Any]) -> list[Any]:
    return rounding(lambda q: QuantizedWeight(change(q.codes), q.scale, q.zero, q.index))


def with_scale(change: Callable[[Tensor], Any]) -> list[Any]:
    return rounding(lambda q: QuantizedWeight(q.codes, change(q.scale), q.zero, q.index))


@dataclass(frozen=True)
class NoNeeds:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = ""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight, grid)


class NeedsText(NoNeeds):
    needs = "hessian"


@dataclass(frozen=True)
class Unwritable:
    """Its settings are no JSON."""

    range: Tensor
    name: ClassVar[str] = "unwritable"
    paper: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs.NOTHING

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight, grid)


Case = tuple[Callable[[], Any], str]
MODELS: list[Case] = [
    (
        lambda: run(model="whisper-tiny.en"),
        r"the str 'whisper-tiny.en', not a model.*qlib\.load_model\('whisper",
    ),
    (lambda: run(model=Path("a/b")), r"not a model.*qlib\.load_model\('a/b'\)"),
    (lambda: run(model=run()), r"a Result, which holds a model. Pass its model"),
    (lambda: run(model=run().model), r"quantized already: model\.encoder.*Quantize the float model"),
    (lambda: run(model=tiny_whisper().pack()), r"packed for inference.*Load it again"),
    (lambda: run(model=nn.Linear(4, 4)), r"single nn\.Linear.*quantize_layer.*FakeQuantLinear\.from_linear"),
    (
        lambda: run(model=nn.Sequential(nn.Linear(4, 4))),
        r"torch Sequential, which has no groups, stages.*qlib\.load_model.*layer by layer.*any_module",
    ),
    (lambda: run(model={"weight": W}), r"a dict of 1 str, not a model.*load_model"),
    (lambda: run(model=W), r"a Tensor \[6, 16\] of float32, not a model"),
    (lambda: run(model=type(tiny_whisper())), r"the class Whisper, not a model"),
    (lambda: qlib.layers("whisper-tiny.en"), r"layers got the str.*Load it first"),
    (lambda: qlib.layers(tiny_llama(), skip="fc9"), r"'fc9' matches no module"),
]
METHODS: list[Case] = [
    (lambda: run("gptq"), r"methods='gptq' is not a list.*Did you mean qlib\.GPTQ\(\)\?"),
    (lambda: run(["awk"]), r"'awk' is not a quantization method.*Did you mean qlib\.AWQ\(\)\?"),
    (lambda: run(["SmoothQuant"]), r"Did you mean qlib\.SmoothQuant\(\)\?"),
    (lambda: run([qlib.GPTQ]), r"not a quantization method.*class and must be called: qlib\.GPTQ\(\)"),
    (lambda: run(qlib.GPTQ), r"is not a list of methods.*must be called: qlib\.GPTQ\(\)"),
    (lambda: run(None), r"methods=None is not a list"),
    (lambda: run({"gptq": {}}), r"is not a list of methods"),
    (lambda: run([4]), r"the int 4 is not a quantization method.*no name, paper, needs.*quantize_layer"),
    (lambda: run([GRID]), r"a Grid is not a quantization method.*has no name"),
    (
        lambda: run([SimpleNamespace(name="x", paper="", needs=Needs.NOTHING)]),
        r"has no quantize_layer.* or fit",
    ),
    (lambda: run([NoNeeds()]), r"a NoNeeds is not a quantization method.*has no needs"),
    (lambda: run([NeedsText()]), r"its needs the str 'hessian'.*Needs\.HESSIAN"),
    (lambda: run([qlib.AWQ(), qlib.AWQ()]), r"awq stands twice.*Pass it once"),
    (lambda: run([qlib.GPTQ(), qlib.GPTQ()]), r"gptq, gptq: a weight can be rounded only once"),
    (
        lambda: run([qlib.RTN(), qlib.SmoothQuant()]),
        r"smoothquant comes after rtn.*Pass \[smoothquant, rtn\]",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: rtn(w, g), clip_layer=lambda w, s, g: w)]),
        r"outside has quantize_layer and clip_layer.*not be called.*two objects",
    ),
    *(
        (
            lambda call=call: run([Outside(scale_group=abs, needs=Needs.MAGNITUDE, **{call: "minmax"})]),
            rf"outside\.{call} is the str 'minmax', and {call} is what `quantize` calls.*another name",
        )
        for call in ("quantize_layer", "clip_layer", "fit")
    ),
    (
        lambda: text([Outside(fit=lambda task, grid: {}, needs=Needs.RANGE)], calib=["a"]),
        r"outside has fit, and its needs, Needs\.RANGE, do not name Needs\.BLOCK.*Add Needs\.BLOCK",
    ),
    (lambda: check_method(Outside(fit=lambda task, grid: {})), r"outside has fit.*Add Needs\.BLOCK"),
    (lambda: run([Unwritable(W)]), r"the settings of unwritable.*cannot be written as JSON"),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: rtn(w, g))], work="never"),
        r"outside \(Outside\) does not tell its own.*settings\(\).*or leave work out",
    ),
]
ARGUMENTS: list[Case] = [
    (lambda: run(weight=4), r"weight is the int 4, not a Grid. Did you mean weight=qlib\.Grid\(bits=4\)\?"),
    (lambda: run(weight="w4"), r"weight is the str 'w4', not a Grid.*qlib\.Grid\(bits=4, group=64\)"),
    (lambda: run(weight=(4, 64)), r"weight is a tuple of 2 int, not a Grid"),
    (lambda: run(weight={"*": 4}), r"weight is a dict of 1 str and gives the int 4 to '\*'\. Pass one Grid"),
    (lambda: run(weight={"fc9": GRID}), r"'fc9', which matches no linear layer.*Did you mean 'fc[12]'\?"),
    (lambda: run(weight=Grid), r"weight is the class Grid.*must be called"),
    (lambda: run(weight=None), r"weight is None, not a Grid"),
    (lambda: run(weight=Grid(4, 128)), r"group=128 is larger than the 16 columns of .* \(and \d+ more\)"),
    (
        lambda: run(activation=8),
        r"activation is the int 8.*Did you mean activation=qlib\.PerToken\(bits=8\)\?",
    ),
    (lambda: run(activation=Grid(8)), r"activation is a Grid.*qlib\.PerToken\(bits=8\)"),
    (lambda: run(activation=qlib.PerToken), r"must be called: activation=qlib\.PerToken"),
    (lambda: run(activation="a8"), r"the str 'a8', which rounds no inputs"),
    (lambda: run(activation=FixedRange(qlib.PerTensor(), 0, 1)), r"rounding of one layer"),
    (lambda: run(activation=nn.ReLU()), r"a ReLU, which rounds no inputs"),
    (lambda: run(skip="fc9"), r"skip pattern 'fc9' matches no module.*Did you mean 'fc[12]'\?"),
    (lambda: run(skip=["fc1", 2]), r"skip pattern 2 of 2 is the int 2, not a string"),
    (lambda: run(skip=3), r"skip is the int 3, not a list of patterns"),
    (lambda: run(skip=None), r"skip is None"),
    (lambda: run(skip=["model"]), r"No layer is left.*covers all 32"),
    (lambda: run(work=3), r"work is the int 3, not a folder"),
    (lambda: run(work=""), r"work is the str '', not a folder"),
    (lambda: run(progress="no"), r"progress is the str 'no', neither True nor False"),
    (lambda: run([qlib.GPTQ()]), r"gptq looks at the inputs.*calib=.*utterances of qlib\.read_manifest"),
    (lambda: text([qlib.GPTQ()]), r"gptq looks at the inputs.*calib=.*128 texts"),
    (lambda: run(activation=qlib.PerTensor()), r"static.*looks at the inputs"),
]
CALIBRATION: list[Case] = [
    (lambda: text(calib="a single text"), r"calib is the str 'a single text', one entry.*calib=\[\.\.\.\]"),
    (lambda: run(calib=UTTERANCE), r"calib is a Utterance, one entry.*Put it into a list"),
    (lambda: run(calib="a.wav"), r"one entry.*qlib\.Utterance\(path, text\), or qlib\.read_manifest"),
    (lambda: run(calib=Path("a.wav")), r"one entry.*qlib\.read_manifest"),
    (
        lambda: run(calib=Path("list.jsonl")),
        r"the path.*calib=qlib\.read_manifest\('list\.jsonl'\)",
    ),
    (lambda: text(calib="a.txt"), r"calib=Path\('a\.txt'\)\.read_text\(\)\.splitlines\(\)\.$"),
    (lambda: run(calib=[UTTERANCE, 3, None]), r"entry 2 of 3 is the int 3.*of utterances"),
    (lambda: run(calib=[UTTERANCE, Path("a.wav")]), r"entry 2 of 2 is a \w*Path.*qlib\.read_manifest"),
    (lambda: run(calib=["a.wav"]), r"entry 1 of 1 is the str 'a.wav'.*recordings.*qlib\.Utterance"),
    (lambda: run(calib=[torch.zeros(16_000)]), r"entry 1 of 1 is a Tensor \[16000\]"),
    (
        lambda: run(calib=np.zeros(16_000)),
        r"calib is a ndarray \[16000\] of float64, not a list of utterances",
    ),
    (lambda: run(calib=torch.zeros(3)), r"calib is a Tensor \[3\] of float32, not a list"),
    (lambda: run(calib={"a": UTTERANCE}), r"calib is a dict of 1 str, not a list"),
    (lambda: run(calib=7), r"calib is the int 7, not a list"),
    (lambda: text(calib=[1, 2]), r"entry 1 of 2 is the int 1.*calibrated with texts"),
    (lambda: text(calib=["a", UTTERANCE]), r"entry 2 of 2 is a Utterance.*calibrated with texts"),
    (lambda: text(calib=[[{"role": "user", "content": "hi"}]]), r"entry 1 of 1 is a list of 1 dict"),
    (lambda: text(calib=[b"bytes"]), r"entry 1 of 1 is the bytes"),
    (lambda: text([qlib.GPTQ()], calib=[]), r"calibration list is empty"),
    (lambda: text([qlib.GPTQ()], calib=["a", ""]), r"text 2 of 2 is empty"),
]
EARLY: list[Case] = [  # refused before any block is touched, whatever stands before in the chain
    (
        lambda: text([qlib.OmniQuant(), qlib.HQQ()], calib=["a"], weight=Grid(4, 8, True)),
        r"HQQ.*symmetric=False",
    ),
    (
        lambda: text([qlib.OmniQuant(), qlib.SpQR()], calib=["a"], weight=Grid(4, 8, True)),
        r"SpQR.*symmetric=False",
    ),
    (
        lambda: text([qlib.OmniQuant(), qlib.QUIK(columns=16)], calib=["a"]),
        r"model\.layers\.0\.self_attn\.q_proj: columns=16 in QUIK keeps all 16 inputs",
    ),
    (
        lambda: run([qlib.OmniQuant()], tiny_llama().half(), calib=["a"]),
        r"q_proj is torch\.float16.*model\.float\(\)",
    ),
    (lambda: run([qlib.OmniQuant()], tiny_llama().bfloat16(), calib=["a"]), r"torch\.bfloat16"),
]
RETURNED: list[Case] = [
    (
        lambda: run(rounding(lambda q: None)),
        r"q_proj: outside\.quantize_layer returned None. Return qlib\.Quant",
    ),
    (lambda: run(rounding(lambda q: q.codes)), r"returned a Tensor \[16, 16\] of uint8"),
    (
        lambda: run(with_codes(lambda c: c[:, 1:])),
        r"codes that are a Tensor \[16, 15\].*for a weight \[16, 16\]",
    ),
    (lambda: run(with_codes(lambda c: c.long())), r"of int64.*codes\.to\(torch\.uint8\)"),
    (lambda: run(with_codes(lambda c: c + 9)), r"codes from \d+ to \d\d, but w4 g8 asymmetric has 0 to 15"),
    (
        lambda: run(with_scale(lambda s: s * torch.nan)),
        r"for the scales, returned 32 of 32 numbers that are NaN",
    ),
    (lambda: run(with_scale(lambda s: s / 0)), r"32 of 32 numbers that are NaN or infinite"),
    (
        lambda: run(with_scale(lambda s: s[1:])),
        r"scales that are a Tensor \[15, 2\].*Return floats \[16, groups\]",
    ),
    (lambda: run(with_scale(lambda s: s.mean())), r"scales that are a Tensor \[\] of float32"),
    (
        lambda: run(rounding(lambda q: QuantizedWeight(q.codes, q.scale))),
        r"returned no zero points for w4 g8",
    ),
    (
        lambda: run(rounding(lambda q: QuantizedWeight(q.codes, q.scale, q.zero + 20, q.index))),
        r"zero points from \d+ to \d+, but w4 g8 asymmetric",
    ),
    (
        lambda: run(rounding(lambda q: QuantizedWeight(q.codes, q.scale, q.zero))),
        r"2 scales per row.*group_index\(16\)",
    ),
    (
        lambda: run(rounding(lambda q: QuantizedWeight(q.codes, q.scale, q.zero, q.index + 1))),
        r"from 0 to 1, such as grid\.group_index",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: gptq(w, s.hessian.double(), g))]),
        r"q_proj: outside failed with AttributeError.*Its needs are Needs\.NOTHING",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: [][0])]),
        r"q_proj: outside failed with IndexError: list index",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: 1 / 0)]),
        r"q_proj: outside failed with ZeroDivisionError: division by zero",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: rtm(w, g))]),  # type: ignore[name-defined] # noqa: F821
        r"q_proj: outside failed with NameError: name 'rtm' is not defined",
    ),
    (
        lambda: run([Outside(quantize_layer=lambda w, s, g: w @ w[1:])]),
        r"q_proj: outside failed with RuntimeError: .*shapes",
    ),
    (
        lambda: run([Outside(scale_group=lambda w, s, g: None)]),
        r"scale_group returned None. Return a float tensor \[16\]",
    ),
    (
        lambda: run([Outside(scale_group=lambda w, s, g: torch.zeros(16))]),
        r"16 of 16 scales that are 0 or below",
    ),
    (
        lambda: run([Outside(scale_group=lambda w, s, g: torch.ones(3))]),
        r"a Tensor \[3\].*float tensor \[16\]",
    ),
    (
        lambda: run([Outside(clip_layer=lambda w, s, g: w[0])]),
        r"v_proj: outside\.clip_layer returned a Tensor \[16\]",
    ),
    (lambda: run([Outside(clip_layer=lambda w, s, g: w * torch.inf)]), r"NaN or infinite"),
    (
        lambda: learning(lambda task, g: None),
        r"layers\.0: outside\.fit returned None. Return a dict",
    ),
    (lambda: learning(lambda task, g: {"x": W}), r"returned x, which the block does not have"),
    (
        lambda: learning(lambda task, g: {f"{task.layers[0]}.weight": W}),
        r"for model\.layers\.0.* returned a Tensor \[6, 16\].*float tensor \[16, 16\]",
    ),
]
SETTINGS: list[Case] = [
    (lambda: Grid(4, True), r"group=True in Grid.*Did you mean Grid\(bits=4, symmetric=True\)\?"),
    (lambda: Grid(True), r"bits=True in Grid is outside 2 to 8"),
    (lambda: Grid(16), r"bits=16 in Grid is outside 2 to 8"),
    (lambda: Grid(np.float64(4)), r"bits=.*4\.0.* in Grid is outside 2 to 8"),
    (lambda: Grid(4, "64"), r"group='64' in Grid is not a number of columns"),
    (lambda: Grid(4, 64, 1), r"symmetric in Grid is the int 1, neither True nor False"),
    (lambda: qlib.PerToken(16), r"bits=16 in PerToken is outside 2 to 8.*PerToken\(bits=8\)"),
    (lambda: qlib.PerTensor("8"), r"bits='8' in PerTensor"),
    (lambda: qlib.PerToken(8, 64), r"symmetric in PerToken is the int 64"),
    (lambda: qlib.PerTensor(dynamic="yes"), r"dynamic in PerTensor is the str 'yes'"),
    (lambda: qlib.PerTensor(fit="percent"), r"fit='percent' in PerTensor.*Did you mean 'percentile'\?"),
    (lambda: qlib.PerTensor(fit="percentile", percentile="99"), r"percentile in PerTensor is the str '99'"),
    (lambda: qlib.RTN("mean"), r"fit='mean' is unknown"),
    (lambda: qlib.RTN(True), r"fit=True is unknown"),
    (lambda: qlib.GPTQ(damping="0.1"), r"damping in GPTQ is the str '0\.1', not a number"),
    (lambda: qlib.GPTQ(damping=True), r"damping in GPTQ is the bool True, not a number"),
    (lambda: qlib.GPTQ(act_order=1), r"act_order in GPTQ is the int 1.*Use act_order=True or False"),
    (lambda: qlib.GPTQ(act_order="static"), r"'static' in GPTQ.*Use act_order=True, static_groups=True"),
    (lambda: qlib.GPTQ(act_order="sttaic"), r"act_order='sttaic' in GPTQ.*each True or False"),
    (lambda: qlib.GPTQ(block=1.5), r"block in GPTQ is the float 1\.5.*Use block=128"),
    (lambda: qlib.QUIK(columns=True), r"columns in QUIK is the bool True.*Use columns=None"),
    (lambda: qlib.QUIK(columns=2.0), r"columns in QUIK is the float 2\.0"),
    (lambda: qlib.SpQR(second_bits=3.0), r"second_bits in SpQR is the float 3\.0"),
    (lambda: qlib.SpQR(threshold="x"), r"threshold in SpQR is the str 'x'"),
    (lambda: qlib.HQQ(iterations=True), r"iterations in HQQ is the bool True.*Use iterations=20"),
    (lambda: qlib.HQQ(p="0.7"), r"p in HQQ is the str '0\.7'"),
    (lambda: qlib.SmoothQuant("0.5"), r"alpha in SmoothQuant is the str '0\.5'.*Use alpha=0\.5"),
    (lambda: qlib.SmoothQuant(True), r"alpha in SmoothQuant is the bool True"),
    (lambda: qlib.AWQ(points=20.0), r"points in AWQ is the float 20\.0"),
    (lambda: qlib.AWQ(clip="no"), r"clip in AWQ is the str 'no'"),
    (lambda: qlib.OmniQuant(epochs="10"), r"epochs in OmniQuant is the str '10'"),
    (lambda: qlib.OmniQuant(epochs=True), r"epochs in OmniQuant is the bool True"),
    (lambda: qlib.OmniQuant(let=1), r"let in OmniQuant is the int 1"),
]
FUNCTIONS: list[Case] = [
    (
        lambda: smoothing_scale(X.abs().amax(0), W),
        r"a Tensor \[6, 16\] of float32, not a list.*Pass \[weight\]",
    ),
    (lambda: smoothing_scale(X, [W]), r"input ranges of shape \(40, 16\).*inputs\.abs\(\)\.amax\(0\)"),
    (lambda: smoothing_scale(X.abs().amax(0).numpy(), [W]), r"absmax_inputs is a ndarray.*torch\.from_numpy"),
    (
        lambda: smoothing_scale(X.abs().amax(0), [W.numpy()]),
        r"the weight is a ndarray \[6, 16\].*torch\.from_numpy",
    ),
    (
        lambda: smoothing_scale(X.abs().amax(0), [nn.Linear(16, 6)]),
        r"the weight is a Linear, not a tensor.*layer\.weight",
    ),
    (lambda: awq_scale(W, H, X.abs().mean(0), GRID), r"AWQ got a Tensor.*Pass \[weight\]"),
    (
        lambda: awq_scale([W], SQUARE, X.abs().mean(0), GRID),
        r"not symmetric is no Hessian.*hessian\(inputs\)",
    ),
    (lambda: awq_scale([W], H, X.mean(0), GRID), r"mean inputs are below 0.*abs\(\)\.mean\(0\)"),
    (lambda: awq_scale([W], H, X.abs().mean(0), 4), r"the grid is the int 4. Did you mean Grid\(bits=4\)\?"),
    (lambda: awq_clip(W, H.numpy(), GRID), r"the Hessian is a ndarray"),
    (lambda: awq_clip(W, SQUARE, GRID), r"not symmetric"),
    (lambda: gptq(W, SQUARE, GRID), r"\[16, 16\] that is not symmetric is no Hessian.*inputs\.T @ inputs"),
    (lambda: gptq(W, X, GRID), r"Hessian of shape \(40, 16\) for 16 inputs"),
    (lambda: gptq(W, None, GRID), r"the Hessian is None, not a tensor"),
    (lambda: gptq(W.numpy(), H, GRID), r"the weight is a ndarray"),
    (lambda: gptq(W, H, 4), r"the grid is the int 4"),
    (lambda: gptq(W.to(torch.int8), H, GRID), r"dtype torch\.int8 cannot be quantized"),
    (lambda: gptq(W, -H, GRID), r"not positive definite.*diagonal is partly below 0"),
    (lambda: gptq(W, H, GRID, damping="x"), r"damping in GPTQ is the str 'x'"),
    (lambda: inverse_factor(torch.tensor(1.0)), r"Hessian of shape \(\)"),
    (lambda: inverse_factor(H, "x"), r"damping in inverse_factor is the str 'x'"),
    (lambda: inverse_factor(H.numpy()), r"the Hessian is a ndarray"),
    (lambda: hessian(X.numpy()), r"the input is a ndarray"),
    (lambda: quik(W, LayerStats(9, SQUARE, X.amin(0), X.amax(0)), GRID), r"not symmetric"),
    (lambda: quik(W, H, GRID), r"a Tensor .*for statistics"),
    (lambda: quik(W, LayerStats(9, H), GRID), r"QUIK got statistics without the range of the inputs"),
    (lambda: gptq(W, LayerStats(9), GRID), r"statistics without a Hessian"),
    (lambda: spqr(W, SQUARE, GRID), r"not symmetric"),
    (lambda: hqq(W.tolist(), GRID), r"the weight is a list of 6 list, not a tensor"),
    (lambda: hqq(W[0], GRID), r"shape \(16,\).*matrix \[outputs, inputs\]"),
    (lambda: rtn(nn.Linear(16, 6), GRID), r"the weight is a Linear.*layer\.weight"),
    (lambda: rtn(W, "w4"), r"the grid is the str 'w4'.*Grid\(bits=4, group=64\)"),
    (lambda: rtn(W.to("meta"), GRID), r"meta device has no numbers"),
    (lambda: rtn(W.to(torch.float8_e4m3fn), GRID), r"float8_e4m3fn cannot be quantized.*16, 32 or 64 bits"),
    (lambda: rtn(W > 0, GRID), r"dtype torch\.bool cannot be quantized"),
    (lambda: fit_minmax(W, 4.0), r"the grid is the float 4\.0"),
    (lambda: fit_float_zero(W, None), r"the grid is None"),
    (lambda: encode(W, fit_minmax(W, GRID), 4), r"the grid is the int 4"),
    (
        lambda: qlib.GPTQ().quantize_layer(W, GRID, STATS),
        r"GPTQ got a Grid for statistics.*weight, stats, grid",
    ),
    (lambda: qlib.GPTQ().quantize_layer(W, H, GRID), r"GPTQ got a Tensor \[16, 16\].*LayerStats\(tokens"),
    (lambda: qlib.QUIK().quantize_layer(W, None, GRID), r"QUIK got None for statistics"),
    (lambda: qlib.SpQR().quantize_layer(W, None, GRID), r"SpQR got None"),
    (lambda: qlib.AWQ().scale_group([W], None, GRID), r"AWQ got None for statistics"),
    (lambda: qlib.AWQ().clip_layer(W, None, GRID), r"AWQ got None for statistics"),
    (lambda: qlib.SmoothQuant().scale_group([W], H, GRID), r"SmoothQuant got a Tensor"),
    (lambda: qlib.FakeQuantLinear.from_linear(W, rtn(W, GRID), GRID), r"from_linear got a Tensor"),
    (
        lambda: qlib.FakeQuantLinear.from_linear(nn.Linear(16, 6), rtn(W, GRID), GRID, 8),  # type: ignore[arg-type]
        r"activation is the int 8.*PerToken\(bits=8\)",
    ),
    (
        lambda: qlib.FakeQuantLinear.from_linear(nn.Linear(16, 6), rtn(W, GRID), GRID, qlib.PerTensor()),
        r"static \(minmax\) asymmetric has no range yet.*PerTensor\(dynamic=True\)",
    ),
    (
        lambda: qlib.FakeQuantLinear.from_linear(nn.Linear(16, 6), rtn(W, GRID), GRID, qlib.PerToken),  # type: ignore[arg-type]
        r"activation is .*PerToken.*rounds no inputs",
    ),
    (
        lambda: qlib.FakeQuantLinear.from_linear(nn.Linear(16, 6), W, GRID),
        r"a Linear and a Tensor.*quantize_layer",
    ),
    (
        lambda: qlib.FakeQuantLinear.from_linear(
            nn.Linear(16, 6), QuantizedWeight(rtn(W, Grid(4)).codes, torch.full((6, 1), torch.nan)), GRID
        ),
        r"6 of 6 scales are NaN or infinite",
    ),
]
TABLES = {
    "model": MODELS,
    "methods": METHODS,
    "arguments": ARGUMENTS,
    "calibration": CALIBRATION,
    "early": EARLY,
    "returned": RETURNED,
    "settings": SETTINGS,
    "functions": FUNCTIONS,
}
BEFORE_THE_WORK = ("model", "methods", "arguments", "calibration", "early")


@pytest.mark.parametrize(
    ("table", "case"),
    [
        pytest.param(name, case, id=f"{name}{i}")
        for name, cases in TABLES.items()
        for i, case in enumerate(cases)
    ],
)
def test_messages(table: str, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call, words = case
    monkeypatch.chdir(tmp_path)
    if table in BEFORE_THE_WORK and "Result" not in words and "already" not in words:
        monkeypatch.setattr("qlib.pipeline.BlockQuantizer", None)  # would fail with a TypeError if reached
    with pytest.raises(QlibError, match=f"(?s){words}"):
        call()
    assert not any(tmp_path.iterdir()), "nothing was written"


# --- what is taken because it can mean only one thing


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        (qlib.HQQ(), {}),
        ((qlib.HQQ(),), {}),
        ((method for method in [qlib.HQQ()]), {}),
        ([qlib.HQQ()], {"skip": iter(())}),
        ([qlib.HQQ()], {"weight": Grid(np.int64(4), torch.tensor(8), np.bool_(False))}),
        ([qlib.HQQ(iterations=np.int64(20), p=np.float64(0.7))], {}),
        ([qlib.HQQ()], {"calib": iter(["a", "b"])}),
    ],
)
def test_what_is_clear_is_taken(methods: Any, options: dict[str, Any]) -> None:
    expected = text([qlib.HQQ()], calib=["a", "b"] if "calib" in options else None)
    found = text(methods, **options)
    assert found.settings == expected.settings
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)


def test_a_generator_of_texts_is_read_once() -> None:
    texts = ["the heart of the matter", "a heath"]
    expected = text([qlib.GPTQ()], calib=texts)
    found = text([qlib.GPTQ()], calib=(each for each in texts))
    assert found.settings == expected.settings and found.report.layers == expected.report.layers


def test_one_pattern_for_a_list_of_one() -> None:
    assert run(skip="fc2").report.skipped == run(skip=["fc2"]).report.skipped


def test_a_method_that_tells_its_settings_may_be_resumed(tmp_path: Path) -> None:
    def method(fit: str) -> Outside:
        return Outside(quantize_layer=lambda w, s, g: rtn(w, g, fit=fit), settings=lambda: {"fit": fit})  # type: ignore[arg-type]

    first = text([method("minmax")], work=tmp_path)
    assert first.settings["methods"] == [{"name": "outside", "fit": "minmax"}]
    assert text([method("minmax")], work=tmp_path).report.layers == first.report.layers
    with pytest.raises(QlibError, match="another run: methods was"):
        text([method("mse")], work=tmp_path)


class Looks(Outside):
    """A method of any contract that keeps the statistics it was handed."""

    def __init__(self, contract: str, needs: Needs) -> None:
        calls = {
            **{"fit": self.learn, "scale_group": self.scale},
            **{"clip_layer": self.clip, "quantize_layer": self.codes},
        }
        super().__init__(**{contract: calls[contract]})
        self.needs, self.seen = needs, list[LayerStats]()

    def learn(self, task: Any, grid: Grid) -> dict[str, Tensor]:
        self.seen.extend(task.stats.values())
        return {}

    def scale(self, weights: Any, stats: LayerStats, grid: Grid) -> Tensor:
        self.seen.append(stats)
        return torch.ones(weights[0].shape[1])

    def clip(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        self.seen.append(stats)
        return weight

    def codes(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        self.seen.append(stats)
        return rtn(weight, grid)


@pytest.mark.parametrize("contract", ["fit", "scale_group", "clip_layer", "quantize_layer"])
def test_a_method_is_handed_what_it_needs_and_no_more(contract: str) -> None:
    """AWQ and QUIK need all there is: one that forgot what it needs fails beside them as it fails alone."""
    wide = qlib.statistics(X)
    for needs in (Needs.NOTHING, Needs.HESSIAN, Needs.RANGE | Needs.MAGNITUDE):
        method = Looks(contract, needs | Needs.BLOCK if contract == "fit" else needs)
        last = [] if contract == "quantize_layer" else [qlib.QUIK(columns=1)]
        text([qlib.AWQ(), method, *last], calib=["the heart of the matter", "a heath"])
        qlib.quantize_matrix(W, wide, GRID, [qlib.AWQ(), method, *last])
        assert len(method.seen) > 1
        for stats in method.seen:
            assert (stats.hessian is not None) == (Needs.HESSIAN in needs)
            assert (stats.low is not None) == (stats.high is not None) == (Needs.RANGE in needs)
            assert (stats.absolute is not None) == (Needs.MAGNITUDE in needs)
            assert stats.tokens > 0


def test_what_a_method_changes_in_place_is_its_own_copy() -> None:
    """Weights, statistics and block parameters are handed over as copies; errors count from the weight."""

    def careless(weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        result = rtn(weight, grid)
        weight.copy_(result.decode())
        stats.hessian.zero_()  # type: ignore[union-attr]
        return result

    def spoil(task: Any, grid: Grid) -> dict[str, Tensor]:
        for value in task.parameters.values():
            value.zero_()
        return {}

    def overwrite(weights: Any, stats: LayerStats, grid: Grid) -> Tensor:
        for weight in weights:
            weight.zero_()
        return torch.ones(weights[0].shape[1])

    def clip(weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        before = weight.clone()
        weight.zero_()
        return before

    texts = ["the heart of the matter", "a heath", "the cat sat at the hat"]
    expected = text([qlib.RTN()], calib=texts)
    method = Outside(quantize_layer=careless)
    method.needs = Needs.HESSIAN
    before = [
        Outside(fit=spoil, name="a", needs=Needs.BLOCK),
        Outside(scale_group=overwrite, name="b"),
        Outside(clip_layer=clip),
    ]
    found = text([*before, method], calib=texts)
    for one, other in zip(found.report.layers, expected.report.layers, strict=True):
        assert (one.weight_error, one.bits_per_weight) == (other.weight_error, other.bits_per_weight)
        assert one.output_error is not None and one.output_error > 0.01
