"""Whisper's tensors out of the variables of CTranslate2: other names, fused projections, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models.hub.formats.ctranslate2 import Array

# Rows of a fused projection -> its parts; a key bias has no counterpart in Hugging Face's layout.
_FUSED = {
    ("self_attention", "linear_0"): ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attention", "linear_1"): ("self_attn", ("out_proj",)),
    ("attention", "linear_0"): ("encoder_attn", ("q_proj",)),
    ("attention", "linear_1"): ("encoder_attn", ("k_proj", "v_proj")),
    ("attention", "linear_2"): ("encoder_attn", ("out_proj",)),
    ("ffn", "linear_0"): ("", ("fc1",)),
    ("ffn", "linear_1"): ("", ("fc2",)),
}
_NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+)/(\w+)/(weight|bias|gamma|beta)")
_OUTER = re.compile(r"(encoder|decoder)/(conv1|conv2|layer_norm)/(weight|bias|gamma|beta)")
_TABLES = {
    "encoder/position_encodings/encodings": "model.encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "model.decoder.embed_positions.weight",
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
}


def whisper_state_dict(variables: Mapping[str, Array]) -> dict[str, Tensor]:
    """Rename Whisper's variables as Hugging Face names them, in the stored dtype.

    Fused projections are split by rows, ``[q; k; v]`` or ``[k; v]``. The key bias, which Whisper does not
    have, is dropped after checking that it is zero. The head is tied to the embedding and not saved.

    Raises
    ------
    ModelError
        A variable has no counterpart, an integer dtype (quantized weights), rows that do not divide,
        or a key bias that is not zero.
    """
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, values in variables.items():
        if values.ndim == 0:  # settings: heads, activation and the like
            continue
        parts = list(_whisper_parts(name))
        if not parts:
            unknown.append(name)
            continue
        tensors.update(_split(name, values, parts))
    if unknown:
        raise ModelError(
            f"{len(unknown)} variables have no place in a Whisper model: {list_names(unknown)}. "
            "Is this a float Whisper checkpoint of CTranslate2?"
        )
    return tensors


def _whisper_parts(name: str) -> Iterator[str]:
    if name in _TABLES:
        yield _TABLES[name]
    elif match := _OUTER.fullmatch(name):
        side, module, kind = match.groups()
        yield f"model.{side}.{module}.{_KINDS[kind]}"
    elif match := _LAYER.fullmatch(name):
        side, index, block, linear, kind = match.groups()
        layer = f"model.{side}.layers.{index}"
        if linear == "layer_norm" and block in _NORMS:
            yield f"{layer}.{_NORMS[block]}.{_KINDS[kind]}"
        elif (block, linear) in _FUSED:
            module, projections = _FUSED[block, linear]
            for projection in projections:
                yield ".".join(filter(None, (layer, module, projection, kind)))


def _split(name: str, values: Array, parts: list[str]) -> Iterator[tuple[str, Tensor]]:
    if not np.issubdtype(values.dtype, np.floating):
        raise ModelError(
            f"{name} is stored as {values.dtype}. Quantized CTranslate2 models are not read; "
            "convert the original one with --quantization float16 or float32."
        )
    rows, rest = divmod(values.shape[0], len(parts))
    if rest:
        raise ModelError(
            f"{name} has {values.shape[0]} rows, which do not divide into {len(parts)} projections."
        )
    for index, part in enumerate(parts):
        block = np.array(values[index * rows : (index + 1) * rows])  # a copy: the mapped file is read-only
        if not part.endswith("k_proj.bias"):
            yield part, torch.from_numpy(block)
        elif block.any():
            raise ModelError(
                f"{name}: the bias of the keys is not zero (largest {np.abs(block).max():.3g}), "
                f"and Whisper has no {part}. This is another architecture."
            )
