"""Load a checkpoint: a folder in Hugging Face layout, or the name of a fetched model.

    config.json               sizes; `model_type` selects the family
    generation_config.json    token ids that steer decoding (older checkpoints keep them in config.json)
    model.safetensors         the weights, or model.safetensors.index.json and its shards
    tokenizer.json            the tokenizer, optional

The module is built without memory on the meta device, every tensor name and shape is compared with it,
and only then are the tensors put in place, one after another: no second copy of the model is ever in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models import registry
from qlib.models.files import open_safetensors, read_json
from qlib.models.gemma3 import Gemma3, Gemma3Config
from qlib.models.llama import Llama, LlamaConfig
from qlib.models.moonshine import Moonshine, MoonshineConfig, MoonshineGeneration
from qlib.models.structure import Model
from qlib.models.text_config import TextGeneration
from qlib.models.tokenizer import Tokenizer
from qlib.models.whisper import Whisper, WhisperConfig, WhisperGeneration


def load_model(
    path_or_name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Model:
    """Load a model in evaluation mode.

    Parameters
    ----------
    path_or_name : str or Path
        A folder in Hugging Face layout, or a registered name (``python -m qlib.models list``).
    dtype : torch.dtype
        Floating-point type of the weights in memory.
    device : str or torch.device
        Where the weights go.

    Raises
    ------
    ModelError
        The folder or name is unknown, a file is missing or damaged, the architecture is not supported,
        or tensors are missing, unexpected or of another shape; the message names them.
    """
    folder = locate(path_or_name)
    model = build(folder)
    tensors = read_tensors(folder)
    fill(model, tensors, dtype, torch.device(device), str(folder))
    return model.eval()


def locate(path_or_name: str | Path) -> Path:
    """Return the folder of a checkpoint given as a path or as a registered name."""
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    if str(path_or_name) in registry.ENTRIES:
        return registry.path(str(path_or_name))
    raise ModelError(
        f"{str(path_or_name)!r} is neither a folder nor a registered model. "
        f"Registered: {list_names(registry.ENTRIES, 20)}."
    )


def build(folder: Path) -> Model:
    """Return the model that a folder's config.json describes, on the meta device, without weights."""
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{folder / 'config.json'}: model_type {family!r} is not supported. "
            f"Supported: {list_names(FAMILIES, 20)}."
        )
    with torch.device("meta"):
        return FAMILIES[family](folder, config)


def read_tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return file and shape of every tensor of a checkpoint, without reading any.

    Shards are those of model.safetensors.index.json; a shard that is listed and missing is an error.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        shards = ["model.safetensors"]
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        raise ModelError(
            f"{folder} lacks {list_names(missing or ['model.safetensors'])}. Weights are read from "
            "safetensors only; convert a pytorch_model.bin with save_pretrained(safe_serialization=True)."
        )
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for shard in shards:
        with open_safetensors(folder / shard) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                found[name] = (folder / shard, tuple(file.get_slice(name).get_shape()))
    return found


def fill(
    model: Model,
    tensors: dict[str, tuple[Path, tuple[int, ...]]],
    dtype: torch.dtype,
    device: torch.device,
    where: str,
    present: Collection[str] = (),
) -> None:
    """Put the tensors of a checkpoint into a model on the meta device; ties are kept.

    `present` names the entries of the model's state dict that are in place already.

    Raises
    ------
    ModelError
        Tensors are missing, unexpected or of another shape.
    """
    wanted = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if name not in model.tied and name not in present
    }
    floats = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    compare(wanted, {name: shape for name, (_, shape) in tensors.items() if name not in model.tied}, where)
    state: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in tensors.values()}):
        with open_safetensors(path) as file:
            for name in wanted:
                if tensors[name][0] == path:
                    value = file.get_tensor(name)
                    if value.is_floating_point() != (name in floats):
                        raise ModelError(
                            f"{path}: {name} holds {value.dtype}, which is no kind of number for it. "
                            "Download the checkpoint again."
                        )
                    state[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    model.requires_grad_(False)


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
            + ". Check that the two files belong together, and download the checkpoint again."
        )


def _whisper(folder: Path, config: dict[str, Any]) -> Whisper:
    generation = WhisperGeneration.from_dict(_steering(folder, config))
    return Whisper(WhisperConfig.from_dict(config), generation, read_tokenizer(folder))


def _moonshine(folder: Path, config: dict[str, Any]) -> Moonshine:
    generation = MoonshineGeneration.from_dict(_steering(folder, config))
    return Moonshine(MoonshineConfig.from_dict(config), generation, read_tokenizer(folder))


def _llama(folder: Path, config: dict[str, Any]) -> Llama:
    generation = TextGeneration.from_dict(_steering(folder, config))
    return Llama(LlamaConfig.from_dict(config), generation, read_tokenizer(folder), _chat_template(folder))


def _gemma3(folder: Path, config: dict[str, Any]) -> Gemma3:
    generation = TextGeneration.from_dict(_steering(folder, config))
    return Gemma3(Gemma3Config.from_dict(config), generation, read_tokenizer(folder), _chat_template(folder))


def _steering(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return what steers decoding: generation_config.json over config.json."""
    steering = folder / "generation_config.json"
    return {**config, **(read_json(steering) if steering.is_file() else {})}


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer, or None where it has no tokenizer.json."""
    return Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None


def _chat_template(folder: Path) -> str | None:
    """Return the folder's chat template: its own file, or (older checkpoints) in tokenizer_config.json."""
    if (own := folder / "chat_template.jinja").is_file():
        return own.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None  # a list holds several, by purpose


Builder = Callable[[Path, dict[str, Any]], Model]
FAMILIES: dict[str, Builder] = {
    "whisper": _whisper,
    "moonshine": _moonshine,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma3_text": _gemma3,
}
