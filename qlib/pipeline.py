"""`quantize`: a float model and a list of methods in, a quantized copy and a report out.

1. check everything that can be checked: methods, patterns, grids, weights, calibration list
2. write down the settings: what the manifest keeps, and what tells one run from another
3. copy the model and quantize it block by block, in order of computation; then the token tables
4. report each layer's error, and what was left in float and why
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlib.activation import Rounding
from qlib.activation_state import reset_counts
from qlib.asr.utterance import Utterance
from qlib.calibrate import count_blocks, walk_blocks
from qlib.chain import Method
from qlib.checkpoint import save_quantized
from qlib.grid import Grid
from qlib.models.progress import progress_bar
from qlib.models.structure import Model
from qlib.quantize_block import BlockQuantizer
from qlib.report import LayerReport, QuantReport
from qlib.request import Request, check_request
from qlib.resume import finished_blocks


@dataclass(frozen=True, repr=False)
class Result:
    """A quantized model and the story of how it came about."""

    model: Model
    report: QuantReport
    settings: dict[str, Any]  # methods, grids, calibration: what the manifest keeps

    def __str__(self) -> str:
        """Return the report."""
        return str(self.report)

    def __repr__(self) -> str:
        """Return one line."""
        layers = self.report.layers
        return (
            f"Result({type(self.model).__name__}, {len(layers)} layers by {layers[0].method} to "
            f"{self.report.grids}, {self.report.bits_per_weight:.2f} bits per weight)"
        )

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that `load_quantized` reads back bit for bit; see `qlib.checkpoint`."""
        return save_quantized(self.model, folder, self.settings)


def quantize(
    model: Model,
    methods: Method | Iterable[Method] = (),
    *,
    weight: Grid | Mapping[str, Grid],
    activation: Rounding | Mapping[str, Rounding] = None,
    calib: Iterable[Utterance] | Iterable[str] | None = None,
    skip: str | Iterable[str] = (),
    work: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Return a quantized copy of a model; the model itself is not touched.

    Parameters
    ----------
    model : Model
        A float model.
    methods : method or iterable of methods
        Any number of transformations, then at most one rounding method; without one, weights are rounded to
        nearest. `qlib.METHODS` lists them.
    weight : Grid, or mapping of patterns to grids
        Bits, group and symmetry of the weights. A mapping of patterns, as for `skip`, gives a grid to
        the layers of each: ``{"*": Grid(3, 64), "fc2": Grid(8)}``. The last pattern that covers a layer wins,
        and a full name wins over all patterns. Token embedding and head stay in float unless a pattern other
        than the bare ``*`` covers them: ``{"*": Grid(4, 64), "embed_tokens": Grid(4, 64)}``. Where the two
        are tied, both compute with one quantized table, named by either. ``"decoder"`` covers all that is in
        the decoder, its embedding too. `qlib.layers` with the same mapping shows what it does.
    activation : PerToken or PerTensor, or mapping of patterns to them, optional
        Rounds the input of every quantized layer while the model runs, of a quantized head too. A mapping
        goes by the rules of `weight`, and None leaves inputs in float: ``{"*": PerToken(8), "fc2": None}``.
    calib : iterable of Utterance, or of str for a text model
        Recordings and transcripts, or texts, for methods that look at the inputs. Keep them apart from test
        data.
    skip : str or iterable of str
        Layers to leave in float: names or patterns (``*``, ``?``) of whole paths, or of a path's end
        (``fc2``, ``encoder_attn.*``).
    work : str or Path, optional
        Folder for finished blocks: a killed run with the same arguments goes on from there, to the same
        codes.
    progress : bool
        Show a progress bar over the blocks.

    Notes
    -----
    Token tables are rounded after the last block. A head is rounded by the method, with the statistics of
    the hidden states that the quantized blocks give it, but transformations leave it as it is. The rows of
    an embedding that is not tied to a head are looked up, not multiplied: methods that need inputs have
    none, and it is rounded to nearest.

    Raises
    ------
    QuantError
        Anything that cannot be done as asked, before the work begins: arguments of another type, unknown
        methods or an impossible chain, a grid or layer that a method cannot round, a pattern that matches
        nothing, a layer without a grid or rounding, two grids for one table, nothing left to quantize, a
        group larger than a layer, a NaN weight, a missing calibration list, a work folder of another run or
        in use by one, a method that does not tell runs apart. The message names the layers. Later: a method
        that returns something else than it promised.
    DataError
        A calibration entry of another kind, or a recording that cannot be used; the message counts from 1.
    """
    started = time.perf_counter()
    request = check_request(model, methods, weight, activation, calib, skip, work, progress)  # 1
    settings = request.settings()  # 2
    quantized, reports = _run(request, settings)  # 3
    report = QuantReport(tuple(reports), request.skipped, time.perf_counter() - started)  # 4
    return Result(quantized, report, settings)


def _run(request: Request, settings: Mapping[str, Any]) -> tuple[Model, list[LayerReport]]:
    """Return the quantized copy and the reports of its layers, in order of computation."""
    model, chain, reports = request.model, request.chain, []
    with finished_blocks(request.folder, settings, model) as finished, ExitStack() as held:
        batches, quantized = request.batches(), copy.deepcopy(model)
        bar = held.enter_context(
            progress_bar(
                show=request.progress,
                total=count_blocks(model) + len(request.tables),
                desc=request.title,
                unit="block",
            )
        )
        blocks = BlockQuantizer(
            chain, request.grids, request.activations, lambda loss: bar.set_postfix(loss=f"{loss:.3g}")
        )
        head = replace(blocks, chain=chain.for_table(multiplied=True))
        lookup = replace(blocks, chain=chain.for_table(multiplied=False))
        tables = {model.token_layers.head: head, model.token_layers.embedding: lookup}
        for visit in walk_blocks(quantized, batches, model if chain.learns else None, request.tables):
            known = None if finished is None else finished.load(visit.name, quantized)
            if known is None:
                block = tables.get(visit.name, blocks).quantize(visit)
                known = list(block.reports)
                if finished is not None:
                    finished.save(visit.name, quantized, block.changed, known)
            reports += known
            bar.update()
            if known:
                bar.set_postfix(error=f"{known[-1].output_error or known[-1].weight_error:.4f}")
    reset_counts(quantized)  # calibration ran the finished blocks, static ranges and all
    return quantized, reports
