"""Llama checkpoints out of GGUF files: tensors dequantized and renamed one by one, and their `config.json`.

The `gguf` package reads the container and undoes the block formats (Q4_1, Q8_0, Q4_K and the others). What is
left to do here: names, the order of the query and key rows, and the settings. llama.cpp rotates neighbouring
pairs where Hugging Face rotates halves, so converters to GGUF permute those rows within each head:

    GGUF row (h, i, half) = Hugging Face row (h, half, i)      h head, i pair of a head's D/2, half 0 or 1

Left out: other architectures, scaled rotary embeddings, biases (each is an error that names it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlib.errors import ModelError, list_names, require_extra

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")


class GgufFile:
    """An open GGUF file.

    Parameters
    ----------
    path : str or Path
        The file; its tensors stay on disk until they are read.

    Attributes
    ----------
    metadata : dict of str to value
        Settings by key, for example ``"llama.block_count"``; arrays are lists.
    tensors : dict
        The `gguf` package's tensor records, by name.

    Raises
    ------
    ModelError
        The file is missing, truncated or of another format.
    MissingExtraError
        The `gguf` package is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        package = require_extra("gguf", "gguf", f"Reading {self.path.name}")
        try:
            reader = package.GGUFReader(self.path)
            self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        except Exception as error:  # a cut file ends in numpy's errors, of many kinds
            raise ModelError(
                f"{self.path} cannot be read, is damaged or is not a GGUF file "
                f"({type(error).__name__}: {error}). Fetch or copy it again."
            ) from error
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def setting(self, key: str) -> Any:
        """Return one setting; a missing one is a ModelError that names it."""
        if key not in self.metadata:
            raise ModelError(f"{self.path} lacks the setting {key!r}. Convert the model anew with llama.cpp.")
        return self.metadata[key]

    def read(self, name: str) -> Tensor:
        """Return one tensor, dequantized to float32."""
        record = self.tensors[name]
        quants = require_extra("gguf.quants", "gguf", f"Reading {self.path.name}")
        try:
            values = quants.dequantize(record.data, record.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: {name} has the block format {record.tensor_type.name}, which the installed "
                "gguf package cannot undo. Use another quantization of the model."
            ) from error
        return torch.from_numpy(np.array(values, np.float32))  # a copy: the mapped file is read-only


def llama_config(file: GgufFile) -> dict[str, Any]:
    """Return `config.json` of a Llama checkpoint in a GGUF file.

    Raises
    ------
    ModelError
        The architecture is not Llama, rotary embeddings are scaled, or a setting is missing.
    """
    architecture = file.setting("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{file.path} holds the architecture {architecture!r}; only 'llama' is read so far.")
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ModelError(f"{file.path} scales its rotary embeddings ({scaling}), which is not read so far.")
    heads, width = file.setting("llama.attention.head_count"), file.setting("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": file.setting("llama.feed_forward_length"),
        "num_hidden_layers": file.setting("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": file.metadata.get("llama.attention.key_length", width // heads),
        "vocab_size": len(file.setting("tokenizer.ggml.tokens")),
        "max_position_embeddings": file.setting("llama.context_length"),
        "rms_norm_eps": _shortest(file.setting("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(file.metadata.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        **llama_token_ids(file),
    }


def llama_token_ids(file: GgufFile) -> dict[str, int]:
    """Return the stated ones of `bos_token_id`, `eos_token_id` and `pad_token_id`."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{role}_token_id": f"tokenizer.ggml.{word}_token_id" for role, word in roles.items()}
    return {name: file.metadata[key] for name, key in keys.items() if key in file.metadata}


def llama_tensors(file: GgufFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield Hugging Face names and float32 tensors, one at a time so that memory holds one in float32.

    Parameters
    ----------
    file : GgufFile
        The file.
    config : mapping
        What `llama_config` returned for it.

    Raises
    ------
    ModelError
        Tensors are missing or have no place in a Llama; none is yielded then.
    """
    names = {name: _hugging_face_name(name) for name in file.tensors}
    layers = range(config["num_hidden_layers"])
    wanted = {f"model.layers.{index}.{module}.weight" for index in layers for module in _BLOCK.values()}
    wanted |= {f"{module}.weight" for module in _OUTER.values()}
    if config["tie_word_embeddings"]:
        wanted.remove("lm_head.weight")
    unknown = [name for name, new in names.items() if new not in wanted]
    missing = sorted(wanted - set(names.values()))
    if unknown or missing:
        raise ModelError(
            f"{file.path} is no Llama of {len(layers)} layers: {len(missing)} tensors are missing "
            f"({list_names(missing)}), {len(unknown)} have no place in it ({list_names(unknown)})."
        )
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, new in names.items():
        projection = new.split(".")[-2]
        tensor = file.read(name)
        yield new, unpermute(tensor, heads[projection]) if projection in heads else tensor


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Put the rows of a query or key projection back: `[H D, in]`, pairs of a head to halves.

    >>> unpermute(torch.tensor([[0], [2], [1], [3]]), heads=1).flatten().tolist()
    [0, 1, 2, 3]
    """
    rows, columns = weight.shape
    if rows % (2 * heads):
        raise ModelError(f"{rows} query or key rows do not divide into {heads} heads of an even size.")
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    index, module = match.groups() if match else (None, "")
    if index is None:
        return f"{_OUTER.get(module, '')}.weight"
    return f"model.layers.{int(index)}.{_BLOCK.get(module, '')}.weight"


def _shortest(value: float) -> float:
    """Return a float32 setting as it was written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
