"""Which tensor of a file is which of a model: derived ones, names without prefix, tied heads.

What the reference implementation does, and this one with it:

    buffers that follow from the configuration  ignored, by an explicit list
    a base model saved alone                    its names lack the prefix "model."
    tied, and the file has head and embedding   equal: one tensor; different: both stay, with a warning
    tied, and the file has only one of them     it is both
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from qlib.errors import ModelError
from qlib.models.structure import Model

log = logging.getLogger(__name__)
PREFIX = "model."
# Kept in older files; each is computed from config.json.
_DERIVED = re.compile(
    r"(^|\.)(rotary_emb(_local)?\.\w*(inv_freq|cos_cached|sin_cached)|position_ids|masked_bias)$"
)
_FLOATS = ("F16", "BF16", "F32", "F64")
# Ends of names under which the usual quantizers keep codes and scales.
_CODES = (
    "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_packed",
    "weight_shape", "SCB", "weight_format", "absmax", "quant_map", "bitsandbytes__nf4", "input_scale",
)  # fmt: skip


class StoredTensor(NamedTuple):
    """Where a tensor lies, and what the file's header says of it."""

    path: Path
    shape: tuple[int, ...]
    name: str  # in the file
    dtype: str  # as safetensors spells it: "F32", "BF16", "I8", ...


def match(
    model: Model, found: Mapping[str, StoredTensor], equal: Mapping[str, bool], where: str
) -> dict[str, StoredTensor]:
    """Return a checkpoint's tensors by the names of the model, which is untied where the file has two heads.

    Parameters
    ----------
    model : Model
        On the meta device.
    found : mapping
        The file's tensors by their own names.
    equal : mapping
        For each tied parameter of which the file has both tensors: whether they are the same.
    where : str
        The checkpoint, for messages.

    Raises
    ------
    ModelError
        Two tensors of the file are one of the model, or a head that the family always ties is another one.
    """
    matched = by_model_name(model, found)
    for tied, other in list(model.tied.items()):
        if tied in matched and other not in matched:
            matched[other] = matched.pop(tied)
        elif tied in matched and equal[tied]:
            del matched[tied]
        elif tied in matched:
            model.untie(where)
            log.warning(
                "%s: config.json says that %s is %s, and the file holds two different tensors. Both are "
                "used, "
                'as they were trained; set "tie_word_embeddings": false in config.json.', where, tied, other
            )  # fmt: skip
    return matched


def by_model_name(model: Model, found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return a file's tensors by the names of the model, without those that are derived."""
    own = model.state_dict().keys()
    matched: dict[str, StoredTensor] = {}
    for name, stored in found.items():
        if name not in own and _DERIVED.search(name):
            continue
        full = PREFIX + name if name not in own and PREFIX + name in own else name
        if full in matched:
            raise ModelError(
                f"{stored.path} holds {full} twice: as {matched[full].name} and as {stored.name}. Save the "
                "model again with save_pretrained."
            )
        matched[full] = stored
    return matched


def check_floats(tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Raise a ModelError that names tensors which hold codes where a float model has numbers."""
    wrong = [f"{each.name} is {each.dtype}" for each in tensors.values() if each.dtype not in _FLOATS]
    if wrong:
        raise ModelError(
            f"{where}: {len(wrong)} tensors are no floats of 16 bits or more: {', '.join(wrong[:4])}. Codes "
            "without their scales are not the weights. " + FLOAT_NEEDED
        )


FLOAT_NEEDED = (
    "Load the float checkpoint that this one was made from (in float16, bfloat16 or float32), and quantize "
    "it with qlib.quantize."
)


def layer_counts(wanted: Iterable[str], found: Iterable[str]) -> str:
    """Return which numbers of layers differ between a model and a file, as sentences; empty where none do."""
    stated, there = _count_layers(wanted), _count_layers(found)
    return "".join(
        f"config.json describes {count} layers in {name}, and the file has {there.get(name, 0)}. "
        for name, count in stated.items()
        if count != there.get(name, 0)
    )


def _count_layers(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        if layer := re.match(r"(.*\blayers)\.(\d+)\.", name):
            counts[layer[1]] = max(counts.get(layer[1], 0), int(layer[2]) + 1)
    return counts


def hint(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Return what names that do not fit tell about their origin, as a sentence; empty where they do not."""
    missing, unexpected = set(missing), sorted(unexpected)[:100]
    if any(name.endswith(_CODES) for name in unexpected):
        return "Some names are those of a quantizer's codes and scales. " + FLOAT_NEEDED
    if any(".lora_" in name or ".base_layer." in name for name in unexpected):
        return (
            "Some names are those of an adapter (LoRA): merge it into its base model (merge_and_unload() of "
            "peft), and save the result."
        )
    for name in unexpected:
        for own in missing:
            if name.endswith("." + own):
                before = name.removesuffix(own)
                return f"Names begin with {before!r}: save the model inside the wrapper that adds it."
    if missing & {"lm_head.weight"} and not unexpected:
        return (
            'config.json says "tie_word_embeddings": false, and the file has no head: is it a base model '
            "saved alone? Save the whole one (AutoModelForCausalLM)."
        )
    return "Check that the two files belong together, and copy or download the checkpoint again."


def to_dtype(value: torch.Tensor, dtype: torch.dtype, stored: StoredTensor) -> torch.Tensor:
    """Return a stored tensor in another floating-point type; all of its values must stay finite.

    The check is one fast pass over the values: 0.04 s for 135 million in bfloat16, on one thread.
    """
    largest = torch.stack(value.aminmax()).abs().max() if value.numel() else value.new_zeros(())
    if not largest.isfinite():
        count = int((~value.isfinite()).sum())
        raise ModelError(
            f"{stored.path}: {count} of the {value.numel():,} numbers of {stored.name} are not finite (NaN "
            "or infinity). The training diverged or the file is damaged: take another checkpoint."
        )
    if not largest.to(dtype).isfinite():
        raise ModelError(
            f"{stored.path}: {stored.name} reaches {float(largest):.4g}, and "
            f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.4g}. Load it with "
            "dtype=torch.float32."
        )
    return value.to(dtype)
