"""How long GPTQ takes for one layer, and how often its codes are those of a float64 oracle.

Run: python examples/benchmarks/gptq_layer.py            (about two minutes; --quick: seconds)

Time is thread time on one thread, the median of seven runs, the factorization of the Hessian included.
The oracle is tests/oracles.py: one column at a time, in float64, with Schur complements of the inverse.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import command_line
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from oracles import gptq_oracle

from qlib.grid import Grid
from qlib.methods.gptq import gptq, hessian


def data(tokens: int, columns: int) -> Tensor:
    """Return correlated inputs, one in fifty of them twenty times larger than the rest."""
    mixed = torch.randn(tokens, columns) @ torch.randn(columns, columns) * torch.rand(columns)
    return mixed * (1 + 19 * (torch.rand(columns) > 0.98))


def seconds(call: Callable[[], object], runs: int = 7) -> float:
    """Return the median thread time of a call, after one run to warm up."""
    call()
    times = []
    for _ in range(runs):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


ORDERS: dict[str, dict[str, bool]] = {
    "off": {},
    "dynamic": {"act_order": True},
    "static": {"act_order": True, "static_groups": True},
}


def print_times() -> None:
    """Print one row for each shape and order of columns."""
    names = ["g=64", "static", "dynamic", "channel"]
    print(f"{'outputs x inputs':18} {'hessian of 1500':>16} " + " ".join(f"{name:>8}" for name in names))
    for rows, columns in [(384, 384), (1536, 384), (384, 1536)]:
        W, X = torch.randn(rows, columns), data(4 * columns, columns)
        H, tokens = hessian(X), X[:1500]
        times = [seconds(lambda: hessian(tokens))]  # noqa: B023 (called at once)
        for grid, order in [
            (Grid(4, 64), "off"),
            (Grid(4, 64), "static"),
            (Grid(4, 64), "dynamic"),
            (Grid(4), "off"),
        ]:
            times.append(seconds(lambda: gptq(W, H, grid, **ORDERS[order])))  # noqa: B023
        print(f"{f'{rows} x {columns}':18} {times[0]:14.3f} s " + " ".join(f"{t:6.3f} s" for t in times[1:]))


def print_agreement(rows: int) -> None:
    """Print the share of equal codes for each setting of a layer with 384 inputs."""
    W, H = torch.randn(rows, 384), hessian(data(1536, 384))
    groups: list[int | None] = [None, 128, 64, 100]
    print(f"\nEqual codes in %, {rows} x 384 float32 weight against the float64 oracle")
    print(f"{'':20}" + "".join(f"{'channel' if g is None else f'g={g}':>10}" for g in groups))
    worst = 100.0
    for bits, symmetric, order in itertools.product([4, 3, 2], [False, True], ORDERS):
        shares = []
        for group in groups:
            codes, _ = gptq_oracle(W, H, bits, group, symmetric, **ORDERS[order])
            mine = gptq(W, H, Grid(bits, group, symmetric), **ORDERS[order]).codes
            shares.append(100 * (mine == codes).double().mean().item())
        worst = min(worst, *shares)
        print(f"w{bits} {'sym ' if symmetric else 'asym'} {order:10}" + "".join(f"{s:10.3f}" for s in shares))
    print(f"worst: {worst:.3f} %")


def main() -> None:
    """Print both tables."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows in the comparison with the oracle")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_times()
    print_agreement(rows=32 if quick else 384)


if __name__ == "__main__":
    main()
