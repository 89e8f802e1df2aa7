"""Bits spent where they pay: one grid for all layers against a plan of the same size.

    python examples/benchmarks/mixed_precision.py --test TEST.jsonl --calib CALIB.jsonl ...

What each layer loses on each width is estimated from gradients, with the layer rounded by the same method, on
a few calibration recordings. The plan of least total loss that is not larger than the uniform model is
quantized, and both are compared with the float model: by word error rate, and by the divergence of their
probabilities, which also moves where no word changes. Differences are paired over recordings.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from common import command_line, parse, recognizer_options, recordings

import qlib
from qlib.analysis.allocate import Plan
from qlib.analysis.passes import first_visit, kl_divergence, last_hidden
from qlib.asr.bootstrap import percentile_interval, resampled_rates
from qlib.models.structure import Model
from qlib.models.table import align
from qlib.request import batches_of

METHODS = {"rtn": qlib.RTN, "gptq": qlib.GPTQ}


def main() -> None:
    options = read_options()
    model = qlib.load_model(options.model, device=options.device)
    test, calib = recordings(options.test), recordings(options.calib)
    method = METHODS[options.method]()
    uniform = qlib.Grid(options.bits, options.group, scale_bits=16)
    plan = plan_of(model, calib[: options.clips], uniform, options.widths, method)
    rows: list[tuple[str, ...]] = [("", "bits per weight", "file MB", "KL, nats per token", "WER %")]
    rates, divergences = [], []
    for name, weight in (("uniform", uniform), ("plan", plan)):
        result = qlib.quantize(model, [method], weight=weight, calib=calib)
        rates.append(qlib.evaluate_wer(result.model, test))
        divergences.append(divergence(model, result.model, test))
        size, (total, tokens) = qlib.cost(result.model).size.file_bytes / 1e6, divergences[-1].sum(0)
        figures = f"{result.report.bits_per_weight:.3f}", f"{size:.1f}", f"{total / tokens:.4f}"
        rows.append((name, *figures, f"{rates[-1].wer:.2f}"))
    print(align(rows))
    print("KL, plan minus uniform: {:+.4f} [{:+.4f}, {:+.4f}]".format(*difference(*divergences)))
    print(qlib.compare(*rates))
    print("layers by width:", dict(sorted(Counter(layer.grid.bits for layer in plan.layers).items())))


def plan_of(
    model: Model,
    calib: Sequence[qlib.Utterance],
    uniform: qlib.Grid,
    widths: Sequence[int],
    method: qlib.RTN | qlib.GPTQ,
) -> Plan:
    """Return the plan of least estimated loss with no more bits than the uniform grid takes."""
    grids = [qlib.Grid(bits, uniform.group, scale_bits=16) for bits in widths]
    losses = qlib.sensitivity(model, grids, calib, measure="fisher", method=method).losses
    same = qlib.allocate(
        {name: {uniform: row[uniform]} for name, row in losses.items()}, model, bits_per_weight=16
    )
    return qlib.allocate(losses, model, bits_per_weight=same.bits_per_weight)


@torch.no_grad()
def divergence(model: Model, other: Model, test: Sequence[qlib.Utterance]) -> np.ndarray:
    """Return KL(float || quantized) of each recording, teacher-forced: its sum in nats, and its tokens."""
    found = []
    for each in test:
        batches = batches_of(model, [each])
        hidden, changed = (next(last_hidden(first_visit(one, batches))) for one in (model, other))
        terms = kl_divergence(model.finish(hidden), other.finish(changed))
        found.append((float(terms.sum()), len(terms)))
    return np.array(found)


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two mean divergences, and its 95 % interval over recordings."""
    terms, tokens = second[:, 0] - first[:, 0], first[:, 1]
    low, high = percentile_interval(resampled_rates(terms, tokens, 2000, seed=0, per=1.0))
    return float(terms.sum() / tokens.sum()), low, high


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    recognizer_options(parser)
    parser.add_argument("--bits", type=int, default=4, help="of the uniform model (%(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 4, 5, 6], help="that a layer may take")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--method", choices=[*METHODS], default="gptq")
    parser.add_argument("--clips", type=int, default=8, help="recordings for the estimate (%(default)s)")
    options = parse(parser)
    if options.bits not in options.widths:
        parser.error(f"--bits {options.bits} is none of --widths {options.widths}. Add it.")
    return options


if __name__ == "__main__":
    main()
