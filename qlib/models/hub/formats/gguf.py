"""Text models out of GGUF files: tensors dequantized and renamed one by one, and their `config.json`.

The `gguf` package reads the container and undoes the block formats (Q4_1, Q8_0, Q4_K and the others). What is
left to do here: names, settings, and three things that converters to GGUF change:

    Llama      query and key rows are permuted within each head, since llama.cpp rotates neighbouring pairs
               where Hugging Face rotates halves:  GGUF row (h, i, half) = Hugging Face row (h, half, i)
               h head, i pair of a head's D/2, half 0 or 1; Qwen and Gemma stay as they are
    Llama 3    the rotary scaling is stored as its result, one factor a pair, and its settings are left out
    Gemma 3    norm weights are stored with the 1 added that the model adds

Left out: other architectures, the rotary scalings "yarn" and "longrope", biases that only some Llamas have,
files split into parts (each is an error that names it).
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
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_TOKENS,
    ConfigValues,
)
from qlib.models.rotary import Rope

# Architecture of the file -> model_type and class of Hugging Face.
_FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
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
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BLOCKS = {
    "llama": _BLOCK,
    "qwen2": _BLOCK,
    "qwen3": _BLOCK | _QK_NORMS,
    "gemma3": _BLOCK
    | _QK_NORMS
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
_BIASES = {"qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_FACTORS = "rope_freqs.weight"
GEMMA_27B_LAYERS = 62  # of Gemma 3, the only size whose queries are scaled by width / heads


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
    values : ConfigValues
        The settings again, read with their types checked.

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
        self.values = ConfigValues(self.metadata, self.path)

    def setting(self, key: str) -> Any:
        """Return one setting; a missing one is a ModelError that names it."""
        if key not in self.metadata:
            raise ModelError(f"{self.path} lacks the setting {key!r}. Convert the model anew with llama.cpp.")
        return self.metadata[key]

    def rows(self, name: str) -> int:
        """Return the number of rows of a matrix; a missing one is a ModelError that names it."""
        if name not in self.tensors:
            raise ModelError(f"{self.path} lacks the tensor {name!r}. Fetch or copy it again.")
        return int(self.tensors[name].shape[-1])  # this format states the innermost axis first

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that holds a tensor as stored; for block formats, a type finer than they are."""
        kind = self.tensors[name].tensor_type.name
        return {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}.get(kind, torch.float16)

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


