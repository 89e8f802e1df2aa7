"""Blocks that are finished, on disk, so that a killed run goes on where it stopped.

    work/run.json              what is made: methods, grids, calibration, hash of the float weights, versions
    work/NAME.safetensors      one finished block: packed codes of its layers, float tensors that changed

A block's file appears whole or not at all, and holds its name, its run and a hash of all it says. The blocks
are read back in order and run as usual, so what comes after them sees the same bits, and the result is that
of a run that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qlib.errors import ModelError, QuantError
from qlib.linear import FakeQuantWeight
from qlib.models.disk.folders import working_folder
from qlib.models.disk.hashes import digest_of
from qlib.models.disk.safetensors_file import open_safetensors
from qlib.models.files import atomic_file, read_json, write_json
from qlib.models.structure import Model
from qlib.report import LayerReport
from qlib.stored_layer import DAMAGE, pack_layer, unpack_layer
from qlib.version import library_version

FLOAT = "float:"  # before the names of float tensors in a block's file


@contextmanager
def finished_blocks(
    folder: str | Path | None, settings: Mapping[str, Any], model: Model
) -> Iterator[FinishedBlocks | None]:
    """Yield the finished blocks of a run, and keep other runs out of its folder; None without a folder.

    Raises
    ------
    QuantError
        Another run is at work in the folder, or it belongs to a run with other settings; the message names
        the first difference.
    FileError
        The folder may not be written.
    """
    if folder is None:
        yield None
        return
    folder = Path(folder)
    busy = QuantError(
        f"Another run is at work in {folder} right now. Wait until it ends, or choose another folder."
    )
    with working_folder(folder, busy):
        yield FinishedBlocks(folder, settings, model)


class FinishedBlocks:
    """The finished blocks of one run.

    Parameters
    ----------
    folder : Path
        It belongs to one run: another model, method, grid or calibration list is refused. Of a method, name
        and settings count; its code is not looked at.
    settings : mapping
        What decides the result, as it stands in the manifest.
    model : Model
        The float model; its weights are hashed.

    Raises
    ------
    QuantError
        The folder belongs to a run with other settings, the message names the first difference; or nobody can
        tell to which run its blocks belong.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], model: Model) -> None:
        self.folder = folder
        versions = {"torch": torch.__version__, "quantdraft": library_version()}
        run: dict[str, Any] = json.loads(json.dumps({**settings, "weights": hash_weights(model), **versions}))
        self.run = digest_of(run)
        file = folder / "run.json"
        found = _read_run(file) if file.exists() else None
        if found is None:
            write_json(file, run)
        elif found != run:
            # A setting may be None: one that is missing is something else.
            shown = {key: (_shown(found, key), _shown(run, key)) for key in {**run, **found}}
            key, (before, now) = next((key, both) for key, both in shown.items() if both[0] != both[1])
            raise QuantError(
                f"{folder} holds another run: {key} was {before} by its run.json and is {now} now. "
                "Choose another folder, or remove this one."
            )

    def save(
        self, block: str, model: Model, changed: Collection[str], reports: Collection[LayerReport]
    ) -> None:
        """Write one block: its quantized layers, named by their reports, and changed float parameters.

        Raises
        ------
        QuantError
            A layer that could not be read back.
        FileError
            The disk is full, or may not be written.
        """
        tensors: dict[str, Tensor] = {}
        entries = {}
        for report in reports:
            layer = model.get_submodule(report.name)
            assert isinstance(layer, FakeQuantWeight)
            stored, entry = pack_layer(report.name, layer)
            entries[report.name] = {**entry, "report": asdict(report)}
            tensors |= stored
        state = model.state_dict()
        kept = [name for name in changed if name in state and name.rpartition(".")[0] not in entries]
        tensors |= {f"{FLOAT}{name}": state[name].cpu().contiguous() for name in kept}
        header = {"block": block, "run": self.run, "layers": json.dumps(entries)}
        with atomic_file(self._file(block)) as fresh:
            save_file(tensors, fresh, metadata={**header, "sha256": _hash_block(tensors, header)})

    def load(self, block: str, model: Model) -> list[LayerReport] | None:
        """Put a finished block into the model and return its reports, or None if it was not finished.

        Raises
        ------
        QuantError
            The file is damaged, or another block's, or another run's.
        """
        path = self._file(block)
        if not path.exists():
            return None
        try:
            header, tensors = _read_block(path)
            self._check(block, header, tensors)
            return _put_block(model, header, tensors)
        except DAMAGE as error:
            raise QuantError(
                f"{path} does not give the finished block {block}: {error}. Remove this file, and the block "
                "is computed again."
            ) from error

    def _check(self, block: str, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        if header.get("sha256") != _hash_block(tensors, header):
            raise ModelError("it is damaged, or was changed since it was written")
        if header["block"] != block:
            raise ModelError(f"it holds the block {header['block']}")
        if header["run"] != self.run:
            raise ModelError("it belongs to another run")

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"


def _read_run(file: Path) -> dict[str, Any] | None:
    """Return what a folder's run is; None if that cannot be read and nothing would be lost."""
    try:
        return read_json(file)
    except ModelError as error:
        if blocks := sorted(file.parent.glob("*.safetensors")):
            raise QuantError(
                f"{file} cannot be read ({error}), so nobody knows to which run the {len(blocks)} finished "
                f"blocks in {file.parent} belong. Remove the folder and begin again, or choose another one."
            ) from error
        return None


def _shown(run: Mapping[str, Any], key: str) -> str:
    return repr(run[key]) if key in run else "not there"


def _read_block(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with open_safetensors(path) as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _put_block(model: Model, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[LayerReport]:
    reports = []
    for name, value in tensors.items():
        if name.startswith(FLOAT):
            with torch.no_grad():
                model.get_parameter(name.removeprefix(FLOAT)).copy_(value)
    for name, entry in json.loads(header["layers"]).items():
        report = entry.pop("report")
        old = model.get_submodule(name)
        weight = old.weight
        assert isinstance(weight, Tensor)
        stored = {part: tensors[f"{name}.{part}"] for part in entry["tensors"]}
        model.replace(name, unpack_layer(stored, entry, old, weight.dtype).to(weight.device))
        reports.append(LayerReport(**{**report, "notes": tuple(report["notes"])}))
    return reports


def _hash_block(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return a sha256 over all that a block's file says: names, kinds, shapes and values, and the texts."""
    digest = hashlib.sha256()
    for key in ("block", "run", "layers"):
        digest.update(f"{key}={header.get(key)}\n".encode())
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_weights(model: nn.Module) -> str:
    """Return a sha256 over all parameters, names included."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
