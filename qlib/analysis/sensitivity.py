"""Which layers hurt: one part of a model at a time is rounded, all others stay in float.

    found = qlib.sensitivity(model, [qlib.Grid(3, 64), qlib.Grid(2, 64)], utterances)
    print(found)                      # the parts that cost most, and a map of all of them
    found.losses["model.encoder.layers.0.fc2"][qlib.Grid(2, 64)]

A loss is that of one part alone. Those of two parts rounded together are about their sum while both are
small, and more than it where they are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qlib.analysis.heat_map import draw, shaded
from qlib.analysis.losses import fisher_losses, kl_losses, output_losses, round_layers, wer_losses
from qlib.analysis.parts import HEAD, Parts, head_of, parts_of
from qlib.arguments import as_calibration, as_model
from qlib.asr.datasets import require_text
from qlib.asr.utterance import Utterance
from qlib.errors import (
    DataError,
    ModelError,
    QuantError,
    check_one_of,
    describe,
    true_or_false,
    whole_number,
)
from qlib.grid import Grid, check_grid
from qlib.methods.contracts import WeightMethod
from qlib.methods.rtn import RTN
from qlib.models.progress import progress_bar
from qlib.models.structure import Model
from qlib.models.table import align
from qlib.models.text import TextModel
from qlib.request import batches_of
from qlib.selection import check_layers, choose_layers

Measure = Literal["kl", "output", "wer", "fisher"]
UNITS: dict[Measure, str] = {
    "kl": "KL, nats per token",
    "output": "relative output error",
    "wer": "WER, percentage points more",
    "fisher": "KL estimated from gradients, nats per token",
}


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """What each part of a model costs on each grid when it alone is rounded."""

    losses: Mapping[str, Mapping[Grid, float]]  # of each part, in order of computation
    members: Mapping[str, tuple[str, ...]]  # the layers of each part
    parts: Parts
    measure: Measure
    method: str  # that rounded
    utterances: int  # or texts
    seconds: float

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids, in the order given."""
        return tuple(next(iter(self.losses.values())))

    @property
    def unit(self) -> str:
        """What a loss is, and in which unit."""
        return UNITS[self.measure]

    def worst(self, grid: Grid, count: int = 5) -> list[str]:
        """Return the parts with the largest loss on a grid, the largest first."""
        return sorted(self.losses, key=lambda part: -self.losses[part][self._known(grid)])[:count]

    def table(self, parts: Iterable[str] | None = None) -> str:
        """Return the losses of parts (by default all) as a table of text, a column for each grid."""
        rows = [[self.parts.removesuffix("s"), *map(str, self.grids)]]
        for part in self.losses if parts is None else parts:
            rows.append([part, *(f"{self.losses[part][grid]:.3g}" for grid in self.grids)])
        return align(rows)

    def shading(self, grid: Grid) -> str:
        """Return the losses on a grid as a map of characters: a row for each block."""
        grid = self._known(grid)
        return shaded({part: found[grid] for part, found in self.losses.items()})

    def draw(self, grid: Grid, path: str | Path) -> Path:
        """Draw the losses on a grid as a heat map, .svg or .png, and return where it is; needs ``plots``."""
        losses = {part: found[self._known(grid)] for part, found in self.losses.items()}
        return draw(losses, f"Each part alone on {grid}", self.unit, path)

    def _known(self, grid: Grid) -> Grid:
        if grid not in self.grids:
            raise QuantError(
                f"{grid} was not measured. Known: {', '.join(map(str, self.grids))}. Measure it as well: "
                "qlib.sensitivity(model, grids=[...], ...)."
            )
        return grid

    def __str__(self) -> str:
        coarsest = max(self.grids, key=lambda grid: max(found[grid] for found in self.losses.values()))
        return "\n".join(
            [
                f"{len(self.losses)} {self.parts}, each rounded alone by {self.method}: {self.unit}, "
                f"{self.utterances} recordings or texts, {self.seconds:.0f} s; worst on {coarsest}:",
                self.table(self.worst(coarsest)),
                self.shading(coarsest),
            ]
        )

    def __repr__(self) -> str:
        grids = ", ".join(map(str, self.grids))
        return f"Sensitivity({len(self.losses)} {self.parts}, {self.measure}, {grids})"


