"""Quantized checkpoints: packed codes in safetensors, everything else readable in a manifest.

    manifest.json           format, settings, versions, and per layer: grid, activation grid, shape
    model.safetensors       NAME.codes (packed bits), NAME.scale, NAME.zero, NAME.index, and float tensors
    config.json, generation_config.json, tokenizer.json

Reading gives the same model bit for bit: scales are stored in float32 as they are used, zero points as
packed integers, and a float tensor in 16 bits only where that loses nothing (weights that came from a
16-bit checkpoint and were not changed).

A folder appears whole or not at all: it is written beside its place as .NAME.partial and then renamed. What
a killed run leaves under that name is removed by the next one.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qlib.activation import describe, restore
from qlib.errors import ModelError, QuantError, list_names
from qlib.grid import (
    Grid,
    QuantizedWeight,
    SecondLevel,
    from_unsigned,
    pack,
    to_unsigned,
    unpack,
)
from qlib.linear import FakeQuantLinear
from qlib.models.convert import read_json
from qlib.models.download import sha256_of
from qlib.models.load import build, fill, open_safetensors, read_tensors
from qlib.models.placement import choose_device
from qlib.models.structure import Model

FORMAT, VERSION = "quantdraft", 2
WEIGHTS = "model.safetensors"


def save_quantized(model: Model, folder: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a quantized model and return its folder.

    Parameters
    ----------
    model : Model
        With at least one `FakeQuantLinear`.
    folder : str or Path
        Created; an older quantized checkpoint there is replaced once the new one is complete.
    settings : mapping, optional
        How the model was made, for the manifest.

    Raises
    ------
    QuantError
        Nothing in the model is quantized, or the folder holds something else than such a checkpoint.
    """
    folder = Path(folder)
    model.require_unpacked("saved")
    layers = _quantized_layers(model)
    if not layers:
        raise QuantError(
            "The model has no quantized layer. Quantize it first: qlib.quantize(model, ...).save(folder)."
        )
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise QuantError(
            f"{folder} exists and is not a quantized checkpoint. Choose another folder, or remove it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _write(model, layers, work, settings or {})
        _swap(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def load_quantized(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read a checkpoint that `save_quantized` wrote: same codes, same logits, in evaluation mode.

    Raises
    ------
    ModelError
        The folder is not such a checkpoint, its format is newer than this library, or a file is missing,
        damaged or changed; the message names the file or tensor.
    """
    folder, device = Path(folder), choose_device(device)
    manifest = _read_manifest(folder / "manifest.json")
    model, tensors = build(folder), read_tensors(folder)
    if sha256_of(folder / WEIGHTS) != manifest["sha256"]:
        raise ModelError(f"{folder / WEIGHTS} was changed or damaged since it was saved. Make it again.")
    dtype = getattr(torch, manifest["dtype"])
    placed: set[str] = set()
    with open_safetensors(folder / WEIGHTS) as file:
        for name, about in manifest["layers"].items():
            mine = [part for part in about["tensors"] if tensors.pop(f"{name}.{part}", None)]
            if missing := set(about["tensors"]) - set(mine):
                raise ModelError(
                    f"{folder / WEIGHTS} lacks the {list_names(sorted(missing))} of {name}. Make it again."
                )
            layer = restored_layer({part: file.get_tensor(f"{name}.{part}") for part in mine}, about, dtype)
            put(model, name, layer)
            placed |= {f"{name}.{key}" for key in layer.state_dict()}
    fill(model, tensors, dtype, torch.device("cpu"), str(folder), present=placed)
    return model.to(device).eval()


def stored_tensors(layer: FakeQuantLinear) -> dict[str, Tensor]:
    """Return what a layer's weight takes on disk, by the names of `QuantizedWeight.tensors`.

    Codes and whole zeros are packed. What can be computed is left out: the codes of columns that stay in
    float, the group of each column where groups are neighbours, and scales and zeros of which a second level
    is kept. Positions of outliers are stored as gaps, 16 bits each where they fit.
    """
    weight, grid = layer.quantized, layer.grid
    tensors = {name: value.contiguous() for name, value in weight.tensors().items()}
    codes = weight.codes
    if weight.columns is not None:
        codes = codes[:, _others(weight.columns, codes.shape[1])]
    tensors["codes"] = pack(to_unsigned(codes, grid), grid.bits)
    if weight.zero is not None and not weight.zero.is_floating_point():
        tensors["zero"] = pack(weight.zero, grid.bits)
    if weight.index is not None and torch.equal(weight.index.cpu(), grid.group_index(layer.in_features)):
        del tensors["index"]
    if weight.outliers is not None:
        tensors["outliers"] = weight.outliers.diff(prepend=weight.outliers.new_zeros(1))
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = _short_integers(tensors[name])
    if weight.second is not None:
        del tensors["scale"], tensors["zero"]
        for part, level in (("scale", weight.second.scale), ("zero", weight.second.zero)):
            tensors[f"{part}_codes"] = pack(level.codes, weight.second.grid.bits)
            tensors.pop(f"{part}_index", None)
    return tensors


def restored(stored: Mapping[str, Tensor], about: Mapping[str, Any]) -> QuantizedWeight:
    """Undo `stored_tensors`; `about` is the layer's entry in the manifest."""
    grid, (rows, columns) = Grid(**about["grid"]), about["shape"]
    second = None if about.get("second") is None else Grid(**about["second"])
    tensors = {name: value for name, value in stored.items() if name != "bias"}
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = tensors[name].long()
    if "outliers" in tensors:
        tensors["outliers"] = tensors["outliers"].cumsum(0)
    kept = tensors.get("columns", torch.empty(0, dtype=torch.long))
    codes = unpack(tensors["codes"], grid.bits, (rows, columns - len(kept)))
    tensors["codes"] = torch.zeros(rows, columns, dtype=grid.code_dtype)
    tensors["codes"][:, _others(kept, columns)] = from_unsigned(codes, grid)
    if second is not None:
        for part in ("scale", "zero"):
            packed = tensors[f"{part}_codes"]
            tensors[f"{part}_codes"] = unpack(packed, second.bits, (len(grid.slices(columns)), rows))
            if tensors[f"{part}_scale"].shape[1] > 1:
                tensors[f"{part}_index"] = second.group_index(rows)
        tensors["scale"], tensors["zero"] = SecondLevel.from_tensors(tensors, second).decode()
    if (zero := tensors.get("zero")) is not None and zero.dtype == torch.uint8:
        tensors["zero"] = unpack(zero, grid.bits, tensors["scale"].shape)
    if "index" not in tensors and tensors["scale"].shape[1] > 1:
        tensors["index"] = grid.group_index(columns)
    return QuantizedWeight.from_tensors(tensors, second, tuple(about["notes"]))


def _others(columns: Tensor, count: int) -> Tensor:
    """Return a mask [count] of the columns that are not among those given."""
    mask = torch.ones(count, dtype=torch.bool, device=columns.device)
    mask[columns] = False
    return mask


def _short_integers(values: Tensor) -> Tensor:
    """Return whole numbers >= 0 in the shortest dtype that holds them."""
    largest = int(values.max()) if values.numel() else 0
    return values.to(torch.uint8 if largest < 1 << 8 else torch.uint16 if largest < 1 << 16 else torch.int32)


def stored_bits(layer: FakeQuantLinear) -> int:
    """Return the bits that a layer's weight takes on disk, without its bias."""
    return 8 * sum(tensor.nbytes for tensor in stored_tensors(layer).values())


def folder_bytes(folder: str | Path) -> int:
    """Return the size of a checkpoint's weight files in bytes."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def shorten(tensor: Tensor) -> Tensor:
    """Return a float tensor in 16 bits if that changes no value, else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            short = tensor.to(dtype)
            if torch.equal(short.to(tensor.dtype), tensor):
                return short
    return tensor


def restored_layer(
    stored: Mapping[str, Tensor], about: Mapping[str, Any], dtype: torch.dtype
) -> FakeQuantLinear:
    """Return the layer of which `stored_layer` gave the tensors, here without the name, and the entry."""
    bias = stored.get("bias")
    activation = restore(about["activation"])
    return FakeQuantLinear(
        restored(stored, about),
        Grid(**about["grid"]),
        None if bias is None else bias.to(dtype),
        activation,
        dtype,
    )


def _write(model: Model, layers: dict[str, FakeQuantLinear], work: Path, settings: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    about = {}
    for name, layer in layers.items():
        stored, about[name] = stored_layer(name, layer)
        tensors |= stored
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in layers and name not in model.tied:
            tensors[name] = shorten(value.detach().cpu()).contiguous()
    save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "sha256": sha256_of(work / WEIGHTS),
        "settings": dict(settings),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "quantdraft": version("quantdraft"),
        },
        "layers": about,
    }
    model.save_description(work)
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1))


