"""A rounding of inputs for each layer: the rules of grids, every method, checkpoints, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qlib
from qlib.activation import FixedRange
from qlib.errors import QuantError
from qlib.kept_columns import KeepColumns
from qlib.methods.omniquant import OmniQuant
from qlib.models.tiny import tiny_llama, tiny_whisper

TEXTS = ["the heart of the matter is at the heat", "at a heath there was a hat", "the cat sat at the hat"]
GRID = qlib.Grid(4, 8)
TOKEN, STATIC = qlib.PerToken(8), qlib.PerTensor(6)
MIXED: dict[str, Any] = {"*": TOKEN, "down_proj": None, "model.layers.1.self_attn": STATIC}
METHODS: list[Any] = [qlib.RTN(), qlib.GPTQ(), qlib.AWQ(), OmniQuant(epochs=1), qlib.QUIK(columns=2)]


def run(activation: Any, method: Any = None, **options: Any) -> qlib.Result:
    methods = [] if method is None else [method]
    return qlib.quantize(
        tiny_llama(seed=5),
        methods,
        weight=GRID,
        activation=activation,
        calib=TEXTS,
        progress=False,
        **options,
    )


def rounding_of(result: qlib.Result, name: str) -> Any:
    layer = result.model.get_submodule(name)
    assert isinstance(layer, qlib.FakeQuantLinear)
    return layer.activation


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_layer_has_its_own_rounding(method: Any, tmp_path: Path) -> None:
    result = run(MIXED, method, work=tmp_path / "work")
    for layer in result.report.layers:
        found = rounding_of(result, layer.name)
        assert layer.activation == ("float" if found is None else str(found))
        if isinstance(found, KeepColumns):
            found = found.inner
        if layer.name.endswith("down_proj"):
            assert found is None
        elif layer.name.startswith("model.layers.1.self_attn"):
            assert isinstance(found, FixedRange) and found.spec == STATIC
        else:
            assert found == TOKEN
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    resumed = run(MIXED, method, work=tmp_path / "work")
    tokens = torch.tensor([[5, 9, 70, 12]])
    assert torch.equal(again(tokens), result.model(tokens))
    assert torch.equal(resumed.model(tokens), result.model(tokens))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_one_rounding_in_a_mapping_is_that_rounding(method: Any) -> None:
    one, mapped = run(STATIC, method), run({"*": STATIC, "down_proj": STATIC}, method)
    assert one.report.layers == mapped.report.layers
    tokens = torch.tensor([[5, 9, 70, 12]])
    assert torch.equal(one.model(tokens), mapped.model(tokens))


def test_a_layer_in_float_computes_with_its_inputs_as_they_are() -> None:
    whole, none = run(TOKEN), run({"*": TOKEN, "down_proj": None})
    inputs = torch.randn(3, 32)
    name = "model.layers.0.mlp.down_proj"
    layer = none.model.get_submodule(name)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight))  # type: ignore[arg-type]
    assert not torch.equal(layer(inputs), whole.model.get_submodule(name)(inputs))


def test_only_static_ranges_ask_for_calibration() -> None:
    model = tiny_whisper(frames=50)
    weight = {"*": GRID}
    qlib.quantize(model, weight=weight, activation={"*": TOKEN, "fc2": None}, progress=False)
    with pytest.raises(QuantError, match=r"a6 per tensor static.*looks at the inputs.*calib="):
        qlib.quantize(model, weight=weight, activation={"*": TOKEN, "fc2": STATIC}, progress=False)


def test_settings_keep_patterns_in_order(tmp_path: Path) -> None:
    result = run({"*": TOKEN, "down_proj": None})
    folder = result.save(tmp_path / "saved")
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    per_token = {"kind": "per token", "bits": 8, "symmetric": False}
    assert settings["activation"] == [["*", per_token], ["down_proj", None]]
    assert run(TOKEN).settings["activation"] == per_token


def test_another_rounding_is_another_run(tmp_path: Path) -> None:
    run({"*": TOKEN, "down_proj": None}, work=tmp_path)
    with pytest.raises(QuantError, match="holds another run: activation"):
        run({"*": TOKEN, "down_proj": STATIC}, work=tmp_path)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ({"*": TOKEN, "down_porj": None}, r"rounding to 'down_porj', which matches no.*mean 'down_proj'"),
        ({"down_proj": TOKEN}, r"activation gives no rounding to 12 of 14 layers.*Put '\*': None in front"),
        ({"down_proj": None, "*": TOKEN}, r"the later '\*' covers all its layers.*Put 'down_proj' after"),
        ({}, r"activation is an empty dict. Pass one rounding, or a dict of patterns"),
        ({"*": 8}, r"activation\['\*'\] is the int 8.*Did you mean activation\['\*'\]=qlib\.PerToken"),
        ({"*": qlib.PerToken}, r"must be called: activation\['\*'\]=qlib\.PerToken"),
        ({"*": qlib.Grid(8)}, r"activation\['\*'\] is a Grid"),
        ({3: TOKEN}, r"activation has the pattern 3, which is no string"),
    ],
)
def test_what_is_no_choice_is_refused(activation: Any, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        run(activation)
