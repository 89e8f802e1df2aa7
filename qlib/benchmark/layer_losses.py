"""Which layers hurt, as a cell of a study: what rounding each layer alone is estimated to cost on each grid.

By `qlib.sensitivity` with the measure "fisher", which runs no rounded model, on the recordings that
calibrate. The grids are those of the study's schemes; those of its further runs are left out, since few
maps say enough.
"""

from __future__ import annotations

from typing import Any

from qlib.analysis.sensitivity import Measure, sensitivity
from qlib.asr.utterance import Utterance
from qlib.benchmark.config import Study
from qlib.grid import Grid
from qlib.models.structure import Model
from qlib.scheme import parse_scheme

RECORDINGS = 8  # at most; they order the layers well
MEASURE: Measure = "fisher"
DIGITS = 6  # of a loss: sums of float32 differ in the last ones with the number of threads


def grids_of(study: Study) -> list[Grid]:
    """Return the grids of the study's schemes, each once, in their order."""
    grids = [parse_scheme(scheme)[0] for scheme in study.schemes]
    return list(dict.fromkeys(grid["*"] if isinstance(grid, dict) else grid for grid in grids))


def layer_losses(model: Model, study: Study, calib: list[Utterance]) -> dict[str, Any]:
    """Return the losses of every layer of a float model as plain data.

    Parameters
    ----------
    model : Model
        In float.
    study : Study
        Whose grids count.
    calib : list of Utterance
        The first `RECORDINGS` are heard.

    Returns
    -------
    dict
        ``measure``, ``recordings``, the ``grids`` as text, and ``losses``: of each layer one a grid, in nats
        a token.
    """
    grids, heard = grids_of(study), calib[:RECORDINGS]
    found = sensitivity(model, grids, heard, measure=MEASURE, progress=False)
    return {
        "measure": MEASURE,
        "recordings": len(heard),
        "grids": [str(grid) for grid in grids],
        "losses": {
            layer: [float(f"{losses[grid]:.{DIGITS}g}") for grid in grids]
            for layer, losses in found.losses.items()
        },
    }
