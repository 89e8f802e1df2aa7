"""Every method and some chains on miniatures of every family: what must hold whatever the method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import utterances
from torch import Tensor

import qlib
from qlib.asr.calibration import speech_batches
from qlib.asr.datasets import Utterance
from qlib.chain import make_chain
from qlib.errors import ModelError, QuantError
from qlib.methods import METHODS
from qlib.methods.contracts import LayerStats, Needs
from qlib.models.moonshine import Moonshine
from qlib.models.structure import Model, apply_fold
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper
from qlib.models.whisper import Whisper

FAMILIES = {"whisper": lambda: tiny_whisper(seed=4), "moonshine": lambda: tiny_moonshine(seed=4)}
OMNIQUANT = qlib.OmniQuant(epochs=2)
CHAINS: list[list[Any]] = [
    [qlib.RTN()],
    [qlib.HQQ()],
    [qlib.GPTQ()],
    [qlib.SmoothQuant()],
    [qlib.AWQ()],
    [OMNIQUANT],
    [qlib.SpQR()],
    [qlib.QUIK()],
    [qlib.SmoothQuant(), qlib.GPTQ()],
    [qlib.AWQ(), qlib.GPTQ(act_order=True)],
    [qlib.SmoothQuant(), qlib.AWQ(), qlib.SpQR()],
    [OMNIQUANT, qlib.GPTQ()],
    [qlib.AWQ(), qlib.QUIK()],
    [qlib.AWQ(), qlib.HQQ()],
]
SINGLE = CHAINS[:8]


def names(chain: list[Any]) -> str:
    return " + ".join(method.name for method in chain)


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return utterances(tmp_path_factory.mktemp("speech"))


@torch.no_grad()
def logits(family: str, model: Model, calib: list[Utterance]) -> Tensor:
    assert isinstance(model, Whisper | Moonshine)
    batches = speech_batches(FAMILIES[family](), calib)
    return torch.cat([model(batch.features, batch.tokens)[batch.token_mask] for batch in batches])


def error(family: str, model: Model, calib: list[Utterance]) -> float:
    reference = logits(family, FAMILIES[family](), calib)
    return float((logits(family, model, calib) - reference).norm() / reference.norm())


def run(family: str, chain: list[Any], calib: list[Utterance], bits: int = 4, **options: Any) -> qlib.Result:
    grid = options.pop("weight", qlib.Grid(bits, 8))
    return qlib.quantize(FAMILIES[family](), chain, weight=grid, calib=calib, progress=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", CHAINS, ids=names)
def test_quantizes_saves_and_loads_bit_for_bit(
    family: str, chain: list[Any], calib: list[Utterance], tmp_path: Path
) -> None:
    result = run(family, chain, calib, activation=qlib.PerToken(8))
    model = result.model
    assert error(family, model, calib) < 0.5
    assert {layer.method for layer in result.report.layers} == {names(chain)}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model.get_submodule("proj_out").weight, FAMILIES[family]().proj_out.weight)
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(logits(family, again, calib), logits(family, model, calib))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", SINGLE, ids=names)
def test_more_bits_less_error(family: str, chain: list[Any], calib: list[Utterance]) -> None:
    errors = [error(family, run(family, chain, calib, bits).model, calib) for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.05 < errors[-1]  # SpQR rounds its scales to 3 bits at every width


@pytest.mark.parametrize("chain", SINGLE, ids=names)
def test_results_repeat_and_the_original_is_untouched(chain: list[Any], calib: list[Utterance]) -> None:
    model = FAMILIES["whisper"]()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    first, second = (
        qlib.quantize(model, chain, weight=qlib.Grid(3, 8), calib=calib, progress=False).model.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("chain", [[qlib.SmoothQuant()], [qlib.AWQ(clip=False)]], ids=names)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformation_alone_changes_scales_not_the_function(
    family: str, chain: list[Any], calib: list[Utterance]
) -> None:
    """At 8 bits with fine groups almost nothing is lost, though norms and weights differ everywhere."""
    model = run(family, chain, calib, weight=qlib.Grid(8, 4)).model
    assert error(family, model, calib) < 0.01
    moved = [
        name
        for name, value in FAMILIES[family]().state_dict().items()
        if "norm" in name and "final" not in name and not torch.equal(value, model.state_dict()[name])
    ]
    assert moved


@pytest.mark.parametrize(
    "rounding", [qlib.RTN(), qlib.HQQ(), qlib.GPTQ(), qlib.SpQR(), qlib.QUIK()], ids=lambda m: m.name
)
def test_awq_clips_where_ranges_are_taken_as_they_are(rounding: Any, calib: list[Utterance]) -> None:
    """A method that weighs errors itself would reproduce the clipped weight."""
    clips = rounding.name in ("rtn", "hqq")
    chain = make_chain([qlib.AWQ(), rounding])
    assert chain.describe()[0]["clip"] is clips
    for chosen in (True, False):
        assert make_chain([qlib.AWQ(clip=chosen), rounding]).describe()[0]["clip"] is chosen
    if rounding.name in ("rtn", "gptq"):
        states = [
            run("whisper", [awq, rounding], calib, weight=qlib.Grid(3, 8)).model.state_dict()
            for awq in (qlib.AWQ(), qlib.AWQ(clip=clips), qlib.AWQ(clip=not clips))
        ]
        same = [all(torch.equal(value, other[name]) for name, value in states[0].items()) for other in states]
        assert same == [True, True, False]


def test_a_chain_on_a_ragged_width(calib: list[Utterance]) -> None:
    """Width 288 is no multiple of 64: every method takes a narrower last group."""
    model = tiny_moonshine(seed=1, width=288, layers=1)
    for chain in SINGLE:
        result = qlib.quantize(model, chain, weight=qlib.Grid(4, 64), calib=calib[:2], progress=False)
        layer = result.model.get_submodule("model.encoder.layers.0.self_attn.q_proj")
        assert isinstance(layer, qlib.FakeQuantLinear)
        assert layer.scale.shape[1] == (270 // 64 + 1 if chain[0].name == "quik" else 5)
        assert torch.isfinite(layer.weight).all()


# --- activations


@pytest.mark.parametrize(
    "activation",
    [
        qlib.PerToken(8),
        qlib.PerToken(8, symmetric=True),
        qlib.PerTensor(8, dynamic=True),
        qlib.PerTensor(8),
        qlib.PerTensor(8, fit="percentile", percentile=99.9),
        qlib.PerTensor(8, fit="mse", symmetric=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("chain", [[qlib.RTN()], [qlib.SmoothQuant()], [qlib.QUIK()]], ids=names)
def test_inputs_are_rounded_as_asked(
    chain: list[Any], activation: Any, calib: list[Utterance], tmp_path: Path
) -> None:
    result = run("whisper", chain, calib, 8, activation=activation)
    assert error("whisper", result.model, calib) < 0.15
    for layer in result.report.layers:
        assert layer.activation.startswith(
            f"a8 per {'token' if isinstance(activation, qlib.PerToken) else 'tensor'}"
        )
        assert ("columns in float" in layer.activation) == (chain[0].name == "quik")
    assert str(result.report)
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(logits("whisper", again, calib), logits("whisper", result.model, calib))


def test_a_static_range_counts_what_exceeds_it(calib: list[Utterance]) -> None:
    result = run("whisper", [qlib.RTN()], calib[:1], 8, activation=qlib.PerTensor(8))
    logits("whisper", result.model, calib[:1])
    inside = qlib.exceeded(result.model)
    logits("whisper", result.model, calib)
    outside = qlib.exceeded(result.model)
    assert max(outside.values()) > max(inside.values(), default=0)


def test_a_static_range_needs_recordings() -> None:
    with pytest.raises(QuantError, match=r"a8 per tensor static.* looks at the inputs.*calib="):
        qlib.quantize(FAMILIES["whisper"](), [], weight=qlib.Grid(8), activation=qlib.PerTensor(8))


# --- chains that cannot be


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([qlib.GPTQ(), qlib.HQQ()], "gptq, hqq: a weight can be rounded only once"),
        ([qlib.GPTQ(), qlib.AWQ()], r"awq comes after gptq.*Pass \[awq, gptq\]"),
        ([qlib.RTN(), OMNIQUANT], "omniquant comes after rtn"),
        ([qlib.SmoothQuant()], "smoothquant looks at the inputs"),
        ([OMNIQUANT], "omniquant looks at the inputs"),
        ([qlib.AWQ(), qlib.HQQ()], r"awq \+ hqq looks at the inputs"),
    ],
    ids=lambda value: names(value) if isinstance(value, list) else "",
)
def test_impossible_chains_are_refused(chain: list[Any], message: str) -> None:
    with pytest.raises(QuantError, match=message):
        qlib.quantize(FAMILIES["whisper"](), chain, weight=qlib.Grid(4, 8), progress=False)


def test_quik_cannot_keep_every_column(calib: list[Utterance]) -> None:
    with pytest.raises(QuantError, match=r"model\.encoder\.layers\.0\.self_attn\.q_proj: .*16"):
        run("whisper", [qlib.QUIK(columns=16)], calib)


# --- a killed run goes on


class KilledError(Exception):
    """Stands for a kill."""


def linears_of(family: str, part: str) -> list[str]:
    """The layers of all blocks of the encoder or the decoder."""
    return [layer for group in FAMILIES[family]().groups() for layer in group.layers if f".{part}." in layer]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "chain", [[qlib.GPTQ()], [qlib.AWQ(), qlib.SpQR()], [OMNIQUANT], [qlib.QUIK()]], ids=names
)
def test_an_interrupted_run_ends_with_identical_codes(
    family: str, chain: list[Any], calib: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activation, work = qlib.PerTensor(8), tmp_path / "work"
    expected = run(family, chain, calib, activation=activation)
    rounding: Any = qlib.RTN if chain == [OMNIQUANT] else type(chain[-1])
    rounded: list[int] = []
    original = rounding.quantize_layer

    def stop_at(count: int) -> None:
        def quantize_layer(self: Any, *arguments: Any) -> Any:
            if len(rounded) == count:
                raise KilledError
            rounded.append(count)
            return original(self, *arguments)

        monkeypatch.setattr(rounding, "quantize_layer", quantize_layer)

    encoder, decoder = (len(linears_of(family, name)) for name in ("encoder", "decoder"))
    # Killed in the middle of the encoder's second block, then in that of the decoder's second.
    for layers, blocks in ((encoder // 2 + 2, 1), (encoder + decoder // 2 + 2 + 2, 3)):
        stop_at(layers)
        with pytest.raises(KilledError):
            run(family, chain, calib, activation=activation, work=work)
        assert len(list(work.glob("*.safetensors"))) == blocks
    stop_at(1000)
    found = run(family, chain, calib, activation=activation, work=work)
    assert len(rounded) == encoder + decoder + 2 + 2, "no finished block is done twice"
    assert found.report.layers == expected.report.layers
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name
    assert torch.equal(logits(family, found.model, calib), logits(family, expected.model, calib))
    assert found.settings == expected.settings


def test_a_work_folder_belongs_to_one_run(calib: list[Utterance], tmp_path: Path) -> None:
    run("whisper", [qlib.RTN()], calib, work=tmp_path)
    with pytest.raises(QuantError, match=r"holds another run: weight was \{'bits': 4"):
        run("whisper", [qlib.RTN()], calib, 3, work=tmp_path)
    other = tiny_whisper(seed=9)
    with pytest.raises(QuantError, match="holds another run: weights was"):
        qlib.quantize(other, [qlib.RTN()], weight=qlib.Grid(4, 8), calib=calib, work=tmp_path, progress=False)


# --- a method from outside


class Halve:
    """A toy transformation: every scale is 2."""

    name = "halve"
    paper = "none"
    needs = Needs.RANGE

    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: qlib.Grid) -> Tensor:
        assert stats.absmax is not None
        return torch.full_like(stats.absmax, 2.0)


class Signs:
    """A toy rounding method: one bit a weight, the mean size of a row."""

    name = "signs"
    paper = "none"
    needs = Needs.NOTHING

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: qlib.Grid) -> qlib.QuantizedWeight:
        size = weight.abs().mean(1, keepdim=True)
        return qlib.QuantizedWeight(
            (weight > 0).to(torch.uint8) * 2, size, torch.ones_like(size).to(torch.uint8)
        )


def test_methods_from_outside_work_like_ours(calib: list[Utterance], tmp_path: Path) -> None:
    model = FAMILIES["whisper"]()
    result = run("whisper", [Halve(), Signs()], calib, weight=qlib.Grid(2), work=tmp_path / "work")
    layer = result.model.get_submodule("model.encoder.layers.0.fc1")
    weight = model.model.encoder.layers[0].fc1.weight
    torch.testing.assert_close(layer.weight, 2 * weight.sign() * weight.abs().mean(1, keepdim=True))
    assert result.report.layers[0].method == "halve + signs"
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(again.get_submodule("model.encoder.layers.0.fc1").weight, layer.weight)


def test_only_plain_rounding_to_nearest_goes_without_a_name() -> None:
    class Mine(qlib.RTN):
        name = "mine"

    assert make_chain([qlib.AWQ(), Mine()]).name == "awq + mine"
    assert make_chain([qlib.AWQ(), qlib.RTN("mse")]).name == make_chain(qlib.AWQ()).name == "awq"


def test_the_list_of_methods_is_complete() -> None:
    assert list(METHODS) == ["rtn", "hqq", "gptq", "smoothquant", "awq", "omniquant", "spqr", "quik"]
    for name, method in METHODS.items():
        assert method.name == name
        assert isinstance(method.needs, Needs)
        assert method.paper
        assert method()


def test_folding_refuses_what_is_tied() -> None:
    model = FAMILIES["whisper"]()
    before = model.proj_out.weight.clone()
    with pytest.raises(ModelError, match="must stay as it is"):
        apply_fold(model, {"model.decoder.embed_tokens.weight": torch.zeros_like(before)})
    assert torch.equal(model.proj_out.weight, before)


def test_a_method_that_changes_its_weight_in_place_changes_no_range_of_inputs() -> None:
    """Static ranges are found by running the float block after its layers were rounded."""

    class Careless(qlib.RTN):
        def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: qlib.Grid) -> qlib.QuantizedWeight:
            rounded = super().quantize_layer(weight, stats, grid)
            weight.mul_(3)
            return rounded

    plain, careless = (
        qlib.quantize(
            tiny_llama(seed=1), [method], weight=qlib.Grid(4, 8), activation=qlib.PerTensor(8),
            calib=["the heat at a", "a tea"], progress=False,
        ).model
        for method in (qlib.RTN(), Careless())
    )  # fmt: skip
    layers = zip(plain.modules(), careless.modules(), strict=True)
    pairs = [(one, two) for one, two in layers if isinstance(one, qlib.FakeQuantLinear)]
    assert pairs and all(repr(one.activation) == repr(two.activation) for one, two in pairs)  # type: ignore[attr-defined]
