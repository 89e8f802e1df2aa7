"""Miniature `.ort` files: a writer of flatbuffers, and Moonshine's graphs as its exporter names things."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib.models.hub.formats.tokenizer_bin import FIRST_PIECE
from qlib.models.moonshine import Moonshine

Array = NDArray[Any]
CODES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}


def flatbuffer(root: dict[int, Any], identifier: bytes = b"ORTM") -> bytes:
    """Write tables (dicts by place in the vtable), numbers, texts, arrays and lists of tables or texts.

    Nothing is aligned, which a reader must bear.
    """
    out = bytearray(8)
    struct.pack_into("<I4s", out, 0, _emit(out, root), identifier)
    return bytes(out)


def _emit(out: bytearray, value: Any) -> int:
    """Append a value and return where it begins."""
    if isinstance(value, dict):
        return _emit_table(out, value)
    start = len(out)
    if isinstance(value, list):
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for i, item in enumerate(value):
            place = start + 4 + 4 * i
            struct.pack_into("<I", out, place, _emit(out, item) - place)
        return start
    data = value.encode() if isinstance(value, str) else value.tobytes()
    out += struct.pack("<I", len(value if isinstance(value, np.ndarray) else data)) + data
    return start


def _emit_table(out: bytearray, fields: dict[int, Any]) -> int:
    vtable, count = len(out), max(fields, default=2) // 2 - 1
    size = 4 + 4 * count
    places = [4 + 4 * i if 2 * i + 4 in fields else 0 for i in range(count)]
    out += struct.pack(f"<HH{count}H", 4 + 2 * count, size, *places)
    at = len(out)
    out += struct.pack("<i", at - vtable) + bytes(4 * count)
    for key, value in fields.items():
        place = at + 2 * key - 4
        number = value if isinstance(value, int) else _emit(out, value) - place
        struct.pack_into("<I", out, place, number)
    return at


def tensor(name: str, values: Array) -> dict[int, Any]:
    flat = np.frombuffer(values.tobytes(), np.uint8)
    return {4: name, 8: np.array(values.shape, "<i8"), 10: CODES[values.dtype.name], 12: flat}


def node(name: str, operation: str, inputs: list[str], graph: dict[int, Any] | None = None) -> dict[int, Any]:
    attributes = {} if graph is None else {24: [{4: "no graph"}, {4: "branch", 18: graph}]}
    return {4: name, 14: operation, 20: inputs, **attributes}


def graph(tensors: dict[str, Array], nodes: list[dict[int, Any]]) -> dict[int, Any]:
    return {4: [tensor(name, values) for name, values in tensors.items()], 8: nodes}


def session(content: dict[int, Any]) -> bytes:
    return flatbuffer({4: "6", 6: {18: content}})


def codes(name: str, values: Array) -> dict[str, Array]:
    """Quantize to 8 bits, one scale per tensor."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.uint8(np.rint(-low / scale))
    quantized = np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)
    return {
        f"{name}_quantized": quantized,
        f"{name}_scale": np.array(scale),
        f"{name}_zero_point": np.array(zero),
    }


class Exporter:
    """Collects initializers and nodes of one graph; names of weights are random, as in exported files."""

    def __init__(self, suffix: str):
        self.suffix = suffix
        self.tensors: dict[str, Array] = {"/Constant_output_0": np.array([1, 2], np.int64)}
        self.nodes: list[dict[int, Any]] = [node("/Add", "Add", ["x", "/Constant_output_0"])]

    def linear(self, module: str, weight: Array) -> None:
        name = f"onnx::MatMul_{len(self.tensors)}{self.suffix}"
        self.tensors |= codes(name, np.ascontiguousarray(weight.T))
        parts = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
        inputs = ["x_quantized", parts[0], "x_scale", parts[1], "x_zero_point", parts[2]]
        self.nodes.append(node(f"/{module}/MatMul_quant", "MatMulIntegerToFloat", inputs))

    def add(self, name: str, values: Array) -> None:
        module = name.rpartition(".")[0]
        if module == "groupnorm":
            kind = {"weight": "Mul", "bias": "Add"}[name.rpartition(".")[2]]
            self.tensors[f"onnx::{kind}_1"] = values[:, None]
            self.nodes.append(node(f"/groupnorm/{kind}", kind, ["x", f"onnx::{kind}_1"]))
        elif "embed_tokens" in name:
            self.tensors |= codes(f"{name}{self.suffix}", values)
            self.nodes.append(node(f"/{module}/Gather", "Gather", [f"{name}{self.suffix}_quantized", "ids"]))
        elif values.ndim == 2:
            self.linear(re.sub(r"\.(?!\d)", "/", module), values)
        else:
            self.tensors[f"{name}{self.suffix}"] = values
            if "norm" in name:
                self.tensors[f"/{module}/Constant_output_0"] = np.zeros_like(values)

    def rotary(self, frequencies: Array) -> None:
        self.tensors["onnx::Expand_1"] = frequencies.astype(np.float32).reshape(1, -1, 1)
        self.nodes.append(node("/rotary_emb/Expand", "Expand", ["onnx::Expand_1", "shape"]))


def moonshine_package(model: Moonshine, damage: str = "nothing") -> dict[str, bytes]:
    """The three files of a Moonshine of 8 heads; `damage` says what is wrong with them."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    channels = int(model.config.hidden_size // 8 * 0.9)
    frequencies = 10_000.0 ** -(np.arange(0, channels, 2) / channels)
    encoder, first, later = Exporter(""), Exporter("_merged_0"), Exporter("_merged_0")
    for name, values in state.items():
        if name.startswith("model.encoder."):
            if damage != "encoder" or "fc1" not in name:
                encoder.add(name.removeprefix("model.encoder."), values)
            continue
        if name == "proj_out.weight" and damage == "head":
            values = values[::-1]
        first.add(name, values)
        if "encoder_attn.k" not in name and "encoder_attn.v" not in name:
            later.add(name, values)
    for each in (encoder, first, later):
        each.rotary(frequencies + (damage == "rotary"))
    branches = [graph(each.tensors, each.nodes) for each in (first, later)]
    decoder = graph({}, [node("optimum::if", "If", ["use_cache_branch"], branch) for branch in branches])
    assert model.tokenizer is not None
    pieces = [model.tokenizer._backend.id_to_token(i) for i in range(FIRST_PIECE, model.tokenizer.vocab_size)]
    records = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(bytes([i]) for i in range(256)),
        *(each.encode() for each in pieces),
    ]
    return {
        "encoder.ort": session(graph(encoder.tensors, encoder.nodes)),
        "decoder.ort": session(decoder),
        "tokenizer.bin": b"".join(bytes([len(r)]) + r for r in records[: -1 if damage == "tokens" else None]),
    }
