"""Real text checkpoints: known greedy texts, parity with transformers, chat markers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from text_oracles import transformers_logits

import draftlib
from qlib.models.fast.products import arithmetic_dtype
from qlib.models.hub.load import load_model
from qlib.models.llama import Llama
from qlib.models.text import TextModel

pytestmark = pytest.mark.weights
DRAFTER = Path(__file__).parents[1] / "examples" / "models" / "drafter-7m"
TEXTS = [
    ("The capital of France is", " Paris.\n\nThe answer is: 2018-01-22 12:12:53.<|im_end|>"),
    (
        "Once upon a time, in a small village",
        " nestled between a great oak and a great eagle, there lived a wise and powerful wizard",
    ),
]
GRAVITY = (
    "Gravity is a fundamental concept in physics that describes the force of gravity, which is a result of "
    "the curvature of spacetime caused by the presence of mass.<|im_end|>"
)


@pytest.fixture(scope="module")
def smollm2(checkpoint: Callable[[str], Path]) -> TextModel:
    return load_model(checkpoint("smollm2-135m-instruct"))  # type: ignore[return-value]


@torch.inference_mode()
def continued(model: TextModel, prompt: str, most: int = 48) -> str:
    """Return the greedy continuation, its end token spelled out."""
    assert model.tokenizer is not None
    cache, new = model.start(capacity=256), model.tokenizer.encode(prompt)
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in model.generation.eos):
        hidden = model.decode(torch.tensor([new]), cache)
        new = [int(model.logits(hidden[:, -1]).argmax())]
        written += new
    return model.tokenizer.decode(written, skip_special=False)


@pytest.mark.parametrize(("prompt", "expected"), TEXTS)
def test_known_texts(smollm2: TextModel, prompt: str, expected: str) -> None:
    assert continued(smollm2, prompt).startswith(expected)


def test_known_answer_in_a_chat(smollm2: TextModel) -> None:
    assert smollm2.chat is not None
    prompt = smollm2.chat.prompt("What is gravity? Answer in two sentences.")
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert continued(smollm2, prompt) == GRAVITY


def test_a_rejected_draft_changes_nothing(smollm2: TextModel) -> None:
    """Eight tokens at once, seven forgotten: what follows is the same."""
    assert smollm2.tokenizer is not None
    tokens = torch.tensor([smollm2.tokenizer.encode("The capital of France is Paris. It lies on the Seine.")])
    cache = smollm2.start(capacity=32)
    expected = smollm2(tokens)
    for at in range(tokens.shape[1] - 1):
        wrong = torch.cat((tokens[:, at : at + 1], torch.full((1, 7), 42)), 1)
        found = smollm2.logits(smollm2.decode(wrong, cache))[:, 0]
        assert (found - expected[:, at]).abs().max() < 2e-3
        cache.truncate(at + 1)


def test_logits_of_the_drafter_equal_those_of_transformers() -> None:
    drafter = load_model(DRAFTER)
    assert isinstance(drafter, Llama) and drafter.tokenizer is not None
    tokens = torch.tensor([drafter.tokenizer.encode("Natalia sold clips to 48 of her friends in April.")])
    expected = transformers_logits(DRAFTER, tokens, torch.float32)
    assert (drafter(tokens) - expected).abs().max() < 1e-3 * expected.abs().max()
    assert torch.equal(drafter(tokens).argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_drafter_writes_text(dtype: torch.dtype) -> None:
    drafter = load_model(DRAFTER, dtype=dtype)
    assert isinstance(drafter, Llama) and drafter.chat is not None and drafter.chat.template is None
    answer = continued(drafter, drafter.chat.prompt("What is gravity? Answer in two sentences."))
    assert "gravity is" in answer and answer.endswith("<|im_end|>")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def packed(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> TextModel:
    model = load_model(checkpoint("smollm2-135m-instruct"), dtype=request.param)
    assert isinstance(model, TextModel)
    return model.pack(stable=True)


@torch.inference_mode()
def test_packed_logits_do_not_depend_on_other_rows(packed: TextModel) -> None:
    """A long answer in pieces of any size, beside one token after the other."""
    assert packed.tokenizer is not None
    tokens = torch.tensor([packed.tokenizer.encode(GRAVITY * 9)])[:, :270]
    sizes = random.Random(0)
    alone, cache = [], packed.start(capacity=270)
    packed.decode(tokens[:, :170], cache)
    for token in tokens[0, 170:]:
        alone.append(packed.logits(packed.decode(token.view(1, 1), cache))[0])
    cache.truncate(170)
    while (start := cache.length) < 270:
        new = tokens[:, start : start + sizes.choice((2, 3, 5, 7, 12, 16))]
        found = packed.logits(packed.decode(new, cache))[0]
        assert torch.equal(found, torch.cat(alone[start - 170 : cache.length - 170])), start


def test_packed_models_write_the_known_texts(packed: TextModel) -> None:
    if arithmetic_dtype(packed.model.embed_tokens.weight) == torch.bfloat16:
        pytest.skip("the texts are those of float32, also of weights in bfloat16")
    for prompt, expected in TEXTS:
        assert continued(packed, prompt).startswith(expected)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafted_text_is_the_targets_own(packed: TextModel, temperature: float) -> None:
    drafter = load_model(DRAFTER)
    assert isinstance(drafter, TextModel)
    decoder = draftlib.SpeculativeDecoder(packed, drafter, cache=draftlib.NGramCache(), length=4)
    options: draftlib.Options = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
    for prompt in ("What is gravity?", "Natalia sold clips to 48 of her friends in April. How many?"):
        found = decoder.generate(prompt, **options)
        assert found.tokens == decoder.generate_target_only(prompt, **options).tokens
        assert found.stats.accepted > 0
