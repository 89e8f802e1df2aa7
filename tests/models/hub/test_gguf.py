"""A Models written as llama.cpp's converters write them come back; other files are refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from packages import byte_level_table
from safetensors.torch import load_file

from qlib.errors import MissingExtraError, ModelError
from qlib.models.files import read_json
from qlib.models.hub import convert
from qlib.models.hub.formats.gguf import GgufFile
from qlib.models.hub.formats.gguf_config import text_config
from qlib.models.hub.formats.gguf_tensors import text_tensors, unpermute
from qlib.models.hub.formats.gguf_tokenizer import tokenizer_json
from qlib.models.tokenizer import Tokenizer

HEADS, KEY_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MODULES = {
    "attn_q": ("self_attn.q_proj", (WIDTH, WIDTH)),
    "attn_k": ("self_attn.k_proj", (WIDTH // 2, WIDTH)),
    "attn_v": ("self_attn.v_proj", (WIDTH // 2, WIDTH)),
    "attn_output": ("self_attn.o_proj", (WIDTH, WIDTH)),
    "ffn_gate": ("mlp.gate_proj", (64, WIDTH)),
    "ffn_up": ("mlp.up_proj", (64, WIDTH)),
    "ffn_down": ("mlp.down_proj", (WIDTH, 64)),
    "attn_norm": ("input_layernorm", (WIDTH,)),
    "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
}
Edit = Callable[[package.GGUFWriter], None]


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row by row what converters to GGUF do to query and key projections."""
    half = len(weight) // heads // 2
    rows = [
        head * 2 * half + side * half + pair
        for head in range(heads)
        for pair in range(half)
        for side in range(2)
    ]
    return weight[rows]


def write_llama(
    path: Path, *, drop: str = "", edit: Edit | None = None, arch: str = "llama", **changes: Any
) -> dict[str, np.ndarray]:
    """Write a random miniature; return its tensors under Hugging Face names."""
    table = byte_level_table(SPECIALS)
    tokens = list(table["model"]["vocab"]) + list(SPECIALS)
    rng = np.random.default_rng(0)
    writer = package.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 4])
    writer.add_token_merges([" ".join(merge) for merge in table["model"]["merges"]])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template("{{ messages }}")
    shapes = {
        f"blk.{index}.{old}": (f"model.layers.{index}.{new}", shape)
        for index in range(LAYERS)
        for old, (new, shape) in MODULES.items()
    }
    shapes |= {
        "token_embd": ("model.embed_tokens", (len(tokens), WIDTH)),
        "output_norm": ("model.norm", (WIDTH,)),
    }
    if changes.get("head"):
        shapes["output"] = ("lm_head", (len(tokens), WIDTH))
    tensors = {}
    for old, (new, shape) in shapes.items():
        if old == drop:
            continue
        weight = rng.standard_normal(shape).astype(np.float32)
        tensors[f"{new}.weight"] = weight
        kind = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(old.split(".")[-1])
        writer.add_tensor(f"{old}.weight", permute(weight, kind) if kind else weight)
    if edit:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("head", [False, True])
def test_tensors_come_back_under_hugging_face_names(path: Path, head: bool) -> None:
    tensors = write_llama(path, head=head)
    file = GgufFile(path)
    config = text_config(file)
    assert config["tie_word_embeddings"] is not head
    found = {name: tensor for name, _, tensor in text_tensors(file, config)}
    assert set(found) == set(tensors)
    for name, weight in tensors.items():
        np.testing.assert_array_equal(found[name].numpy(), weight, err_msg=name)


def test_settings(path: Path) -> None:
    write_llama(path)
    config = text_config(GgufFile(path))
    expected = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": 8,
        "vocab_size": 283,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "bos_token_id": 281,
        "eos_token_id": 282,
    }
    assert {key: config[key] for key in expected} == expected
    assert "pad_token_id" not in config


def test_quantized_blocks_are_undone(path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    kind = package.GGMLQuantizationType.Q8_0
    blocks = package.quants.quantize(weight, kind)
    write_llama(path, edit=lambda writer: writer.add_tensor("extra.weight", blocks, raw_dtype=kind))
    found = GgufFile(path).read("extra.weight").numpy()
    scale = np.abs(weight.reshape(6, 32)).max(1) / 127
    assert np.abs(found - weight).reshape(6, 32).max() <= 0.51 * scale.max()
    assert len(np.unique(found)) < weight.size


def test_unknown_block_formats_are_named(path: Path) -> None:
    kind = package.GGMLQuantizationType.Q1_0 if hasattr(package.GGMLQuantizationType, "Q1_0") else None
    write_llama(path)
    file = GgufFile(path)
    record = file.tensors["token_embd.weight"]
    file.tensors["token_embd.weight"] = record._replace(tensor_type=kind or package.GGMLQuantizationType.Q8_1)
    with pytest.raises(
        ModelError, match=r"token_embd\.weight has the block format Q\w+, which the installed"
    ):
        file.read("token_embd.weight")


def test_other_architectures_are_named(path: Path) -> None:
    write_llama(path, arch="phi3")
    with pytest.raises(ModelError, match=r"model\.gguf holds the architecture 'phi3'; only 'llama'"):
        text_config(GgufFile(path))


@pytest.mark.parametrize(
    "edit",
    [
        lambda writer: writer.add_rope_scaling_type(package.RopeScalingType.YARN),
        lambda writer: writer.add_tensor("rope_freqs.weight", np.array([1, 2, 3, 2], np.float32)),
    ],
)
def test_scaled_rotary_embeddings_are_refused(path: Path, edit: Edit) -> None:
    write_llama(path, edit=edit)
    with pytest.raises(ModelError, match=r"scales (its|the) rotary embeddings"):
        text_config(GgufFile(path))


def test_missing_and_surplus_tensors_are_named(path: Path) -> None:
    write_llama(
        path,
        drop="blk.1.ffn_up",
        edit=lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(4, np.float32)),
    )
    file = GgufFile(path)
    missing, surplus = (
        r"1 tensors are missing \(model.layers.1.mlp.up_proj.weight\)",
        r"1 have .*\(blk.0.attn_q.bias\)",
    )
    with pytest.raises(ModelError, match=f"{missing}, {surplus}"):
        next(text_tensors(file, text_config(file)))


