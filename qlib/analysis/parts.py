"""The parts that a model is looked at by: single layers, layers that share an input, components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import nn

from qlib.models.speech import SpeechModel
from qlib.models.structure import Model

Parts = Literal["layers", "groups", "components"]

COMPONENTS = (  # what belongs to each by its path; the first that fits counts
    ("encoder", ("model.encoder.layers.",)),
    ("decoder cross-attention", (".encoder_attn.",)),
    ("decoder self-attention", (".self_attn.",)),
    ("decoder feed-forward", (".fc1", ".fc2", ".mlp.")),
)
HEAD = "head and embedding"


def parts_of(model: Model, layers: Iterable[str], parts: Parts) -> dict[str, tuple[str, ...]]:
    """Return the layers of each part by the part's name, in order of use.

    Parameters
    ----------
    model : Model
        Says which layers share an input.
    layers : iterable of str
        Those that count, by full path.
    parts : {"layers", "groups", "components"}
        Each layer alone; those that share an input; or encoder, cross-attention, self-attention, feed-forward
        and head.
    """
    names = list(layers)
    if parts == "layers":
        return {name: (name,) for name in names}
    if parts == "groups":
        known = [[name for name in group.layers if name in names] for group in model.groups()]
        grouped = {name for group in known for name in group}
        alone = [[name] for name in names if name not in grouped]
        return {group_name(group): tuple(group) for group in [*known, *alone] if group}
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(component_of(name), []).append(name)
    return {part: tuple(members) for part, members in found.items()}


def component_of(name: str) -> str:
    """Return the component that a layer belongs to.

    >>> component_of("model.decoder.layers.2.encoder_attn.k_proj")
    'decoder cross-attention'
    """
    return next((part for part, marks in COMPONENTS if any(mark in name for mark in marks)), HEAD)


def group_name(layers: Iterable[str]) -> str:
    """Return one name for layers that share an input.

    >>> group_name(["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"])
    'layers.0.self_attn.q_proj+k_proj'
    >>> group_name(["layers.0.encoder_attn.k_proj", "layers.1.encoder_attn.k_proj"])
    'layers.*.encoder_attn.k_proj'
    """
    parents, leaves = zip(*(name.rpartition(".")[::2] for name in layers), strict=True)
    columns = zip(*(parent.split(".") for parent in parents), strict=True)
    parent = ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
    return ".".join(filter(None, (parent, "+".join(dict.fromkeys(leaves)))))


def tied_head(model: Model) -> tuple[str, str] | None:
    """Return the paths of a head and of the embedding whose weight it shares; None where it has its own."""
    pair = next(iter(model.tied.items()), None)
    return None if pair is None else (pair[0].removesuffix(".weight"), pair[1].removesuffix(".weight"))


def head_of(model: Model) -> str:
    """Return the path of the layer that writes the logits."""
    return "proj_out" if isinstance(model, SpeechModel) else "lm_head"


def first_block(model: Model, layers: Iterable[str]) -> str | None:
    """Return the first block that holds one of these layers; None where none does, as for a head."""
    names = tuple(layers)
    blocks = [block for stage in model.stages() for block in stage.blocks]
    return next((block for block in blocks if any(name.startswith(f"{block}.") for name in names)), None)


def linear_layers(model: Model, names: Iterable[str]) -> Mapping[str, nn.Linear]:
    """Return layers by name."""
    modules = dict(model.named_modules())
    return {name: module for name in names if isinstance(module := modules[name], nn.Linear)}
