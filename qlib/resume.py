"""Blocks that are finished, on disk, so that a killed run goes on where it stopped.

    work/run.json              what is being done: methods, grids, calibration, hash of the float weights
    work/NAME.safetensors      one finished block: packed codes of its layers, float tensors that changed

A block's file appears whole or not at all. The blocks are read back in order and run as usual, so what
comes after them sees the same bits, and the result is that of a run that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qlib.checkpoint import put, restored_layer, stored_layer
from qlib.errors import QuantError
from qlib.linear import FakeQuantLinear
from qlib.models.convert import read_json, write_json
from qlib.models.load import open_safetensors
from qlib.report import LayerReport


class FinishedBlocks:
    """The finished blocks of one run.

    Parameters
    ----------
    folder : Path
        Created. It belongs to one run: another model, method, grid or calibration list is refused.
    settings : mapping
        What decides the result, as it stands in the manifest.
    model : nn.Module
        The float model; its weights are hashed.

    Raises
    ------
    QuantError
        The folder belongs to a run with other settings; the message names the first difference.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], model: nn.Module) -> None:
        self.folder = folder
        run = json.loads(json.dumps({**settings, "weights": hash_weights(model), "torch": torch.__version__}))
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "run.json"
        if not file.is_file():
            write_json(file, run)
        elif (found := read_json(file)) != run:
            key = next(key for key in {**run, **found} if run.get(key) != found.get(key))
            raise QuantError(
                f"{folder} holds another run: {key} was {found.get(key)!r} and is {run.get(key)!r} now. "
                "Choose another folder, or remove this one."
            )

    def save(
        self, block: str, model: nn.Module, changed: Collection[str], reports: Collection[LayerReport]
    ) -> None:
        """Write one block: its quantized layers, named by their reports, and changed float parameters."""
        tensors: dict[str, Tensor] = {}
        about = {}
        for report in reports:
            layer = model.get_submodule(report.name)
            assert isinstance(layer, FakeQuantLinear)
            stored, entry = stored_layer(report.name, layer)
            about[report.name] = {**entry, "report": asdict(report)}
            tensors |= stored
        state = model.state_dict()
        kept = [name for name in changed if name in state and name.rpartition(".")[0] not in about]
        tensors |= {f"float:{name}": state[name].cpu().contiguous() for name in kept}
        partial = self.folder / f".{block}.partial"
        save_file(tensors, partial, metadata={"layers": json.dumps(about)})
        partial.replace(self._file(block))

    def load(self, block: str, model: nn.Module) -> list[LayerReport] | None:
        """Put a finished block into the model and return its reports, or None if it was not finished."""
        if not self._file(block).is_file():
            return None
        reports = []
        with open_safetensors(self._file(block)) as file:
            names = set(file.keys())
            for name in sorted(names):
                if name.startswith("float:"):
                    parameter = model.get_parameter(name.removeprefix("float:"))
                    with torch.no_grad():
                        parameter.copy_(file.get_tensor(name))
            for name, about in json.loads(file.metadata()["layers"]).items():
                stored = {part: file.get_tensor(f"{name}.{part}") for part in about["tensors"]}
                old = model.get_submodule(name).weight
                assert isinstance(old, Tensor)
                put(model, name, restored_layer(stored, about, old.dtype).to(old.device))
                report = about["report"]
                reports.append(LayerReport(**{**report, "notes": tuple(report["notes"])}))
        return reports

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"


def hash_weights(model: nn.Module) -> str:
    """Return a sha256 over all parameters, names included."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
