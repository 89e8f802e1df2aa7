"""Quantized checkpoints: packed codes in safetensors, everything else readable in a manifest.

    manifest.json           format, settings, versions, per layer: grid, activation grid, shape; a hash of
                            every other file, and one of itself
    model.safetensors       NAME.codes (packed bits), NAME.scale, NAME.zero, NAME.index, and float tensors
    config.json, generation_config.json, tokenizer.json

Reading gives the same model bit for bit: scales are stored as they are used, in float32 or in the bits that
their grid gives them, zero points as packed integers, and a float tensor in 16 bits only where that loses
nothing (weights that came from a 16-bit checkpoint and were not changed). Parameters that a formula gives are
computed again: see `Model.computed`.

A folder is the old checkpoint or the new one, whatever happens while it is written: see
`qlib.models.disk`. Whatever is read is hashed, so a checkpoint that was changed does not load.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qlib.errors import ModelError, QuantError, describe, list_names
from qlib.linear import FakeQuantWeight
from qlib.models.disk.disk_errors import disk_errors
from qlib.models.disk.folders import atomic_folder
from qlib.models.disk.hashes import (
    SEAL,
    digest_of,
    identity,
    sealed,
    sha256_of,
)
from qlib.models.disk.read_folder import read_whole
from qlib.models.disk.safetensors_file import open_safetensors
from qlib.models.files import read_json
from qlib.models.hub import registry
from qlib.models.hub.load import build, fill
from qlib.models.hub.placement import choose_device
from qlib.models.hub.tensors import read_tensors
from qlib.models.structure import Model
from qlib.stored_layer import pack_layer, unpack_layer
from qlib.stored_weight import to_16_bits
from qlib.version import library_version

FORMAT, VERSION = "quantdraft", 4  # 3 had scales of 32 bits alone, 2 a hash of the weights alone
READABLE = (2, 3, 4)
MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
DTYPES = {str(each).removeprefix("torch."): each for each in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
)}  # fmt: skip
READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json")  # fmt: skip
"""What loading a model looks for besides the weights: any of them decides what is loaded."""


def save_quantized(model: Model, folder: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a quantized model and return its folder.

    Parameters
    ----------
    model : Model
        Of this library, and with at least one `FakeQuantLinear` or `FakeQuantEmbedding`.
    folder : str or Path
        Created; an older quantized checkpoint there is replaced once the new one is complete, and files in it
        that are not the checkpoint's stay.
    settings : mapping, optional
        How the model was made, for the manifest.

    Raises
    ------
    QuantError
        It is no model of this library, nothing in it is quantized, a layer holds NaN or infinite scales, or
        the folder holds something else than such a checkpoint.
    FileError
        The disk is full, or may not be written.
    """
    folder = Path(folder)
    if not isinstance(model, Model):
        raise QuantError(_no_model(model))
    model.require_unpacked("saved")
    layers = _quantized_layers(model)
    if not layers:
        raise QuantError(
            "The model has no quantized layer. Quantize it first: qlib.quantize(model, ...).save(folder)."
        )
    with atomic_folder(folder, _our_files) as fresh:
        _write(model, layers, fresh, settings or {})
    return folder


