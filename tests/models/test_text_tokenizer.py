"""Which class's rules a folder's tokenizer follows, and which special tokens have names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from text_families import FAMILIES, LLAMA, byte_level, pieces, with_start
from text_oracles import todays_rules

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.text import TextModel
from qlib.models.text_config import TextGeneration
from qlib.models.text_tokenizer import class_of, read_text_tokenizer
from qlib.models.tiny import tiny_llama, write_folder
from qlib.models.tokenizer import Tokenizer

NONE = TextGeneration()


def read(folder: Path, family: str = "llama", generation: TextGeneration = NONE, **config: Any) -> Tokenizer:
    found = read_text_tokenizer(folder, {"model_type": family, **config}, generation)
    assert found is not None
    return found


def write(folder: Path, table: dict[str, Any], **files: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(table))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("family", "said", "level", "expected"),
    [
        ("llama", None, False, ""),
        ("llama", "LlamaTokenizerFast", False, "LlamaTokenizer"),
        ("llama", "LlamaTokenizer", True, ""),
        ("llama", "PreTrainedTokenizerFast", False, ""),
        ("llama", "SomethingElse", False, ""),
        ("llama", "GPT2Tokenizer", True, "GPT2Tokenizer"),
        ("mistral", "LlamaTokenizer", False, ""),
        ("qwen2", None, True, "Qwen2Tokenizer"),
        ("qwen2", "PreTrainedTokenizerFast", True, "Qwen2Tokenizer"),
        ("qwen3", None, True, "Qwen2Tokenizer"),
        ("qwen3", "PreTrainedTokenizerFast", True, ""),
        ("gemma3_text", None, False, "GemmaTokenizer"),
        ("gemma3_text", "GemmaTokenizerFast", False, "GemmaTokenizer"),
    ],
)
@todays_rules
def test_classes_are_those_of_transformers(
    family: str, said: str | None, level: bool, expected: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    table = byte_level("<|endoftext|>") if level else pieces()
    assert class_of(family, said, table) == expected
    write(tmp_path, table, config={"model_type": family})
    if said:
        write(tmp_path, table, tokenizer_config={"tokenizer_class": said})
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    assert type(oracle).__name__ == (expected or "TokenizersBackend")
    for text in ("<s>a t</s> the  2024", "it's 12\n\n a"):
        assert read(tmp_path, family).encode(text) == oracle(text, add_special_tokens=False).input_ids


def test_a_class_s_rules_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, pieces(), tokenizer_config=LLAMA)
    with caplog.at_level(logging.INFO, "qlib.models.text_tokenizer"):
        read(tmp_path)
    assert "normalizer and pre_tokenizer of the class LlamaTokenizer are used" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": None}, {"add_prefix_space": False}])
def test_the_space_in_front(settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, with_start(pieces(), "<s>"), tokenizer_config={**LLAMA, **settings})
    write(tmp_path, with_start(pieces(), "<s>"), config={"model_type": "llama"})
    oracle, found = AutoTokenizer.from_pretrained(tmp_path), read(tmp_path)
    for text in ("a t", " a", "<s>a</s>t", "<s> a</s> t"):
        assert found.encode(text, special=True) == oracle(text).input_ids
        assert found.decode(found.encode(text)) == oracle.decode(
            oracle(text).input_ids, skip_special_tokens=True
        )


def test_flags_of_the_settings_count_for_nothing_beside_the_table(tmp_path: Path) -> None:
    flags = {**LLAMA, "add_bos_token": True, "add_eos_token": True}
    assert read(write(tmp_path, pieces(), tokenizer_config=flags)).start == ()
    flags["add_bos_token"] = False
    found = read(write(tmp_path, with_start(pieces(), "<s>"), tokenizer_config=flags))
    assert (found.start, found.end) == ((found.token_id("<s>"),), ())


def test_names_come_from_the_settings_then_the_older_file_then_the_ids(tmp_path: Path) -> None:
    table = byte_level("<x>", "<y>")
    ids = {token["content"]: token["id"] for token in table["added_tokens"]}
    write(tmp_path, table)
    by_id = TextGeneration(ids["<x>"], (ids["<y>"], 3))
    assert read(tmp_path).named == {}
    assert read(tmp_path, generation=by_id).named == {"bos_token": "<x>", "eos_token": "<y>"}
    assert read(tmp_path, generation=TextGeneration(10**6, (-1,))).named == {}
    write(tmp_path, table, special_tokens_map={"eos_token": {"content": "<y>", "lstrip": False}})
    assert read(tmp_path, generation=by_id).named == {"eos_token": "<y>"}
    write(tmp_path, table, tokenizer_config={"bos_token": None, "eos_token": "<x>", "pad_token": "<y>"})
    assert read(tmp_path).named == {"eos_token": "<y>", "pad_token": "<y>"}  # the older file is read last
    write(tmp_path, table, tokenizer_config={"eos_token": "<x>", "added_tokens_decoder": {}})
    assert read(tmp_path).named == {"eos_token": "<x>"}


def test_a_named_token_is_special_also_where_the_table_has_it_as_a_word(tmp_path: Path) -> None:
    table = pieces()
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] != "</s>"]
    plain = Tokenizer.from_folder(write(tmp_path, table))
    assert not plain.has_special("</s>")
    found = read(write(tmp_path, table, tokenizer_config={"eos_token": "</s>", "pad_token": "[PAD]"}))
    assert found.has_special("</s>") and found.vocab_size == plain.vocab_size
    assert found.encode("a</s>")[-1] == found.token_id("</s>")


@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
@todays_rules
def test_more_special_tokens(key: str, tmp_path: Path) -> None:
    """A word of the table, a new token that the model has room for, and one that it has not."""
    from transformers import AutoTokenizer

    table = pieces()
    size = len(table["model"]["vocab"]) + 1
    write(tmp_path, table, tokenizer_config={key: ["\u2581the", "<new>", "<late>"]})
    write(tmp_path, table, config={"model_type": "llama"})
    found, oracle = read(tmp_path, vocab_size=size), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a\u2581the<new>", "<new> at"):
        assert found.encode(text) == oracle(text, add_special_tokens=False).input_ids
    assert found.has_special("\u2581the", "<new>") and found.vocab_size == size
    assert max(found.encode("<late>")) < size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extra_special_tokens": 3}, "extra_special_tokens is the int 3, not a list"),
        ({"bos_token": 3}, r"tokenizer_config\.json: bos_token is the int 3, not a str"),
        ({"eos_token": {"content": ["x"]}}, "eos_token is a list of 1 str"),
        ({"tokenizer_class": 7}, "tokenizer_class is the int 7"),
        ([], "holds a list, not a JSON object"),
    ],
)
def test_damaged_settings(settings: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path, pieces(), tokenizer_config=settings)
    with pytest.raises(ModelError, match=words):
        read(tmp_path)


def test_folders_without_a_table(tmp_path: Path) -> None:
    assert read_text_tokenizer(tmp_path, {"model_type": "llama"}, NONE) is None


@pytest.mark.parametrize("name", ["llama-2", "llama-3"])
def test_saved_models_keep_start_token_template_and_names(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    source, copied = tmp_path / "a", tmp_path / "b"
    table = family.table()
    source.mkdir()
    write(source, table, tokenizer_config={**family.settings, "chat_template": family.template})
    model = tiny_llama()
    model.tokenizer, model.chat_template = read(source), family.template
    again = load_model(write_folder(model, copied))
    assert isinstance(again, TextModel) and again.tokenizer is not None and again.chat is not None
    assert again.tokenizer.named == model.tokenizer.named
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
    text = again.chat.prompt("the heart")
    assert model.chat is not None and text == model.chat.prompt("the heart")
    assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.tokenizer.start == model.tokenizer.start != ()


def test_a_saved_model_s_table_counts_as_it_stands(tmp_path: Path) -> None:
    """Also in a family whose folders without settings follow a class."""
    model = tiny_llama(model_type="qwen3")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    table = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    model.tokenizer = read(write(tmp_path, table, tokenizer_config=settings), "qwen3")
    again = load_model(write_folder(model, tmp_path / "saved"))
    assert isinstance(again, TextModel) and again.tokenizer is not None
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
