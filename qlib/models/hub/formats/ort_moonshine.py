"""Moonshine's tensors out of the graphs of an ORT file."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.formats.ort import Array, Graph

_MERGED = re.compile(r"_merged_\d+$")  # what merging the decoder's two graphs appends
_FLOAT = re.compile(r"(model\.decoder\.)?(layers\.\d+\.[\w.]+|conv\d|layer_norm|norm)\.(weight|bias)")
_GROUP_NORM = {"/groupnorm/Mul": "weight", "/groupnorm/Add": "bias"}
_LINEAR = "/MatMul_quant"


def moonshine_state_dict(graphs: list[Graph], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one of Moonshine's files as Hugging Face names them, float32.

    Parameters
    ----------
    graphs : list of Graph
        Of the encoder's file, or of the decoder's, whose two branches hold the same weights.
    prefix : str
        What names in the file lack: ``"model.encoder."`` or ``""``.

    Raises
    ------
    ModelError
        A weight has no codes or scales, or the branches differ.
    """
    found: dict[str, Array] = {}
    for graph in graphs:
        for name, values in _moonshine_tensors(graph):
            name = f"{prefix}{name}"
            if not np.array_equal(found.setdefault(name, values), values):
                raise ModelError(f"{graph.path}: {name} is not the same in both branches of the graph.")
    return {name: torch.from_numpy(np.array(values, np.float32)) for name, values in found.items()}


def rotary_frequencies(graphs: list[Graph]) -> Array:
    """Return the frequencies of the rotary embedding, float32 [pairs], as the graph has them."""
    for graph in graphs:
        for node in graph.nodes:
            if node.name.endswith("/rotary_emb/Expand") and node.inputs[0] in graph.initializers:
                return graph.initializers[node.inputs[0]].reshape(-1)
    raise ModelError(f"{graphs[0].path} has no rotary embedding. Is it a part of a Moonshine model?")


def _moonshine_tensors(graph: Graph) -> Iterator[tuple[str, Array]]:
    for name, values in graph.initializers.items():
        bare = _MERGED.sub("", name)
        if _FLOAT.fullmatch(bare):
            yield bare, values
    for node in graph.nodes:
        held = [name for name in node.inputs if name in graph.initializers]
        if node.name in _GROUP_NORM and held:
            yield f"groupnorm.{_GROUP_NORM[node.name]}", graph.initializers[held[0]].reshape(-1)
        for name in held:
            if not name.endswith("_quantized"):
                continue
            weight = graph.dequantize(name.removesuffix("_quantized"))
            if node.operation == "Gather":
                yield _MERGED.sub("", name.removesuffix("_quantized")), weight
            else:  # a linear layer, stored [in, out]
                module = node.name.removesuffix(_LINEAR).strip("/").replace("/", ".")
                yield f"{module}.weight", weight.T
