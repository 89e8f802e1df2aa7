"""The token table: embedding and head from the same codes, rounded where a pattern of `weight` names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_fixtures import utterances
from storage_cases import TEXTS, print_of
from torch import Tensor, nn

import qlib
from draftlib import SpeculativeDecoder
from qlib.asr.calibration import speech_batches
from qlib.asr.datasets import Utterance
from qlib.calibrate import walk_blocks
from qlib.errors import ModelError, QuantError
from qlib.linear import FakeQuantEmbedding, FakeQuantLinear
from qlib.methods.contracts import Needs
from qlib.methods.gptq import gptq
from qlib.methods.rtn import rtn
from qlib.models.disk.hashes import sealed, sha256_of
from qlib.models.quantized_linear import TiedEmbedding
from qlib.models.speech import SpeechModel
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.models.text_structure import TextBatch
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper
from qlib.quantize_block import BlockQuantizer
from qlib.text import text_batches

GRID, COARSE = qlib.Grid(4, 8), qlib.Grid(3, 8)
TIED: dict[str, Callable[[], Model]] = {
    "whisper": lambda: tiny_whisper(2, frames=20, layers=1),
    "moonshine": lambda: tiny_moonshine(2, layers=1),
    "llama": lambda: tiny_llama(2),
    "gemma3": lambda: tiny_gemma3(2),
}
FAMILIES: dict[str, Callable[[], Model]] = {
    **TIED,
    "untied llama": lambda: tiny_llama(2, tie_word_embeddings=False),
}
PAPERS = qlib.GPTQ(damping=0.01, act_order=False, fit="minmax")  # the settings of the function `gptq`


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return utterances(tmp_path_factory.mktemp("speech"))


def names(model: Model) -> tuple[str, str]:
    return model.token_layers.embedding, model.token_layers.head


def table_alone(model: Model, grid: qlib.Grid = GRID, **options: Any) -> qlib.Result:
    """Quantize embedding and head, and nothing else."""
    weight = dict.fromkeys(("*", *model.tables), grid)
    return qlib.quantize(model, weight=weight, skip=["layers"], progress=False, **options)


def both(text: TextModel | str, methods: Any, weight: Any = None, **options: Any) -> qlib.Result:
    """Quantize a text model, its table included."""
    model = FAMILIES[text]() if isinstance(text, str) else text
    weight = weight or {"*": GRID, "embed_tokens": GRID, "lm_head": GRID}
    return qlib.quantize(model, methods, weight=weight, calib=TEXTS, progress=False, **options)


@torch.no_grad()
def logits(model: Model) -> Tensor:
    tokens = torch.tensor([[1, 5, 9, 200, 7]])
    if isinstance(model, TextModel):
        return model(tokens)  # type: ignore[no-any-return]
    assert isinstance(model, SpeechModel)
    source = torch.Generator().manual_seed(0)
    sizes = (1, 80, 40) if model.family == "whisper" else (1, 4000)
    return model(torch.randn(sizes, generator=source), tokens)  # type: ignore[no-any-return]


def rounded_by_hand(model: Model, grid: qlib.Grid) -> Model:
    """The oracle: a float model whose table holds the rounded values."""
    model = copy.deepcopy(model)
    for name in model.tables:
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(rtn(weight.clone(), grid).decode())
    return model


# --- what is computed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_ends_compute_with_the_rounded_table(family: str, bits: int) -> None:
    model, grid = FAMILIES[family](), qlib.Grid(bits, 8)
    result = table_alone(model, grid)
    assert torch.equal(logits(result.model), logits(rounded_by_hand(model, grid)))
    assert not torch.equal(logits(result.model), logits(model))
    assert {layer.name for layer in result.report.layers} == set(model.tables)


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("end", [0, 1], ids=["embedding", "head"])
def test_a_tied_table_is_named_by_either_end(family: str, end: int) -> None:
    model = TIED[family]()
    pattern = names(model)[end].split(".")[-1]
    result = qlib.quantize(model, weight={"*": COARSE, pattern: GRID}, skip="layers", progress=False)
    assert print_of(result.model) == print_of(table_alone(model).model)
    assert not {*names(model)} & {name for name, _ in result.report.skipped}


@pytest.mark.parametrize("family", TIED)
def test_a_tied_table_is_one_tensor_whatever_is_done(family: str, tmp_path: Path) -> None:
    model = table_alone(TIED[family]()).model
    embedding, head = names(model)
    loaded = qlib.load_quantized(qlib.save_quantized(model, tmp_path / "saved"))
    for each in (model, copy.deepcopy(model), loaded, copy.deepcopy(model).double(), loaded.half()):
        end = each.get_submodule(head)
        rows = each.get_submodule(embedding)
        assert isinstance(rows, TiedEmbedding) and isinstance(end, FakeQuantLinear)
        assert rows.weight is end.weight
        assert not [name for name in each.state_dict() if name.startswith(embedding)]
    assert copy.deepcopy(model).get_submodule(head).codes is not model.get_submodule(head).codes


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_pattern_of_its_own_names_a_table(family: str) -> None:
    model = FAMILIES[family]()
    ends = {*model.tables, *names(model)}
    for weight in (GRID, {"*": GRID}):
        result = qlib.quantize(model, weight=weight, progress=False)
        assert ends <= {name for name, _ in result.report.skipped}
        for name in ends:
            assert torch.equal(*(m.get_submodule(name).weight for m in (result.model, model)))
    named = dict.fromkeys(("*", *model.tables), GRID)
    for pattern in names(model) if model.tied else ():  # skip wins, by either name as well
        skipped = dict(qlib.quantize(model, weight=named, skip=pattern, progress=False).report.skipped)
        assert skipped[names(model)[0]] in ("skipped as asked", "token table, which weight does not name")


def test_order_does_not_matter_between_a_table_and_the_others() -> None:
    first, last = (both("llama", [], dict(pairs)) for pairs in (
        [("*", GRID), ("lm_head", COARSE)], [("lm_head", COARSE), ("*", GRID)],
    ))  # fmt: skip
    assert print_of(first.model) == print_of(last.model)


# --- how it is rounded


@torch.no_grad()
def head_inputs(model: Model, recordings: list[Utterance]) -> Tensor:
    """What the head of a model reads of the calibration data, position by position, padding excluded."""
    seen: list[Tensor] = []
    handle = model.get_submodule(names(model)[1]).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    rows = []
    for batch in (
        text_batches(model, TEXTS) if isinstance(model, TextModel) else speech_batches(model, recordings)  # type: ignore[arg-type]
    ):
        text = isinstance(model, TextModel)
        model(batch.tokens) if text else model(batch.features, batch.tokens)  # type: ignore[union-attr]
        rows.append(seen.pop()[batch.mask if text else batch.token_mask])  # type: ignore[union-attr]
    handle.remove()
    return torch.cat(rows)


SPEECH = {"whisper": lambda: tiny_whisper(2, layers=1), "moonshine": lambda: tiny_moonshine(2, layers=1)}


@pytest.mark.parametrize("family", [*SPEECH, "llama", "gemma3", "untied llama"])
def test_gptq_of_the_head_sees_its_inputs_behind_quantized_blocks(
    family: str, recordings: list[Utterance]
) -> None:
    """The codes are those of GPTQ on what the quantized blocks write, embedded by the float table."""
    model = {**FAMILIES, **SPEECH}[family]()
    calib: Any = TEXTS if isinstance(model, TextModel) else recordings
    weight = dict.fromkeys(("*", *model.tables), COARSE)
    result = qlib.quantize(model, PAPERS, weight=weight, calib=calib, progress=False)
    head = names(model)[1]
    blocks = copy.deepcopy(model)  # quantized as the result, the table still in float
    for layer in result.report.layers:
        if layer.name not in model.tables:
            blocks.replace(layer.name, result.model.get_submodule(layer.name))
    rows = head_inputs(blocks, recordings).double()
    table = model.get_submodule(head).weight
    assert isinstance(table, Tensor)
    found, expected = result.model.get_submodule(head), gptq(table, rows.T @ rows, COARSE)
    assert isinstance(found, FakeQuantLinear)
    assert (found.codes == expected.codes).float().mean() > 0.999

    def error(values: Tensor) -> float:
        return float((rows @ (values - table).double().T).norm() / (rows @ table.double().T).norm())

    report = next(layer for layer in result.report.layers if layer.name == head)
    assert report.tokens == len(rows) and report.output_error == pytest.approx(error(found.weight), rel=1e-4)
    assert error(found.weight) < 0.9 * error(rtn(table, COARSE).decode())


def test_padding_is_no_input_of_the_head() -> None:
    model = tiny_llama(2)
    tokens = torch.tensor([[1, 5, 9, 200, 7, 0, 0]])
    batches = [TextBatch(tokens, tokens > 0)], [TextBatch(tokens[:, :5], tokens[:, :5] > 0)]
    padded, plain = ([*walk_blocks(model, each, tables=["lm_head"])][-1].collect(Needs.HESSIAN)["lm_head"]
                     for each in batches)  # fmt: skip
    assert padded.tokens == plain.tokens == 5
    torch.testing.assert_close(padded.hessian, plain.hessian)


@pytest.mark.parametrize("method", [qlib.GPTQ(), qlib.SpQR(), qlib.QUIK(columns=2)], ids=lambda m: m.name)
def test_an_embedding_of_its_own_is_rounded_to_nearest_and_says_so(method: Any) -> None:
    result = both("untied llama", [method], activation=qlib.PerTensor(8))
    model, (embedding, _) = FAMILIES["untied llama"](), names(result.model)
    layer = result.model.get_submodule(embedding)
    assert isinstance(layer, FakeQuantEmbedding)
    assert torch.equal(layer.codes, rtn(model.get_parameter(f"{embedding}.weight"), GRID).codes)
    report = next(layer for layer in result.report.layers if layer.name == embedding)
    assert report.notes == ("rounded to nearest: rows are looked up, not multiplied",)
    assert (report.method, report.activation, report.output_error) == ("rtn", "float", None)


def test_a_method_of_weights_alone_rounds_an_embedding_itself() -> None:
    result = both("untied llama", [qlib.HQQ()])
    report = next(layer for layer in result.report.layers if layer.name == "model.embed_tokens")
    assert report.method == "hqq" and not report.notes


@pytest.mark.parametrize("family", ["llama", "untied llama"])
@pytest.mark.parametrize(
    "method", [qlib.SmoothQuant(), qlib.AWQ(), qlib.OmniQuant(epochs=1)], ids=lambda m: m.name
)
def test_transformations_leave_tables_alone(family: str, method: Any) -> None:
    result, model = both(family, [method]), FAMILIES[family]()
    for name in model.tables:
        codes = result.model.get_submodule(name).codes
        assert torch.equal(codes, rtn(model.get_submodule(name).weight, GRID).codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", [qlib.PerToken(4), qlib.PerTensor(4)])
def test_the_input_of_the_head_is_rounded_and_that_of_the_embedding_is_not(activation: Any) -> None:
    model = TIED["llama"]()
    assert isinstance(model, TextModel)
    result = table_alone(model, activation=activation, calib=TEXTS).model
    by_hand, head = rounded_by_hand(model, GRID), result.get_submodule("lm_head")
    assert isinstance(by_hand, TextModel) and isinstance(head, FakeQuantLinear) and head.activation
    hidden = by_hand.decode(torch.tensor([[1, 5, 9, 200, 7]]))
    assert torch.equal(logits(result), by_hand.logits(head.activation(hidden)))
    assert not torch.equal(logits(result), by_hand.logits(hidden))


# --- what is refused


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: both("llama", [], {"*": GRID, "embed_tokens": COARSE, "lm_head": GRID}),
            r"w4 g8 asymmetric to lm_head and w3 g8 asymmetric to model\.embed_tokens.*one table.*same grid",
        ),
        (
            lambda: qlib.quantize(tiny_whisper(), weight={"decoder": GRID, "*": GRID, "proj_out": COARSE}),
            r"w3 g8 asymmetric to proj_out and w4 g8 asymmetric to model\.decoder\.embed_tokens",
        ),
        (lambda: both("llama", [], {"*": GRID, "lm_haed": GRID}), r"no token table.*mean 'lm_head'"),
        (lambda: both("llama", [], {"*": GRID, "lm_head": qlib.Grid(4, 32)}), r"group=32 .* of lm_head"),
        (
            lambda: both("llama", [qlib.HQQ()], {"*": GRID, "lm_head": qlib.Grid(4, 8, symmetric=True)}),
            r"HQQ moves zero points",
        ),
        (lambda: qlib.quantize(table_alone(tiny_llama()).model, weight=GRID), r"quantized already: lm_head"),
    ],
)
def test_what_cannot_be_done(run: Callable[[], object], message: str) -> None:
    with pytest.raises(QuantError, match=message):
        run()


def test_a_table_with_nan_is_refused() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    model.get_parameter("model.embed_tokens.weight")[3, 1] = torch.nan
    assert both(model, [], GRID).report.layers
    with pytest.raises(QuantError, match=r"model\.embed_tokens: .*NaN"):
        both(model, [])


def test_two_grids_are_fine_where_there_are_two_tables() -> None:
    result = both("untied llama", [], {"*": GRID, "embed_tokens": COARSE, "lm_head": qlib.Grid(8)})
    grids = {layer.name: layer.grid for layer in result.report.layers}
    assert grids["model.embed_tokens"] == str(COARSE) and grids["lm_head"] == str(qlib.Grid(8))


# --- on disk


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [3, 8])
def test_a_checkpoint_holds_each_table_once_and_gives_it_back(family: str, bits: int, tmp_path: Path) -> None:
    result = table_alone(FAMILIES[family](), qlib.Grid(bits, 8), activation=qlib.PerToken(8))
    folder = result.save(tmp_path / "saved")
    again = qlib.load_quantized(folder)
    assert print_of(again) == print_of(result.model)
    assert torch.equal(logits(again), logits(result.model))
    stored = load_file(folder / "model.safetensors")
    rows, columns = result.model.get_submodule(names(again)[1]).codes.shape
    tables = [name for name, value in stored.items() if value.numel() >= rows * columns * bits // 8
              and name.startswith(tuple(names(again)))]  # fmt: skip
    assert sorted(tables) == sorted(f"{name}.codes" for name in again.tables)
    assert all(stored[name].nbytes == rows * columns * bits / 8 for name in tables)


@pytest.mark.parametrize(
    ("family", "start", "name", "message"),
    [
        ("llama", "lm_head", "model.embed_tokens", r"no table of its own there"),
        ("llama", "lm_head", "model.norm", r"a RMSNorm, neither a linear layer nor an embedding"),
        ("whisper", "proj_out", "model.decoder.embed_positions", r"no table of its own there"),
        ("untied llama", "lm_head", "model.embed_tokens", r"reads whole numbers: check activation"),
    ],
)
def test_an_entry_in_a_place_that_holds_no_such_table(
    family: str, start: str, name: str, message: str, tmp_path: Path
) -> None:
    """A head's entry and tensors under another name; the hashes are right."""
    result = table_alone(FAMILIES[family](), activation=qlib.PerToken(8))
    folder = result.save(tmp_path / "saved")
    weights, path = folder / "model.safetensors", folder / "manifest.json"
    tensors = {key.replace(start, name): value for key, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    manifest = json.loads(path.read_text())
    manifest["files"][weights.name] = sha256_of(weights)
    manifest["layers"] = {name: manifest["layers"][start]}
    path.write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ModelError, match=rf"do not give the layer {name}: .*{message}"):
        qlib.load_quantized(folder)


