"""`load_model` of a .gguf file and of a CTranslate2 folder: the same logits, converted once."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from odd_checkpoints import make, theirs
from packages import byte_level_table, whisper_package, whisper_tensors
from torch import Tensor

from qlib.errors import FileError, ModelError
from qlib.models.hub import convert_text
from qlib.models.hub.formats.gguf_rope import llama3_scaling
from qlib.models.hub.formats.gguf_tokenizer import tokenizer_json
from qlib.models.hub.load import load_model
from qlib.models.tokenizer import Tokenizer

FAMILY = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SIZE = 283  # tokens of the byte-level table
TEXTS = ["the cat's 1234 (stones)", "While  2 dogs\n\n\tslept, I'LL see... ", "", " \u00e9t\u00e9 9"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def gguf_name(name: str, architecture: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    _, _, index, module = module.split(".", 3)
    table = BLOCK | GEMMA if architecture == "gemma3" else BLOCK
    return f"blk.{index}.{table[module]}.{kind}"


def gguf_values(name: str, value: np.ndarray, architecture: str, config: dict[str, Any]) -> np.ndarray:
    """What converters to GGUF change: pairs of Llama's q and k rows, Gemma's norms."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    module = name.split(".")[-2]
    if architecture == "llama" and module in heads:
        half = len(value) // heads[module] // 2
        order = [
            h * 2 * half + s * half + i for h in range(heads[module]) for i in range(half) for s in range(2)
        ]
        return value[order]
    return value + 1 if architecture == "gemma3" and module.endswith("norm") else value


def write(
    path: Path, architecture: str, folder: Path, kind: Any = None, rope: Any = None, tokens: Any = None
) -> Path:
    """Write a folder of transformers as llama.cpp's converter does."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = package.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    if architecture == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_freq_base(1e6)
    else:
        writer.add_rope_freq_base(500.0)
    if rope is not None:
        rope(writer)
    (tokens or byte_level_tokens)(writer)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = gguf_values(name, tensor.float().numpy(), architecture, config)
        if kind is not None and values.ndim == 2:
            blocks = package.quants.quantize(values, kind)
            writer.add_tensor(gguf_name(name, architecture), blocks, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name, architecture), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_tokens(writer: package.GGUFWriter, rules: str = "smollm") -> None:
    table = byte_level_table(("<s>", "</s>", "<|x|>"))
    tokens = [*table["model"]["vocab"], "<s>", "</s>", "<|x|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rules)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 4])
    writer.add_token_merges([" ".join(merge) for merge in table["model"]["merges"]])
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 2)


def source(folder: Path, architecture: str, **changes: Any) -> Path:
    sizes = {"vocab_size": SIZE, "rope_theta": 500.0, "bos_token_id": 280, "eos_token_id": 281}
    if architecture == "gemma3":
        sizes |= {"rope_theta": 1e6, "num_hidden_layers": 7}
    return make(folder, FAMILY[architecture], **(sizes | changes))


def logits(path: Path) -> Tensor:
    model = load_model(path, "float64")
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens)  # type: ignore[no-any-return]


# Gemma's norms are stored in float32 with 1 added, which costs their last bits.
@pytest.mark.parametrize(
    ("architecture", "tolerance"), [("llama", 1e-9), ("qwen2", 1e-9), ("qwen3", 1e-9), ("gemma3", 2e-5)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_original(
    tmp_path: Path, architecture: str, tolerance: float, tied: bool
) -> None:
    folder = source(tmp_path / "hf", architecture, tie_word_embeddings=tied)
    found = logits(write(tmp_path / "x.gguf", architecture, folder))
    expected = theirs(folder, FAMILY[architecture])
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() < tolerance


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}


def stored_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """The loop of llama.cpp's converter."""
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * np.pi * theta ** (i / head_dim)
        smooth = (scaling["original_max_position_embeddings"] / wave - scaling["low_freq_factor"]) / (
            scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(scaling["factor"])
        else:
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def test_llama_3_scaling_is_found_from_its_factors(tmp_path: Path) -> None:
    folder = source(tmp_path / "hf", "llama", head_dim=32, rope_parameters=LLAMA3 | {"rope_theta": 500.0})
    factors = stored_factors(32, 500.0, LLAMA3)
    assert 2 <= ((factors > 1) & (factors < 8)).sum() < 14, "the ramp is part of it"
    path = write(
        tmp_path / "x.gguf",
        "llama",
        folder,
        rope=lambda writer: writer.add_tensor("rope_freqs.weight", factors),
    )
    assert (logits(path) - theirs(folder, "llama")).abs().max() < 1e-9


def test_the_published_scaling_of_llama_3_is_found_exactly() -> None:
    published = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    factors = torch.from_numpy(stored_factors(64, 500000.0, published)).double()
    assert llama3_scaling(factors, 64, 500000.0, "x") == published
    assert llama3_scaling(torch.ones(32).double(), 64, 5e5, "x") is None
    with pytest.raises(
        ModelError, match=r"x: rope_freqs\.weight scales .* 32 factors from 1 to 32 for 32 pairs"
    ):
        llama3_scaling(factors.flip(0), 64, 5e5, "x")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_linear_scaling(tmp_path: Path, architecture: str) -> None:
    def rope(writer: package.GGUFWriter) -> None:
        writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    theta = 1e6 if architecture == "gemma3" else 500.0
    linear: dict[str, Any] = {"rope_type": "linear", "factor": 4.0, "rope_theta": theta}
    if architecture == "gemma3":
        linear = {"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    folder = source(tmp_path / "hf", architecture, rope_parameters=linear)
    found = logits(write(tmp_path / "x.gguf", architecture, folder, rope=rope))
    assert (found - theirs(folder, FAMILY[architecture])).abs().max() < 2e-5


def test_quantized_blocks_load_as_float16(tmp_path: Path) -> None:
    folder = source(tmp_path / "hf", "llama", intermediate_size=64)
    kind = package.GGMLQuantizationType.Q8_0
    found = logits(write(tmp_path / "x.gguf", "llama", folder, kind=kind))
    expected = theirs(folder, "llama")
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.add_uint16("split.count", 3), "is one of 3 parts of a model. Join them"),
        (lambda w: w.add_sliding_window(8), r"sliding window \(8 of 64 tokens\)"),
        (lambda w: w.add_rope_dimension_count(4), "rotates 4 of the 8 channels of a head"),
        (
            lambda w: w.add_rope_scaling_type(package.RopeScalingType.YARN),
            "scales its rotary embeddings by 'yarn'",
        ),
        (lambda w: w.add_float32("llama.attention.sliding_window", 2.5), "sliding_window=2.5 is not a whole"),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path: Path, own_cache: Path, edit: Any, message: str) -> None:
    path = write(tmp_path / "x.gguf", "llama", source(tmp_path / "hf", "llama"), rope=edit)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert not list((own_cache / "models").glob("converted-*")), "nothing half-done"


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "llama", source(tmp_path / "hf", "llama"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"x\.gguf cannot be read, is damaged"):
        load_model(path)