def sensitivity(
    model: Model,
    grids: Grid | Iterable[Grid],
    data: Iterable[Utterance] | Iterable[str],
    *,
    parts: Parts = "layers",
    measure: Measure = "kl",
    method: WeightMethod = RTN(),  # noqa: B008  (frozen)
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Round one part of a model at a time, leave the rest in float, and measure what that costs.

    Parameters
    ----------
    model : Model
        A float model; it is not touched.
    grids : Grid or iterable of Grid
        Each part is rounded on each of them.
    data : iterable of Utterance, or of str for a text model
        Recordings with transcripts, or texts. 8 to 16 utterances order the layers well.
    parts : {"layers", "groups", "components"}
        Each linear layer; layers that share an input; or encoder, decoder self-attention, cross-attention,
        feed-forward, and the head (with the embedding whose weight it shares).
    measure : {"kl", "output", "wer", "fisher"}
        KL divergence of the logits, teacher-forced on the transcripts, padding left out; relative error of
        the layer's output; change of the WER; or the KL that gradients predict, which runs no rounded model.
        See `qlib.analysis.losses`.
    method : WeightMethod
        How a layer is rounded, to nearest if not given.
    seed : int
        For measure="fisher": of the tokens that are drawn. The others draw nothing.
    progress : bool
        Show a progress bar.

    Raises
    ------
    QuantError
        Anything that cannot be done as asked, before the work begins: no float model, no grid, a group larger
        than a layer, an unknown measure or kind of parts, a method that rounds no layers.
    DataError
        An empty list, an entry of another kind, or for measure="wer" one without a transcript.
    ModelError
        measure="wer" for a text model, or a model without a tokenizer.
    """
    started = time.perf_counter()
    model = as_model(model, "sensitivity")
    chosen = _grids(grids)
    check_one_of(parts, "parts", get_args(Parts), QuantError)
    check_one_of(measure, "measure", get_args(Measure), QuantError)
    listed, seed = _data(data, model, measure), whole_number(seed, "seed", QuantError, 0)
    if not isinstance(method, WeightMethod):
        raise QuantError(
            f"method is {describe(method)}, which rounds no layers. Pass qlib.RTN() or qlib.GPTQ()."
        )
    show = true_or_false(progress, "progress", QuantError, "Pass progress=True or progress=False.")
    layers, _ = choose_layers(model, ())
    for grid in chosen:
        check_layers(layers, dict.fromkeys(layers, grid))
    members = parts_of(model, layers, parts)
    if parts == "components":
        members[HEAD] = (head_of(model),)
    names = [name for part in members.values() for name in part]
    batches = batches_of(model, listed)
    rounded = round_layers(model, names, chosen, method, batches, outputs=measure == "output")
    with progress_bar(show=show, total=len(members) * len(chosen), desc=f"sensitivity {measure}") as bar:
        if measure == "output":
            losses = output_losses(rounded, members)
        elif measure == "fisher":
            losses = fisher_losses(rounded, members, batches, seed)
        elif measure == "kl":
            losses = kl_losses(rounded, members, batches, bar.update)
        else:
            losses = wer_losses(rounded, members, listed, bar.update)
    seconds = time.perf_counter() - started
    return Sensitivity(losses, members, parts, measure, method.name, len(listed), seconds)


def _grids(grids: object) -> list[Grid]:
    """Return the grids as a list; a single one is a list of one."""
    listed: list[Any] = (
        [grids] if isinstance(grids, Grid) else list(grids) if isinstance(grids, Iterable) else []
    )
    if not listed:
        raise QuantError(
            f"grids is {describe(grids)}, no list of grids. Pass [qlib.Grid(3, 64), qlib.Grid(2, 64)]."
        )
    for grid in listed:
        check_grid(grid)
    return list(dict.fromkeys(listed))


def _data(data: object, model: Model, measure: Measure) -> Sequence[Any]:
    """Return recordings or texts as a list."""
    listed = as_calibration(data, model)
    if not listed:
        raise DataError("sensitivity: data is empty. Pass 8 utterances with transcripts, or texts.")
    if measure == "wer":
        if isinstance(model, TextModel):
            raise ModelError("A text model has no WER. Use measure='kl'.")
        require_text([each for each in listed if isinstance(each, Utterance)])
    return listed
