"""Perplexities of a text model, quantized by several methods, as a table in Markdown.

Run: python examples/benchmarks/perplexity_table.py --only rtn,gptq --bits 4,3      (ten minutes for all)

Texts are the passages of examples/passages.py: half of them calibrate, the others are measured. The ratio to
the float model is exp of the mean difference of -log p per token, its interval a paired bootstrap over texts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import command_line, names, parse

sys.path.insert(0, str(Path(__file__).parents[1]))
from passages import passages

import qlib
from qlib.asr.bootstrap import percentile_interval, resampled_rates

METHODS: dict[str, Sequence[Any]] = {
    "rtn": [qlib.RTN()],
    "hqq": [qlib.HQQ()],
    "smoothquant": [qlib.SmoothQuant()],
    "awq": [qlib.AWQ()],
    "gptq": [qlib.GPTQ()],
    "awq+gptq": [qlib.AWQ(), qlib.GPTQ()],
    "spqr": [qlib.SpQR()],
    "quik": [qlib.QUIK()],
}


def ratio(exact: qlib.Perplexity, found: qlib.Perplexity) -> str:
    """Return how many times the perplexity is that of the float model, and the paired interval."""
    more = np.array(found.text_nll) - np.array(exact.text_nll)
    drawn = resampled_rates(more, np.array(exact.text_tokens), 10_000, seed=0, per=1.0)
    low, high = percentile_interval(np.exp(drawn))
    return f"{math.exp(found.nll - exact.nll):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print a row for each method and width as soon as it is measured."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--only", type=names, default=list(METHODS), help=f"of {','.join(METHODS)}")
    parser.add_argument("--bits", type=names, default=["4", "3"])
    parser.add_argument("--group", type=int, default=64)
    options = parse(parser)
    if unknown := sorted(set(options.only) - set(METHODS)):
        parser.error(f"--only {unknown[0]} is unknown; use {', '.join(METHODS)}")
    model, (calib, test) = qlib.load_model(options.model), passages()
    exact = qlib.perplexity(model, test, progress=False)
    print(f"{options.model}, {exact}\n")
    print("| method | bits | bits per weight | mean weight error | perplexity | times float |")
    print("|---|---|---|---|---|---|")
    for name in options.only:
        for bits in map(int, options.bits):
            group = 16 if name == "spqr" else options.group
            result = qlib.quantize(
                model, METHODS[name], weight=qlib.Grid(bits, group), calib=calib, progress=False
            )
            found, layers = qlib.perplexity(result.model, test, progress=False), result.report.layers
            error = sum(layer.weight_error for layer in layers) / len(layers)
            size = result.report.bits_per_weight
            cells = (name, bits, f"{size:.2f}", f"{error:.3f}", f"{found.value:.1f}", ratio(exact, found))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
