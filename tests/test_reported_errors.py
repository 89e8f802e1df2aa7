"""What `quantize` reports: errors against the user's weights, notes; short forms, and the list of layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import utterances
from torch import Tensor, nn

import qlib
from qlib.methods.contracts import BlockTask, Fitted, Fold, LayerStats, Needs
from qlib.methods.gptq import hessian
from qlib.methods.hqq import hqq
from qlib.methods.rtn import rtn
from qlib.methods.spqr import spqr
from qlib.models.structure import Model, fold
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper
from qlib.quantized_weight import QuantizedWeight

TEXTS = ["the heart of the matter", "at a heath there was a hat", "the cat sat at the hat, a tea"]
GRID = qlib.Grid(2, 8)
FAMILIES: dict[str, Callable[[], Model]] = {
    "whisper": lambda: tiny_whisper(seed=3),
    "moonshine": lambda: tiny_moonshine(seed=3),
    "llama": lambda: tiny_llama(seed=3),
    "qwen3": lambda: tiny_llama(seed=3, model_type="qwen3"),
    "gemma3": lambda: tiny_gemma3(seed=3),
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[qlib.Utterance]:
    return utterances(tmp_path_factory.mktemp("speech"))


def run(family: str, methods: list[Any], speech: list[qlib.Utterance], **options: Any) -> qlib.Result:
    calib = speech if family in ("whisper", "moonshine") else TEXTS
    return qlib.quantize(
        FAMILIES[family](), methods, **{"weight": GRID, "calib": calib, "progress": False, **options}
    )


def scale_before(family: str, result: qlib.Result, group: Any) -> Tensor | None:
    """The scale that a norm gave to its readers, from its gains before and after; None after others."""
    if group.before is None:
        return torch.ones(())
    old, new = (each.get_submodule(group.before) for each in (FAMILIES[family](), result.model))
    if isinstance(old, nn.Linear):
        return None
    return old.weight / new.weight  # type: ignore[operator,no-any-return]


# --- errors are those of the weight the user had


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "methods",
    [
        [qlib.RTN()],
        [qlib.HQQ()],
        [qlib.AWQ(scale=False)],
        [qlib.AWQ(scale=False), qlib.HQQ()],
        [qlib.OmniQuant(epochs=3, clip_rate=0.3, let=False)],
        [qlib.AWQ(scale=False), qlib.OmniQuant(epochs=2, clip_rate=0.3, let=False)],
    ],
    ids=lambda methods: " + ".join(method.name for method in methods),
)
def test_clipping_and_learning_count(family: str, methods: list[Any], speech: list[qlib.Utterance]) -> None:
    """No scale moved, so the float model's weights are the reference as they are."""
    result, original = run(family, methods, speech), FAMILIES[family]()
    for layer in result.report.layers:
        W, values = (each.get_submodule(layer.name).weight for each in (original, result.model))
        assert layer.weight_error == pytest.approx(float((W - values).norm() / W.norm()), rel=1e-4)


@pytest.mark.parametrize("family", ["whisper", "moonshine", "llama"])
@pytest.mark.parametrize(
    "methods",
    [
        [qlib.SmoothQuant(), qlib.GPTQ()],
        [qlib.AWQ(), qlib.GPTQ()],
        [qlib.OmniQuant(epochs=3, clip_rate=0.3, let=True), qlib.GPTQ()],
        [qlib.AWQ(), qlib.OmniQuant(epochs=3, clip_rate=0.3, let=True)],
    ],
    ids=lambda methods: " + ".join(method.name for method in methods),
)
def test_folds_count_for_nothing(family: str, methods: list[Any], speech: list[qlib.Utterance]) -> None:
    """The reference is the user's weight times the scale that the norm before it lost."""
    result, original = run(family, methods, speech), FAMILIES[family]()
    reports = {layer.name: layer for layer in result.report.layers}
    checked = 0
    for group in original.groups():
        scale = scale_before(family, result, group)
        for name in group.layers:
            is_scaled_itself = any(other.before == name for other in original.groups())
            if scale is None or is_scaled_itself:  # a row's scale does not show in what is left
                continue
            W = original.get_submodule(name).weight * scale
            values = result.model.get_submodule(name).weight
            expected = float((W - values).norm() / W.norm())
            assert reports[name].weight_error == pytest.approx(expected, rel=1e-3), name
            checked += 1
    assert checked >= 6


