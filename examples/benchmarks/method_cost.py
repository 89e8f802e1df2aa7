"""Seconds and peak memory of each method on a whole model.

    python examples/benchmarks/method_cost.py --model whisper-base --calib CALIB.jsonl ... --limit 64

Each method runs in a process of its own, so that peak memory is its own: model, copy, calibration and all.
OmniQuant takes 32 utterances and 10 epochs, the others all utterances. On 2 cores the whole table takes about
an hour for whisper-base; `--only gptq,awq` selects rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import command_line, names, parse, recordings

import qlib
from qlib.models.table import align

METHODS: dict[str, list[Any]] = {
    "rtn": [qlib.RTN()],
    "hqq": [qlib.HQQ()],
    "smoothquant": [qlib.SmoothQuant()],
    "awq": [qlib.AWQ()],
    "gptq": [qlib.GPTQ()],
    "spqr": [qlib.SpQR()],
    "quik": [qlib.QUIK()],
    "omniquant": [qlib.OmniQuant(epochs=10)],
}


def main() -> None:
    """Run every method in turn, or, as a child, one of them."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="whisper-base")
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--only", type=names, default=list(METHODS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.child:
        print(json.dumps(measure(options)))
        return
    rows = [("", "utterances", "seconds", "peak MB", "bits/weight")]
    for name in options.only:
        command = [sys.executable, *sys.argv, "--child", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append((name, *found))
        print("  ".join(rows[-1]), flush=True)
    print(f"\n{options.model}, 4 bits, groups of 64 (SpQR 16), {options.threads} threads\n")
    print(align(rows))


def measure(options: argparse.Namespace) -> list[str]:
    """Quantize the model by one method; return the cells of its row."""
    model = qlib.load_model(options.model)
    calib = recordings(options.calib)[: options.limit]
    if options.child == "omniquant":
        calib = calib[:32]
    grid = qlib.Grid(4, 16 if options.child == "spqr" else 64)
    report = qlib.quantize(model, METHODS[options.child], weight=grid, calib=calib, progress=False).report
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [str(len(calib)), f"{report.seconds:.0f}", f"{peak:.0f}", f"{report.bits_per_weight:.2f}"]


if __name__ == "__main__":
    main()