def load_quantized(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read a checkpoint that `save_quantized` wrote: same codes, same logits, in evaluation mode.

    A folder that is replaced meanwhile gives the older model or the newer one, never parts of both.

    Raises
    ------
    ModelError
        The folder is not such a checkpoint, its format is newer than this library, or a file is missing,
        damaged or changed; the message names the file or tensor.
    FileError
        A file may not be read.
    """
    folder, device = Path(folder), choose_device(device)

    def read(place: Path) -> Model:
        _check_kind(folder, place)
        return _read(place)

    with disk_errors("read", folder):
        return read_whole(folder, MANIFEST, read).to(device).eval()


def folder_bytes(folder: str | Path) -> int:
    """Return the size of a checkpoint's weight files in bytes."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _no_model(got: object) -> str:
    """Say what `save_quantized` got in the place of a model, and what to do with it."""
    start = f"save_quantized got {describe(got)}"
    if isinstance(getattr(got, "model", None), Model):
        return f"{start}, which holds a model. Call its own save(folder)."
    if isinstance(got, nn.Module):
        return (
            f"{start}, which is no model of this library, and a checkpoint holds the structure of one. "
            "Any other module is kept whole by torch.save(model, path): docs/any_module.md."
        )
    return f"{start}, not a model. Pass the model of qlib.quantize(...), or call result.save(folder)."


# --- writing


def _write(
    model: Model, layers: dict[str, FakeQuantWeight], fresh: Path, settings: Mapping[str, Any]
) -> None:
    tensors: dict[str, Tensor] = {}
    entries = {}
    for name, layer in layers.items():
        stored, entries[name] = pack_layer(name, layer)
        tensors |= stored
    computed = list(model.recomputed())
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in layers and name not in (*model.tied, *computed):
            tensors[name] = to_16_bits(value.detach().cpu()).contiguous()
    save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
    model.save_description(fresh)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "files": {file.name: sha256_of(file) for file in sorted(fresh.iterdir())},
        "settings": dict(settings),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "quantdraft": library_version(),
        },
        "layers": entries,
        "computed": computed,
    }
    (fresh / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1))


def _quantized_layers(model: nn.Module) -> dict[str, FakeQuantWeight]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantWeight)}