def text_config(file: GgufFile) -> dict[str, Any]:
    """Return `config.json` of the model in a GGUF file.

    Raises
    ------
    ModelError
        The architecture or its rotary scaling is not supported, or a setting is missing or of another type.
    """
    architecture = _architecture(file)
    kind, name = _FAMILIES[architecture]
    values, width = file.values, _whole(file, "embedding_length")
    heads = _whole(file, "attention.head_count", most=MOST_HEADS)
    head_dim = values.whole(f"{architecture}.attention.key_length", width // heads, most=MOST_HEADS)
    turned = values.whole(f"{architecture}.rope.dimension_count", head_dim, most=MOST_HEADS)
    if turned != head_dim:
        raise ModelError(
            f"{file.path} rotates {turned} of the {head_dim} channels of a head; only all are read. Use "
            "another model."
        )
    theta = _shortest(file, "rope.freq_base", 1e6 if architecture == "gemma3" else 1e4)
    config = {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": _whole(file, "feed_forward_length"),
        "num_hidden_layers": _whole(file, "block_count", most=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": values.whole(
            f"{architecture}.attention.head_count_kv", heads, most=MOST_HEADS
        ),
        "head_dim": head_dim,
        "vocab_size": file.rows("token_embd.weight"),
        "max_position_embeddings": _whole(file, "context_length", most=MOST_POSITIONS),
        "rms_norm_eps": _shortest(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": str(file.dtype("token_embd.weight")).removeprefix("torch."),
        **token_ids(file),
    }
    return config | (_gemma_settings(file, config) if architecture == "gemma3" else _llama_settings(file))


def _architecture(file: GgufFile) -> str:
    architecture = file.setting("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise ModelError(
            f"{file.path} holds the architecture {architecture!r}; only {list_names(map(repr, _FAMILIES))} "
            "are read. Use a model of one of these families."
        )
    if (parts := file.values.whole("split.count", 1, least=0)) > 1:
        raise ModelError(
            f"{file.path} is one of {parts} parts of a model. Join them with llama.cpp's "
            "llama-gguf-split --merge, and pass the result."
        )
    return architecture


def _whole(file: GgufFile, key: str, most: int = MOST_TOKENS) -> int:
    """Return a needed setting of the architecture that is a whole number."""
    key = f"{file.metadata['general.architecture']}.{key}"
    file.setting(key)
    return file.values.whole(key, most=most)


def _shortest(file: GgufFile, key: str, default: float | None = None) -> float:
    """Return a float32 setting as it was written: 1e-05, not 9.999999747378752e-06."""
    key = f"{file.metadata['general.architecture']}.{key}"
    if default is None:
        file.setting(key)
    return float(str(np.float32(file.values.number(key, default or 0.0, above=0.0))))


def _llama_settings(file: GgufFile) -> dict[str, Any]:
    """Return what the Llama family states besides; a window as wide as the context hides nothing."""
    architecture = file.metadata["general.architecture"]
    window = file.values.whole(f"{architecture}.attention.sliding_window", 0, least=0, most=MOST_POSITIONS)
    context = file.setting(f"{architecture}.context_length")
    if 0 < window < context:
        raise ModelError(
            f"{file.path}: layers look back through a sliding window ({window} of {context} tokens), which "
            "is not supported in this family. Use a model whose layers all see the whole text."
        )
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}


def _gemma_settings(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Gemma 3 states besides, and what llama.cpp knows without being told."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["hidden_size"] // heads if layers == GEMMA_27B_LAYERS else config["head_dim"]
    pattern = file.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        slides = {"layer_types": ["sliding_attention" if each else "full_attention" for each in pattern]}
    else:
        slides = {"sliding_window_pattern": pattern}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": _whole(file, "attention.sliding_window", most=MOST_POSITIONS),
        "rope_local_base_freq": _shortest(file, "rope.freq_base_swa", 1e4),
        "attn_logit_softcapping": file.metadata.get("gemma3.attn_logit_softcapping"),
        "final_logit_softcapping": file.metadata.get("gemma3.final_logit_softcapping"),
        **slides,
    }


def _rope_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Return `rope_scaling` of config.json."""
    architecture = file.metadata["general.architecture"]
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(
            f"{file.path} scales its rotary embeddings by {kind!r}, which is not read: only 'linear' and "
            "Llama 3's. Use a model with one of these."
        )
    if _FACTORS in file.tensors:
        return llama3_scaling(file.read(_FACTORS).double(), head_dim, theta, str(file.path))
    factor = file.values.number(f"{architecture}.rope.scaling.factor", 1.0, above=0)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None


def llama3_scaling(factors: Tensor, head_dim: int, theta: float, where: str) -> dict[str, Any] | None:
    """Return the settings of Llama 3's rotary scaling that lead to the factors stored in a file.

    The factor of a pair that turns t times a token is 1 for fast pairs, F for slow ones, and between

        1 / factor = (1 - k) / F + k        k = (context t - low) / (high - low)

    A straight line, so two pairs on the ramp tell context, low and high but for a common multiple, which
    changes nothing: low is 1, as in all published models.

    Parameters
    ----------
    factors : Tensor
        float64 ``[head_dim / 2]``.
    head_dim, theta : int, float
        Channels of a head; base of the rotation.
    where : str
        The file, for messages.
    """
    largest = float(factors.max())
    if bool((factors == 1).all()):
        return None
    turns = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim) / (2 * torch.pi)
    tried = [(4.0, 8192)]  # as published
    if factors.shape == turns.shape and largest > 1:
        k = (1 / factors - 1 / largest) / (1 - 1 / largest)
        ramp = ((k > 1e-4) & (k < 1 - 1e-4)).nonzero().flatten()
        if len(ramp) > 1:
            first, last = int(ramp[0]), int(ramp[-1])
            slope = float((k[first] - k[last]) / (turns[first] - turns[last]))
            start = float(k[first]) - slope * float(turns[first])
            if start < 0:
                tried.append((round(1 - 1 / start, 3), round(slope * -1 / start)))
    for high, context in tried:
        rope = Rope(theta, "llama3", largest, 1.0, high, context)
        scaled = rope.frequencies(head_dim).double()
        if factors.shape == scaled.shape and torch.allclose(
            2 * torch.pi * turns / scaled, factors, rtol=1e-4
        ):
            return rope.scaling()
    raise ModelError(
        f"{where}: {_FACTORS} scales the rotary embeddings by {len(factors)} factors from "
        f"{float(factors.min()):.4g} to {largest:.4g} for {len(turns)} pairs, which is not Llama 3's "
        "scaling. Use a model with that one or none."
    )


def token_ids(file: GgufFile) -> dict[str, int]:
    """Return the stated ones of `bos_token_id`, `eos_token_id` and `pad_token_id`."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{role}_token_id": f"tokenizer.ggml.{word}_token_id" for role, word in roles.items()}
    return {name: file.metadata[key] for name, key in keys.items() if key in file.metadata}


