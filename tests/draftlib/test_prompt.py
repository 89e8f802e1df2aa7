"""What a prompt may be, what it becomes for each of the two models, and what is refused."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from text_families import pieces, with_start
from tokenizers import Tokenizer as RawTokenizer

from draftlib import SpeculativeDecoder
from draftlib.prompt import read_prompt
from draftlib.prompt_tokens import draft_tokens, target_tokens
from qlib.errors import DraftError, ModelError
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.text_config import TextGeneration
from qlib.models.tiny import randomize, tiny_llama
from qlib.models.tokenizer import Tokenizer

USER = {"role": "user", "content": "the heart"}
TURNS = [{"role": "system", "content": "a"}, USER, {"role": "assistant", "content": "at"}, USER]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}[a]"
)


def piece_model(template: str | None = TEMPLATE) -> Llama:
    backend = RawTokenizer.from_str(json.dumps(with_start(pieces(), "<s>")))
    tokenizer = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})
    sizes = {**vars(tiny_llama().config), "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 128}
    end = (tokenizer.token_id("</s>"),)
    model = Llama(LlamaConfig(**sizes), TextGeneration(eos=end), tokenizer, template)
    randomize(model, 5)
    return model.eval()


PIECES, CHATML = piece_model(), tiny_llama(1, max_position_embeddings=128)
assert PIECES.tokenizer is not None and CHATML.tokenizer is not None
START = PIECES.tokenizer.token_id("<s>")


def own(model: Any, messages: Any) -> list[int]:
    return list(model.tokenizer.encode(model.chat.render(messages)))


def test_raw_text_begins_with_the_start_token_and_a_chat_has_it_once() -> None:
    raw = target_tokens(PIECES, "the heart", raw=True)
    assert raw == PIECES.tokenizer.encode("the heart", special=True) and raw[0] == START
    chat = target_tokens(PIECES, "the heart", raw=False)
    assert chat == own(PIECES, [USER]) and chat[0] == START and START not in chat[1:]
    assert target_tokens(PIECES, TURNS, raw=False) == own(PIECES, TURNS)
    assert target_tokens(PIECES, chat, raw=False) == chat


def test_answers_to_a_conversation() -> None:
    decoder = SpeculativeDecoder(PIECES, CHATML)
    expected = decoder.generate(own(PIECES, TURNS), max_new_tokens=9).tokens
    assert decoder.generate(TURNS, max_new_tokens=9).tokens == expected
    assert decoder.generate_target_only(tuple(TURNS), max_new_tokens=9).tokens == expected
    assert sum((step.tokens for step in decoder.steps(TURNS, max_new_tokens=9)), ()) == expected
    assert next(decoder.generate_many([TURNS], max_new_tokens=9)).tokens == expected


def test_the_drafter_reads_its_own_template_and_its_own_start_token() -> None:
    for target, draft in ((PIECES, CHATML), (CHATML, PIECES)):
        tokens = target_tokens(target, TURNS, raw=False)
        assert draft_tokens(draft, target, TURNS, tokens, raw=False) == (own(draft, TURNS), [])
    plain = PIECES.tokenizer.encode("the heart")
    # From a target without a start token to a drafter with one, and the other way round.
    assert draft_tokens(CHATML, PIECES, "the heart", [START, *plain], raw=True) == ([], plain)
    tokens = target_tokens(CHATML, "the heart", raw=True)
    assert draft_tokens(PIECES, CHATML, "the heart", tokens, raw=True) == ([START], tokens)
    assert draft_tokens(PIECES, PIECES, [START, *plain], [START, *plain], raw=False) == ([START], plain)


def test_a_drafter_whose_template_refuses_reads_the_target_s_prompt() -> None:
    draft = piece_model("{{ raise_exception('no system') }}")
    tokens = target_tokens(CHATML, TURNS, raw=False)
    assert draft_tokens(draft, CHATML, TURNS, tokens, raw=False) == ([START], tokens)
    answer = SpeculativeDecoder(CHATML, draft).generate(TURNS, max_new_tokens=9).tokens
    assert answer == SpeculativeDecoder(CHATML, CHATML).generate(TURNS, max_new_tokens=9).tokens


def test_a_template_that_refuses_is_an_error_before_the_first_round() -> None:
    decoder = SpeculativeDecoder(piece_model("{{ raise_exception('no system') }}"), CHATML)
    with pytest.raises(ModelError, match="does not take these messages: no system"):
        decoder.steps(TURNS)


@pytest.mark.parametrize(
    "prompt",
    [[5, 6, 7], (5, 6, 7), range(5, 8), np.array([5, 6, 7]), np.array([[5, 6, 7]]), torch.tensor([5, 6, 7])],
    ids=str,
)
def test_token_ids_of_many_kinds(prompt: Any) -> None:
    assert read_prompt(prompt) == [5, 6, 7]
    assert read_prompt([np.int64(5), torch.tensor(6), 7]) == [5, 6, 7]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "The prompt is empty"),
        ([], "The prompt is empty"),
        (torch.zeros(0, dtype=torch.long), "The prompt is empty"),
        (None, r"The prompt is None\. Pass a str, tokens of the target, or messages"),
        (3, "The prompt is the int 3"),
        (b"the heart", "The prompt is the bytes"),
        ({"a", "b"}, "The prompt is a set of 2 str"),
        (["a", "b"], r"a list of 2 str, .*several prompts.*generate_many\(prompts\)"),
        ([[1, 2], [3]], r"several prompts.*generate_many\(prompts\)"),
        ([TURNS], r"several prompts.*generate_many\(prompts\)"),
        (USER, r"single message; pass a list of messages: \[message\]"),
        ({"input_ids": [1]}, r'Pass its tokens alone: prompt\["input_ids"\]'),
        ([1, "a"], "element 1 is the str 'a', not a token id"),
        ([1, 2.0], "element 1 is the float 2.0, not a token id"),
        ([True], "element 0 is the bool True, not a token id"),
        ([1, None], "element 1 is None, not a token id"),
        (np.array([1.5]), r"a ndarray \[1\] of float64\. Token ids are one row of whole numbers"),
        (torch.tensor(3), r"a Tensor \[\] of int64\. Token ids are one row"),
        (torch.zeros(2, 3, dtype=torch.long), r"a Tensor \[2, 3\] of int64\. Token ids are one row"),
        (torch.tensor([True]), "element 0 is the bool True"),
        ([USER, "a"], "Message 2 of 2 is the str 'a'"),
        ([{"role": "user"}], "Message 1 of 1 has no 'content'"),
        ([{"role": "bot", "content": "a"}], "the role 'bot' is unknown"),
        ([{"role": "user", "content": ["a"]}], "'content' is a list of 1 str, not text"),
    ],
)
def test_prompts_of_other_kinds(prompt: Any, words: str) -> None:
    decoder = SpeculativeDecoder(CHATML, CHATML)
    for call in (decoder.generate, decoder.steps, decoder.generate_target_only):
        with pytest.raises(DraftError, match=words):
            call(prompt)


def test_a_conversation_where_none_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    bare = piece_model(None)
    with pytest.raises(DraftError, match="the target has no chat template"):
        target_tokens(bare, [USER], raw=False)
    with pytest.raises(DraftError, match="raw=True continues plain text"):
        target_tokens(PIECES, [USER], raw=True)
    tokens = target_tokens(bare, "the heart", raw=True)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert target_tokens(bare, "the heart", raw=False) == tokens
    assert "has no chat template: the prompt is continued as it stands" in caplog.text


def test_special_tokens_in_a_text_become_themselves(caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers; two start tokens are said."""
    end = PIECES.tokenizer.token_id("</s>")
    assert end in target_tokens(PIECES, "a</s>", raw=True)
    assert target_tokens(PIECES, "a</s>t", raw=False).count(end) == 2
    with caplog.at_level(logging.WARNING):
        assert target_tokens(PIECES, "<s>a", raw=True)[:2] == [START, START]
    assert "the tokenizer puts one more in front" in caplog.text


def test_a_tokenizer_that_ends_every_text(caplog: pytest.LogCaptureFixture) -> None:
    """Its ids are those of transformers, and what that means is said."""
    table = with_start(pieces(), "<s>")
    table["post_processor"]["single"].reverse()  # the token stands after
    model = piece_model(None)
    model.tokenizer = Tokenizer(RawTokenizer.from_str(json.dumps(table)))
    with caplog.at_level(logging.WARNING):
        assert target_tokens(model, "a", raw=True)[-1] == START
    assert "ends every text with <s>: the answer begins after an ending" in caplog.text
