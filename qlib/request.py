"""What `quantize` was asked to do: all arguments checked, and written down as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlib.activation import Rounding
from qlib.activation_state import describe
from qlib.arguments import as_activation, as_calibration, as_folder, as_grids, as_model, as_patterns
from qlib.asr.calibration import fingerprint, speech_batches
from qlib.asr.utterance import Utterance
from qlib.chain import Chain, make_chain
from qlib.errors import QuantError, list_names, true_or_false
from qlib.grid import Grid
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.quantize_block import is_static
from qlib.selection import check_layers, choose_grids, choose_layers, choose_roundings
from qlib.text import fingerprint_texts, text_batches


@dataclass(frozen=True)
class Request:
    """The arguments of `quantize`, checked."""

    model: Model
    chain: Chain
    weight: Grid | dict[str, Grid]
    activation: Rounding | dict[str, Rounding]
    data: Sequence[Utterance] | Sequence[str] | None
    patterns: tuple[str, ...]  # of layers that stay in float
    folder: Path | None
    progress: bool
    grids: dict[str, Grid]  # the layers to quantize, and the grid of each
    activations: dict[str, Rounding]  # how the input of each is rounded
    skipped: tuple[tuple[str, str], ...]  # the others, and why

    @property
    def looks_at_inputs(self) -> bool:
        """Whether something has to be calibrated."""
        return bool(self.chain.needs) or any(map(is_static, self.activations.values()))

    @property
    def tables(self) -> tuple[str, ...]:
        """The token tables among the layers."""
        return tuple(name for name in self.model.tables if name in self.grids)

    @property
    def title(self) -> str:
        """Methods and grids in one line."""
        if isinstance(self.weight, Grid):
            return f"{self.chain.name} {self.weight}"
        parts = [f"{pattern} {grid}".removeprefix("* ") for pattern, grid in self.weight.items()]
        return f"{self.chain.name} {list_names(parts, 3)}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the result, as plain data."""
        if isinstance(self.weight, Grid):
            weight: Any = asdict(self.weight)
        else:
            weight = [[pattern, asdict(grid)] for pattern, grid in self.weight.items()]
        activation: Any
        if isinstance(self.activation, dict):
            activation = [[pattern, describe(each)] for pattern, each in self.activation.items()]
        else:
            activation = describe(self.activation)
        return {
            "methods": self.chain.describe(),
            "weight": weight,
            "activation": activation,
            "skip": list(self.patterns),
            "calibration": None if self.data is None else _describe_data(self.data),
        }

    def batches(self) -> list[Any]:
        """Return the calibration data as the model's stages read it; none where nothing looks at inputs."""
        return batches_of(self.model, self.data or []) if self.looks_at_inputs else []


def batches_of(model: Model, data: Sequence[Utterance] | Sequence[str]) -> list[Any]:
    """Return recordings with their transcripts, or texts, as the model's stages read them, one a batch."""
    if isinstance(model, TextModel):
        return list(text_batches(model, [each for each in data if isinstance(each, str)]))
    return list(speech_batches(model, [each for each in data if isinstance(each, Utterance)]))


def check_request(
    model: object,
    methods: Any,
    weight: object,
    activation: object,
    calib: object,
    skip: object,
    work: object,
    progress: object,
) -> Request:
    """Refuse what cannot be done as asked; the arguments are those of `quantize`.

    Raises
    ------
    QuantError
        See `quantize`.
    DataError
        A calibration entry of another kind.
    """
    model, chain, weight, activation = (
        as_model(model),
        make_chain(methods),
        as_grids(weight),
        as_activation(activation),
    )
    folder, patterns, data = as_folder(work), as_patterns(skip), as_calibration(calib, model)
    layers, skipped = choose_layers(model, patterns, weight)
    grids = choose_grids(model, layers, weight)
    activations = choose_roundings(model, layers, activation)
    check_layers(layers, grids)
    tables = {name: grids[name] for name in model.tables if name in grids}
    chain.check_weights(layers, {name: grid for name, grid in grids.items() if name not in tables})
    for name, grid in tables.items():
        chain.for_table(name == model.token_layers.head).check_weights(layers, {name: grid})
    chain.check_mixed(model, grids)
    show = true_or_false(progress, "progress", QuantError, "Pass progress=True or progress=False.")
    request = Request(
        model, chain, weight, activation, data, patterns, folder, show, grids, activations, skipped
    )
    if request.looks_at_inputs and data is None:
        static = next(filter(is_static, activations.values()), None)
        examples = "128 texts" if isinstance(model, TextModel) else "32 utterances of qlib.read_manifest(...)"
        raise QuantError(
            f"{chain.name if chain.needs else static} looks at the inputs of the layers. Pass calib=..., "
            f"for example {examples}."
        )
    if folder is not None:
        chain.check_resumable()
    return request


def _describe_data(data: Sequence[Utterance] | Sequence[str]) -> dict[str, Any]:
    """Return the number of recordings or texts, and a hash of all of them."""
    texts = [each for each in data if isinstance(each, str)]
    digest = fingerprint_texts(texts) if texts else fingerprint([e for e in data if isinstance(e, Utterance)])
    return {"utterances": len(data), "sha256": digest}
