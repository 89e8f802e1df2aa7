"""Checkpoints as people have them: from transformers, then edited. Logits agree, or the refusal is clear."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_checkpoints import EMBEDDING, FAMILIES, HEAD, TEXTS, Edit, agree, edit, make, ours, set_json
from torch import Tensor

import qlib
from qlib.errors import ModelError
from qlib.models.hub.load import load_model

# --- tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_derived_buffers_are_ignored(tmp_path: Path, family: str) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for i in range(2):
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.0.self_attn.masked_bias"] = torch.ones(1)
        tensors["model.embeddings.position_ids"] = torch.arange(5)

    agree(edit(make(tmp_path, family), change), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_model_saved_alone(tmp_path: Path, family: str) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors.pop("lm_head.weight", None)
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    tied = {} if family in ("whisper", "moonshine") else {"tie_word_embeddings": True}
    agree(edit(make(tmp_path, family, **tied), change), family)


@pytest.mark.parametrize("family", TEXTS)
def test_a_base_model_without_a_head_is_refused(tmp_path: Path, family: str) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = edit(make(tmp_path, family, tie_word_embeddings=False), change)
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight.*no head.*Save the whole one"):
        load_model(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_and_only_the_head_is_in_the_file(tmp_path: Path, family: str) -> None:
    embedding, head = (
        EMBEDDING.get(family, "model.embed_tokens.weight"),
        HEAD.get(family, "lm_head.weight"),
    )

    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors[head] = tensors.pop(embedding)

    tied = {} if family in ("whisper", "moonshine") else {"tie_word_embeddings": True}
    model = agree(edit(make(tmp_path, family, **tied), change), family)
    assert model.get_parameter(head) is model.get_parameter(embedding)


@pytest.mark.parametrize("family", TEXTS)
def test_tied_with_another_head_in_the_file(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    folder = edit(make(tmp_path, family, tie_word_embeddings=True), change)
    with caplog.at_level(logging.WARNING, "qlib"):
        model = agree(folder, family)
    assert "two different tensors" in caplog.text and str(folder) in caplog.text
    assert not model.tied and model.config.tie_word_embeddings is False  # type: ignore[union-attr]


def test_an_untied_model_survives_quantizing_and_saving(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    model = load_model(edit(make(tmp_path, "llama", tie_word_embeddings=True), change))
    result = qlib.quantize(model, [], weight=qlib.Grid(8, 16), skip=["lm_head"], progress=False)
    again = qlib.load_quantized(result.save(tmp_path / "w8"))
    assert torch.equal(again.get_parameter("lm_head.weight"), model.get_parameter("lm_head.weight"))
    assert torch.equal(ours(again, "llama"), ours(result.model, "llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_with_the_same_head_in_the_file(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    embedding, head = (
        EMBEDDING.get(family, "model.embed_tokens.weight"),
        HEAD.get(family, "lm_head.weight"),
    )

    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors[head] = tensors[embedding].clone()

    tied = {} if family in ("whisper", "moonshine") else {"tie_word_embeddings": True}
    model = agree(edit(make(tmp_path, family, **tied), change), family)
    assert model.tied and "two different" not in caplog.text


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_recognizers_with_another_head_are_refused(tmp_path: Path, family: str) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["proj_out.weight"] = tensors[EMBEDDING[family]].flip(0)

    folder = edit(make(tmp_path, family), change)
    with pytest.raises(ModelError, match=rf"{folder}: proj_out\.weight and .* two different tensors"):
        load_model(folder)


def _codes(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)


def _fp8(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _gptq(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(4, 48, dtype=torch.int32)


def _not_finite(value: float) -> Edit:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    return change


def _wrapped(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors["_orig_mod." + name] = tensors.pop(name)


def _twice(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["norm.weight"] = tensors["model.norm.weight"].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_codes, r"1 tensors are no floats.*up_proj\.weight is I8.*qlib\.quantize"),
        (_fp8, r"up_proj\.weight is F8_E4M3"),
        (_gptq, r"unexpected: .*qweight.*names are those of a quantizer"),
        (_not_finite(float("nan")), r"1 of the 1,536 numbers of .*1\.mlp\.up_proj\.weight are not finite"),
        (_not_finite(float("-inf")), "are not finite"),
        (_not_finite(1e6), r"up_proj\.weight reaches 1e\+06, and float16 ends at 6\.55e\+04.*float32"),
        (_wrapped, "Names begin with '_orig_mod.'"),
        (_twice, r"holds model\.norm\.weight twice"),
    ],
    ids=["int8", "fp8", "gptq", "nan", "inf", "range", "wrapper", "twice"],
)
def test_tensors_that_are_not_the_weights_are_named(tmp_path: Path, change: Edit, message: str) -> None:
    folder = edit(make(tmp_path, "llama"), change)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder, torch.float16)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"load_in_8bit": True}, "unknown method"),
        ("fp8", "fp8"),
    ],
)
def test_quantized_folders_say_so(tmp_path: Path, settings: Any, kind: str) -> None:
    folder = set_json(make(tmp_path, "llama"), "config.json", quantization_config=settings)
    with pytest.raises(ModelError, match=rf"weights are quantized \({kind}\)\. Load the float checkpoint"):
        load_model(folder)


# --- settings


def _partial(kind: str) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "factor": 2.0, "partial_rotary_factor": 0.5}}


SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2 windows after the last layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3 windows after the last layer": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 9},
    ),
    "qwen2 layer_types full": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 0,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "qwen2 window as wide as the context": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
    ),
    "mistral window as wide as the context": ("mistral", {"sliding_window": 64}),
    "mistral default window": ("mistral", {"sliding_window": 4096}),
    "llama partial factor without scaling": ("llama", _partial("default")),
    "llama both forms of rope": (
        "llama",
        {
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_theta": 500.0,
        },
    ),
    "llama with an empty scaling": ("llama", {"rope_scaling": {}}),
    "whisper wide": ("whisper", {"d_model": 24, "decoder_attention_heads": 3}),
    "moonshine narrow rotation": ("moonshine", {"partial_rotary_factor": 0.5}),
}


@pytest.mark.parametrize("case", SAME)
def test_settings_that_are_read_as_transformers_does(tmp_path: Path, case: str) -> None:
    family, changes = SAME[case]
    agree(make(tmp_path, family, **changes), family)


BAD: list[tuple[str, dict[str, Any], str]] = [
    *(
        (family, {key: value}, rf"{key}=.* is not a whole number from 1 to")
        for family, key in (
            ("llama", "num_hidden_layers"),
            ("gemma3_text", "num_hidden_layers"),
            ("whisper", "encoder_layers"),
            ("whisper", "decoder_attention_heads"),
            ("moonshine", "decoder_num_hidden_layers"),
            ("moonshine", "encoder_num_attention_heads"),
            ("qwen3", "head_dim"),
        )
        for value in (10**9, 0, -1, "2", 2.5, [2], True, {"a": 1})
    ),
    ("llama", {"num_attention_heads": 5, "head_dim": None}, "hidden_size=32 does not divide into 5 heads"),
    ("llama", {"num_key_value_heads": 3}, "4 query heads cannot share 3"),
    ("whisper", {"encoder_attention_heads": 3}, "d_model=16 does not divide into 3 heads"),
    ("moonshine", {"decoder_num_attention_heads": 5}, "hidden_size=16 does not divide into 5 heads"),
    *(
        ("llama", {"rms_norm_eps": value}, "rms_norm_eps=.* is not a finite number")
        for value in ("x", -1, [1])
    ),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not a finite number"),
    ("llama", {"rope_theta": "1e4", "rope_parameters": None}, "rope_theta='1e4' is not a finite number"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters=.* is not an object"),
    ("llama", {"rope_parameters": {"rope_type": ["linear"]}}, "type .* is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor='2' is not a finite"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "factor=0 is not a finite number above",
    ),
    ("llama", _partial("linear"), "partial_rotary_factor=0.5 is not supported, only 1.0"),
    ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps=.* is not a finite number"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=inf is not a finite number"),
    (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        r"rope_parameters has settings by kind of layer \(full_attention\)",
    ),
    (
        "llama",
        {"num_hidden_layers": 999},
        "config.json describes 999 layers in model.layers, and the file has 2",
    ),
    ("whisper", {"decoder_layers": 1}, "describes 1 layers in model.decoder.layers, and the file has 2"),
    ("llama", {"attention_bias": "true"}, "attention_bias='true' is not true or false"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 is not true or false"),
    ("llama", {"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] is not supported"),
    ("llama", {"layer_types": "full_attention"}, "layer_types='full_attention' is not a list"),
    ("llama", {"layer_types": ["full_attention"]}, "layer_types=.* is not one entry for each of the 2"),
    ("llama", {"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
    ("llama", {"model_type": None}, "model_type None is not supported"),
    ("mistral", {"sliding_window": 8}, r"window \(8 of 64 tokens\)"),
    ("mistral", {"sliding_window": [8]}, r"sliding_window=\[8\] is not a whole number"),
    (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8, "layer_types": None},
        r"window \(8 of 64 tokens\)",
    ),
    ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window='yes' is not true or false"),
    ("gemma3_text", {"query_pre_attn_scalar": 17.5}, "query_pre_attn_scalar=17.5 is not a whole number"),
    ("gemma3_text", {"sliding_window": "5"}, "sliding_window='5' is not a whole number"),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern=0 is not"),
    (
        "gemma3_text",
        {"rope_parameters": {"rope_type": "default"}},
        "rope_parameters=.* is not an object with",
    ),
    ("moonshine", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor=2.0 is not"),
    ("moonshine", {"rope_parameters": "x"}, "rope_parameters='x' is not an object"),
    ("whisper", {"scale_embedding": True}, "scale_embedding=True is not supported, only False"),
    *(
        ("llama", {"eos_token_id": value}, "eos_token_id=.* is not a token id")
        for value in ("2", -1, 60, 2.0)
    ),
    *(
        ("llama", {"eos_token_id": [2, value]}, "eos_token_id=.* is not a token id")
        for value in (60, True, [3])
    ),
    ("llama", {"bos_token_id": [1]}, r"bos_token_id=\[1\] is not one token id from 0 to 59"),
    ("llama", {"pad_token_id": 60}, "pad_token_id=60 is not one token id from 0 to 59"),
    *(
        ("whisper", {"eos_token_id": value}, "eos_token_id=.* is not a token id")
        for value in ("<|e|>", -1, 60)
    ),
    ("whisper", {"decoder_start_token_id": [50]}, r"decoder_start_token_id=\[50\] is not one token id"),
    ("whisper", {"no_timestamps_token_id": "52"}, "no_timestamps_token_id='52' is not one token id"),
    ("whisper", {"suppress_tokens": 5}, "suppress_tokens=5 is not a list of token ids"),
    ("whisper", {"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens=.* is not a list of token ids"),
    (
        "whisper",
        {"lang_to_id": {"<|en|>": 99}},
        r"lang_to_id\['<\|en\|>'\]=99 is not a token id from 0 to 59",
    ),
    ("whisper", {"lang_to_id": ["<|en|>"]}, "lang_to_id=.* is not an object with names and token ids"),
    ("whisper", {"is_multilingual": "no"}, "is_multilingual='no' is not true or false"),
    ("moonshine", {"eos_token_id": "2"}, "eos_token_id='2' is not a token id"),
    ("moonshine", {"decoder_start_token_id": 60}, "decoder_start_token_id=60 is not one token id"),
]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One folder for each family, made once; only its two configurations change."""
    folders: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in folders:
            folders[family] = make(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return find


@pytest.mark.parametrize(
    ("family", "change", "message"), BAD, ids=[f"{family} {change}" for family, change, _ in BAD]
)
def test_values_that_cannot_be_used_are_named_at_once(
    miniatures: Callable[[str], Path], family: str, change: dict[str, Any], message: str
) -> None:
    folder = miniatures(family)
    config, steering = folder / "config.json", folder / "generation_config.json"
    before = {path: path.read_text() for path in (config, steering)}
    started = time.perf_counter()
    try:
        set_json(folder, "config.json", **change)
        if any(key.endswith(("_id", "_tokens")) or "multilingual" in key for key in change):
            set_json(folder, "generation_config.json", **change)
        with pytest.raises(ModelError, match=message) as caught:
            load_model(folder)
    finally:
        for path, text in before.items():
            path.write_text(text)
    assert str(folder) in str(caught.value)
    assert time.perf_counter() - started < 5


# --- token ids


@pytest.mark.parametrize("family", ["whisper", "moonshine", *TEXTS])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_several_ends(tmp_path: Path, family: str, file: str) -> None:
    folder = make(tmp_path, family)
    for each in ("config.json", "generation_config.json"):
        set_json(folder, each, eos_token_id=None)
    generation: Any = load_model(set_json(folder, file, eos_token_id=[51, 50, 51])).generation
    assert (generation.ends if family in ("whisper", "moonshine") else generation.eos) == (51, 50)
    assert type(generation).from_dict(generation.to_dict()) == generation


def test_suppressed_ids_outside_of_the_vocabulary_change_nothing(tmp_path: Path) -> None:
    folder = set_json(
        make(tmp_path, "whisper"),
        "generation_config.json",
        suppress_tokens=[-1, 3, 60, 50363],
        begin_suppress_tokens=None,
    )
    assert load_model(folder).generation.suppress == (3,)  # type: ignore[union-attr]


def test_older_files_pad_with_minus_one(tmp_path: Path) -> None:
    folder = set_json(make(tmp_path, "llama"), "config.json", pad_token_id=-1)
    assert load_model(folder).generation.pad is None  # type: ignore[union-attr]


SPECIALS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|hi|>", "<|yue|>", "<|translate|>",
    "<|transcribe|>", "<|startoflm|>", "<|notimestamps|>",
)  # fmt: skip


