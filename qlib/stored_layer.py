"""One quantized layer on disk: packed tensors, and an entry of a manifest that says what they are.

`pack_layer` and `unpack_layer` undo each other bit for bit. What is read is checked: a layer whose parts
do not fit together is an error that says which, never a layer that computes something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlib.activation import Activation
from qlib.activation_state import describe, restore
from qlib.errors import ModelError, QlibError, QuantError, list_names
from qlib.grid import Grid
from qlib.linear import FakeQuantEmbedding, FakeQuantLinear, FakeQuantWeight
from qlib.quantized_weight import TENSORS
from qlib.stored_checks import check_consistent, check_kept_columns, expect_tensor
from qlib.stored_weight import complete, pack_weight, to_16_bits, unpack_weight

DAMAGE = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, QlibError)
"""What reading a damaged entry may raise."""


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one layer, checked for itself: keys, kinds and bounds of all values."""

    grid: Grid
    activation: Activation | None
    shape: tuple[int, int]
    second: Grid | None
    tensors: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Entry:
        """Return the entry that `describe` wrote.

        Raises
        ------
        ModelError
            A value is missing, of another kind or out of bounds.
        """
        try:
            rows, columns = written["shape"]
            second = written["second"]
            entry = cls(
                Grid(**complete(written["grid"])),
                restore(written["activation"]),
                (rows, columns),
                None if second is None else Grid(**complete(second)),
                tuple(written["tensors"]),
                tuple(written["notes"]),
            )
        except DAMAGE as error:
            raise ModelError(f"its entry is damaged ({type(error).__name__}: {error})") from error
        # What was read must be written the same way again: no other kind of number, no key that does nothing.
        plain, written = entry.describe(), {**written, "grid": complete(written["grid"])}
        written["second"] = None if second is None else complete(second)
        if wrong := [
            key for key in plain if _text(plain[key]) != _text(written[key]) or not _kinds(plain[key])
        ]:
            raise ModelError(f"its entry is damaged: check {list_names(wrong, 9)}")
        entry.check()
        return entry

    def describe(self) -> dict[str, Any]:
        """Return the entry as plain data that JSON keeps exactly."""
        return {
            "grid": asdict(self.grid),
            "activation": describe(self.activation),
            "shape": list(self.shape),
            "second": None if self.second is None else asdict(self.second),
            "tensors": list(self.tensors),
            "notes": list(self.notes),
        }

    def check(self) -> None:
        """Raise a ModelError where shape, names or notes are none."""
        if not all(type(size) is int and size >= 1 for size in self.shape):
            raise ModelError(f"its shape {list(self.shape)} is not two sizes above 0")
        known = {*TENSORS, "bias", *(f"{part}_{name}" for part in ("scale", "zero") for name in TENSORS)}
        if strange := [str(each) for each in self.tensors if each not in known]:
            raise ModelError(f"it has no tensors of the names {list_names(strange)}")
        if not all(isinstance(note, str) for note in self.notes):
            raise ModelError(f"its notes {list(self.notes)} are no texts")


KINDS: dict[str, tuple[type, ...]] = {
    **{"bits": (int,), "group": (int, type(None)), "symmetric": (bool,), "scale_bits": (int,)},
    "dynamic": (bool,),
    **{"low": (float,), "high": (float,), "percentile": (int, float)},
}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _kinds(value: Any) -> bool:
    """Return whether the settings in plain data are of their kinds: 1 is not True."""
    if not isinstance(value, dict):
        return True
    return all(type(each) in KINDS.get(key, (type(each),)) and _kinds(each) for key, each in value.items())


def pack_layer(name: str, layer: FakeQuantWeight) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a layer as it stands on disk: its tensors by full name, on the CPU, and the manifest's entry.

    Raises
    ------
    QuantError
        The layer could not be read back; the message names it and the part.
    """
    try:
        tensors = pack_weight(layer)
    except QuantError as error:
        raise QuantError(
            f"{name} cannot be saved: {error}. Quantize this layer again, or skip it."
        ) from error
    if layer.bias is not None:
        tensors["bias"] = to_16_bits(layer.bias.detach())
    rows, columns = layer.codes.shape
    entry = Entry(
        layer.grid,
        layer.activation,
        (rows, columns),
        layer.second,
        tuple(tensors),
        tuple(layer.notes),
    )
    return {f"{name}.{part}": value.cpu() for part, value in tensors.items()}, entry.describe()


def unpack_layer(
    stored: Mapping[str, Tensor], written: Mapping[str, Any], like: nn.Module, dtype: torch.dtype
) -> FakeQuantLinear | FakeQuantEmbedding:
    """Return the layer of which `pack_layer` gave the tensors, here without the name, and the entry.

    Parameters
    ----------
    stored : mapping
        Tensors of the layer.
    written : mapping
        The entry.
    like : Module
        The linear layer or embedding in whose place it comes: same shape, and a bias if that has one.
    dtype : torch.dtype
        Dtype of the decoded weight.

    Raises
    ------
    ModelError
        Something does not fit; the message says what, and not which layer.
    """
    entry = Entry.read(written)
    if not isinstance(like, nn.Linear | nn.Embedding):
        raise ModelError(
            f"in this architecture it is a {type(like).__name__}, neither a linear layer nor an embedding"
        )
    if entry.shape != tuple(like.weight.shape):
        raise ModelError(f"its shape is {list(entry.shape)}, in this architecture {list(like.weight.shape)}")
    bias = stored.get("bias")
    if (bias is None) != (getattr(like, "bias", None) is None):
        raise ModelError(f"it has {'no' if bias is None else 'a'} bias, unlike in this architecture")
    try:
        weight = unpack_weight(stored, written, dtype)
        check_consistent(weight, entry.grid, entry.shape)
        if bias is not None:
            expect_tensor("bias", bias, entry.shape[:1], None)
        check_kept_columns(entry.activation, weight.columns)
    except DAMAGE as error:
        raise ModelError(str(error)) from error
    if isinstance(like, nn.Embedding):
        if entry.activation is not None:
            raise ModelError("its input is rounded, and an embedding reads whole numbers: check activation")
        return FakeQuantEmbedding(weight, entry.grid, dtype)
    bias = None if bias is None else bias.to(dtype)
    return FakeQuantLinear(weight, entry.grid, bias, entry.activation, dtype)
