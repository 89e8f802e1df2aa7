"""The very prompt of transformers, raw and chat, and its greedy texts, for checkpoints of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_families import FAMILIES, write_family

import draftlib
from draftlib.prompt import read_prompt
from draftlib.prompt_tokens import target_tokens
from qlib.models import load_model
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_llama

USER = {"role": "user", "content": "What is the heart?"}
TURNS = [
    USER,
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nthe cat "},
    {"role": "user", "content": " at 2024  5 a naïve \u65e5\u672c hat\n"},
]
SYSTEM = [{"role": "system", "content": 'Be the cat\'s "friend".'}, *TURNS]
TEXTS = [
    "What is the heart of the matter?",
    " the  cat 2024",
    "caf\u00e9 cafe\u0301 \u65e5\u672c \U0001f600\n\n a",
    "</s>a<|im_end|> b <s> c<end_of_turn>d<|eot_id|> e",
    "I'LL   see\t\t1234567 it's",
    "\u2581a \u2581 b",
]
CHATS = [[USER], TURNS, SYSTEM, [{"role": "user", "content": "a</s> b<|im_end|>\n<|eot_id|><end_of_turn> c"}]]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(FAMILIES[name], tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    found = load_model(folder)
    assert isinstance(found, TextModel)
    return found


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def chats(name: str) -> list[list[dict[str, str]]]:
    return [chat for chat in CHATS if chat is not SYSTEM or FAMILIES[name].system]


def test_raw_prompts_are_those_of_transformers(name: str, model: TextModel, oracle: Any) -> None:
    bos = FAMILIES[name].bos
    for text in TEXTS:
        found = target_tokens(model, text, raw=True)
        assert found == oracle(text).input_ids
        assert model.tokenizer is not None
        assert not bos or found[0] == model.tokenizer.token_id(bos)
        assert model.tokenizer.encode(text) == oracle(text, add_special_tokens=False).input_ids


def test_chat_prompts_are_those_of_transformers(name: str, model: TextModel, oracle: Any) -> None:
    bos = FAMILIES[name].bos
    for chat in chats(name):
        found = target_tokens(model, read_prompt(chat), raw=False)
        assert model.chat is not None and model.tokenizer is not None
        text = oracle.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert model.chat.render(chat) == text
        assert found == oracle.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        if bos and "bos_token" in FAMILIES[name].template:  # once, and Zephyr's form has none
            assert found[0] == model.tokenizer.token_id(bos) != found[1]
    one = oracle.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    assert target_tokens(model, USER["content"], raw=False) == one


def test_greedy_texts_are_those_of_transformers(
    name: str, model: TextModel, folder: Path, oracle: Any
) -> None:
    from transformers import AutoModelForCausalLM

    peer: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = draftlib.SpeculativeDecoder(model, tiny_llama(1, max_position_embeddings=512))
    prompts = [(TEXTS[0], True), (USER["content"], False), *((chat, False) for chat in chats(name))]
    for prompt, raw in prompts:
        if raw:
            ids = oracle(prompt).input_ids
        else:
            chat = [USER] if isinstance(prompt, str) else prompt
            ids = oracle.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        tokens = torch.tensor([ids])
        written = peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0, len(ids) :].tolist()
        assert len(set(written)) > 1
        for answer in (decoder.generate, decoder.generate_target_only):
            assert list(answer(prompt, raw=raw, max_new_tokens=12).tokens) == written
        steps = decoder.steps(prompt, raw=raw, max_new_tokens=12)
        assert sum((step.tokens for step in steps), ()) == tuple(written)
