"""The tensors of a GGUF file under their Hugging Face names, with what converters to GGUF changed undone.

    Llama      query and key rows are permuted within each head, since llama.cpp rotates neighbouring pairs
               where Hugging Face rotates halves:  GGUF row (h, i, half) = Hugging Face row (h, half, i)
               h head, i pair of a head's D/2, half 0 or 1; Qwen and Gemma stay as they are
    Gemma 3    norm weights are stored with the 1 added that the model adds

Left out: biases that only some Llamas have (an error that names them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models.hub.formats.gguf import GgufFile
from qlib.models.hub.formats.gguf_rope import FACTORS

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
    names = {name: _hugging_face_name(name, architecture) for name in file.tensors if name != FACTORS}
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
