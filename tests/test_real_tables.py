"""Real checkpoints whose token table is quantized as well: size, words, drafting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import draftlib
import qlib
from qlib.asr.wer import score
from qlib.calibrate import walk_blocks
from qlib.checkpoint import folder_bytes
from qlib.methods.contracts import Needs
from qlib.models.hub.load import load_model
from qlib.models.text import TextModel
from qlib.report import output_error
from qlib.text import text_batches

pytestmark = pytest.mark.weights
GRID = qlib.Grid(4, 64)


@pytest.fixture(scope="module")
def clips() -> list[qlib.Utterance]:
    return qlib.read_manifest(Path(__file__).parents[1] / "examples/data/speech/manifest.jsonl")[:6]


@pytest.mark.parametrize(("name", "megabytes"), [("whisper-tiny.en", 24), ("moonshine-tiny", 18.5)])
def test_a_small_file_hears_the_words(
    name: str,
    megabytes: float,
    clips: list[qlib.Utterance],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """All tables and linear layers rounded to nearest, what stays in float in 16 bits."""
    model = load_model(checkpoint(name)).half().float()
    heard = [each.text for each in qlib.transcribe(model, clips)]
    fine = qlib.quantize(model, weight=dict.fromkeys(("*", "proj_out"), qlib.Grid(8, 64)), progress=False)
    assert score(heard, [each.text for each in qlib.transcribe(fine.model, clips)]).wer < 5
    small = qlib.quantize(model, weight={"*": GRID, "proj_out": GRID}, progress=False)
    folder = small.save(tmp_path / "w4")
    assert folder_bytes(folder) < megabytes * 1e6
    assert score(heard, [each.text for each in qlib.transcribe(qlib.load_quantized(folder), clips)]).wer < 40


def test_gptq_of_a_real_head_is_nearer_than_rounding(checkpoint: Callable[[str], Path]) -> None:
    """The error is measured at the scores, over the hidden states that calibration saw."""
    model = load_model(checkpoint("smollm2-135m-instruct"))
    texts = ["Gravity pulls every mass towards every other one.", "The village lies between two hills."] * 4
    grid = qlib.Grid(3, 64)
    assert isinstance(model, TextModel)
    *_, visit = walk_blocks(model, text_batches(model, texts), tables=["lm_head"])
    stats = visit.collect(Needs.HESSIAN)["lm_head"]
    weight = model.get_parameter("lm_head.weight")
    assert stats.hessian is not None
    nearest, better = (
        output_error(weight, method.quantize_layer(weight, stats, grid).decode(), stats.hessian)
        for method in (qlib.RTN(), qlib.GPTQ())
    )
    assert better < 0.7 * nearest


def test_a_target_with_a_quantized_table_is_drafted_for(checkpoint: Callable[[str], Path]) -> None:
    target = load_model(checkpoint("smollm2-135m-instruct"))
    draft = load_model(Path(__file__).parents[1] / "examples" / "models" / "drafter-7m")
    grid = {"*": qlib.Grid(8, 64), "lm_head": qlib.Grid(8, 64)}
    pair = [qlib.quantize(model, weight=grid, progress=False).model for model in (target, draft)]
    decoder = draftlib.SpeculativeDecoder(*pair)  # type: ignore[arg-type]
    out = decoder.generate("What is gravity?", max_new_tokens=24, temperature=0.0)
    assert out.tokens == decoder.generate_target_only("What is gravity?", max_new_tokens=24).tokens
    assert "ravity" in out.text
