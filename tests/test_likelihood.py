"""Perplexity: a loop in float64, transformers' loss, windows, intervals, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_families import with_start
from tokenizers import Tokenizer as RawTokenizer

import qlib
from qlib.errors import DataError, ModelError
from qlib.likelihood import perplexity, perplexity_ratio, windows
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_whisper
from qlib.models.tokenizer import Tokenizer

TEXTS = ["the heart of the matter", "at a heath", "the cat sat at the hat"]


def by_loop(model: TextModel, texts: list[str]) -> tuple[float, int]:
    """Return the mean -log p over all tokens, token by token, each from a pass of its own."""
    assert model.tokenizer is not None
    total, count = 0.0, 0
    for text in texts:
        tokens = model.tokenizer.encode(text, special=True)
        for i in range(1, len(tokens)):
            with torch.no_grad():
                logits = model(torch.tensor([tokens[:i]]))[0, -1]
            total -= math.log(float(logits.exp()[tokens[i]] / logits.exp().sum()))
            count += 1
    return total / count, count


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3], ids=["llama", "gemma3"])
def test_equals_a_loop_in_float64(make: Callable[..., TextModel]) -> None:
    model = make(seed=1).double()
    expected, count = by_loop(model, TEXTS)
    found = perplexity(model, TEXTS, progress=False)
    assert found.nll == pytest.approx(expected, abs=1e-12)
    assert found.value == pytest.approx(math.exp(expected), rel=1e-12)
    assert found.tokens == count == sum(found.text_tokens)
    assert math.fsum(found.text_nll) / count == pytest.approx(expected, abs=1e-12)
    assert found.texts == 3 == len(found.text_nll)


def test_a_model_that_knows_nothing_is_as_surprised_as_a_die() -> None:
    model = tiny_llama()
    for parameter in model.parameters():
        parameter.data.zero_()
    found = perplexity(model, TEXTS, progress=False)
    assert found.value == pytest.approx(model.config.vocab_size, rel=1e-5)
    assert found.interval == pytest.approx((found.value, found.value), rel=1e-5)


def test_the_start_token_is_read_and_not_predicted() -> None:
    model = tiny_llama()
    without = perplexity(model, ["a tea"], progress=False)
    assert model.tokenizer is not None
    table = json.loads(model.tokenizer._backend.to_str())
    start = table["added_tokens"][0]["content"]
    model.tokenizer = Tokenizer(RawTokenizer.from_str(json.dumps(with_start(table, start))))
    with_it = perplexity(model, ["a tea"], progress=False)
    assert with_it.tokens == len(model.tokenizer.encode("a tea"))
    assert without.tokens == len(tiny_llama().tokenizer.encode("a tea")) - 1  # type: ignore[union-attr]


@given(st.integers(2, 40), st.integers(2, 12))
def test_windows_predict_each_token_once(count: int, length: int) -> None:
    tokens = list(range(count))
    found = list(windows(tokens, length))
    assert [token for window in found for token in window[1:]] == tokens[1:]
    assert all(2 <= len(window) <= length for window in found)


def test_a_long_text_is_cut_and_its_rows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(seed=1).double()
    assert model.tokenizer is not None
    whole = perplexity(model, TEXTS, progress=False)
    monkeypatch.setattr("qlib.likelihood.ROWS", 3)
    assert perplexity(model, TEXTS, progress=False).nll == pytest.approx(whole.nll, abs=1e-12)
    cut = perplexity(model, TEXTS, context=4, progress=False)
    assert cut.tokens == whole.tokens and cut.context == 4 != whole.context
    tokens = model.tokenizer.encode(TEXTS[0])
    expected = 0.0
    for start in range(0, len(tokens) - 1, 3):
        window = torch.tensor([tokens[start : start + 4]])
        with torch.no_grad():
            rows = model(window)[0, :-1].log_softmax(-1)
        expected -= float(rows.gather(1, window[0, 1:, None]).sum())
    assert cut.text_nll[0] == pytest.approx(expected, abs=1e-10)


def test_the_interval_holds_the_value_and_depends_on_the_seed() -> None:
    model = tiny_llama(seed=1)
    texts = [f"{text} {other}" for text in TEXTS for other in TEXTS]
    found = [perplexity(model, texts, seed=seed, progress=False) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].interval != found[2].interval and found[0].value == found[2].value
    low, high = found[0].interval
    assert low < found[0].value < high
    assert str(found[0]).startswith(f"perplexity {found[0].value:.2f} [{low:.2f}, {high:.2f}], ")


def test_quantized_and_packed_models_are_measured() -> None:
    model = tiny_llama(seed=1)
    rounded = qlib.quantize(model, weight=qlib.Grid(8, 8), progress=False).model
    assert isinstance(rounded, TextModel)
    value = perplexity(model, TEXTS, progress=False).value
    assert perplexity(rounded, TEXTS, progress=False).value == pytest.approx(value, rel=0.02)
    assert perplexity(model.packed_copy(), TEXTS, progress=False).value == pytest.approx(value, rel=1e-4)


def test_the_ratio_of_two_perplexities_is_paired() -> None:
    model = tiny_llama(seed=1)
    rounded = qlib.quantize(model, weight=qlib.Grid(3, 8), progress=False).model
    texts = [f"{text} {other}" for text in TEXTS for other in TEXTS]
    before, after = (perplexity(each, texts, progress=False) for each in (model, rounded))
    found = perplexity_ratio(before, after)
    assert found.value == pytest.approx(after.value / before.value, rel=1e-12)
    low, high = found.interval
    assert low <= found.value <= high
    alone = [each.interval[1] / each.interval[0] for each in (before, after)]
    assert high / low < min(alone)  # what is hard for both cancels out
    assert perplexity_ratio(before, before).interval == (1.0, 1.0)
    assert str(perplexity_ratio(before, before)) == "1 times the perplexity [1, 1]"


def test_perplexities_that_cannot_be_compared() -> None:
    model = tiny_llama(seed=1)
    before = perplexity(model, TEXTS, progress=False)
    for other in (
        perplexity(model, TEXTS[:2], progress=False),
        perplexity(model, TEXTS[::-1], progress=False),
        perplexity(model, TEXTS, context=4, progress=False),
    ):
        with pytest.raises(DataError, match="on the same texts"):
            perplexity_ratio(before, other)
    with pytest.raises(DataError, match="is no Perplexity"):
        perplexity_ratio(before, 3.0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="resamples"):
        perplexity_ratio(before, before, resamples=0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there are no texts"),
        ("a single text", "texts is the str 'a single text', not a list of texts"),
        (3, "texts is the int 3"),
        (["a tea", 3], "text 2 of 2 is the int 3, not a str"),
        (["a tea", "", "a hat"], "text 2 of 3 has 0 tokens"),
        (["t"], "text 1 of 1 has 1 tokens"),
    ],
)
def test_texts_that_are_refused(texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        perplexity(tiny_llama(), texts, progress=False)


def test_models_and_settings_that_are_refused() -> None:
    for model in (tiny_whisper(), None, "smollm2"):
        with pytest.raises(ModelError, match="has no perplexity of texts"):
            perplexity(model, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"Load it first: qlib\.load_model\('smollm2'\)"):
        perplexity("smollm2", TEXTS)  # type: ignore[arg-type]
    result = qlib.quantize(tiny_llama(), weight=qlib.Grid(8, 8), progress=False)
    with pytest.raises(ModelError, match=r"Pass its \.model"):
        perplexity(result, TEXTS)  # type: ignore[arg-type]
    for context in (1, 10**6, 2.5):
        with pytest.raises(DataError, match="context"):
            perplexity(tiny_llama(), TEXTS, context=context)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="resamples"):
        perplexity(tiny_llama(), TEXTS, resamples=0)
    with pytest.raises(DataError, match="progress"):
        perplexity(tiny_llama(), TEXTS, progress=2)  # type: ignore[arg-type]
    model = tiny_llama()
    model.model.embed_tokens.weight.data[:] = torch.nan
    with pytest.raises(DataError, match="text 1 of 3: the model gives it a likelihood of nan"):
        perplexity(model, TEXTS, progress=False)
    model.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        perplexity(model, TEXTS)


@pytest.mark.weights
def test_equals_the_loss_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint("smollm2-135m-instruct")
    model, peer = qlib.load_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, TextModel) and model.tokenizer is not None
    texts = ["Call me Ishmael. Some years ago, never mind how long precisely.", "It was the best of times."]
    found = perplexity(model, texts, progress=False)
    for text, nll, count in zip(texts, found.text_nll, found.text_tokens, strict=True):
        tokens = torch.tensor([model.tokenizer.encode(text)])
        with torch.no_grad():
            loss = float(peer(tokens, labels=tokens).loss)
        assert nll / count == pytest.approx(loss, abs=1e-4)
