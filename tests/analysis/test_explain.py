"""Explanations: planted causes are found, units keep the function, and the errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_table import Table
from speech_fixtures import utterances
from torch import nn

import qlib
from qlib.activation import FixedRange
from qlib.analysis.explain import _Probe, _spread
from qlib.analysis.explanation import Effect, Restored, main_cause
from qlib.analysis.hybrids import components, pair, units, with_float_weights, without_input_rounding
from qlib.analysis.made_up import made_up
from qlib.analysis.parts import HEAD, head_of, tied_head
from qlib.analysis.passes import first_visit, last_hidden, mean_kl, replaced, shared_copy
from qlib.asr.wer import score
from qlib.methods.rtn import rtn
from qlib.models.structure import Model
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper
from qlib.request import batches_of

FINE, COARSE = qlib.Grid(8, 8), qlib.Grid(2)


@pytest.fixture
def clips(tmp_path: Path) -> list[qlib.Utterance]:
    return utterances(tmp_path, (0.3, 0.4, 0.3, 0.3))[:2]


def with_coarse_embedding(model: Model, grid: qlib.Grid) -> Model:
    changed = qlib.quantize(model, weight=FINE, progress=False).model
    names = tied_head(model)
    assert names is not None
    head = changed.get_submodule(names[0])
    assert isinstance(head, nn.Linear)
    changed.replace(names[0], qlib.FakeQuantLinear.from_linear(head, rtn(head.weight, grid), grid))
    changed.replace(names[1], Table(head.weight.detach(), grid))
    return changed


def divergence(model: Model, changed: Model, clips: list[qlib.Utterance]) -> float:
    with torch.no_grad():
        passes = [last_hidden(first_visit(each, batches_of(model, clips))) for each in (model, changed)]
        return mean_kl(*passes, model.finish, changed.finish)


# --- which utterances


def test_the_divergence_is_measured_on_eight_at_even_distances() -> None:
    listed = [qlib.Utterance(Path(f"{i}.wav"), "a") for i in range(100)]
    for count in range(1, 9):
        assert _spread(listed[:count]) == listed[:count]
    for count in range(9, 101):
        at = [listed.index(each) for each in _spread(listed[:count])]
        steps = {after - before for before, after in pairwise([*at, count])}
        assert len(at) == 8 and at[0] == 0 and steps <= {count // 8, -(-count // 8)}


# --- planted causes

PLANTED = {
    "encoder": "model.encoder.layers.0.fc1",
    "decoder self-attention": "model.decoder.layers.1.self_attn.v_proj",
    "decoder cross-attention": "model.decoder.layers.0.encoder_attn.out_proj",
    "decoder feed-forward": "model.decoder.layers.0.fc2",
}


@pytest.mark.parametrize("part", PLANTED)
def test_a_coarse_layer_is_found(part: str, clips: list[qlib.Utterance]) -> None:
    model, layer = tiny_whisper(frames=100), PLANTED[part]
    result = qlib.quantize(model, weight={"*": FINE, layer: COARSE}, progress=False)
    found = qlib.explain(model, result, clips, progress=False)
    assert (
        f"the weights of the {part}; {layer} (w2 per channel asymmetric) put back into float takes"
        in found.cause
    )
    assert found.restored[0].layers == (layer,)
    assert found.restored[0].kl < 0.1 * found.kl
    assert max(found.effects[:-1], key=lambda each: each.kl).part == part


def test_the_page_shows_what_is_printed(clips: list[qlib.Utterance]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```text\n") if block.startswith("Main cause")).split("```")[0]
    model = tiny_moonshine()
    grids = {"*": FINE, "model.encoder.layers.1.mlp.fc1": COARSE}
    found = qlib.explain(model, qlib.quantize(model, weight=grids, progress=False), clips, progress=False)

    def form(text: str) -> list[str]:
        """Return the lines without the layers of a table, figures, and the spaces that align them."""
        text = re.sub(r"^(model\.\S+|w\d).*\n?", "", text, flags=re.MULTILINE)
        text = re.sub(r"[-+]?\d+(\.\d+)?", "0", text.replace("not significant", "significant"))
        return re.sub(" +", " ", text).strip().splitlines()[1:]  # the cause depends on what is found

    assert form(str(found)) == form(shown)


def test_a_coarse_embedding_is_found(clips: list[qlib.Utterance]) -> None:
    model = tiny_moonshine()
    found = qlib.explain(model, with_coarse_embedding(model, COARSE), clips, progress=False)
    assert f"the weights of the {HEAD}" in found.cause
    assert set(found.restored[0].layers) == set(tied_head(model) or ())


def test_a_range_that_is_too_narrow_is_found(clips: list[qlib.Utterance]) -> None:
    model, layer = tiny_whisper(frames=100), "model.decoder.layers.1.fc1"
    result = qlib.quantize(model, weight=FINE, activation=qlib.PerTensor(8), calib=clips, progress=False)
    narrowed = result.model.get_submodule(layer)
    old = narrowed.activation
    assert isinstance(old, FixedRange)
    narrowed.activation = FixedRange(old.spec, old.low / 20, old.high / 20)
    found = qlib.explain(model, result, clips, progress=False)
    assert f"static input ranges that are too narrow: {layer} cuts off" in found.cause
    assert found.restored[0].layers == (layer,)
    assert found.clamped[0][0] == layer and found.clamped[0][1] > 0.5
    assert narrowed.activation.seen == 0  # the user's own counts are left alone


def test_coarse_inputs_are_told_from_narrow_ranges(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    result = qlib.quantize(model, weight=FINE, activation=qlib.PerToken(3), progress=False)
    found = qlib.explain(model, result, clips, progress=False)
    assert "the rounding of inputs" in found.cause
    weights, inputs = found.effects[-2:]
    assert (weights.part, inputs.part) == ("weights, inputs in float", "rounding of inputs, weights in float")
    assert inputs.kl > 100 * weights.kl


def test_a_looping_clip_is_named() -> None:
    said = ["we go on", "the cat sat on the mat", "a heath"]
    before = score(said, ["we go on", "the cat sat on a mat", "a heath"], ids=["one", "two", "three"])
    after = score(
        said, ["we go" + " on and" * 9, "the cat sat on a mat", "a heath"], ids=["one", "two", "three"]
    )
    parts = [Effect("encoder", 0.1, after), Effect("decoder self-attention", 0.5, after)]
    first = Restored(("fc",), "w2", 0.5, after)
    cause = main_cause(before, after, 0.6, parts, (0.6, 0.0), first, made_up(after), [])
    assert "weights of the decoder self-attention; no single layer" in cause
    assert "it shows as a loop ('on and' 9 times) in clip one" in cause


@pytest.mark.parametrize("method", [qlib.RTN(), qlib.QUIK(columns=2)], ids=lambda method: method.name)
def test_few_values_outside_of_a_range_may_be_the_cause(method: Any, clips: list[qlib.Utterance]) -> None:
    """They are, where a wider range of as many bits takes the divergence away, and not where bits are few."""
    model, layer = tiny_whisper(frames=100), "model.decoder.layers.1.fc1"
    for bits, factor, narrow in ((8, 20, True), (2, 1.02, False)):
        result = qlib.quantize(
            model, [method], weight=FINE, activation=qlib.PerTensor(bits), calib=clips, progress=False
        )
        module = result.model.get_submodule(layer)
        held = module.activation if method.name == "quik" else module
        name = "inner" if method.name == "quik" else "activation"
        old = getattr(held, name)
        setattr(held, name, FixedRange(old.spec, old.low / factor, old.high / factor))
        models = pair(model, result.model)
        batches = batches_of(model, clips)
        probe = _Probe(models, clips, batches, lambda: None)
        found = probe.too_narrow(layer, {layer: 1e-5}, probe.divergence(result.model))
        assert found == ([(layer, 1e-5)] if narrow else [])
    assert probe.too_narrow(layer, {}, 1.0) == []
    assert probe.too_narrow(layer, {"other": 1e-5}, 1.0) == []
    assert probe.too_narrow(layer, {"other": 0.01}, 1.0) == [("other", 0.01)]


# --- exchanging parts


@pytest.mark.parametrize(
    "make", [lambda: tiny_whisper(frames=100), tiny_moonshine], ids=["whisper", "moonshine"]
)
@pytest.mark.parametrize("methods", [[], [qlib.SmoothQuant()], [qlib.AWQ()]], ids=["rtn", "smooth", "awq"])
def test_units_keep_the_function(
    make: Callable[[], Model], methods: list[Any], clips: list[qlib.Utterance]
) -> None:
    """At 8 bits a model hardly changes, whichever units are exchanged; with half a unit it does."""
    model = make()
    changed = qlib.quantize(model, methods, weight=FINE, calib=clips, progress=False).model
    both = pair(model, changed)
    work = shared_copy(changed)
    whole = divergence(model, changed, clips)
    for unit in units(both):
        with replaced(work, both.of_float(unit)):
            assert divergence(model, work, clips) < 3 * whole + 1e-5
    for names in components(both).values():
        other = shared_copy(model)
        with replaced(other, both.of_quantized(names)):
            assert divergence(model, other, clips) < 3 * whole + 1e-5
    if both.changed:
        layer = next(name for name in both.rounded if name.endswith("fc1"))
        with replaced(work, both.of_float([layer])):
            assert divergence(model, work, clips) > 10 * whole


def test_all_units_in_float_are_the_float_model(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    changed = qlib.quantize(model, [qlib.SmoothQuant()], weight=COARSE, calib=clips, progress=False).model
    both, work = pair(model, changed), shared_copy(changed)
    names = [name for unit in units(both) for name in unit]
    assert sorted(names) == sorted(both.modules)
    with replaced(work, both.of_float(names)):
        assert divergence(model, work, clips) == 0
    assert divergence(model, work, clips) > 0


def test_a_head_goes_with_the_embedding_whose_weight_it_shares() -> None:
    model = tiny_moonshine()
    head, embedding = tied_head(model) or ("", "")
    changed = copy.deepcopy(model)
    table = Table(model.get_parameter(f"{embedding}.weight").detach(), COARSE)
    changed.replace(embedding, table)
    changed.get_submodule(head).weight = nn.Parameter(table.weight, requires_grad=False)
    both = pair(model, changed)
    assert units(both) == [(embedding, head)]
    assert both.changed == ()


def test_single_layers_are_units_where_no_scale_moved() -> None:
    model = tiny_whisper(frames=100)
    both = pair(model, qlib.quantize(model, weight=COARSE, progress=False).model)
    assert sorted(units(both)) == sorted((name,) for name in qlib.layers(model).names)


def test_weights_and_inputs_can_be_told_apart(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    changed = qlib.quantize(model, weight=COARSE, activation=qlib.PerToken(4), progress=False).model
    weights_only = qlib.quantize(model, weight=COARSE, progress=False).model
    assert divergence(weights_only, without_input_rounding(changed), clips) == 0
    assert all(module.activation for module in changed.modules() if isinstance(module, qlib.FakeQuantLinear))
    fine = qlib.quantize(model, weight=qlib.Grid(8, 1), activation=qlib.PerToken(4), progress=False).model
    work = shared_copy(model)
    with replaced(work, with_float_weights(pair(model, changed))):
        assert divergence(fine, work, clips) < 0.01 * divergence(model, work, clips)


# --- the report, and what must not change


def test_the_report_reads_from_the_cause_down(clips: list[qlib.Utterance]) -> None:
    model = tiny_moonshine()
    result = qlib.quantize(model, weight=qlib.Grid(3, 8), progress=False)
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    found = qlib.explain(model, result.model, clips, progress=False)
    lines = str(found).splitlines()
    assert lines[0] == found.cause
    assert lines[1].startswith(f"WER {found.before.wer:.2f} -> {found.after.wer:.2f} %")
    rows = [line.split("  ")[0] for line in lines]
    wanted = ["encoder", "decoder cross-attention", "decoder, all of these", "everything"]
    assert [row for row in rows if row in wanted] == [wanted[0], wanted[1], wanted[2], wanted[3]]
    left = [found.kl, *(step.kl for step in found.restored)]
    assert left == sorted(left, reverse=True)
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
    assert repr(found) == f"Explanation({found.cause})"


# --- errors


def test_models_that_do_not_belong_together(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    result = qlib.quantize(model, weight=FINE, progress=False)
    with pytest.raises(qlib.ModelError, match="a float Moonshine and a quantized Whisper"):
        qlib.explain(tiny_moonshine(), result, clips)
    with pytest.raises(qlib.ModelError, match=r"conv1 is \[24, 80, 3\] in the float model and \[16, 80, 3\]"):
        qlib.explain(tiny_whisper(width=24, frames=100), result, clips)
    with pytest.raises(qlib.ModelError, match=r"layers\.2\.\S+ is \[16, 16\] in the float model and missing"):
        qlib.explain(tiny_whisper(layers=3, frames=100), result, clips)


def test_what_is_not_quantized_or_given_the_wrong_way_round(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    result = qlib.quantize(model, weight=FINE, progress=False)
    with pytest.raises(qlib.QuantError, match="no layer of the second model, a Whisper, is quantized"):
        qlib.explain(model, copy.deepcopy(model), clips)
    with pytest.raises(qlib.QuantError, match=r"first model is quantized .* Pass the float model first"):
        qlib.explain(result.model, model, clips)
    with pytest.raises(qlib.ModelError, match="packed"):
        qlib.explain(tiny_whisper(frames=100).pack(), result, clips)
    with pytest.raises(qlib.ModelError, match=r"a Llama is a text model.*qlib\.sensitivity"):
        qlib.explain(tiny_llama(), result, clips)


def test_clips_without_transcripts(clips: list[qlib.Utterance]) -> None:
    model = tiny_whisper(frames=100)
    result = qlib.quantize(model, weight=FINE, progress=False)
    silent = qlib.Utterance(clips[0].audio, None, where="list.jsonl, line 3")
    with pytest.raises(qlib.DataError, match="line 3: no transcript"):
        qlib.explain(model, result, [clips[1], silent])
    with pytest.raises(qlib.DataError):
        qlib.explain(model, result, [])


def test_heads_are_known() -> None:
    assert head_of(tiny_whisper()) == "proj_out"
