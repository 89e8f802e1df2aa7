"""`quantize` end to end on miniatures, and every refusal before the work begins."""

from __future__ import annotations

import copy

import pytest
import torch
from speech_fixtures import utterances
from torch import Tensor, nn

import qlib
from qlib.asr.calibration import speech_batches
from qlib.asr.datasets import Utterance
from qlib.errors import DataError, QuantError
from qlib.methods.gptq import gptq
from qlib.methods.rtn import rtn
from qlib.models.tiny import tiny_whisper
from qlib.models.whisper import Whisper

GRID = qlib.Grid(bits=4, group=8)
PAPERS = qlib.GPTQ(damping=0.01, act_order=False, fit="minmax")  # the settings of the function `gptq`


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=3)


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return utterances(tmp_path_factory.mktemp("speech"))


def logits(model: Whisper, calib: list[Utterance]) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                model(batch.features, batch.tokens)[batch.token_mask]
                for batch in speech_batches(tiny_whisper(seed=3), calib)
            ]
        )


def linears(model: nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "proj_out"
    }


def test_rtn_is_rtn_on_every_layer(model: Whisper) -> None:
    result = qlib.quantize(model, [], weight=GRID, progress=False)
    for name in linears(model):
        layer, original = result.model.get_submodule(name), model.get_submodule(name)
        assert isinstance(layer, qlib.FakeQuantLinear) and isinstance(original, nn.Linear)
        assert torch.equal(layer.codes, rtn(original.weight, GRID).codes)
        assert original.bias is None or torch.equal(layer.bias, original.bias)  # type: ignore[arg-type]
    assert {layer.name for layer in result.report.layers} == linears(model)


def test_gptq_uses_the_inputs_of_the_quantized_model(model: Whisper, calib: list[Utterance]) -> None:
    """The last layer's codes equal GPTQ on the inputs that the quantized model really feeds it."""
    result = qlib.quantize(model, [PAPERS], weight=GRID, calib=calib, progress=False)
    last = "model.decoder.layers.1.fc2"
    seen: list[Tensor] = []
    upto_last_block = copy.deepcopy(result.model)
    block, original = upto_last_block.model.decoder.layers, model.model.decoder.layers
    block[1] = copy.deepcopy(original[1])  # the last block is calibrated while it is still in float
    block[1].fc2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batches = speech_batches(model, calib)
    with torch.no_grad():
        for batch in batches:
            assert batch.features is not None
            upto_last_block(batch.features, batch.tokens)
    rows = torch.cat([x[batch.token_mask] for x, batch in zip(seen, batches, strict=True)]).double()
    expected = gptq(model.get_submodule(last).weight, rows.T @ rows, GRID)  # type: ignore[arg-type]
    found = result.model.get_submodule(last)
    assert isinstance(found, qlib.FakeQuantLinear)
    assert (found.codes == expected.codes).float().mean() > 0.999


@pytest.mark.parametrize("methods", [[], [qlib.RTN("mse")], [qlib.GPTQ()], [qlib.GPTQ(act_order=True)]])
def test_more_bits_less_error(model: Whisper, calib: list[Utterance], methods: list[qlib.RTN]) -> None:
    reference = logits(model, calib)
    errors = []
    for bits in (8, 4, 3, 2):
        result = qlib.quantize(model, methods, weight=qlib.Grid(bits, 8), calib=calib, progress=False)
        errors.append(float((logits(result.model, calib) - reference).norm() / reference.norm()))
    assert errors == sorted(errors)
    assert errors[0] < 0.02 < errors[-1]


def test_gptq_beats_rtn_at_the_output(model: Whisper, calib: list[Utterance]) -> None:
    grid = qlib.Grid(bits=3)
    plain = qlib.quantize(model, [], weight=grid, progress=False)
    better = qlib.quantize(model, [qlib.GPTQ()], weight=grid, calib=calib, progress=False)
    reference = logits(model, calib)
    assert (logits(better.model, calib) - reference).norm() < (logits(plain.model, calib) - reference).norm()
    assert all(layer.output_error is not None and layer.tokens > 0 for layer in better.report.layers)
    assert all(layer.output_error is None for layer in plain.report.layers)


def test_activations_are_rounded_where_asked(model: Whisper, calib: list[Utterance]) -> None:
    float_inputs = qlib.quantize(model, [], weight=qlib.Grid(8), progress=False)
    rounded = qlib.quantize(model, [], weight=qlib.Grid(8), activation=qlib.PerToken(bits=4), progress=False)
    reference = logits(model, calib)
    assert (logits(rounded.model, calib) - reference).norm() > 3 * (
        logits(float_inputs.model, calib) - reference
    ).norm()
    assert {layer.activation for layer in rounded.report.layers} == {"a4 per token asymmetric"}