def stored_layer(name: str, layer: FakeQuantLinear) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a layer as it stands on disk: its tensors by full name, on the CPU, and the manifest's entry."""
    tensors = stored_tensors(layer)
    if layer.bias is not None:
        tensors["bias"] = shorten(layer.bias.detach())
    about = {
        "grid": asdict(layer.grid),
        "activation": describe(layer.activation),
        "shape": [layer.out_features, layer.in_features],
        "second": None if layer.second is None else asdict(layer.second),
        "tensors": list(tensors),
        "notes": list(layer.notes),
    }
    return {f"{name}.{part}": value.cpu() for part, value in tensors.items()}, about


def _quantized_layers(model: nn.Module) -> dict[str, FakeQuantLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    found = (manifest.get("format"), manifest.get("version"))
    if found != (FORMAT, VERSION):
        raise ModelError(
            f"{path} has format and version {found}; this library reads {(FORMAT, VERSION)}. "
            "Load a float checkpoint by qlib.load_model."
        )
    for key in ("layers", "dtype", "sha256"):
        if key not in manifest:
            raise ModelError(f"{path} lacks {key!r}. Copy or make the checkpoint again.")
    return manifest


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of a name."""
    parent, _, child = name.rpartition(".")
    try:
        setattr(model.get_submodule(parent), child, layer)
    except AttributeError as error:
        raise ModelError(f"manifest.json names {name}, which this architecture does not have.") from error


def _swap(work: Path, folder: Path) -> None:
    """Rename the finished folder into place; an older checkpoint steps aside first and is then removed."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    work.rename(folder)  # a run killed just before this line leaves .old, which goes only now
    shutil.rmtree(old, ignore_errors=True)
