"""Gemma 3: parity with transformers on miniatures, configurations, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_oracles import transformers_logits
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.gemma3 import Gemma3RMSNorm
from qlib.models.gemma3_config import Gemma3Config
from qlib.models.hub.load import load_model
from qlib.models.rotary import Rope
from qlib.models.text_config import FULL, SLIDING
from qlib.models.tiny import tiny_gemma3, write_folder

VARIANTS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "wide": {"width": 24, "num_key_value_heads": 4, "window": 7},
    "one key head": {"num_key_value_heads": 1},
    "scaled full layers": {"rope": Rope(1e6, "linear", factor=8.0)},
    "all sliding": {"layer_types": (SLIDING,) * 3},
    "all full": {"layer_types": (FULL,) * 3},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(
    tmp_path: Path, tokens: Tensor, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny_gemma3(seed=3, **VARIANTS[variant])
    assert tokens.shape[1] > 3 * model.config.sliding_window
    folder = write_folder(model, tmp_path)
    ours = load_model(folder, dtype=dtype)
    expected = transformers_logits(folder, tokens, dtype)
    assert expected.abs().max() > 1
    assert (ours(tokens) - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    "change",
    [
        {"window": 5},
        {"query_pre_attn_scalar": 7},
        {"rope": Rope(1e5)},
        {"local_rope": Rope(1e3)},
        {"layer_types": (FULL, SLIDING, SLIDING)},
    ],
    ids=str,
)
def test_every_setting_has_an_effect(tokens: Tensor, change: dict[str, Any]) -> None:
    difference = tiny_gemma3(seed=3)(tokens) - tiny_gemma3(seed=3, **change)(tokens)
    assert difference.abs().max() > 1e-3


def test_a_long_text_has_logits_everywhere() -> None:
    """Far on, a query of a sliding layer sees none of the first 512 keys: with -inf, torch 2.4 gives NaN."""
    model = tiny_gemma3(seed=3, max_position_embeddings=700).eval()
    inputs = model.attention_inputs(0, 600, torch.zeros(1))
    assert all(each.mask is not None and each.mask.isfinite().all() for each in inputs.values())
    with torch.inference_mode():
        assert model(torch.randint(0, 250, (1, 600))).isfinite().all()


def test_a_sliding_layer_forgets_what_left_its_window(tokens: Tensor) -> None:
    model = tiny_gemma3(layers=1, window=4, layer_types=(SLIDING,))
    changed = tokens.clone()
    changed[:, 5] += 1
    same = (model(tokens) == model(changed)).all(-1).all(0)
    assert same.tolist() == [True] * 5 + [False] * 4 + [True] * 15


def test_norm_keeps_small_weights_in_half_precision() -> None:
    norm = Gemma3RMSNorm(4, eps=0.0).bfloat16()
    with torch.no_grad():
        norm.weight.fill_(0.003)  # 1.003 is 1 in bfloat16
    x = torch.full((1, 4), 255.0, dtype=torch.bfloat16)
    many = norm(x.repeat(1, 1)).float()
    assert many.unique().item() == torch.tensor(1.003).bfloat16().item()
    assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_survives_writing_and_reading(variant: str) -> None:
    config = tiny_gemma3(**VARIANTS[variant]).config
    assert Gemma3Config.from_dict(config.to_dict()) == config


def test_older_and_newer_configs_say_the_same() -> None:
    config = tiny_gemma3(layers=7).config.to_dict()
    for key in ("layer_types", "rope_scaling", "rope_theta", "rope_local_base_freq"):
        del config[key]
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = {
        "sliding_window_pattern": 3,
        "rope_theta": 5e5,
        "rope_local_base_freq": 9e3,
        "rope_scaling": scaling,
    }
    newer: dict[str, Any] = {
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING],
        "rope_parameters": {
            FULL: {"rope_theta": 5e5, **scaling},
            SLIDING: {"rope_theta": 9e3, "rope_type": "default"},
        },
    }
    read = Gemma3Config.from_dict({**config, **older})
    assert read == Gemma3Config.from_dict({**config, **newer})
    newer["rope_parameters"] |= {"rope_type": "default", "rope_theta": None}  # as transformers 5.5 writes it
    assert read == Gemma3Config.from_dict({**config, **newer})
    newer["rope_parameters"] |= {"rope_theta": 1e4}
    with pytest.raises(ModelError, match="is not an object with 'full_attention' and 'sliding_attention'"):
        Gemma3Config.from_dict({**config, **newer})
    assert read.rope == Rope(5e5, "linear", 8.0) and read.local_rope == Rope(9e3)


def test_silent_config_means_what_its_authors_read_there() -> None:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = Gemma3Config.from_dict({name: 8 for name in names})
    assert config.layer_types == (*[SLIDING] * 5, FULL, SLIDING, SLIDING)
    assert config.tie_word_embeddings and config.head_dim == 256 and config.num_key_value_heads == 4
    assert (config.rope, config.local_rope) == (Rope(1e6), Rope(1e4))
    assert config.query_pre_attn_scalar == 256 and config.sliding_window == 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation='relu' is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"layer_types": ["full_attention"]}, "must name 3 layers.*holds 1"),
        (
            {"layer_types": ["full_attention", "chunked", "chunked"]},
            r"layer_types=.*'chunked'.* is not a list of 'full_attention'",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "type 'yarn' is not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_config_that_cannot_be_honoured(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Gemma3Config.from_dict({**tiny_gemma3().config.to_dict(), **change})
