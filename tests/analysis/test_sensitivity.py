"""Sensitivity: each measure against its slow form, what must not change, and the errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import utterances
from torch import Tensor, nn

import qlib
from qlib.analysis import fisher
from qlib.analysis.fisher import drawn_gradients, second_order_kl
from qlib.analysis.heat_map import draw, shaded
from qlib.analysis.parts import HEAD, group_name, head_of, parts_of
from qlib.analysis.passes import first_visit, kl_divergence, last_hidden, mean_kl, replaced
from qlib.methods.rtn import rtn
from qlib.models.structure import Model
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper
from qlib.request import batches_of

GRIDS = [qlib.Grid(3, 8), qlib.Grid(2, 8)]
TEXTS = ["the cat sat", "a heath, at the heart"]
MODELS: dict[str, Callable[[], Model]] = {
    "whisper": lambda: tiny_whisper(frames=100),
    "moonshine": lambda: tiny_moonshine(),
    "llama": lambda: tiny_llama(),
    "gemma": lambda: tiny_gemma3(),
    "untied": lambda: tiny_llama(tie_word_embeddings=False),
}
every_family = pytest.mark.parametrize("family", MODELS)


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], list[Any]]:
    return lambda family: (
        utterances(tmp_path, (0.5, 0.4, 0.3, 0.4))[:2] if family in ("whisper", "moonshine") else TEXTS
    )


def logits_of(model: Model, batch: Any) -> Tensor:
    """Every token's logits by the model's own forward: no text of these has padding."""
    if hasattr(batch, "features"):
        return model(batch.features, batch.tokens)[0]
    return model(batch.tokens)[0]


@torch.no_grad()
def slow_kl(model: Model, changed: Model, batches: list[Any]) -> float:
    found = [kl_divergence(logits_of(model, each), logits_of(changed, each)) for each in batches]
    return float(torch.cat(found).mean())


# --- KL


def test_kl_of_a_worked_example() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(p.log() + 3, q.log() - 5).item() == pytest.approx(expected)


@every_family
def test_kl_is_that_of_whole_passes(family: str, data: Callable[[str], list[Any]]) -> None:
    model, listed = MODELS[family](), data(family)
    found = qlib.sensitivity(model, GRIDS, listed, progress=False)
    batches = batches_of(model, listed)
    assert list(found.losses) == list(qlib.layers(model).names)
    for name in list(found.losses)[::3]:
        for grid in GRIDS:
            changed = copy.deepcopy(model)
            linear = changed.get_submodule(name)
            linear.weight = nn.Parameter(rtn(linear.weight, grid).decode())  # type: ignore[arg-type]
            expected = slow_kl(model, changed, batches)
            assert found.losses[name][grid] == pytest.approx(expected, rel=1e-3, abs=1e-8)
            assert expected > 0


@every_family
def test_a_rounded_head_rounds_the_embedding_it_shares(family: str, data: Callable[[str], list[Any]]) -> None:
    model, listed = MODELS[family](), data(family)
    found = qlib.sensitivity(model, GRIDS[1], listed, parts="components", progress=False)
    changed = copy.deepcopy(model)
    head = changed.get_submodule(head_of(model))
    head.weight.data.copy_(rtn(head.weight, GRIDS[1]).decode())  # type: ignore[union-attr,arg-type,operator]
    expected = slow_kl(model, changed, batches_of(model, listed))
    assert found.losses[HEAD][GRIDS[1]] == pytest.approx(expected, rel=1e-3)


def test_a_component_is_rounded_as_a_whole(data: Callable[[str], list[Any]]) -> None:
    model, listed = MODELS["whisper"](), data("whisper")
    found = qlib.sensitivity(model, GRIDS[1], listed, parts="components", progress=False)
    for part in ("encoder", "decoder cross-attention"):
        changed = copy.deepcopy(model)
        for name in found.members[part]:
            linear = changed.get_submodule(name)
            linear.weight.data.copy_(rtn(linear.weight, GRIDS[1]).decode())  # type: ignore[union-attr,arg-type,operator]
        expected = slow_kl(model, changed, batches_of(model, listed))
        assert found.losses[part][GRIDS[1]] == pytest.approx(expected, rel=1e-3)


# --- the other measures


def test_output_error_is_that_of_the_layers_own_input() -> None:
    model = tiny_llama()
    found = qlib.sensitivity(model, GRIDS, TEXTS, measure="output", progress=False)
    seen: dict[str, list[Tensor]] = {}
    for name in found.losses:
        keep = seen.setdefault(name, [])
        model.get_submodule(name).register_forward_pre_hook(lambda m, x, keep=keep: keep.append(x[0][0]))  # type: ignore[misc]
    for batch in batches_of(model, TEXTS):
        model(batch.tokens)
    for name, rows in seen.items():
        X, W = torch.cat(rows).double(), model.get_submodule(name).weight.double()  # type: ignore[operator,union-attr]
        for grid in GRIDS:
            E = W - rtn(W.float(), grid).decode().double()  # type: ignore[union-attr]
            expected = float((X @ E.T).norm() / (X @ W.T).norm())
            assert found.losses[name][grid] == pytest.approx(expected, rel=1e-4)


def test_second_order_of_a_worked_example() -> None:
    gradients = [({"a": torch.tensor([[1.0, 2.0]])}, 3), ({"a": torch.tensor([[0.0, 1.0]])}, 1)]
    moves = [{"a": torch.tensor([[1.0, 1.0]])}, {"a": torch.tensor([[2.0, -1.0]])}]
    # (1 + 2)^2 + 1^2 = 10 over 4 tokens; (2 - 2)^2 + (-1)^2 = 1
    assert second_order_kl(gradients, moves) == [10 / 8, 1 / 8]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj", "lm_head"])
def test_the_estimate_is_the_kl_where_that_is_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "DRAWS", 200)
    model, grid = tiny_llama(), qlib.Grid(6, 8)
    batches = batches_of(model, TEXTS)
    linear = model.get_submodule(name)
    values = rtn(linear.weight, grid).decode()  # type: ignore[arg-type]
    E = values - linear.weight  # type: ignore[operator]
    (estimate,) = second_order_kl(drawn_gradients(model, [name], batches, 0), [{name: E}])
    changed = copy.deepcopy(model)
    changed.get_submodule(name).weight.data.copy_(values)  # type: ignore[union-attr,operator]
    assert estimate == pytest.approx(slow_kl(model, changed, batches), rel=0.3)


def test_wer_is_the_change_of_the_wer(data: Callable[[str], list[Any]]) -> None:
    model, listed = tiny_moonshine(), data("moonshine")
    found = qlib.sensitivity(model, GRIDS[1], listed, parts="components", measure="wer", progress=False)
    changed = copy.deepcopy(model)
    for name in found.members["decoder self-attention"]:
        linear = changed.get_submodule(name)
        linear.weight.data.copy_(rtn(linear.weight, GRIDS[1]).decode())  # type: ignore[union-attr,arg-type,operator]
    before, after = (qlib.evaluate_wer(each, listed, progress=False).wer for each in (model, changed))
    assert found.losses["decoder self-attention"][GRIDS[1]] == pytest.approx(after - before)


# --- what must not change


@pytest.mark.parametrize("measure", ["kl", "output", "fisher", "wer"])
def test_the_model_is_not_touched(measure: Any, data: Callable[[str], list[Any]]) -> None:
    model = tiny_whisper(frames=100)
    modules, values = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    qlib.sensitivity(model, GRIDS[1], data("whisper"), parts="components", measure=measure, progress=False)
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())


def test_replaced_modules_come_back_after_an_error() -> None:
    model = tiny_llama()
    before = model.get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(RuntimeError), replaced(model, {"model.layers.0.mlp.up_proj": nn.Identity()}):
        raise RuntimeError
    assert model.get_submodule("model.layers.0.mlp.up_proj") is before


def test_seed_decides_the_draws() -> None:
    def run(seed: int) -> Any:
        return qlib.sensitivity(
            tiny_llama(), GRIDS, TEXTS, measure="fisher", seed=seed, progress=False
        ).losses

    assert run(0) == run(0) != run(1)


def test_a_better_method_gives_smaller_output_errors() -> None:
    found = [
        qlib.sensitivity(tiny_llama(), GRIDS, TEXTS * 8, measure="output", method=m, progress=False).losses
        for m in (qlib.RTN(), qlib.GPTQ())
    ]
    assert all(found[1][name][grid] < found[0][name][grid] for name in found[0] for grid in GRIDS)


def test_unchanged_models_do_not_diverge(data: Callable[[str], list[Any]]) -> None:
    model = tiny_moonshine()
    batches = batches_of(model, data("moonshine"))
    passes = [last_hidden(first_visit(model, batches)) for _ in range(2)]
    assert mean_kl(*passes, model.finish, model.finish) == 0


# --- parts and pictures


@every_family
@pytest.mark.parametrize("parts", ["layers", "groups", "components"])
def test_parts_hold_each_layer_once(family: str, parts: Any) -> None:
    model = MODELS[family]()
    names = qlib.layers(model).names
    found = [name for part in parts_of(model, names, parts).values() for name in part]
    assert sorted(found) == sorted(names)


def test_components_of_whisper() -> None:
    model = tiny_whisper()
    found = parts_of(model, qlib.layers(model).names, "components")
    assert {part: len(layers) for part, layers in found.items()} == {
        "encoder": 12,
        "decoder cross-attention": 8,
        "decoder self-attention": 8,
        "decoder feed-forward": 4,
    }


def test_names_of_groups() -> None:
    assert group_name(["a.0.q", "a.0.k"]) == "a.0.q+k"
    assert group_name(["a.0.k", "a.0.v", "a.1.k", "a.1.v"]) == "a.*.k+v"
    assert group_name(["lm_head"]) == "lm_head"


def test_map_of_characters() -> None:
    losses = {"model.layers.0.fc1": 1.0, "model.layers.0.fc2": 1e-9, "model.layers.1.fc2": 0.1}
    rows = shaded(losses).splitlines()
    assert rows[1:3] == ["layers.0  @@", "layers.1      ##"]
    assert rows[3].startswith("1 fc1, 2 fc2")


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_picture_is_written(tmp_path: Path, ending: str) -> None:
    found = qlib.sensitivity(tiny_llama(), GRIDS, TEXTS, measure="output", progress=False)
    assert found.draw(GRIDS[0], tmp_path / f"map{ending}").stat().st_size > 1000


def test_the_report_names_the_worst_and_shows_all() -> None:
    found = qlib.sensitivity(tiny_llama(), GRIDS, TEXTS, progress=False)
    text, worst = str(found), found.worst(GRIDS[1], 1)[0]
    assert text.startswith("14 layers, each rounded alone by rtn: KL, nats per token")
    assert text.splitlines()[2].startswith(worst)
    assert found.losses[worst][GRIDS[1]] == max(each[GRIDS[1]] for each in found.losses.values())
    assert len(found.table().splitlines()) == 15


# --- errors


BAD: list[tuple[dict[str, Any], str]] = [
    ({"grids": []}, "grids is a list of 0"),
    ({"grids": 3}, "grids is the int 3"),
    ({"grids": [4]}, "Did you mean Grid"),
    ({"grids": [qlib.Grid(4, 640)]}, "group=640 is larger"),
    ({"data": []}, "data is empty"),
    ({"data": "the cat"}, "one entry and not a list"),
    ({"parts": "group"}, "Did you mean 'groups'"),
    ({"measure": "kld"}, "Use 'kl', 'output', 'wer', 'fisher'"),
    ({"measure": "wer"}, "A text model has no WER"),
    ({"method": qlib.SmoothQuant()}, "rounds no layers"),
    ({"seed": -1}, "seed=-1"),
    ({"model": "whisper-tiny.en"}, "Load it first"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_mistakes(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"model": tiny_llama(), "grids": GRIDS, "data": TEXTS, "progress": False} | change
    with pytest.raises(qlib.QlibError, match=words.replace("(", r"\(")):
        qlib.sensitivity(given.pop("model"), given.pop("grids"), given.pop("data"), **given)


def test_a_wer_needs_transcripts(tmp_path: Path) -> None:
    (clip,) = utterances(tmp_path)[:1]
    silent = qlib.Utterance(clip.audio, None, where="list.jsonl, line 7")
    with pytest.raises(qlib.DataError, match="line 7: no transcript"):
        qlib.sensitivity(tiny_whisper(), GRIDS, [silent], measure="wer", progress=False)


def test_a_grid_that_was_not_measured_and_an_ending_that_is_no_picture(tmp_path: Path) -> None:
    found = qlib.sensitivity(tiny_llama(), GRIDS, TEXTS, measure="output", progress=False)
    with pytest.raises(qlib.QuantError, match="w8 per channel asymmetric was not measured"):
        found.shading(qlib.Grid(8))
    with pytest.raises(qlib.QuantError, match=r"'\.txt' is no picture"):
        draw({"a": 1.0}, "", "", tmp_path / "map.txt")


def test_a_method_that_fails_names_the_layer() -> None:
    with pytest.raises(qlib.QuantError, match=r"model\.layers\.0\..* on w3 g8"):
        qlib.sensitivity(tiny_llama(), GRIDS, TEXTS[:1], method=qlib.GPTQ(damping=0.0), progress=False)