class Shifted:
    """A toy that learns: it moves a scale and an offset, and clips the first layer of the block."""

    name, paper, needs = "shifted", "none", Needs.BLOCK

    def fit(self, task: BlockTask, grid: qlib.Grid) -> Fitted:
        changed, folds = dict(task.parameters), []
        for group in task.groups:
            width = changed[f"{group.layers[0]}.weight"].shape[1]
            shift = torch.full((width,), 0.3) if group.shift else None
            folds.append(Fold(group, group.tie(torch.linspace(0.5, 2, width)), shift))
            changed |= fold(changed, group, folds[-1].scale, shift)
        changed[self.clipped(task)] = changed[self.clipped(task)].clamp(-0.05, 0.05)
        return Fitted({n: v for n, v in changed.items() if v is not task.parameters[n]}, folds)

    def clipped(self, task: BlockTask) -> str:
        return f"{task.layers[0]}.weight"


class Exact:
    """Rounds to nearest and keeps the statistics it was given."""

    name, paper, needs = "exact", "none", Needs.HESSIAN

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: qlib.Grid) -> QuantizedWeight:
        return rtn(weight, grid)


def test_a_fold_of_a_learning_method_counts_for_nothing(speech: list[qlib.Utterance]) -> None:
    """At 8 bits only the one layer that was clipped shows an error, offsets and all; resumed or not."""
    result = run("whisper", [Shifted(), Exact()], speech, weight=qlib.Grid(8, 4))
    for layer in result.report.layers:
        assert layer.output_error is not None
        clipped = "encoder_attn.k_proj" if "decoder" in layer.name else "self_attn.q_proj"
        assert (layer.weight_error > 0.2) == layer.name.endswith(clipped), layer.name
        assert (layer.output_error > 0.05) == layer.name.endswith(clipped), layer.name


