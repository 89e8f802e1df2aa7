"""Sizes come from shapes, special tokens from the tokenizer, and mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packages import WHISPER_SPECIALS, byte_level_table, whisper_tensors
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.formats.whisper_config import (
    special_tokens,
    whisper_config,
    whisper_generation_config,
    whisper_processor_files,
)

SPECIAL = special_tokens(byte_level_table())
SOURCE = {
    "suppress_ids": [1, 2],
    "suppress_ids_begin": [220, SPECIAL["<|endoftext|>"]],
    "lang_ids": [SPECIAL["<|en|>"], SPECIAL["<|de|>"], 999],
    "alignment_heads": [[1, 0]],
}


def tensors(**sizes: int) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in whisper_tensors(**sizes).items()}


def test_sizes_are_read_off_the_shapes() -> None:
    config = whisper_config(tensors(width=6, layers=3, vocabulary=290), (2, 3), SPECIAL)
    expected = {
        "model_type": "whisper",
        "d_model": 6,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "vocab_size": 290,
        "num_mel_bins": 80,
        "max_source_positions": 15,
        "max_target_positions": 12,
        "tie_word_embeddings": True,
        "dtype": "float16",
        "decoder_start_token_id": SPECIAL["<|startoftranscript|>"],
        "eos_token_id": SPECIAL["<|endoftext|>"],
    }
    assert {key: config[key] for key in expected} == expected


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(ModelError, match=r"lacks model\.decoder\.embed_tokens\.weight"):
        whisper_config({k: v for k, v in tensors().items() if "embed_tokens" not in k}, (2, 2), SPECIAL)


@pytest.mark.parametrize("heads", [(3, 2), (2, 0)])
def test_heads_that_do_not_divide_the_width(heads: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r"width 4 does not divide into [30] heads"):
        whisper_config(tensors(width=4), heads, SPECIAL)


def test_a_missing_special_token_is_named() -> None:
    special = {name: number for name, number in SPECIAL.items() if name != "<|startoftranscript|>"}
    with pytest.raises(ModelError, match=r"lacks the special token '<\|startoftranscript\|>' among its 9"):
        whisper_config(tensors(), (2, 2), special)


def test_generation_of_an_english_only_model() -> None:
    config = {"vocab_size": 51864, "max_target_positions": 448}
    generation = whisper_generation_config(config, SPECIAL, SOURCE)
    assert generation["is_multilingual"] is False
    assert generation["no_timestamps_token_id"] == SPECIAL["<|notimestamps|>"]
    assert generation["suppress_tokens"] == [1, 2]
    assert generation["begin_suppress_tokens"] == SOURCE["suppress_ids_begin"]
    assert generation["max_length"] == 448
    assert "lang_to_id" not in generation
    assert "task_to_id" not in generation


def test_generation_of_a_multilingual_model() -> None:
    config = {"vocab_size": 51865, "max_target_positions": 448}
    generation = whisper_generation_config(config, SPECIAL, SOURCE)
    assert generation["is_multilingual"] is True
    assert generation["lang_to_id"] == {name: SPECIAL[name] for name in ("<|en|>", "<|de|>")}
    assert generation["task_to_id"] == {
        "translate": SPECIAL["<|translate|>"],
        "transcribe": SPECIAL["<|transcribe|>"],
    }


def test_special_tokens_leave_out_ordinary_added_ones() -> None:
    added: list[dict[str, Any]] = [
        {"id": 7, "content": "<|x|>", "special": True},
        {"id": 8, "content": "plain", "special": False},
    ]
    assert special_tokens({"added_tokens": added}) == {"<|x|>": 7}
    assert set(SPECIAL) == set(WHISPER_SPECIALS)


def test_processor_files_carry_the_number_of_mel_bands() -> None:
    files = whisper_processor_files(128)
    assert files["preprocessor_config.json"]["feature_size"] == 128
    assert files["tokenizer_config.json"]["tokenizer_class"] == "WhisperTokenizer"