# --- tokenizers


def pieces(table: dict[str, Any], tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    return Tokenizer.from_folder(tmp_path)


def byte_level_metadata(rules: str, **changes: Any) -> dict[str, Any]:
    table = byte_level_table(("<s>", "</s>", "<|x|>"))
    tokens = [*table["model"]["vocab"], "<s>", "</s>", "<|x|>"]
    found = {
        "model": "gpt2",
        "pre": rules,
        "tokens": tokens,
        "token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "merges": [" ".join(merge) for merge in table["model"]["merges"]],
        "bos_token_id": len(tokens) - 3,
        "eos_token_id": len(tokens) - 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (found | changes).items()}


def test_qwen_splits_as_transformers_does(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    metadata = byte_level_metadata("qwen2")
    table = byte_level_table(())["model"]
    theirs = Qwen2Tokenizer(vocab=table["vocab"], merges=[tuple(merge) for merge in table["merges"]])
    ours = pieces(tokenizer_json(metadata), tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.backend_tokenizer.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == text


def test_llama_3_splits_as_transformers_does(tmp_path: Path) -> None:
    import inspect

    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    table = tokenizer_json(byte_level_metadata("llama-bpe"))
    assert table["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": pattern}
    assert table["model"]["ignore_merges"] is True
    ours = pieces(table, tmp_path)
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("rules", "changes", "expected"),
    [
        ("llama-bpe", {}, ["<s>"]),  # llama.cpp adds it where the file does not say
        ("llama-bpe", {"add_bos_token": False}, []),
        ("qwen2", {}, []),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, ["<s>", "</s>"]),
    ],
)
def test_what_stands_around_a_text(rules: str, changes: dict[str, Any], expected: list[str]) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(byte_level_metadata(rules, **changes))))
    plain = backend.encode("a b", add_special_tokens=False).tokens
    around = backend.encode("a b").tokens
    assert around == [*expected[:1], *plain, *expected[1:]]


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    letters = ["\u2581", *"abcdehistn"]
    joined = {a + b for a in letters for b in letters if rng.random() < 0.4}
    joined |= {a + b for a in sorted(joined) for b in letters if rng.random() < 0.2 and b != "▁"}
    words = [*letters, *sorted(joined)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words, "<tag>"]
    scores = [0.0] * 259 + [-float(n) for n in rng.permutation(len(words))] + [0.0]
    found = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words) + [4],
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (found | changes).items()}


