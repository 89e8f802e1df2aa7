"""Reader of ONNX Runtime's `.ort` files.

An `.ort` file is a flatbuffer (identifier ORTM): a graph of nodes and initializers (constant tensors). A node
may hold graphs of its own, the branches of an `If`, which see the initializers around them.

    session  model 6        model  graph 18        attribute  graph 18
    graph    initializers 4, nodes 8
    node     name 4, operation 14, inputs 20, attributes 24
    tensor   name 4, dimensions 8, data type 10, raw data 12

The numbers are places in the tables (see `flatbuffer`). Weights that were quantized are three initializers,
`x_quantized`, `x_scale` and `x_zero_point`: w = (q - zero point) * scale, one scale per tensor.
Exporters name many initializers at random, but nodes after modules: the names of weights are taken from the
nodes that read them.

Left out: scales per channel, external data, texts (each is an error, or is not needed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib.errors import ModelError
from qlib.models.hub.formats.flatbuffer import Table

Array = NDArray[Any]
_DTYPES = {1: "<f4", 2: "<u1", 3: "<i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}


@dataclass(frozen=True)
class Node:
    """One operation of a graph."""

    name: str
    operation: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes, and the initializers that they can read: the graph's own and those around it."""

    path: Path
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Array]

    def dequantize(self, name: str) -> Array:
        """Return the float32 values of the initializers `name_quantized`, `_scale` and `_zero_point`.

        Raises
        ------
        ModelError
            One of them is missing, or there is more than one scale.
        """
        try:
            codes, scale, zero = (
                self.initializers[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point")
            )
        except KeyError as error:
            raise ModelError(f"{self.path} lacks the initializer {error}. Fetch or copy it again.") from error
        if scale.size != 1 or zero.size != 1:
            raise ModelError(
                f"{self.path}: {name} has {scale.size} scales and {zero.size} zero points; only one a tensor "
                "is read. Quantize the model without per_channel."
            )
        steps = codes.astype(np.int32) - int(zero.item())
        return steps.astype(np.float32) * np.float32(scale.item())


def read(path: str | Path) -> list[Graph]:
    """Return all graphs of an `.ort` file, the outer one first; arrays are views of the mapped file.

    Raises
    ------
    ModelError
        The file is missing, damaged or of another format.
    """
    session = Table.root(path, b"ORTM")
    model = session.table(6)
    graph = None if model is None else model.table(18)
    if graph is None:
        raise ModelError(f"{path} holds no graph. Fetch or copy it again.")
    return list(_graphs(graph, {}))


def _graphs(table: Table, outer: Mapping[str, Array]) -> Iterator[Graph]:
    own = {
        tensor.text(4): _array(tensor) for tensor in table.tables(4) if tensor.number(10, "<i4") in _DTYPES
    }
    initializers = {**outer, **own}
    tables = table.tables(8)
    nodes = tuple(Node(node.text(4), node.text(14), tuple(node.texts(20))) for node in tables)
    yield Graph(table.path, nodes, initializers)
    for node in tables:
        for attribute in node.tables(24):
            if (inner := attribute.table(18)) is not None:
                yield from _graphs(inner, initializers)


def _array(tensor: Table) -> Array:
    shape = tensor.numbers(8, "<i8").tolist()
    data = tensor.numbers(12, "<u1")
    dtype = np.dtype(_DTYPES[tensor.number(10, "<i4")])
    if data.size != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ModelError(
            f"{tensor.path}: {tensor.text(4)} has {data.size} bytes, which is not what the shape {shape} of "
            f"{dtype} takes. The file is damaged, or keeps its data elsewhere."
        )
    return data.view(dtype).reshape(shape)
