"""Text models through the pipeline: every method, folds of grouped-query attention, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_families import pieces, with_start
from tokenizers import Tokenizer as RawTokenizer
from torch import Tensor

import qlib
from qlib.errors import DataError, ModelError
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_llama, tiny_whisper
from qlib.models.tokenizer import Tokenizer
from qlib.text import LENGTH, text_batches

TEXTS = ["the heart of the matter", "at a heath", "the cat sat at the hat", "a tea"]
CHAINS: list[list[Any]] = [
    [qlib.GPTQ()],
    [qlib.SmoothQuant()],
    [qlib.AWQ()],
    [qlib.OmniQuant(epochs=2)],
    [qlib.SpQR()],
    [qlib.QUIK()],
    [qlib.AWQ(), qlib.GPTQ()],
]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch.tokens)[0] for batch in text_batches(tiny_llama(seed=1), TEXTS)])


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " + ".join(m.name for m in chain))
def test_quantizes_a_llama_saves_and_loads(chain: list[Any], tmp_path: Path) -> None:
    model = tiny_llama(seed=1)
    result = qlib.quantize(
        model, chain, weight=qlib.Grid(4, 8), activation=qlib.PerToken(8), calib=TEXTS, progress=False
    )
    reference = logits(model)
    assert float((logits(result.model) - reference).norm() / reference.norm()) < 0.4
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(result.model))
    if tiny_llama(seed=1).tied:
        assert ("lm_head", "shares its weight with the token embedding") in result.report.skipped


def test_texts_are_cut_and_named() -> None:
    model = tiny_llama()
    (batch,) = text_batches(model, ["a" * 10_000])
    assert batch.tokens.shape == (1, LENGTH) == batch.mask.shape
    assert text_batches(model, TEXTS)[1].where == "text 2"


def test_texts_are_read_with_their_start_token_as_in_use() -> None:
    model = tiny_llama()
    model.tokenizer = Tokenizer(RawTokenizer.from_str(json.dumps(with_start(pieces(), "<s>"))))
    (start,) = model.tokenizer.start
    short, long = text_batches(model, ["a tea", "a" * 10_000])
    assert short.tokens.tolist() == [[start, *model.tokenizer.encode("a tea")]]
    assert long.tokens.shape == (1, LENGTH) and int(long.tokens[0, 0]) == start
    with pytest.raises(DataError, match="text 1 of 1 is empty"):
        text_batches(model, [""])
    with pytest.raises(ModelError, match="is the int 3, not a str"):
        text_batches(model, [3])  # type: ignore[list-item]


def test_refusals() -> None:
    model = tiny_llama()
    with pytest.raises(DataError, match="calibration list is empty"):
        text_batches(model, [])
    with pytest.raises(DataError, match="text 2 of 3 is empty"):
        text_batches(model, ["a", "", "b"])
    with pytest.raises(DataError, match="calibrated with recordings"):
        qlib.quantize(tiny_whisper(), [qlib.GPTQ()], weight=qlib.Grid(4, 8), calib=TEXTS, progress=False)
    with pytest.raises(DataError, match="calibrated with texts"):
        speech = [qlib.Utterance(Path("a.wav"), "a", "a")]
        qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(4, 8), calib=speech, progress=False)
    model.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        text_batches(model, TEXTS)
    assert isinstance(model, TextModel)
