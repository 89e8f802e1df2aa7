"""From what a user calls a model to a folder in Hugging Face layout."""

from __future__ import annotations

import os
from pathlib import Path

from qlib.errors import ModelError, describe, did_you_mean, list_names
from qlib.models.hub import registry
from qlib.models.hub.foreign import converted, is_ctranslate2

_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".npz")


def locate(path_or_name: str | Path) -> Path:
    """Return the folder of a checkpoint given as a path or as a registered name.

    A ``.gguf`` file and a CTranslate2 folder are converted into the cache, the first time.

    Raises
    ------
    ModelError
        It is neither a path nor a name, or a file of which something else must be passed.
    """
    if not isinstance(path_or_name, str | os.PathLike) or not str(path_or_name):
        raise ModelError(
            f"A model is {describe(path_or_name)}, not a path or a name. Pass a folder in Hugging Face "
            f"layout, a .gguf file, or one of {list_names(registry.ENTRIES, 20)}."
        )
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return converted(path) if is_ctranslate2(path) else _checked(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf" or _begins_with(path, b"GGUF"):
            return converted(path)
        raise ModelError(_about_file(path))
    if str(path_or_name) in registry.ENTRIES:
        return registry.path(str(path_or_name))
    raise ModelError(_about_unknown(str(path_or_name)))


def _begins_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _checked(folder: Path) -> Path:
    """Return a folder that has a config.json; for another one, raise an error that says where to look."""
    if (folder / "config.json").is_file():
        return folder
    message = f"{folder / 'config.json'} is missing. A checkpoint folder in Hugging Face layout has it."
    if (folder / "adapter_config.json").is_file():
        message += " This is an adapter (LoRA): merge it into its base model and save the result."
    elif files := sorted(path.name for path in folder.glob("*.gguf")):
        message += f" Pass the file itself: {folder / files[0]}."
    elif inside := sorted(path.parent.name for path in folder.glob("*/config.json")):
        message += f" These folders in it have one: {list_names(inside)}."
    raise ModelError(message)


def _about_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ".json", ".jinja"):
        return f"{path} is one file of a checkpoint. Pass its folder: {path.parent}."
    if suffix in _WEIGHTS:
        return (
            f"{path} is not read: weights in this format can run code when they are opened, or lack the "
            "configuration. Convert them once with save_pretrained(folder, safe_serialization=True), and "
            "pass the folder."
        )
    if suffix in (".onnx", ".ort", ".tflite"):
        return (
            f"{path} is a compiled graph, not weights. Pass the folder of the checkpoint that it was made "
            f"from, or one of {list_names(registry.ENTRIES, 20)}."
        )
    return f"{path} is a file. Pass a folder in Hugging Face layout, or a .gguf file."


def _about_unknown(name: str) -> str:
    message = f"{name!r} is neither a folder nor a registered model. "
    message += f"Registered: {list_names(registry.ENTRIES, 20)}."
    message += did_you_mean(name.rstrip("/").rpartition("/")[2].lower(), registry.ENTRIES)
    if name.startswith(("~", ".")) or Path(name).is_absolute():
        message += f" There is no folder {Path(name).expanduser().absolute()}."
    elif "/" in name:
        message += (
            " Names of a model hub are not looked up: download the checkpoint, and pass its folder "
            f"(relative paths begin in {Path.cwd()})."
        )
    return message