def sentencepiece_ids(text: str, metadata: dict[str, Any]) -> list[int]:
    """SentencePiece's BPE by its definition: join the neighbours that score highest, leftmost first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    number = {token: i for i, token in enumerate(tokens)}
    parts = list(text.replace(" ", "\u2581"))
    while True:
        found = [
            (scores[number[a + b]], -i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in number
        ]
        if not found:
            break
        i = -max(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [
        each
        for part in parts
        for each in ([number[part]] if part in number else [3 + byte for byte in part.encode()])
    ]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_same_ids(tmp_path: Path, prefix: bool) -> None:
    metadata = sentencepiece_metadata(add_space_prefix=prefix)
    tokenizer = pieces(tokenizer_json(metadata), tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(200):
        text = "".join(rng.choice([*"abcdehistn  \u00e9\n"], size=20)).strip()
        assert tokenizer.encode(text) == sentencepiece_ids(" " * prefix + text, metadata), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tag = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tag in tokenizer.encode("ab<tag>cd") and tokenizer.special_ids == {0, 1, 2}


def test_sentencepiece_puts_a_start_token_in_front() -> None:
    processor = tokenizer_json(sentencepiece_metadata())["post_processor"]
    assert processor["single"][0] == {"SpecialToken": {"id": "<s>", "type_id": 0}}
    assert tokenizer_json(sentencepiece_metadata(add_bos_token=False))["post_processor"] is None


@pytest.mark.parametrize(
    "change", [{"scores": None}, {"tokens": [1]}, {"token_type": "x"}, {"token_type": [1]}, {"scores": ["a"]}]
)
def test_damaged_tables_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.\w+ is .*, not a list of|tokens and 1 types"):
        tokenizer_json(sentencepiece_metadata(**change))


# --- the cache


def test_a_file_is_converted_once_and_found_by_its_content(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "my model.gguf", "llama", source(tmp_path / "hf", "llama"))
    first = logits(path)
    (folder,) = (own_cache / "models").glob("converted-*")
    assert json.loads((folder / "origin.json").read_text())["source"] == str(path)
    real = convert_text.text_from_gguf
    with monkeypatch.context() as patch:
        patch.setattr(convert_text, "text_from_gguf", lambda *args, **more: pytest.fail("converted again"))
        assert torch.equal(logits(path), first)
        assert torch.equal(logits(path.rename(tmp_path / "blob")), first), "known by its first bytes"
        (tmp_path / "blob").rename(path)
    (folder / "model.safetensors").write_bytes(b"cut")  # a damaged conversion is made anew
    assert torch.equal(logits(path), first)
    write(path, "llama", source(tmp_path / "other", "llama", rms_norm_eps=1e-3))
    os.utime(path, (0, 0))  # it is the content that counts
    assert not torch.equal(logits(path), first)
    assert convert_text.text_from_gguf is real


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.gguf", "llama", source(tmp_path / "hf", "llama"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTDRAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"x\.gguf cannot be converted into the cache .*QUANTDRAFT_CACHE"):
        load_model(path)


@pytest.fixture
def ctranslate2(tmp_path: Path) -> Path:
    folder = tmp_path / "faster-whisper-x"
    folder.mkdir()
    for name, content in whisper_package().items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_of_faster_whisper(ctranslate2: Path, own_cache: Path) -> None:
    model = load_model(ctranslate2)
    for name, values in whisper_tensors().items():
        assert torch.equal(model.get_parameter(name), torch.from_numpy(values).float()), name
    assert model.tokenizer is not None  # type: ignore[union-attr]
    assert len(list((own_cache / "models").glob("converted-*"))) == 1
    settings = json.loads((ctranslate2 / "config.json").read_text())
    (ctranslate2 / "config.json").write_text(json.dumps(settings | {"suppress_ids": [7]}))
    assert load_model(ctranslate2).generation.suppress == (7,)  # type: ignore[union-attr]
    assert model.generation.suppress == (1, 2)  # type: ignore[union-attr]
    (ctranslate2 / "config.json").write_text(json.dumps(settings | {"suppress_ids": "x"}))
    with pytest.raises(ModelError, match="suppress_ids='x' is not a list of token ids"):
        load_model(ctranslate2)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_of_faster_whisper_that_lacks_a_file(ctranslate2: Path, name: str) -> None:
    (ctranslate2 / name).unlink()
    with pytest.raises(ModelError, match=rf"holds CTranslate2's model\.bin and lacks {name}"):
        load_model(ctranslate2)