def text_tensors(file: GgufFile, config: Mapping[str, Any]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield Hugging Face names, names in the file, and float32 tensors: one at a time, to save memory.

    Parameters
    ----------
    file : GgufFile
        The file.
    config : mapping
        What `text_config` returned for it.

    Raises
    ------
    ModelError
        Tensors are missing or have no place in the model; none is yielded then.
    """
    architecture = file.metadata["general.architecture"]
    names = {name: _hugging_face_name(name, architecture) for name in file.tensors if name != _FACTORS}
    wanted = _wanted(architecture, config)
    unknown = [name for name, new in names.items() if new not in wanted]
    missing = sorted(wanted - set(names.values()))
    if unknown or missing:
        raise ModelError(
            f"{file.path} is no {architecture} of {config['num_hidden_layers']} layers: {len(missing)} "
            f"tensors are missing ({list_names(missing)}), {len(unknown)} have no place in it "
            f"({list_names(unknown)}). Fetch or copy it again, or use another model."
        )
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, new in names.items():
        module, tensor = new.split(".")[-2], file.read(name)
        if architecture == "llama" and module in heads:
            tensor = unpermute(tensor, heads[module])
        elif architecture == "gemma3" and module.endswith("norm"):
            tensor = tensor - 1
        yield new, name, tensor


def _wanted(architecture: str, config: Mapping[str, Any]) -> set[str]:
    layers = [f"model.layers.{index}" for index in range(config["num_hidden_layers"])]
    wanted = {f"{layer}.{module}.weight" for layer in layers for module in _BLOCKS[architecture].values()}
    wanted |= {f"{layer}.{module}.bias" for layer in layers for module in _BIASES.get(architecture, ())}
    wanted |= {f"{module}.weight" for module in _OUTER.values()}
    return wanted - {"lm_head.weight"} if config["tie_word_embeddings"] else wanted


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Put the rows of a query or key projection back: `[H D, in]`, pairs of a head to halves.

    >>> unpermute(torch.tensor([[0], [2], [1], [3]]), heads=1).flatten().tolist()
    [0, 1, 2, 3]
    """
    rows, columns = weight.shape
    if rows % (2 * heads):
        raise ModelError(f"{rows} query or key rows do not divide into {heads} heads of an even size.")
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str, architecture: str) -> str:
    match = _NAME.fullmatch(name)
    index, module, kind = match.groups() if match else (None, "", "")
    if index is None:
        return f"{_OUTER.get(module, '')}.{kind}"
    return f"model.layers.{int(index)}.{_BLOCKS[architecture].get(module, '')}.{kind}"
