"""Folders of chat checkpoints, one of each kind, built from nothing: tokenizer, settings, random model.

Tables, settings and templates have the form of the published ones, in small.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from qlib.models.chat_markers import SOURCES
from qlib.models.tiny import tiny_byte_tokenizer
from qlib.models.tokenizer_class import QWEN_WORDS

CORPUS = [
    "What is the heart of the matter?",
    "the cat sat at the hat 2024 times",
    "user assistant system model",
]
BOS = [{"SpecialToken": {"id": "BOS", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not ns.found %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if message.reasoning_content is string and loop.index0 > ns.last %}
            {%- set thought = message.reasoning_content.strip() %}
            {%- set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}
        {%- elif '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
QWEN2 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou\\'re a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == "system" and loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: its table, the files around it, and what its config says."""

    table: Callable[[], dict[str, Any]]
    model_type: str
    end: str
    template: str
    bos: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    in_settings: bool = False  # the template, as in older checkpoints
    system: bool = True  # whether the template takes a system message


@cache
def _byte_level(*specials: str, words: str | None = None, digits: bool = False) -> str:
    raw = RawTokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if words is not None:
        from tokenizers import Regex

        raw.normalizer = normalizers.NFC()
        first.append(pre_tokenizers.Split(Regex(words), "isolated"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return raw.to_str()


def byte_level(*specials: str, **rules: Any) -> dict[str, Any]:
    return json.loads(_byte_level(*specials, **rules))  # type: ignore[no-any-return]


def pieces(*specials: str) -> dict[str, Any]:
    """The table of old Llama 2 files: a space in front of every text, also behind special tokens."""
    raw = RawTokenizer.from_str(tiny_byte_tokenizer().to_json())
    raw.add_special_tokens(
        [AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>", *specials)]
    )
    return json.loads(raw.to_str())  # type: ignore[no-any-return]


def with_start(table: dict[str, Any], bos: str, behind: bool = False) -> dict[str, Any]:
    """Let a table put a start token in front of every text."""
    number = next(token["id"] for token in table["added_tokens"] if token["content"] == bos)
    single = json.loads(json.dumps(BOS).replace("BOS", bos))
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    both = {"type": "Sequence", "processors": [level, template]}
    return {**table, "post_processor": both if behind else template}


def gemma_pieces() -> dict[str, Any]:
    table = pieces("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    steps = [step for step in table["decoder"]["decoders"] if step["type"] != "Strip"]
    decoder = {"type": "Sequence", "decoders": steps}
    return with_start({**table, "normalizer": space, "pre_tokenizer": words, "decoder": decoder}, "<bos>")


LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADER = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _filled(name: str, system: str) -> str:
    return SOURCES[name].replace("SYSTEM", system)


FAMILIES: dict[str, Family] = {
    "llama-2": Family(
        lambda: with_start(pieces(), "<s>"),
        *("llama", "</s>", SOURCES["Llama 2"], "<s>"),
        settings={**LLAMA, "legacy": False, "add_bos_token": True, "add_eos_token": False},
        in_settings=True,
    ),
    "vicuna": Family(
        lambda: with_start(pieces(), "<s>"),
        *("llama", "</s>", _filled("Vicuna", "A chat between a curious user and an assistant."), "<s>"),
        settings={**LLAMA, "legacy": True, "bos_token": {"content": "<s>", "__type": "AddedToken"}},
        in_settings=True,
    ),
    "tinyllama": Family(
        lambda: with_start(pieces(), "<s>"),
        *("llama", "</s>", SOURCES["Zephyr"], "<s>"),
        settings={**LLAMA, "legacy": False, "add_eos_token": True},  # counts for nothing
    ),
    "mistral": Family(
        lambda: with_start(pieces(), "<s>"),
        *("mistral", "</s>", SOURCES["Llama 2"], "<s>"),
        settings={**LLAMA, "legacy": True},
    ),
    "llama-3": Family(
        lambda: with_start(byte_level(*HEADER), HEADER[0], behind=True),
        *("llama", "<|eot_id|>", SOURCES["Llama 3"], HEADER[0]),
        settings={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": HEADER[0],
            "eos_token": "<|eot_id|>",
        },
        in_settings=True,
    ),
    "qwen-2": Family(
        lambda: byte_level(*IM, words=QWEN_WORDS),
        *("qwen2", "<|im_end|>", QWEN2),
        settings={"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>"},
        in_settings=True,
    ),
    "qwen-3": Family(
        lambda: byte_level(*IM, words=QWEN_WORDS),
        *("qwen3", "<|im_end|>", QWEN3),
        settings={"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "eos_token": "<|im_end|>"},
    ),
    "gemma-3": Family(
        gemma_pieces,
        *("gemma3_text", "<end_of_turn>", SOURCES["Gemma"], "<bos>"),
        settings={"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>"},
        system=False,
    ),
    "smollm-2": Family(
        lambda: byte_level(*IM, digits=True),
        *("llama", "<|im_end|>", _filled("ChatML with a system text", "You are a helpful model")),
        settings={"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    ),
    # Only tokenizer.json and the template: nothing names the tokens.
    "bare": Family(lambda: byte_level(*IM), "llama", "<|im_end|>", SOURCES["ChatML"]),
    "bare qwen": Family(lambda: byte_level(*IM), "qwen3", "<|im_end|>", QWEN3),
}


def write_family(family: Family, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of a family, its weights by transformers; `changes` go to tokenizer.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    table = {**family.table(), **changes}
    ids = {token["content"]: token["id"] for token in table["added_tokens"]}
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=1 + max(max(table["model"]["vocab"].values()), *ids.values()),
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=512,
        bos_token_id=ids.get(family.bos or ""),
        eos_token_id=ids[family.end],
        pad_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.4,
        sliding_window=None if family.model_type == "mistral" else 4096,
        **sizes,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    inside = {"chat_template": family.template} if family.in_settings else {}
    if family.settings or inside:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**family.settings, **inside}), encoding="utf-8"
        )
    if not family.in_settings:
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    return folder
