"""Bits spent where they pay: one grid for all layers against a plan of the same size.

    python examples/benchmarks/mixed_precision.py --test TEST.jsonl --calib CALIB.jsonl ...

What each layer loses on each width is estimated from gradients on a few calibration recordings; the plan of
least total loss that is not larger than the uniform model is quantized, and both are compared, paired over
recordings. With `--method gptq` the plan is still that of rounding to nearest.
"""

from __future__ import annotations

import argparse

from common import command_line, parse, recognizer_options, recordings

import qlib
from qlib.analysis.allocate import Plan
from qlib.models.structure import Model
from qlib.models.table import align


def main() -> None:
    options = read_options()
    model = qlib.load_model(options.model, device=options.device)
    test, calib = recordings(options.test), recordings(options.calib)
    uniform = qlib.Grid(options.bits, options.group, scale_bits=16)
    rows: list[tuple[str, ...]] = [("", "bits per weight", "file MB", "WER %")]
    one = measure(rows, "uniform", model, uniform, options.method, calib, test)
    plan = plan_of(model, calib[: options.clips], uniform)
    other = measure(rows, "plan", model, plan, options.method, calib, test)
    print(align(rows))
    print(qlib.compare(one, other))
    widths = [layer.grid.bits for layer in plan.layers]
    print("layers by width:", {bits: widths.count(bits) for bits in sorted(set(widths))})


def plan_of(model: Model, calib: list[qlib.Utterance], uniform: qlib.Grid) -> Plan:
    """Return the plan of least estimated loss with no more bits than the uniform grid takes."""
    grids = [qlib.Grid(bits, uniform.group, scale_bits=16) for bits in (2, 3, 4, 5, 6, 8)]
    losses = qlib.sensitivity(model, grids, calib, measure="fisher").losses
    only = {name: {uniform: row[uniform]} for name, row in losses.items()}
    same = qlib.allocate(only, model, bits_per_weight=16).bits_per_weight
    return qlib.allocate(losses, model, bits_per_weight=same)


def measure(
    rows: list[tuple[str, ...]],
    name: str,
    model: Model,
    weight: qlib.Grid | Plan,
    method: str,
    calib: list[qlib.Utterance],
    test: list[qlib.Utterance],
) -> qlib.WerResult:
    """Quantize, score, and add a row to the table."""
    rounding = {"rtn": qlib.RTN, "gptq": qlib.GPTQ}[method]()
    result = qlib.quantize(model, [rounding], weight=weight, calib=calib)
    found = qlib.evaluate_wer(result.model, test)
    size = qlib.cost(result.model).size.file_bytes / 1e6
    rows.append((name, f"{result.report.bits_per_weight:.3f}", f"{size:.1f}", f"{found.wer:.2f}"))
    return found


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    recognizer_options(parser)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--method", choices=["rtn", "gptq"], default="gptq")
    parser.add_argument("--clips", type=int, default=8, help="recordings for the estimate (%(default)s)")
    return parse(parser)


if __name__ == "__main__":
    main()