def test_the_original_is_untouched_and_results_repeat(model: Whisper, calib: list[Utterance]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = qlib.quantize(model, [qlib.GPTQ()], weight=GRID, calib=calib, progress=False).model.state_dict()
    second = qlib.quantize(model, [qlib.GPTQ()], weight=GRID, calib=calib, progress=False).model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_everything_else_is_bit_identical_and_not_shared(model: Whisper) -> None:
    copied = qlib.quantize(model, [], weight=GRID, progress=False).model
    assert copied.proj_out.weight is copied.model.decoder.embed_tokens.weight
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in linears(model):
            assert torch.equal(copied.state_dict()[name], value)
            assert copied.state_dict()[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["fc2"], ("fc2",)),
        (["encoder_attn.*"], ("encoder_attn",)),
        (["model.decoder.layers.0"], ("model.decoder.layers.0.",)),
        (
            ["model.encoder.layers.?.self_attn.q_proj", "fc1"],
            ("encoder.layers.0.self_attn.q", "encoder.layers.1.self_attn.q", "fc1"),
        ),
    ],
)
def test_skipped_layers_stay_and_are_reported(model: Whisper, skip: list[str], left: tuple[str, ...]) -> None:
    result = qlib.quantize(model, [], weight=GRID, skip=skip, progress=False)
    expected = {name for name in linears(model) if any(part in name for part in left)}
    asked = {name for name, reason in result.report.skipped if reason == "skipped as asked"}
    assert asked == expected == linears(result.model)
    assert ("proj_out", "shares its weight with the token embedding") in result.report.skipped


class NotAMethod:
    name = "nothing"


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["gptq"], {}, r"'gptq' is not a quantization method. Known methods: rtn, hqq, gptq"),
        ("gptq", {}, r"methods='gptq' is not a list"),
        ([qlib.GPTQ], {}, r"is not a quantization method"),
        ([NotAMethod()], {}, r"is not a quantization method"),
        ([qlib.RTN(), qlib.GPTQ()], {}, r"rtn, gptq: a weight can be rounded only once"),
        ([qlib.GPTQ()], {}, r"gptq looks at the inputs.*calib="),
        (
            [],
            {"skip": ["fc3"]},
            r"skip pattern 'fc3' matches no module. Layers are named model\.encoder\.layers\.0",
        ),
        ([], {"skip": ["model"]}, r"No layer is left to quantize: skip=\['model'\] covers all 32"),
        (
            [],
            {"weight": qlib.Grid(4, 128)},
            r"group=128 is larger than the 16 columns of .* \(and \d+ more\)",
        ),
    ],
)
def test_refusals_come_before_the_work(
    model: Whisper,
    methods: list[qlib.RTN],
    options: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    for method, does in ((qlib.RTN, "quantize_layer"), (qlib.GPTQ, "quantize_layer")):
        monkeypatch.setattr(method, does, reached)
    with pytest.raises(QuantError, match=message):
        qlib.quantize(model, methods, **{"weight": GRID, "progress": False, **options})  # type: ignore[arg-type]


def test_nan_weight_names_layer_and_place() -> None:
    model = tiny_whisper()
    model.model.encoder.layers[1].fc1.weight[2, 3] = torch.nan
    with pytest.raises(
        QuantError, match=r"model\.encoder\.layers\.1\.fc1: 1 of 1024 weights.*row 2, column 3"
    ):
        qlib.quantize(model, [], weight=GRID, progress=False)


def test_empty_calibration_list(model: Whisper) -> None:
    with pytest.raises(DataError, match="calibration list is empty"):
        qlib.quantize(model, [qlib.GPTQ()], weight=GRID, calib=[], progress=False)


def test_a_quantized_model_is_not_quantized_again(model: Whisper) -> None:
    once = qlib.quantize(model, [], weight=GRID, progress=False).model
    with pytest.raises(QuantError, match=r"quantized already: model\.encoder\.layers\.0"):
        qlib.quantize(once, [], weight=GRID)


def test_a_failing_layer_is_named(model: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise QuantError("no luck")

    monkeypatch.setattr(qlib.RTN, "quantize_layer", fail)
    with pytest.raises(QuantError, match=r"model\.encoder\.layers\.0\.self_attn\.q_proj: no luck"):
        qlib.quantize(model, [], weight=GRID, progress=False)


def test_few_tokens_work_and_say_what_damping_did(model: Whisper, calib: list[Utterance]) -> None:
    result = qlib.quantize(model, [qlib.GPTQ()], weight=GRID, calib=calib[:1], progress=False)
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())
    by_name = {layer.name: layer for layer in result.report.layers}
    short = by_name["model.decoder.layers.0.fc2"]
    assert short.tokens < short.inputs
    assert any("damping" in note for note in short.notes)
    assert "damping" in str(result.report)
