"""Reader of CTranslate2's `model.bin` (binary version 6), and its Whisper tensors under Hugging Face names.

Layout, little-endian, nothing aligned or padded:

    u32 version | str spec | u32 revision | u32 variables
    per variable: str name | u8 rank | u32 dims[rank] | u8 dtype | u32 bytes | data, row-major
    u32 aliases | per alias: str alias | str target | end of file
    str = u16 length with the closing NUL, bytes, NUL

Left out: other versions of the layout, and int8 weights with their scales (such a variable is an error).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qlib.errors import ModelError, list_names

VERSION = 6
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # 5, bfloat16, is unknown to numpy
_BFLOAT16 = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a `model.bin` holds.

    Attributes
    ----------
    spec : str
        Kind of model, for example ``"WhisperSpec"``.
    revision : int
        Revision of that kind.
    variables : dict of str to ndarray
        Arrays that read from the mapped file; settings are arrays of rank 0. bfloat16 is widened to float32.
    aliases : dict of str to str
        Names that stand for another variable (tied weights).
    """

    spec: str
    revision: int
    variables: dict[str, Array]
    aliases: dict[str, str]


class _Cursor:
    """A position in the file; every step past its end is an error that says where and in what."""

    def __init__(self, path: Path):
        self.path = path
        self.at = 0
        try:
            self.data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: mmap refuses an empty file
            raise ModelError(f"Cannot read {path}: {error}.") from error

    def fail(self, what: str, where: str) -> ModelError:
        return ModelError(
            f"{self.path} is damaged or not a CTranslate2 model: {what} "
            f"at byte {self.at} of {self.data.size}, in {where}. Fetch or copy it again."
        )

    def take(self, count: int, where: str) -> Array:
        if self.at + count > self.data.size:
            raise self.fail(f"{count} bytes expected, {self.data.size - self.at} left", where)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, where: str) -> int:
        return int.from_bytes(self.take(size, where).tobytes(), "little")

    def text(self, where: str) -> str:
        raw = self.take(self.number(2, where), where).tobytes()
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not name.endswith("\0"):
            raise self.fail("a name is not text that ends with NUL", where)
        return name[:-1]


def read(path: str | Path) -> Checkpoint:
    """Read a `model.bin`; the arrays stay in the mapped file until they are used.

    Raises
    ------
    ModelError
        The file is missing, truncated, of another version or another format; the message says at which
        byte and in which variable.
    """
    cursor = _Cursor(Path(path))
    version = cursor.number(4, "the header")
    if version != VERSION:
        raise ModelError(
            f"{path} is not a CTranslate2 model of binary version {VERSION}: it starts with {version}. "
            "Convert the model again with CTranslate2 3 or 4."
        )
    spec, revision = cursor.text("the header"), cursor.number(4, "the header")
    variables: dict[str, Array] = {}
    for index in range(cursor.number(4, "the number of variables")):
        name, values = _variable(cursor, index)
        if variables.setdefault(name, values) is not values:
            raise cursor.fail("a name that was used before", f"variable {index} ({name})")
    aliases = {}
    for index in range(cursor.number(4, "the number of aliases")):
        alias = cursor.text(f"alias {index}")
        aliases[alias] = cursor.text(f"alias {index} ({alias})")
        if aliases[alias] not in variables:
            raise cursor.fail(f"the unknown target {aliases[alias]!r}", f"alias {index} ({alias})")
    if cursor.at != cursor.data.size:
        raise cursor.fail(f"{cursor.data.size - cursor.at} bytes too many", "the end of the file")
    return Checkpoint(spec, revision, variables, aliases)


def _variable(cursor: _Cursor, index: int) -> tuple[str, Array]:
    name = cursor.text(f"the name of variable {index}")
    where = f"variable {index} ({name})"
    shape = [cursor.number(4, where) for _ in range(cursor.number(1, where))]
    code, size = cursor.number(1, where), cursor.number(4, where)
    if code not in _DTYPES and code != _BFLOAT16:
        raise cursor.fail(f"the unknown dtype {code}", where)
    dtype = np.dtype(_DTYPES.get(code, "<u2"))
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize  # object: no overflow on absurd sizes
    if size != expected:
        raise cursor.fail(f"{size} bytes stated for shape {shape}, which takes {expected},", where)
    data = cursor.take(size, where).view(dtype)
    try:
        values = data.reshape(shape)
    except ValueError as error:  # more axes than numpy can count
        raise cursor.fail(f"the impossible shape {shape[:8]} of rank {len(shape)}", where) from error
    if code == _BFLOAT16:  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return name, values


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