@pytest.mark.parametrize("multilingual", [None, True, False])
def test_whisper_files_without_special_ids_take_them_from_the_tokenizer(
    tmp_path: Path, multilingual: bool | None
) -> None:
    from qlib.models.tiny import tiny_tokenizer, tiny_whisper, write_folder

    model = tiny_whisper(frames=20)
    tokenizer = tiny_tokenizer(SPECIALS)
    folder = write_folder(model, tmp_path)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    size = tokenizer.vocab_size
    set_json(folder, "config.json", vocab_size=size, eos_token_id=None, decoder_start_token_id=None)

    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["model.decoder.embed_tokens.weight"] = torch.randn(size, 16)

    edit(folder, change)
    steering = {} if multilingual is None else {"is_multilingual": multilingual}
    (folder / "generation_config.json").write_text(json.dumps(steering))
    generation: Any = load_model(folder).generation
    ids = {name: tokenizer.token_id(name) for name in SPECIALS}
    assert generation.ends == (ids["<|endoftext|>"],)
    if multilingual:
        expected = ["<|startoftranscript|>", "<|hi|>", "<|translate|>", "<|notimestamps|>"]
        assert generation.prompt("hi", "translate") == [ids[name] for name in expected]
        assert [name for name, _ in generation.languages] == ["<|en|>", "<|hi|>", "<|yue|>"]
    else:
        assert generation.prompt() == [ids["<|startoftranscript|>"], ids["<|notimestamps|>"]]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks 'eos_token_id'.*no tokenizer\.json beside it"):
        load_model(folder)
