"""Planted causes in a real checkpoint on real speech: `explain` names each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_table import Table
from torch import nn

import qlib
from qlib.activation import FixedRange
from qlib.analysis.parts import HEAD
from qlib.methods.rtn import rtn
from qlib.models.whisper import Whisper

pytestmark = pytest.mark.weights
FINE, COARSE = qlib.Grid(8), qlib.Grid(2, 384)
ELSEWHERE = [f"layers.{i}" for i in (0, 1, 2)]  # stay in float: a search over 16 layers, and not 64


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Whisper:
    found = qlib.load_model(checkpoint("whisper-tiny.en"))
    assert isinstance(found, Whisper)
    return found


@pytest.fixture(scope="module")
def clips(speech_folder: Path) -> list[qlib.Utterance]:
    listed = qlib.read_manifest(speech_folder / "manifest.jsonl")
    return [clip for clip in listed if clip.split == "test" and (clip.duration or 99) < 5][:2]


@pytest.fixture(scope="module")
def speech_folder() -> Path:
    return Path(__file__).parents[2] / "examples" / "data" / "speech"


@pytest.mark.parametrize(
    ("part", "layer"),
    [
        ("encoder", "model.encoder.layers.3.fc2"),
        ("decoder self-attention", "model.decoder.layers.3.self_attn.v_proj"),
        ("decoder cross-attention", "model.decoder.layers.3.encoder_attn.v_proj"),
    ],
)
def test_a_layer_at_two_bits(part: str, layer: str, model: Whisper, clips: list[qlib.Utterance]) -> None:
    grids = {"*": FINE, layer: COARSE}
    result = qlib.quantize(model, weight=grids, skip=ELSEWHERE, progress=False)
    found = qlib.explain(model, result, clips, progress=False)
    assert f"the weights of the {part}; {layer} (w2 g384 asymmetric) put back into float takes" in found.cause
    assert found.restored[0].layers == (layer,)


def test_an_embedding_at_two_bits(model: Whisper, clips: list[qlib.Utterance]) -> None:
    changed = qlib.quantize(model, weight=FINE, skip=ELSEWHERE, progress=False).model
    head = changed.get_submodule("proj_out")
    assert isinstance(head, nn.Linear)
    changed.replace("proj_out", qlib.FakeQuantLinear.from_linear(head, rtn(head.weight, COARSE), COARSE))
    changed.replace("model.decoder.embed_tokens", Table(head.weight.detach(), COARSE))
    found = qlib.explain(model, changed, clips, progress=False)
    assert f"the weights of the {HEAD}" in found.cause
    assert found.after.wer > found.before.wer


def test_a_static_range_that_is_too_narrow(model: Whisper, clips: list[qlib.Utterance]) -> None:
    layer = "model.encoder.layers.3.fc2"
    static = qlib.PerTensor(8)
    result = qlib.quantize(model, weight=FINE, activation=static, calib=clips, skip=ELSEWHERE, progress=False)
    narrowed = result.model.get_submodule(layer)
    assert isinstance(narrowed.activation, FixedRange)
    narrowed.activation = FixedRange(static, narrowed.activation.low, narrowed.activation.high / 20)
    found = qlib.explain(model, result, clips, progress=False)
    assert f"static input ranges that are too narrow: {layer} cuts off" in found.cause
    assert found.restored[0].layers == (layer,)


def test_a_clip_that_loops(model: Whisper, speech_folder: Path) -> None:
    listed = qlib.read_manifest(speech_folder / "manifest.jsonl")
    (clip,) = (clip for clip in listed if clip.id == "prompt-vm-nonumber")
    result = qlib.quantize(model, weight=qlib.Grid(2, 64), skip=["encoder", "layers.3"], progress=False)
    found = qlib.explain(model, result, [clip], progress=False)
    assert "it shows as a loop" in found.cause and found.cause.endswith("in clip prompt-vm-nonumber.")
    assert found.cause.startswith("Main cause: the weights of the decoder")
