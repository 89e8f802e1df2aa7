"""What was quantized, how well, and what was left alone and why."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from qlib.methods.output_error import squared_output_error
from qlib.models.table import align


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. Errors are relative: 0 is exact, 1 is as bad as an all-zero weight.

    W is the weight that the user had, with the scales and offsets that moved into it without changing the
    float model (SmoothQuant, AWQ, OmniQuant); X are the inputs with the same ones moved out of them. So all
    else that was done to W counts as error: clipping, learned ranges, rounding.
    """

    name: str
    outputs: int
    inputs: int
    method: str
    grid: str
    activation: str  # how its input is rounded, or "float"
    bits_per_weight: float  # codes, scales, zeros and indices as stored, over the number of weights
    weight_error: float  # |W - Q(W)| / |W|, Frobenius
    output_error: float | None  # |X (W - Q(W))^T| / |X W^T| over the calibration inputs, if they were seen
    tokens: int  # calibration vectors seen at its input
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantReport:
    """All layers of a model: quantized ones in order of computation, and the others with a reason."""

    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]  # (name, reason)
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        """Average over all quantized weights."""
        weights = sum(layer.outputs * layer.inputs for layer in self.layers)
        return sum(layer.bits_per_weight * layer.outputs * layer.inputs for layer in self.layers) / weights

    @property
    def grids(self) -> str:
        """The grid of all layers, or each grid and how many layers have it, most frequent first."""
        counts = Counter(layer.grid for layer in self.layers).most_common()
        return counts[0][0] if len(counts) == 1 else ", ".join(f"{grid} ({n} layers)" for grid, n in counts)

    def worst(self, count: int = 5) -> list[LayerReport]:
        """Return the layers with the largest error: of the output where it is known, else of the weight."""

        def error(layer: LayerReport) -> float:
            return layer.weight_error if layer.output_error is None else layer.output_error

        return sorted(self.layers, key=error, reverse=True)[:count]

    def table(self, layers: Sequence[LayerReport] | None = None) -> str:
        """Return layers (by default all) as a table of text."""
        chosen = self.layers if layers is None else layers
        rows = [("layer", "shape", "grid", "input", "bits", "weight err", "output err")]
        rows += [
            (
                layer.name,
                f"{layer.outputs}x{layer.inputs}",
                layer.grid,
                layer.activation,
                f"{layer.bits_per_weight:.2f}",
                f"{layer.weight_error:.4f}",
                "-" if layer.output_error is None else f"{layer.output_error:.4f}",
            )
            for layer in chosen
        ]
        return align(rows)

    def csv(self) -> str:
        """Return all layers as comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(LayerReport.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            writer.writerow({**asdict(layer), "notes": "; ".join(layer.notes)})
        return text.getvalue()

    def json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        lines = [
            f"{len(self.layers)} layers quantized by {self.layers[0].method} to {self.grids} "
            f"in {self.seconds:.1f} s, {self.bits_per_weight:.2f} bits per weight; worst:",
            self.table(self.worst()),
        ]
        noted = [f"{layer.name}: {note}" for layer in self.layers for note in layer.notes]
        if noted:
            lines.append(f"notes ({len(noted)}): {noted[0]}" + (" ..." if len(noted) > 1 else ""))
        for reason in dict.fromkeys(reason for _, reason in self.skipped):
            names = [name for name, why in self.skipped if why == reason]
            lines.append(
                f"left in float ({len(names)}, {reason}): {', '.join(names[:3])}" + " ..." * (len(names) > 3)
            )
        return "\n".join(lines)


def weight_error(weight: Tensor, values: Tensor) -> float:
    """Return |W - Q(W)| / |W| in the Frobenius norm; 0 for a zero weight that stays zero."""
    before, after = weight.detach().double(), values.detach().double()
    size = before.norm()
    return float((before - after).norm() / size) if size > 0 else 0.0


def output_error(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    """Return |X (W - Q(W))^T| / |X W^T| in the Frobenius norm, from X^T X alone.

    No input has to be kept: see `squared_output_error`.
    """
    before, after = weight.detach().double(), values.detach().double()
    size, error = (squared_output_error(each, hessian) for each in (before, before - after))
    return float((error / size).clamp(min=0).sqrt()) if size > 0 else 0.0
