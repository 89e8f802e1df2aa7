"""What people hand in by mistake, in one table: a message says what, where, and what to do.

A row is a label, the call, and words that its message must hold: the value or its kind, the numbers, the
remedy. Nothing may end in another exception, and nothing may run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
import torch
from speech_fixtures import utterances
from torch import nn

import draftlib
import qlib
from qlib.errors import QlibError
from qlib.methods.awq import awq_scale
from qlib.methods.gptq import gptq, hessian
from qlib.methods.hessian import statistics
from qlib.methods.hqq import hqq
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.models.tiny import tiny_llama, tiny_whisper, write_folder

GRID = qlib.Grid(bits=4, group=8)


@dataclass(frozen=True)
class World:
    """Small things to make mistakes with, made once."""

    folder: Path

    @cached_property
    def whisper(self) -> Any:
        return tiny_whisper(layers=1)

    @cached_property
    def llama(self) -> Any:
        return tiny_llama()

    @cached_property
    def calib(self) -> list[qlib.Utterance]:
        return utterances(self.folder)

    @cached_property
    def quantized(self) -> qlib.Result:
        return qlib.quantize(self.whisper, [], weight=GRID, progress=False)

    @cached_property
    def float_folder(self) -> Path:
        return write_folder(self.whisper, self.folder / "float")

    @cached_property
    def quantized_folder(self) -> Path:
        return self.quantized.save(self.folder / "quantized")

    @cached_property
    def decoder(self) -> draftlib.SpeculativeDecoder:
        return draftlib.SpeculativeDecoder(tiny_llama(seed=1), tiny_llama(seed=2))

    @cached_property
    def weight(self) -> torch.Tensor:
        return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    @cached_property
    def inputs(self) -> torch.Tensor:
        return torch.randn(40, 16, generator=torch.Generator().manual_seed(1))

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def empty(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def quantize(self, methods: Any = (), model: Any = None, **options: Any) -> Any:
        options = {"weight": GRID, "progress": False, **options}
        return qlib.quantize(self.whisper if model is None else model, methods, **options)

    def changed_config(self, name: str, **changes: Any) -> Path:
        folder = write_folder(self.llama, self.folder / name)
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return folder


class Bare:
    """Looks like nothing."""


class Half:
    """Has a name and needs, and does nothing."""

    name: ClassVar[str] = "half"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Any] = qlib.RTN.needs


class ReturnsNothing:
    """A rounding method that forgot to return."""

    name: ClassVar[str] = "returns nothing"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Any] = qlib.RTN.needs

    def quantize_layer(self, weight: Any, stats: Any, grid: Any) -> Any:
        rtn(weight, grid)


class NotFinite(ReturnsNothing):
    """A rounding method whose scale is not a number."""

    def quantize_layer(self, weight: Any, stats: Any, grid: Any) -> Any:
        good = rtn(weight, grid)
        return qlib.QuantizedWeight(good.codes, good.scale * torch.nan, good.zero, good.index)


Call = Callable[[World], Any]
LOADING: list[tuple[str, Call, tuple[str, ...]]] = [
    ("a model that nobody knows", lambda w: qlib.load_model("whisper-tiny"), ("whisper-tiny.en",)),
    ("a folder that is not there", lambda w: qlib.load_model(w.folder / "none"), ("none", "neither")),
    ("an empty folder", lambda w: qlib.load_model(w.empty("empty")), ("config.json", "empty")),
    ("no path at all", lambda w: qlib.load_model(None), ("None",)),  # type: ignore[arg-type]
    ("a number for a path", lambda w: qlib.load_model(7), ("7",)),  # type: ignore[arg-type]
    (
        "a model of a foreign kind",
        lambda w: qlib.load_model(w.file("bert/config.json", '{"model_type": "bert"}').parent),
        ("bert", "whisper", "llama"),
    ),
    (
        "weights by pickle only",
        lambda w: qlib.load_model(pickled(w)),
        ("safetensors", "pytorch_model.bin"),
    ),
    (
        "the weights' file in place of its folder",
        lambda w: qlib.load_model(w.float_folder / "model.safetensors"),
        ("folder",),
    ),
    (
        "a sliding window",
        lambda w: qlib.load_model(w.changed_config("window", model_type="mistral", sliding_window=4)),
        ("window", "4"),
    ),
    (
        "heads that do not divide the width",
        lambda w: qlib.load_model(w.changed_config("heads", num_attention_heads=3, head_dim=None)),
        ("num_attention_heads", "3"),
    ),
    (
        "a billion layers",
        lambda w: qlib.load_model(w.changed_config("layers", num_hidden_layers=10**9)),
        ("num_hidden_layers",),
    ),
    (
        "a quantized folder for a float one",
        lambda w: qlib.load_model(w.quantized_folder),
        ("load_quantized",),
    ),
    (
        "a float folder for a quantized one",
        lambda w: qlib.load_quantized(w.float_folder),
        ("load_model",),
    ),
    ("a quantized folder that is not there", lambda w: qlib.load_quantized(w.folder / "none"), ("none",)),
    ("a dtype that nobody knows", lambda w: qlib.load_model(w.float_folder, dtype="float17"), ("float32",)),  # type: ignore[arg-type]
    ("a dtype for whole numbers", lambda w: qlib.load_model(w.float_folder, dtype=torch.int8), ("int8",)),
    ("a device that nobody knows", lambda w: qlib.load_model(w.float_folder, device="gpu"), ("gpu", "cpu")),
    (
        "a device that is not there",
        lambda w: qlib.load_model(w.float_folder, device="cuda:63"),
        ("cuda:63", "cpu"),
    ),
]
QUANTIZING: list[tuple[str, Call, tuple[str, ...]]] = [
    ("a model by its name", lambda w: w.quantize(model="whisper-tiny.en"), ("load_model", "whisper-tiny.en")),
    ("a model by its folder", lambda w: w.quantize(model=w.folder), ("load_model",)),
    ("a layer for a model", lambda w: w.quantize(model=nn.Linear(8, 8)), ("Linear", "from_linear")),
    (
        "any module for a model",
        lambda w: w.quantize(model=nn.Sequential(nn.Linear(8, 8))),
        ("Sequential", "load_model"),
    ),
    ("a result for a model", lambda w: w.quantize(model=w.quantized), ("Result", ".model")),
    ("a quantized model", lambda w: w.quantize(model=w.quantized.model), ("quantized",)),
    ("bits for a grid", lambda w: w.quantize(weight=4), ("4", "Grid")),
    ("a dict for a grid", lambda w: w.quantize(weight={"bits": 4}), ("dict", "Grid")),
    ("a name for a grid", lambda w: w.quantize(weight="w4"), ("w4", "Grid")),
    ("no grid", lambda w: w.quantize(weight=None), ("None", "Grid")),
    ("bits for an activation", lambda w: w.quantize(activation=8), ("8", "PerToken")),
    ("the class of an activation", lambda w: w.quantize(activation=qlib.PerToken), ("PerToken",)),
    ("a grid for an activation", lambda w: w.quantize(activation=GRID), ("Grid", "PerToken")),
    ("a method by its name", lambda w: w.quantize(["gptq"]), ("gptq", "GPTQ()")),
    ("the class of a method", lambda w: w.quantize([qlib.RTN]), ("RTN()",)),
    ("an object that is no method", lambda w: w.quantize([Bare()]), ("Bare", "name")),
    ("a method that does nothing", lambda w: w.quantize([Half()]), ("Half", "quantize_layer")),
    ("a method that returns nothing", lambda w: w.quantize([ReturnsNothing()]), ("None", "QuantizedWeight")),
    ("a method that returns NaN", lambda w: w.quantize([NotFinite()]), ("scale", "finite")),
    ("two rounding methods", lambda w: w.quantize([qlib.RTN(), qlib.HQQ()]), ("rtn", "hqq")),
    (
        "a rounding method first",
        lambda w: w.quantize([qlib.RTN(), qlib.AWQ()], calib=w.calib),
        ("rtn", "first"),
    ),
    ("no calibration list", lambda w: w.quantize([qlib.GPTQ()]), ("calib", "read_manifest")),
    ("no calibration texts", lambda w: w.quantize([qlib.GPTQ()], model=w.llama), ("calib", "text")),
    ("an empty calibration list", lambda w: w.quantize([qlib.GPTQ()], calib=[]), ("empty",)),
    ("a lone recording to calibrate", lambda w: w.quantize([qlib.GPTQ()], calib=w.calib[0]), ("list",)),
    (
        "a lone text to calibrate",
        lambda w: w.quantize([qlib.GPTQ()], model=w.llama, calib="a text"),
        ("list",),
    ),
    (
        "a path in a calibration list",
        lambda w: w.quantize([qlib.GPTQ()], calib=[w.calib[0], Path("a.wav")]),
        ("2", "Utterance"),
    ),
    (
        "a number in a calibration list",
        lambda w: w.quantize([qlib.GPTQ()], calib=[w.calib[0], 3]),
        ("3", "Utterance"),
    ),
    ("nothing in a calibration list", lambda w: w.quantize([qlib.GPTQ()], calib=[None]), ("None", "1")),
    ("texts for a recognizer", lambda w: w.quantize([qlib.GPTQ()], calib=["a text"]), ("recording",)),
    (
        "recordings for a text model",
        lambda w: w.quantize([qlib.GPTQ()], model=w.llama, calib=w.calib),
        ("text",),
    ),
    (
        "an empty text to calibrate",
        lambda w: w.quantize([qlib.GPTQ()], model=w.llama, calib=["a", ""]),
        ("2",),
    ),
    ("a pattern that matches nothing", lambda w: w.quantize(skip=["fc3"]), ("fc3",)),
    ("patterns that match everything", lambda w: w.quantize(skip=["*"]), ("*",)),
    ("a number for a pattern", lambda w: w.quantize(skip=[3]), ("3",)),
    ("a group larger than a layer", lambda w: w.quantize(weight=qlib.Grid(4, 512)), ("512", "group")),
    (
        "float zeros on a symmetric grid",
        lambda w: w.quantize([qlib.HQQ()], weight=qlib.Grid(4, 8, symmetric=True)),
        ("symmetric",),
    ),
    (
        "more float columns than inputs",
        lambda w: w.quantize([qlib.QUIK(columns=999)], calib=w.calib),
        ("999",),
    ),
    (
        "a checkpoint over a folder of one's own",
        lambda w: w.quantized.save(w.file("mine/notes.txt", "x").parent),
        ("mine",),
    ),
    (
        "a data list mistaken for a checkpoint",
        lambda w: w.quantized.save(w.file("data/manifest.json", "{}").parent),
        ("data",),
    ),
    ("a file in place of a folder", lambda w: w.quantized.save(w.file("taken", "x")), ("taken",)),
]
GRIDS: list[tuple[str, Call, tuple[str, ...]]] = [
    ("1 bit", lambda w: qlib.Grid(1), ("1", "2 to 8")),
    ("16 bits", lambda w: qlib.Grid(16), ("16", "2 to 8")),
    ("bits as a float", lambda w: qlib.Grid(4.0), ("4.0",)),  # type: ignore[arg-type]
    ("bits as a text", lambda w: qlib.Grid("4"), ("'4'",)),  # type: ignore[arg-type]
    ("bits as a bool", lambda w: qlib.Grid(True), ("True",)),
    ("a group of 0", lambda w: qlib.Grid(4, 0), ("0", "None")),
    ("a group of -1", lambda w: qlib.Grid(4, -1), ("-1",)),
    ("symmetric in the place of the group", lambda w: qlib.Grid(4, True), ("symmetric=True",)),
    ("symmetric as a text", lambda w: qlib.Grid(4, 64, symmetric="no"), ("symmetric", "no")),  # type: ignore[arg-type]
    ("activations of 16 bits", lambda w: qlib.PerToken(16), ("16", "PerToken")),
    ("activations of 1 bit", lambda w: qlib.PerTensor(1), ("1", "PerTensor")),
    ("an act order that nobody knows", lambda w: qlib.GPTQ(act_order="on"), ("on", "act_order=True")),  # type: ignore[arg-type]
    ("negative damping", lambda w: qlib.GPTQ(damping=-1), ("-1", "damping")),
    ("damping as a text", lambda w: qlib.GPTQ(damping="0.1"), ("damping", "0.1")),  # type: ignore[arg-type]
    ("a fit that nobody knows", lambda w: qlib.GPTQ(fit="max"), ("max", "mse")),  # type: ignore[arg-type]
    ("alpha above 1", lambda w: qlib.SmoothQuant(alpha=2), ("2", "alpha")),
    ("alpha as a text", lambda w: qlib.SmoothQuant(alpha="half"), ("alpha", "half")),  # type: ignore[arg-type]
    ("no epochs", lambda w: qlib.OmniQuant(epochs=-1), ("-1", "epochs")),
    ("epochs as a float", lambda w: qlib.OmniQuant(epochs=1.5), ("1.5", "epochs")),  # type: ignore[arg-type]
    ("negative float columns", lambda w: qlib.QUIK(columns=-1), ("-1", "columns")),
    ("a threshold of -1", lambda w: qlib.SpQR(threshold=-1), ("-1", "threshold")),
    ("inputs for a Hessian", lambda w: gptq(w.weight, w.inputs, GRID), ("40", "hessian")),
    ("square inputs for a Hessian", lambda w: gptq(w.weight, w.inputs[:16], GRID), ("hessian", "symmetric")),
    ("a Hessian of another layer", lambda w: gptq(w.weight, torch.eye(8), GRID), ("8", "16")),
    ("a weight of one dimension", lambda w: rtn(w.weight[0], GRID), ("16",)),
    ("a weight of whole numbers", lambda w: rtn(w.weight.long(), GRID), ("int64",)),
    ("a weight of NumPy's", lambda w: rtn(w.weight.numpy(), GRID), ("numpy", "from_numpy")),  # type: ignore[arg-type]
    ("a weight with NaN", lambda w: rtn(w.weight * torch.nan, GRID), ("NaN",)),
    (
        "a lone weight for a list (SmoothQuant)",
        lambda w: smoothing_scale(w.inputs.abs().amax(0), w.weight),
        ("list",),
    ),  # type: ignore[arg-type]
    (
        "a lone weight for a list (AWQ)",
        lambda w: awq_scale(w.weight, hessian(w.inputs), w.inputs.abs().mean(0), GRID),
        ("list",),
    ),  # type: ignore[arg-type]
    ("a symmetric grid for HQQ", lambda w: hqq(w.weight, qlib.Grid(4, 8, symmetric=True)), ("symmetric",)),
    (
        "too many float columns",
        lambda w: quik(w.weight, statistics(w.inputs), GRID, columns=17),
        ("17", "16"),
    ),
]
HEARING: list[tuple[str, Call, tuple[str, ...]]] = [
    ("a lone path to transcribe", lambda w: qlib.transcribe(w.whisper, "a.wav"), ("list",)),
    (
        "a file that is not there",
        lambda w: qlib.transcribe(w.whisper, ["none.wav"], progress=False),
        ("none.wav",),
    ),
    (
        "a file that is no audio",
        lambda w: qlib.transcribe(w.whisper, [w.file("text.wav", "hello")], progress=False),
        ("text.wav",),
    ),
    (
        "an empty file",
        lambda w: qlib.transcribe(w.whisper, [w.file("empty.wav", "")], progress=False),
        ("empty.wav",),
    ),
    ("a folder for a file", lambda w: qlib.transcribe(w.whisper, [w.folder], progress=False), ("folder",)),
    (
        "stereo samples",
        lambda w: qlib.transcribe(w.whisper, [torch.zeros(2, 16000)], progress=False),
        ("2", "16000"),
    ),
    (
        "samples as whole numbers",
        lambda w: qlib.transcribe(w.whisper, [torch.zeros(16000).long()], progress=False),
        ("int64",),
    ),
    (
        "samples with NaN",
        lambda w: qlib.transcribe(w.whisper, [torch.full((16000,), torch.nan)], progress=False),
        ("1",),
    ),
    (
        "NumPy samples with infinity",
        lambda w: qlib.transcribe(w.whisper, [np.full(16000, np.inf)], progress=False),
        ("1",),
    ),
    ("a number for a recording", lambda w: qlib.transcribe(w.whisper, [7], progress=False), ("7", "1")),  # type: ignore[list-item]
    ("nothing for a recording", lambda w: qlib.transcribe(w.whisper, [None], progress=False), ("None",)),  # type: ignore[list-item]
    (
        "batches of none",
        lambda w: qlib.transcribe(w.whisper, w.calib, batch_size=0, progress=False),
        ("batch_size", "0"),
    ),
    (
        "batches of half",
        lambda w: qlib.transcribe(w.whisper, w.calib, batch_size=1.5, progress=False),
        ("batch_size", "1.5"),
    ),  # type: ignore[arg-type]
    (
        "a language of an English model",
        lambda w: qlib.transcribe(w.whisper, w.calib, language="de", progress=False),
        ("de",),
    ),
    (
        "a text model to transcribe",
        lambda w: qlib.transcribe(w.llama, w.calib, progress=False),
        ("Llama", "whisper-tiny.en"),
    ),
    (
        "a name to transcribe",
        lambda w: qlib.transcribe("whisper-tiny.en", w.calib, progress=False),
        ("whisper-tiny.en",),
    ),  # type: ignore[arg-type]
    ("a result to evaluate", lambda w: qlib.evaluate_wer(w.quantized, w.calib, progress=False), ("Result",)),  # type: ignore[arg-type]
    ("paths to evaluate", lambda w: qlib.evaluate_wer(w.whisper, ["a.wav"], progress=False), ("Utterance",)),  # type: ignore[list-item]
    ("nothing to evaluate", lambda w: qlib.evaluate_wer(w.whisper, [], progress=False), ("empty",)),
    (
        "an utterance without a text",
        lambda w: qlib.evaluate_wer(w.whisper, [qlib.Utterance(w.calib[0].audio)], progress=False),
        ("text",),
    ),
    ("a manifest that is not there", lambda w: qlib.read_manifest("none.jsonl"), ("none.jsonl",)),
    (
        "a manifest of another kind",
        lambda w: qlib.read_manifest(w.file("list.xml", "<a/>")),
        (".xml", ".jsonl"),
    ),
    ("a line that is no JSON", lambda w: qlib.read_manifest(w.file("a.jsonl", "oops\n")), ("a.jsonl", "1")),
    (
        "a line without audio",
        lambda w: qlib.read_manifest(w.file("b.jsonl", '{"text": "a"}\n')),
        ("b.jsonl", "1", "audio"),
    ),
    (
        "a recording that a manifest lacks",
        lambda w: qlib.read_manifest(w.file("c.jsonl", '{"audio": "x.wav", "text": "a"}\n')),
        ("c.jsonl", "x.wav"),
    ),
    (
        "an offset that is a text",
        lambda w: qlib.read_manifest(segment(w, "d.jsonl", offset="soon")),
        ("d.jsonl", "offset"),
    ),
    (
        "an offset after the end",
        lambda w: qlib.read_manifest(segment(w, "e.jsonl", offset=99, duration=1))[0].read(),
        ("99",),
    ),
    (
        "a folder that is no LibriSpeech",
        lambda w: qlib.read_librispeech(w.empty("no-speech")),
        ("no-speech",),
    ),
    ("results of different lists", lambda w: qlib.compare(scored("a b"), scored("a c")), ("references",)),
]
DRAFTING: list[tuple[str, Call, tuple[str, ...]]] = [
    (
        "a target by its name",
        lambda w: draftlib.SpeculativeDecoder("smollm2", w.llama),
        ("target", "load_model"),
    ),  # type: ignore[arg-type]
    (
        "a recognizer for a target",
        lambda w: draftlib.SpeculativeDecoder(w.whisper, w.llama),
        ("target", "Whisper"),
    ),
    (
        "a rule that nobody knows",
        lambda w: draftlib.SpeculativeDecoder(w.llama, w.llama, verify="exactly"),
        ("exactly", "exact"),
    ),  # type: ignore[arg-type]
    (
        "a length that nobody knows",
        lambda w: draftlib.SpeculativeDecoder(w.llama, w.llama, length="auto"),
        ("auto", "FixedLength"),
    ),  # type: ignore[arg-type]
    (
        "a folder for a cache",
        lambda w: draftlib.SpeculativeDecoder(w.llama, w.llama, cache="out/ngrams"),
        ("NGramCache.load",),
    ),  # type: ignore[arg-type]
    (
        "True for a cache",
        lambda w: draftlib.SpeculativeDecoder(w.llama, w.llama, cache=True),
        ("NGramCache()",),
    ),  # type: ignore[arg-type]
    ("drafts of no token", lambda w: draftlib.FixedLength(0), ("0",)),
    ("drafts of half a token", lambda w: draftlib.FixedLength(2.5), ("2.5",)),  # type: ignore[arg-type]
    ("a confidence of 2", lambda w: draftlib.Confidence(2), ("2",)),
    ("a cache of nothing", lambda w: draftlib.NGramCache(max_entries=0), ("0", "max_entries")),
    ("a policy that nobody knows", lambda w: draftlib.NGramCache(policy="fifo"), ("fifo", "lru")),  # type: ignore[arg-type]
    (
        "an option that nobody knows",
        lambda w: w.decoder.generate("a", max_tokens=3),
        ("max_tokens", "max_new_tokens"),
    ),  # type: ignore[call-arg]
    ("another that nobody knows", lambda w: w.decoder.generate("a", stream=True), ("stream",)),  # type: ignore[call-arg]
    ("no prompt", lambda w: w.decoder.generate(None), ("None",)),  # type: ignore[arg-type]
    ("an empty prompt", lambda w: w.decoder.generate(""), ("empty",)),
    ("a number for a prompt", lambda w: w.decoder.generate(7), ("7",)),  # type: ignore[arg-type]
    ("several prompts at once", lambda w: w.decoder.generate(["a", "b"]), ("generate_many",)),
    ("messages without a role", lambda w: w.decoder.generate([{"content": "a"}]), ("role",)),  # type: ignore[list-item]
    ("tokens outside of the vocabulary", lambda w: w.decoder.generate([10**6]), ("1000000",)),
    ("tokens that are floats", lambda w: w.decoder.generate([1.5]), ("1.5",)),  # type: ignore[list-item]
    ("a lone text for many prompts", lambda w: list(w.decoder.generate_many("hi")), ("list",)),
    ("no new tokens", lambda w: w.decoder.generate("a", max_new_tokens=0), ("max_new_tokens", "0")),
    (
        "new tokens as a float",
        lambda w: w.decoder.generate("a", max_new_tokens=2.5),
        ("max_new_tokens", "2.5"),
    ),  # type: ignore[typeddict-item]
    ("a negative temperature", lambda w: w.decoder.generate("a", temperature=-1), ("temperature", "-1")),
    (
        "a temperature that is a text",
        lambda w: w.decoder.generate("a", temperature="hot"),
        ("temperature", "hot"),
    ),  # type: ignore[typeddict-item]
    (
        "a temperature that is no number",
        lambda w: w.decoder.generate("a", temperature=float("nan")),
        ("temperature", "nan"),
    ),
    ("top_p above 1", lambda w: w.decoder.generate("a", temperature=1, top_p=2), ("top_p", "2")),
    ("top_k of 0", lambda w: w.decoder.generate("a", temperature=1, top_k=0), ("top_k", "0")),
    ("an empty stop", lambda w: w.decoder.generate("a", stop=""), ("stop",)),
    ("bytes for a stop", lambda w: w.decoder.generate("a", stop=[b"x"]), ("stop", "bytes")),  # type: ignore[list-item]
    ("a seed that is a text", lambda w: w.decoder.generate("a", seed="one"), ("seed", "one")),  # type: ignore[typeddict-item]
    (
        "a cache that is not there",
        lambda w: draftlib.NGramCache.load(w.folder / "none", w.decoder.vocabulary),
        ("none",),
    ),
]
TABLE = [*LOADING, *QUANTIZING, *GRIDS, *HEARING, *DRAFTING]


def pickled(world: World) -> Path:
    folder = world.empty("pickled")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((world.float_folder / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return folder


def segment(world: World, name: str, **fields: Any) -> Path:
    soundfile.write(world.folder / "long.wav", np.zeros(32000), 16000)
    return world.file(name, json.dumps({"audio": "long.wav", "text": "a", **fields}) + "\n")


def scored(text: str) -> Any:
    from qlib.asr.wer import score

    return score([text], ["a b"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_the_table_is_long_and_labels_are_different() -> None:
    labels = [label for label, *_ in TABLE]
    assert len(labels) >= 120 and len(set(labels)) == len(labels)


@pytest.mark.parametrize(("call", "words"), [pytest.param(*row, id=label) for label, *row in TABLE])
def test_mistake_is_answered(world: World, call: Call, words: tuple[str, ...]) -> None:
    with pytest.raises(QlibError) as caught:
        call(world)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert 20 <= len(message) <= 700 and message.rstrip().endswith((".", "?", ")")), message
