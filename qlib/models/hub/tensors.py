"""The tensors of a checkpoint's folder by name: one file or shards, compared with what the network wants."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qlib.errors import ModelError, describe, list_names
from qlib.models.disk.safetensors_file import open_safetensors
from qlib.models.files import read_json
from qlib.models.hub.tensor_names import (
    StoredTensor,
    hint,
    layer_counts,
)


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return file, shape and type of every tensor of a checkpoint, without reading any.

    Shards are those of model.safetensors.index.json, which counts where there is no model.safetensors; a
    shard that is listed and missing is an error.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    shards = _shards(index) if index.is_file() and not single.is_file() else [single.name]
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {list_names(missing)}. Weights are read from safetensors only; convert a "
            "pytorch_model.bin with save_pretrained(safe_serialization=True)."
        )
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        with open_safetensors(folder / shard) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(name)
                found[name] = StoredTensor(folder / shard, tuple(part.get_shape()), name, part.get_dtype())
    return found


def _shards(index: Path) -> list[str]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(each, str) for each in table.values()):
        raise ModelError(
            f"{index}: weight_map is {describe(table)}, not an object with a file name for each tensor. "
            "Download the file again."
        )
    return sorted(set(table.values()))


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return one tensor of a checkpoint as it is stored."""
    with open_safetensors(stored.path) as file:
        tensor: Tensor = file.get_tensor(stored.name)
    return tensor


def compare(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise a ModelError that names the tensors in which a checkpoint differs from its model."""
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} missing: {list_names(missing)}")
    if unexpected := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unexpected)} unexpected: {list_names(unexpected)}")
    shared = sorted(wanted.keys() & found.keys())
    if misshapen := [
        f"{name} is {list(found[name])}, not {list(wanted[name])}"
        for name in shared
        if found[name] != wanted[name]
    ]:
        problems.append(f"{len(misshapen)} of another shape: {list_names(misshapen)}")
    if problems:
        raise ModelError(
            f"The tensors of {where} are not those that its config.json describes. "
            + "; ".join(problems)
            + f". {layer_counts(wanted, found)}{hint(missing, unexpected)}"
        )
