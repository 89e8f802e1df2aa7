"""The JSON files of a Hugging Face Whisper folder, derived from a CTranslate2 checkpoint.

CTranslate2 keeps no sizes: they are read off the tensor shapes, and only the number of heads is stored.
Its `config.json` lists suppressed tokens; every other special token is found by name in `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qlib.errors import ModelError, list_names

MULTILINGUAL_VOCABULARY = 51865  # English-only checkpoints have one entry less; large-v3 has one more
END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
SIDES = ("encoder", "decoder")
TASKS = ("translate", "transcribe")


def whisper_config(
    tensors: Mapping[str, Tensor], heads: tuple[int, int], special: Mapping[str, int]
) -> dict[str, Any]:
    """Return `config.json` of a Whisper checkpoint.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        State dict under Hugging Face names.
    heads : tuple of int
        Attention heads of the encoder and of the decoder.
    special : mapping of str to int
        Special tokens and their ids, as `special_tokens` finds them.

    Raises
    ------
    ModelError
        A tensor that sizes are read from is missing, the width does not divide by the heads,
        or a special token is missing.
    """
    positions, target_positions = (_shape(tensors, f"model.{side}.embed_positions.weight") for side in SIDES)
    vocabulary, width = _shape(tensors, "model.decoder.embed_tokens.weight")
    for count in heads:
        if count <= 0 or width % count:
            raise ModelError(f"width {width} does not divide into {count} heads. The checkpoint is damaged.")
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": _shape(tensors, "model.encoder.conv1.weight")[1],
        "max_source_positions": positions[0],
        "max_target_positions": target_positions[0],
    }
    for side, count in zip(SIDES, heads, strict=True):
        prefix = f"model.{side}.layers."
        config[f"{side}_layers"] = len({name.split(".")[3] for name in tensors if name.startswith(prefix)})
        config[f"{side}_attention_heads"] = count
        config[f"{side}_ffn_dim"] = _shape(tensors, f"{prefix}0.fc1.weight")[0]
    dtype = str(tensors["model.encoder.conv1.weight"].dtype).removeprefix("torch.")
    return config | {
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": dtype,
        **_token_ids(special),
    }


def whisper_generation_config(
    config: Mapping[str, Any], special: Mapping[str, int], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `generation_config.json`: the prompt's tokens and the tokens that are never generated.

    Parameters
    ----------
    config : mapping
        What `whisper_config` returned.
    special : mapping of str to int
        Special tokens and their ids.
    source : mapping
        CTranslate2's own `config.json`: `suppress_ids`, `suppress_ids_begin`, `lang_ids`, `alignment_heads`.
    """
    multilingual = config["vocab_size"] >= MULTILINGUAL_VOCABULARY
    generation: dict[str, Any] = {
        **_token_ids(special),
        "no_timestamps_token_id": _token_id(special, NO_TIMESTAMPS),
        "is_multilingual": multilingual,
        "suppress_tokens": source.get("suppress_ids", []),
        "begin_suppress_tokens": source.get("suppress_ids_begin", []),
        "alignment_heads": source.get("alignment_heads", []),
        "max_length": config["max_target_positions"],
        "return_timestamps": False,
    }
    if multilingual:
        languages = set(source.get("lang_ids", []))
        generation["lang_to_id"] = {token: number for token, number in special.items() if number in languages}
        generation["task_to_id"] = {task: _token_id(special, f"<|{task}|>") for task in TASKS}
    return generation


def whisper_processor_files(mels: int) -> dict[str, dict[str, Any]]:
    """Return the small files by which other programs know the tokenizer class and the log-mel settings."""
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            **{f"{role}_token": END for role in ("bos", "eos", "unk", "pad")},
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": mels,
            "sampling_rate": 16000,  # Hz
            "n_fft": 400,  # samples, 25 ms
            "hop_length": 160,  # samples, 10 ms
            "chunk_length": 30,  # seconds
        },
    }


def special_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a `tokenizer.json`, by name."""
    return {
        entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", []) if entry.get("special")
    }


def _token_ids(special: Mapping[str, int]) -> dict[str, int]:
    end = _token_id(special, END)
    return {
        "decoder_start_token_id": _token_id(special, START),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _token_id(special: Mapping[str, int], token: str) -> int:
    if token not in special:
        raise ModelError(
            f"tokenizer.json lacks the special token {token!r} among its {len(special)}: "
            f"{list_names(special)}. Is this Whisper's tokenizer?"
        )
    return special[token]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ModelError(
            f"the checkpoint lacks {name}, which its sizes are read from. Is it a Whisper model?"
        )
    return tuple(tensors[name].shape)