@pytest.mark.parametrize("family", ["llama", "untied llama"])
def test_a_killed_run_goes_on_at_the_table(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"methods": qlib.GPTQ(), "activation": qlib.PerTensor(8)}
    whole = both(family, **options, work=tmp_path / "other")
    quantize, asked = BlockQuantizer.quantize, []

    def interrupted(self: BlockQuantizer, visit: Any) -> Any:
        asked.append(visit.name)
        if len(asked) == 3:  # the head, behind two blocks
            raise KeyboardInterrupt
        return quantize(self, visit)

    monkeypatch.setattr(BlockQuantizer, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        both(family, **options, work=tmp_path / "work")
    for _ in range(2):  # the second time, all is finished
        assert print_of(both(family, **options, work=tmp_path / "work").model) == print_of(whole.model)
    assert asked == ["model.layers.0", "model.layers.1", "lm_head", *whole.model.tables]


# --- in use


@pytest.mark.parametrize("family", ["llama", "gemma3", "untied llama"])
def test_packed_copies_compute_the_same(family: str) -> None:
    model = both(family, []).model
    assert isinstance(model, TextModel)
    packed = model.packed_copy()
    torch.testing.assert_close(logits(packed), logits(model), rtol=1e-4, atol=1e-4)
    assert packed.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("activation", [None, qlib.PerToken(2)])
@pytest.mark.parametrize("family", SPEECH)
def test_speech_is_transcribed_alike_packed_or_not(
    family: str, activation: Any, recordings: list[Utterance]
) -> None:
    model = SPEECH[family]()
    quantized = table_alone(model, qlib.Grid(8), activation=activation).model
    assert isinstance(quantized, SpeechModel)
    texts = [each.tokens for each in qlib.transcribe(quantized, recordings)]
    by_hand = rounded_by_hand(model, qlib.Grid(8))
    same = texts == [each.tokens for each in qlib.transcribe(by_hand, recordings)]
    assert same == (activation is None)
    assert texts == [each.tokens for each in qlib.transcribe(quantized.pack(), recordings)]
    assert any(texts)


def test_drafting_with_quantized_tables_writes_the_targets_text() -> None:
    target, draft = both(tiny_llama(3), []).model, both(tiny_llama(4), []).model
    decoder = SpeculativeDecoder(target, draft)  # type: ignore[arg-type]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1, "raw": True}
    out = decoder.generate("the cat", **options)
    assert out.tokens == decoder.generate_target_only("the cat", **options).tokens and len(out.tokens)


# --- before anything runs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_is_done(family: str) -> None:
    model = FAMILIES[family]()
    weight = {"*": GRID, "embed_tokens": COARSE, "q_proj": qlib.Grid(8)}
    skip = ["fc2"] if model.family == "whisper" else []
    plan = qlib.layers(model, skip, weight)
    report = qlib.quantize(model, weight=weight, skip=skip, progress=False).report
    planned = {(each.name, str(each.grid)) for each in plan if each.grid}
    assert planned == {(each.name, each.grid) for each in report.layers}
    assert {(each.name, each.skipped) for each in plan if not each.grid} | set(plan.others) == set(
        report.skipped
    )


def test_the_plan_as_text() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    lines = str(qlib.layers(model, skip="mlp", weight={"*": GRID, "lm_head": qlib.Grid(8)})).splitlines()
    assert lines[0].startswith("9 of 16 layers will be quantized: ")
    assert lines[1].split()[-1] == "grid"
    assert lines[2].endswith("w4 g8 asymmetric") and lines[6].endswith("float: skipped as asked")
    assert lines[-2].endswith("w8 per channel asymmetric")
    assert lines[-1].endswith("float: token table, which weight does not name")
    with pytest.raises(QuantError, match=r"no grid to 14 of 15 layers"):
        qlib.layers(model, weight={"lm_head": GRID})
    with pytest.raises(QuantError, match=r"group=32 .* of lm_head"):
        qlib.layers(model, weight={"*": GRID, "lm_head": qlib.Grid(4, 32)})


def test_a_float_table_is_still_an_embedding() -> None:
    result = both("untied llama", [], {"*": GRID, "lm_head": GRID})
    assert isinstance(result.model.get_submodule("model.embed_tokens"), nn.Embedding)
    assert dict(result.report.skipped)["model.embed_tokens"] == "token table, which weight does not name"
