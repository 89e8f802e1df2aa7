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

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models.config_values import ConfigValues
from qlib.models.disk.safetensors_file import open_safetensors
from qlib.models.files import read_json
from qlib.models.gemma3 import Gemma3
from qlib.models.gemma3_config import Gemma3Config
from qlib.models.hub.locate import locate
from qlib.models.hub.placement import choose_device, choose_dtype
from qlib.models.hub.tensor_names import (
    FLOAT_NEEDED,
    StoredTensor,
    by_model_name,
    check_floats,
    match,
    to_dtype,
)
from qlib.models.hub.tensors import compare, read_tensor, read_tensors
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.moonshine import Moonshine
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.models.text_config import TextConfig, TextGeneration
from qlib.models.text_tokenizer import read_chat_template, read_text_tokenizer
from qlib.models.tokenizer import Tokenizer
from qlib.models.whisper import Whisper
from qlib.models.whisper_config import WhisperConfig, WhisperGeneration


def load_model(
    path_or_name: str | Path,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
) -> Model:
    """Load a model in evaluation mode.

    Parameters
    ----------
    path_or_name : str or Path
        A folder in Hugging Face layout, a registered name (``python -m qlib.models list``), a ``.gguf`` file
        (Llama and Mistral, Qwen 2, Qwen 3, Gemma 3), or a folder of faster-whisper (CTranslate2). The last
        two are converted once, into the cache.
    dtype : torch.dtype or str
        Floating-point type of the weights in memory: ``torch.float16``, ``"bfloat16"``, ...
    device : str or torch.device
        Where the weights go.

    Raises
    ------
    ModelError
        The folder or name is unknown, the dtype or device is none of this machine, a file is missing or
        damaged, the architecture or a setting is not supported, the weights are quantized or not finite, or
        tensors are missing, unexpected or of another shape; the message names them.
    """
    dtype, device = choose_dtype(dtype), choose_device(device)
    folder = locate(path_or_name)
    _refuse_quantized(folder)
    model = build(folder)
    tensors = read_tensors(folder)
    fill(model, tensors, dtype, device, str(folder))
    return model.eval()


def build(folder: Path) -> Model:
    """Return the model that a folder's config.json describes, on the meta device, without weights."""
    path = folder / "config.json"
    config = ConfigValues(read_json(path), path)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelError(
            f"{path}: model_type {family!r} is not supported. Supported: {list_names(FAMILIES, 20)}. Use a "
            "checkpoint of one of these families."
        )
    with torch.device("meta"):
        return FAMILIES[family](folder, config)


def _refuse_quantized(folder: Path) -> None:
    """Raise a ModelError for a folder whose weights are codes, which says of which kind."""
    if _is_own_manifest(folder / "manifest.json"):
        raise ModelError(
            f"{folder} is a quantized checkpoint of this library. Use qlib.load_quantized to run it; to "
            "quantize, begin with the float model."
        )
    if not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        bits = settings.get("bits") if isinstance(settings, dict) else None
        kind = f"{method or 'unknown method'}{f', {bits} bits' if bits else ''}"
        origin = config.get("_name_or_path")
        made = f" It may have been made from {origin!r}." if isinstance(origin, str) and origin else ""
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config says that the weights are quantized ({kind}). "
            f"{FLOAT_NEEDED}{made}"
        )


def _is_own_manifest(path: Path) -> bool:
    """Tell this library's manifest from another file of that name: the usual one of a speech data list."""
    try:
        return read_json(path).get("format") == "quantdraft"
    except ModelError:
        return False


def fill(
    model: Model,
    tensors: Mapping[str, StoredTensor],
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
        Tensors are missing, unexpected, of another shape, no floats, or not finite.
    """
    tensors = match(model, tensors, _equal_ties(model, tensors, dtype), where)
    wanted = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if name not in model.tied and name not in present
    }
    compare(wanted, {name: stored.shape for name, stored in tensors.items()}, where)
    check_floats(tensors, where)
    state: dict[str, Tensor] = {}
    for path in sorted({stored.path for stored in tensors.values()}):
        with open_safetensors(path) as file:
            for name in wanted:
                if (stored := tensors[name]).path == path:
                    state[name] = to_dtype(file.get_tensor(stored.name), dtype, stored).to(device)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    model.requires_grad_(False)


def _equal_ties(model: Model, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> dict[str, bool]:
    """Tell, for each tied parameter of which the file has both tensors, whether they are the same."""
    found = by_model_name(model, tensors)
    pairs = {
        tied: (found[tied], found[other]) for tied, other in model.tied.items() if {tied, other} <= {*found}
    }
    return {
        tied: torch.equal(*(read_tensor(each).to(dtype) for each in pair)) for tied, pair in pairs.items()
    }


def _whisper(folder: Path, config: ConfigValues) -> Whisper:
    sizes, tokenizer = WhisperConfig.from_dict(config), read_tokenizer(folder)
    generation = WhisperGeneration.from_dict(_steering(folder, config), sizes.vocab_size, tokenizer)
    return Whisper(sizes, generation, tokenizer)


def _moonshine(folder: Path, config: ConfigValues) -> Moonshine:
    sizes = MoonshineConfig.from_dict(config)
    generation = MoonshineGeneration.from_dict(_steering(folder, config), sizes.vocab_size)
    return Moonshine(sizes, generation, read_tokenizer(folder))


def _llama(folder: Path, config: ConfigValues) -> TextModel:
    return _text_model(folder, config, Llama, LlamaConfig.from_dict(config))


def _gemma3(folder: Path, config: ConfigValues) -> TextModel:
    return _text_model(folder, config, Gemma3, Gemma3Config.from_dict(config))


def _text_model(
    folder: Path, config: ConfigValues, kind: Callable[..., TextModel], sizes: TextConfig
) -> TextModel:
    generation = TextGeneration.from_dict(_steering(folder, config), sizes.vocab_size)
    template, file = read_chat_template(folder)
    model = kind(sizes, generation, read_text_tokenizer(folder, config.values, generation), template)
    model.template_file = str(file)
    return model


def _steering(folder: Path, config: ConfigValues) -> ConfigValues:
    """Return what steers decoding: generation_config.json over config.json."""
    steering = folder / "generation_config.json"
    return ConfigValues(read_json(steering), steering, config) if steering.is_file() else config


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer, or None where it has no tokenizer.json."""
    return Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None


Builder = Callable[[Path, ConfigValues], Model]
FAMILIES: dict[str, Builder] = {
    "whisper": _whisper,
    "moonshine": _moonshine,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma3_text": _gemma3,
}