def _our_files(folder: Path) -> list[str]:
    """Return the names of a checkpoint's files, the manifest last; refuse a folder that is no checkpoint."""
    foreign = f"{folder} exists and is not a quantized checkpoint. Choose another folder, or remove it."
    if not folder.is_dir():
        raise QuantError(foreign)
    try:
        manifest = read_json(folder / MANIFEST)
    except ModelError as error:
        raise QuantError(f"{foreign} ({error})" if (folder / MANIFEST).exists() else foreign) from error
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("layers"), dict):
        raise QuantError(f"{foreign} (Its {MANIFEST} is of another kind.)")
    listed = manifest.get("files")
    if isinstance(listed, dict) and manifest.get(SEAL) == digest_of(manifest):
        names = [name for name in listed if name == Path(name).name]
    else:
        names = [WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
    return [*names, MANIFEST]


# --- reading


def _check_kind(folder: Path, place: Path) -> None:
    """Raise a ModelError that says what a folder holds, unless it is a checkpoint; it lies at `place` now."""
    if not place.is_dir():
        if str(folder) in registry.ENTRIES:
            raise ModelError(
                f"{folder} is the name of a float model. Load it by qlib.load_model({str(folder)!r})."
            )
        what = "is a file, not the folder of a checkpoint" if place.exists() else "does not exist"
        raise ModelError(f"{folder} {what}. Pass a folder that result.save(folder) wrote.")
    if not (place / MANIFEST).is_file():
        if (place / "config.json").is_file():
            raise ModelError(
                f"{folder} is a float checkpoint: it has a config.json and no {MANIFEST}. "
                "Load it by qlib.load_model(folder)."
            )
        raise ModelError(
            f"{folder} holds no checkpoint: neither {MANIFEST} nor config.json is there. Pass a folder that "
            "result.save(folder) wrote."
        )


def _read(folder: Path) -> Model:
    """Read a checkpoint; an error if a file is not the one that was hashed."""
    path = folder / MANIFEST
    first = identity(path)
    manifest = _read_manifest(path)
    names = [*manifest["files"]]
    seen = {name: identity(folder / name) for name in names} | {MANIFEST: first}
    _check_files(folder, manifest)
    model, tensors = build(folder), read_tensors(folder)
    dtype = DTYPES[manifest["dtype"]]
    placed: set[str] = set()
    with open_safetensors(folder / WEIGHTS) as file:
        for name, entry in manifest["layers"].items():
            try:
                layer = _read_layer(file, tensors, model, name, entry, dtype)
            except ModelError as error:
                raise ModelError(
                    f"{path} and {WEIGHTS} do not give the layer {name}: {error}. Copy or make the "
                    "checkpoint again."
                ) from error
            model.replace(name, layer)
            placed |= {f"{name}.{key}" for key in layer.state_dict()}
    for name, value in _computed(path, manifest, model).items():
        model.put(name, nn.Parameter(value.to(dtype), requires_grad=False))
        placed.add(name)
    fill(model, tensors, dtype, torch.device("cpu"), str(folder), present=placed)
    if changed := [name for name in seen if identity(folder / name) != seen[name]]:
        raise ModelError(f"{folder / changed[0]} was changed while it was read. Load the checkpoint again.")
    return model


def _read_layer(
    file: Any, tensors: dict[str, Any], model: Model, name: str, entry: Any, dtype: torch.dtype
) -> FakeQuantWeight:
    """Return one layer; its tensors are taken out of `tensors`."""
    try:
        like = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError("this architecture does not have it") from error
    if isinstance(like, nn.Embedding) and name not in model.tables:
        raise ModelError("this architecture has no table of its own there that could be quantized")
    if not isinstance(entry, dict) or not isinstance(entry.get("tensors"), list):
        raise ModelError("its entry is damaged: check tensors")
    parts = [str(part) for part in entry["tensors"]]
    if missing := sorted(part for part in parts if tensors.pop(f"{name}.{part}", None) is None):
        raise ModelError(f"{WEIGHTS} lacks the {list_names(missing)} of {name}")
    return unpack_layer({part: file.get_tensor(f"{name}.{part}") for part in parts}, entry, like, dtype)


def _computed(path: Path, manifest: Mapping[str, Any], model: Model) -> dict[str, Tensor]:
    """Return the parameters that are not stored, because a formula gives them."""
    names = manifest.get("computed", [])
    if not names:
        return {}
    known = model.computed()
    if not isinstance(names, list) or not {*map(str, names)} <= {*known}:
        raise ModelError(
            f"{path}: computed is {names}, and this architecture computes {list_names(known) or 'nothing'}. "
            "Copy or make the checkpoint again."
        )
    return {name: known[name] for name in names}


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest whose format is known and that was not changed."""
    manifest = read_json(path)
    found = (manifest.get("format"), manifest.get("version"))
    if found[0] != FORMAT or type(found[1]) is not int or found[1] not in READABLE:
        raise ModelError(
            f"{path} has format and version {found}; this library reads {FORMAT!r}, versions "
            f"{list_names(map(str, READABLE))}. Load a float checkpoint by qlib.load_model."
        )
    kinds: dict[str, type] = {"layers": dict, "dtype": str}
    kinds |= {"sha256": str} if found[1] == 2 else {"files": dict, SEAL: str}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise ModelError(f"{path} lacks {key!r}. Copy or make the checkpoint again.")
    if manifest["dtype"] not in DTYPES:
        raise ModelError(
            f"{path}: dtype {manifest['dtype']!r} is none of {list_names(DTYPES)}. Copy it again."
        )
    if manifest.get(SEAL) != (digest_of(manifest) if found[1] > 2 else None):  # 2 had none
        raise ModelError(
            f"{path} was changed or damaged since it was saved. Copy or make the checkpoint again."
        )
    return manifest if found[1] > 2 else manifest | {"files": {WEIGHTS: manifest["sha256"]}}


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise a ModelError unless every file is there and is the one that was saved."""
    for name, wanted in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise ModelError(
                f"{file} is missing, and {MANIFEST} says that it was saved. Copy the checkpoint again."
            )
        if name == WEIGHTS:
            with open_safetensors(file):  # where it is cut short, this error says more
                pass
        with disk_errors("read", file):
            found = sha256_of(file)
        if found != wanted:
            raise ModelError(
                f"{file} ({file.stat().st_size:,} bytes) was changed or damaged since it was saved: it does "
                f"not have the sha256 that {MANIFEST} names. Copy or make the checkpoint again."
            )
    if manifest["version"] == 2:
        return
    strange = [name for name in READ if name not in manifest["files"] and (folder / name).exists()]
    if strange:
        raise ModelError(
            f"{folder / strange[0]} is not among the files that {MANIFEST} names, and would change what is "
            "loaded. Remove it."
        )