def test_a_surplus_tensor_alone_is_an_error(path: Path) -> None:
    write_llama(path, edit=lambda writer: writer.add_tensor("mystery.weight", np.ones(4, np.float32)))
    file = GgufFile(path)
    with pytest.raises(
        ModelError, match=r"0 tensors are missing \(\), 1 have no place in it \(mystery\.weight\)"
    ):
        next(text_tensors(file, text_config(file)))


def test_a_missing_setting_is_named(path: Path) -> None:
    write_llama(path)
    file = GgufFile(path)
    del file.metadata["llama.block_count"]
    with pytest.raises(ModelError, match=r"lacks the setting 'llama\.block_count'"):
        text_config(file)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.99])
def test_cut_files_are_named(path: Path, share: float) -> None:
    write_llama(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read, is damaged or is not a GGUF file"):
        GgufFile(path)


def test_foreign_and_missing_files_are_named(path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read"):
        GgufFile(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="not a GGUF file"):
        GgufFile(path)


def test_a_missing_package_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quantdraft\[gguf\]'"):
        GgufFile(path)


def test_rows_that_are_no_heads_are_an_error() -> None:
    with pytest.raises(ModelError, match="10 query or key rows do not divide into 4 heads"):
        unpermute(torch.zeros(10, 3), heads=4)


# --- tokenizer


def test_the_tokenizer_is_rebuilt(path: Path) -> None:
    write_llama(path)
    table = tokenizer_json(GgufFile(path).metadata)
    original = byte_level_table(SPECIALS)
    assert table["model"]["vocab"] == original["model"]["vocab"] | {
        name: 280 + i for i, name in enumerate(SPECIALS)
    }
    assert [merge.split(" ") for merge in table["model"]["merges"]] == original["model"]["merges"]
    assert [(entry["content"], entry["special"]) for entry in table["added_tokens"]] == list(
        zip(SPECIALS, (True, True, False), strict=True)
    )


@pytest.mark.parametrize(("rules", "pieces"), [("smollm", 4), ("gpt-2", 3)])
def test_digits_come_apart_under_smollm_only(path: Path, tmp_path: Path, rules: str, pieces: int) -> None:
    write_llama(path, pre=rules)
    table = tokenizer_json(GgufFile(path).metadata)
    digits = [str(number) for number in range(10)]
    table["model"]["merges"].append(f"{digits[1]} {digits[2]}")
    table["model"]["vocab"]["12"] = len(table["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    assert len(Tokenizer.from_folder(tmp_path).encode("12x!")) == pieces


@pytest.mark.parametrize("change", [{"model": "bert"}, {"pre": "tekken"}])
def test_other_tokenizers_are_refused(path: Path, change: dict[str, str]) -> None:
    write_llama(path, **change)
    with pytest.raises(
        ModelError, match=rf"'{next(iter(change.values()))}'.* cannot be rebuilt: only kind 'gpt2'"
    ):
        tokenizer_json(GgufFile(path).metadata)


# --- the folder


def test_a_folder_in_bfloat16_with_its_chat_template(path: Path, tmp_path: Path) -> None:
    tensors = write_llama(path)
    convert.convert("gguf-llama", tmp_path, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(tensors)
    for name, weight in tensors.items():
        assert torch.equal(found[name], torch.from_numpy(weight).bfloat16()), name
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert read_json(tmp_path / "out" / "generation_config.json") == {
        "bos_token_id": 281,
        "eos_token_id": 282,
    }
    assert Tokenizer.from_folder(tmp_path / "out").token_id("<|im_end|>") == 282


@pytest.mark.weights
def test_smollm2_knows_its_own_chat_markers(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("smollm2-135m-instruct")
    config, tokenizer = read_json(folder / "config.json"), Tokenizer.from_folder(folder)
    assert config["eos_token_id"] == tokenizer.token_id("<|im_end|>")
    assert tokenizer.vocab_size == config["vocab_size"]
    assert len(tokenizer.encode("2024")) == 4
    assert sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) == 134_515_008
