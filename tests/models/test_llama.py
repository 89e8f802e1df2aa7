"""The Llama family: parity with transformers on miniatures, configurations, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_oracles import transformers_logits
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.rotary import Rope
from qlib.models.tiny import tiny_llama, write_folder

LLAMA3 = Rope(
    500.0,
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=24,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"kv_heads": 4},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "explicit head_dim": {"head_dim": 6},
    "linear scaling": {"rope": Rope(10000.0, "linear", factor=4.0)},
    "llama3 scaling": {"rope": LLAMA3, "head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 untied": {"model_type": "qwen2", "tie_word_embeddings": False, "kv_heads": 4},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 biases": {"model_type": "qwen3", "attention_bias": True},
}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(
    tmp_path: Path, tokens: Tensor, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    folder = write_folder(tiny_llama(seed=3, **VARIANTS[variant]), tmp_path)
    ours = load_model(folder, dtype=dtype)
    expected = transformers_logits(folder, tokens, dtype)
    assert expected.abs().max() > 1
    assert (ours(tokens) - expected).abs().max() < tolerance


SAME = ("plain", "untied", "qwen2 untied", "mistral")  # the same computation on other weights


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in SAME])
def test_each_variant_computes_something_else(tokens: Tensor, variant: str) -> None:
    """A setting that is read but has no effect would pass every comparison with its own file."""
    plain = tiny_llama(seed=3, **VARIANTS["plain"])
    other = tiny_llama(seed=3, **VARIANTS[variant])
    assert (plain(tokens) - other(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_survives_writing_and_reading(variant: str) -> None:
    config = tiny_llama(**VARIANTS[variant]).config
    assert LlamaConfig.from_dict(config.to_dict()) == config


def test_silent_config_means_what_its_authors_read_there() -> None:
    sizes = {
        "vocab_size": 10,
        "hidden_size": 64,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    llama = LlamaConfig.from_dict({"model_type": "llama", **sizes, "head_dim": None})
    assert (llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings) == (2, 32, 2048)
    assert not llama.tie_word_embeddings and llama.rms_norm_eps == 1e-6 and llama.rope == Rope(10000.0)
    qwen3 = LlamaConfig.from_dict({"model_type": "qwen3", **sizes, "num_key_value_heads": 1})
    assert qwen3.head_dim == 128 and qwen3.max_position_embeddings == 32768
    biases = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}
    qwen2 = LlamaConfig.from_dict({"model_type": "qwen2", **sizes, **biases})
    assert qwen2.qkv_bias and not qwen2.attention_bias and not qwen2.mlp_bias, "as in its authors' code"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is not one of llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"hidden_size": "16"}, "hidden_size='16' is not a whole number from 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a whole number from 1 to"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"head_dim": None, "num_attention_heads": 3}, "hidden_size=16 does not divide into 3 heads"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "type 'yarn' is not supported.*linear, llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "type 'linear' lacks factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"model_type": "mistral", "sliding_window": 63}, r"sliding window \(63 of 64 tokens\)"),
        ({"model_type": "mistral", "max_position_embeddings": 4097}, r"window \(4096 of 4097 tokens\)"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
            },
            r"window \(8 of 64 tokens\)",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "looks back through a sliding window"),
    ],
)
def test_config_that_cannot_be_honoured(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LlamaConfig.from_dict({**tiny_llama().config.to_dict(), **change})


def test_settings_that_change_nothing_are_accepted() -> None:
    config = tiny_llama(model_type="qwen2").config
    silent = {"use_sliding_window": False, "sliding_window": 8, "layer_types": ["full_attention"] * 2}
    assert LlamaConfig.from_dict({**config.to_dict(), **silent}) == config


def test_newer_files_keep_base_and_scaling_in_one_place() -> None:
    older = tiny_llama(rope=Rope(7.0, "linear", factor=3.0)).config
    values = older.to_dict()
    del values["rope_theta"], values["rope_scaling"]
    newer = {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 3.0}}
    assert LlamaConfig.from_dict({**values, **newer}) == older


def test_tied_head_is_the_embedding_and_an_untied_one_is_not(tmp_path: Path) -> None:
    tied = load_model(write_folder(tiny_llama(), tmp_path / "tied"))
    untied = load_model(write_folder(tiny_llama(tie_word_embeddings=False), tmp_path / "untied"))
    assert isinstance(tied, Llama) and isinstance(untied, Llama)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight and tied.tied
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight and not untied.tied