def test_a_plain_dict_names_no_folds(speech: list[qlib.Utterance]) -> None:
    class Half:
        name, paper, needs = "half", "none", Needs.BLOCK

        def fit(self, task: BlockTask, grid: qlib.Grid) -> dict[str, Tensor]:
            return {f"{layer}.weight": task.parameters[f"{layer}.weight"] / 2 for layer in task.layers}

    report = run("llama", [Half()], speech, weight=qlib.Grid(8, 4)).report
    assert all(layer.weight_error == pytest.approx(0.5, abs=0.01) for layer in report.layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_weights_at_the_ends_of_a_short_float(dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    model = FAMILIES["llama"]().to(dtype)
    up = model.get_submodule("model.layers.0.mlp.up_proj").weight
    with torch.no_grad():
        up.copy_(up.float() / up.float().abs().max() * size * torch.finfo(dtype).max)
    result = qlib.quantize(model, weight=qlib.Grid(4, 8), progress=False)
    for value in result.model.state_dict().values():
        assert value.isfinite().all()
    assert all(0 <= layer.weight_error <= 1 for layer in result.report.layers)
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    layer = "model.layers.0.mlp.up_proj"
    assert torch.equal(again.get_submodule(layer).weight, result.model.get_submodule(layer).weight)


# --- one rule for queries and keys


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_are_never_clipped(family: str, speech: list[qlib.Utterance]) -> None:
    result, original = run(family, [qlib.AWQ(scale=False)], speech), FAMILIES[family]()
    unclipped = set()
    for layer in result.report.layers:
        found, weight = result.model.get_submodule(layer.name), original.get_submodule(layer.name).weight
        assert isinstance(found, qlib.FakeQuantLinear) and isinstance(weight, Tensor)
        if torch.equal(found.scale, rtn(weight, GRID).scale):
            unclipped.add(layer.name)
    named = {layer for group in original.groups() for layer in group.scores}
    assert unclipped == named
    assert len(named) == sum(name.endswith(("q_proj", "k_proj")) for name, _ in original.named_modules())


# --- learning with static ranges


def test_static_ranges_are_learned_with_a_stand_in_and_noted(speech: list[qlib.Utterance]) -> None:
    method = [qlib.OmniQuant(epochs=2)]
    static = run("whisper", method, speech, activation=qlib.PerTensor(4))
    same = run("whisper", method, speech, activation=qlib.PerTensor(4, dynamic=True))
    names = [name for name, _ in static.model.named_parameters() if "norm" in name]
    original = FAMILIES["whisper"]()
    assert any(not torch.equal(static.model.get_parameter(n), original.get_parameter(n)) for n in names)
    first = "model.encoder.layers.0.fc1"  # later blocks read what the others' rounding of inputs made
    assert torch.equal(static.model.get_submodule(first).codes, same.model.get_submodule(first).codes)
    note = "omniquant learned with inputs rounded by a4 per tensor dynamic asymmetric, for static ranges"
    assert all(note in layer.notes for layer in static.report.layers)
    assert not any(note in layer.notes for layer in same.report.layers)
    assert "a4 per tensor dynamic" in str(static)


# --- how it shows itself


def test_a_result_prints_its_report() -> None:
    result = qlib.quantize(FAMILIES["llama"](), weight=qlib.Grid(4, 8), progress=False)
    assert str(result) == str(result.report)
    assert repr(result) == "Result(Llama, 14 layers by rtn to w4 g8 asymmetric, 8.50 bits per weight)"


def test_a_quantized_weight_is_one_line() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(32, 64, generator=generator), torch.randn(200, 64, generator=generator)
    plain = rtn(weight, qlib.Grid(4, 16))
    assert repr(plain) == "QuantizedWeight(32 x 64, 4 bits, 4 groups, about 6.25 bits per weight)"
    assert "8 bits, one group, about 8.50 " in repr(rtn(weight, qlib.Grid(8, symmetric=True)))
    assert "3 bits, 8 groups, about 11.00 " in repr(hqq(weight, qlib.Grid(3, 8)))
    mixed = repr(spqr(weight, hessian(inputs), qlib.Grid(3, 16), threshold=0.5))
    assert "outliers in float" in mixed and "\n" not in mixed
    layer = qlib.FakeQuantLinear.from_linear(nn.Linear(64, 32), plain, qlib.Grid(4, 16), qlib.PerToken(8))
    assert repr(layer) == ("FakeQuantLinear(64, 32, bias=True, w4 g16 asymmetric, a8 per token asymmetric)")


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_before_quantizing(family: str) -> None:
    model = FAMILIES[family]()
    found = qlib.layers(model)
    report = qlib.quantize(model, weight=qlib.Grid(4, 8), progress=False).report
    assert set(found.names) == {layer.name for layer in report.layers}
    assert {(layer.name, layer.skipped) for layer in found if layer.skipped} | set(found.others) == set(
        report.skipped
    )
    by_name = {layer.name: layer for layer in found}
    for group in model.groups():
        assert len({by_name[name].group for name in group.layers}) == 1
        assert by_name[group.layers[0]].before == (group.before or group.reason)
    assert found.parameters == sum(each.numel() for each in model.parameters())
    for layer in found:
        module = model.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        assert (layer.outputs, layer.inputs) == (module.out_features, module.in_features)
        assert layer.parameters == sum(each.numel() for each in module.parameters())
        assert layer.share == pytest.approx(layer.parameters / found.parameters)


def test_layers_as_text_and_what_is_skipped() -> None:
    found = qlib.layers(FAMILIES["llama"](), skip="down_proj")
    lines = str(found).splitlines()
    assert lines[0].startswith("12 of 15 layers can be quantized: 40.4% of 8,880 parameters.")
    assert len(lines) == 2 + len(found) == 17
    assert lines[1].split()[:4] == ["layer", "shape", "parameters", "share"]
    assert lines[8].split()[-3:] == ["skipped", "as", "asked"]
    assert "shares its weight with the token embedding" in lines[-1]


def test_the_errors_stand_at_the_top() -> None:
    from qlib import errors

    for name in ("QlibError", "QuantError", "ModelError", "DataError", "FetchError", "FileError"):
        assert getattr(qlib, name) is getattr(errors, name) and name in qlib.__all__
    assert qlib.MissingExtraError is errors.MissingExtraError
    assert Path(qlib.__file__).name == "__init__.py"
