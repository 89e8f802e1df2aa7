r"""Our RTN, HQQ and GPTQ beside the code of other libraries, on the same tensors: error and time.

The peers are no dependencies: install them into a folder of their own, with what their imports ask for and
nothing else (torch and transformers stay those of the `dev` extra), and lend it to this run:

    pip install --target DIR --no-deps hqq optimum-quanto torchao llmcompressor compressed-tensors \
        accelerate annotated-types datasets dill loguru multiprocess pandas psutil pyarrow pydantic \
        pydantic-core termcolor typing-inspection xxhash
    PYTHONPATH=DIR python examples/benchmarks/peers.py            (a try: --shape 128x128 --only hqq)

A peer that cannot be imported is a row that says so. Both sides get the same float32 weight and turn it into
codes, unpacked; the peers' own functions fit and round, and where a library leaves a convention open it is
set to ours:

    RTN asymmetric   range reaches 0, whole zero; quanto with `zeropoint=True`, torchao `ASYMMETRIC`
    RTN symmetric    max|w| / (2^(b-1) - 1); torchao `SYMMETRIC` on codes -(2^(b-1)-1) .. 2^(b-1)-1
    float zero       plain min and max, the zero not rounded: HQQ before its first move; quanto's default
    HQQ              the same, then 20 moves of the zero; groups along the inputs (axis=1)
    GPTQ             damping 0.01, blocks of 128; scales from the original weight. "ordered": both visit the
                     largest inputs first (the peer's default); "in turn": from left to right. Symmetric:
                     the peer is given our scale, as its own (2 max|w| / (2^b - 1)) is another grid.

quanto compiles C++ when its HQQ first runs (g++ and ninja); a run killed meanwhile leaves a file `lock` in
its folder `extensions/cpp/build`, for which all later ones wait. Delete it.

Error: |X (W - W^)^T| / |X W^T| on tokens that GPTQ has not seen. Time: thread time on one thread, medians of
five runs, ours and the peer's in turn.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import command_line
from torch import Tensor
from tqdm import tqdm

from qlib.grid import Grid, encode, fit_float_zero
from qlib.methods.gptq import gptq, hessian
from qlib.methods.hqq import hqq
from qlib.methods.rtn import rtn
from qlib.models.table import align
from qlib.quantized_weight import QuantizedWeight
from qlib.report import output_error

WIDTHS = (4, 3, 2)
LAYERS = ("1536x384", "2048x2048")
GROUPS = (None, 128, 64)
RUNS = 5
LEAST = 0.02  # seconds of one run: shorter calls are repeated, as a single one tells little


@dataclass(frozen=True)
class Problem:
    """A layer: weight, Hessian of the tokens GPTQ may see (also in float32), and of those it may not."""

    weight: Tensor
    seen: Tensor
    seen32: Tensor
    unseen: Tensor


Decode = Callable[[], Tensor]  # the values of a rounded weight; not part of the time
Side = Callable[[Problem, Grid], Decode]


@dataclass(frozen=True)
class Rival:
    """A function of a peer, and ours that does the same."""

    name: str
    module: str
    ours: Side
    theirs: Side
    widths: tuple[int, ...] = WIDTHS
    groups: tuple[int | None, ...] = GROUPS
    symmetric: bool = False


def problem(rows: int, columns: int) -> Problem:
    """Return heavy-tailed weights, and correlated inputs with one channel in fifty twenty times larger."""
    tails = torch.distributions.StudentT(torch.tensor(5.0)).sample((rows, columns))
    weight = 0.03 * tails * (0.5 + torch.rand(rows, 1))
    mixed = torch.randn(6 * columns, columns) @ torch.randn(columns, columns) * torch.rand(columns)
    tokens = mixed * (1 + 19 * (torch.rand(columns) > 0.98))
    seen, unseen = hessian(tokens[: 4 * columns]), hessian(tokens[4 * columns :])
    return Problem(weight, seen, (seen / (4 * columns)).float(), unseen)


# --- ours


def our_rtn(p: Problem, grid: Grid) -> Decode:
    return rtn(p.weight, grid).decode


def our_float_zero(p: Problem, grid: Grid) -> Decode:
    params = fit_float_zero(p.weight, grid)
    return QuantizedWeight(encode(p.weight, params, grid), params.scale, params.zero, params.index).decode


def our_hqq(p: Problem, grid: Grid) -> Decode:
    return hqq(p.weight, grid).decode


def our_gptq(act_order: bool) -> Side:
    return lambda p, grid: gptq(p.weight, p.seen, grid, act_order=act_order, static_groups=True).decode


# --- the peers


def hqq_package(solver: str) -> Side:
    """Return HQQ as its authors publish it, with one of its two solvers."""

    def run(p: Problem, grid: Grid) -> Decode:
        from hqq.core import optimize
        from hqq.core.quantize import Quantizer

        Quantizer.optimize_weights = getattr(optimize, solver)
        codes, meta = Quantizer.quantize(
            p.weight, nbits=grid.bits, group_size=grid.group, axis=1, bitpack=False, device="cpu"
        )
        return lambda: Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})

    return run


def quanto(optimizer: str, whole_zero: bool) -> Side:
    """Return a fit of optimum-quanto, and its rounding."""

    def run(p: Problem, grid: Grid) -> Decode:
        from optimum import quanto

        kind = getattr(quanto, f"qint{grid.bits}")
        fit = getattr(quanto, optimizer)()
        scale, shift = fit(p.weight, kind, axis=0, group_size=grid.group, zeropoint=whole_zero)
        codes = torch.ops.quanto.quantize_affine(p.weight, grid.bits, 0, grid.group, scale, shift)
        return lambda: ((codes - shift.float()) * scale if whole_zero else codes * scale - shift).reshape_as(
            p.weight
        )

    return run


def torchao_rtn(p: Problem, grid: Grid) -> Decode:
    """Round to nearest, torchao."""
    from torchao.quantization import quant_primitives as ao

    block = (1, grid.group or p.weight.shape[1])
    kind = ao.MappingType.SYMMETRIC if grid.symmetric else ao.MappingType.ASYMMETRIC
    lowest = -grid.qmax if grid.symmetric else 0
    codes_in: tuple[Any, ...] = (grid.code_dtype, lowest, grid.qmax)
    scale, zero = ao.choose_qparams_affine(p.weight, kind, block, *codes_in)
    codes = ao.quantize_affine(p.weight, block, scale, zero, *codes_in)
    return lambda: ao.dequantize_affine(codes, block, scale, zero, *codes_in)


def torchao_hqq(p: Problem, grid: Grid) -> Decode:
    """HQQ, torchao's copy."""
    from torchao.quantization import quant_primitives as ao

    width = grid.group or p.weight.shape[1]
    codes, scale, zero, _ = ao._choose_qparams_and_quantize_affine_hqq(
        p.weight, grid.bits, width, compute_dtype=torch.float32, device="cpu", raw_output=True
    )
    grouped = codes.view(len(codes), -1, width)
    return lambda: ((grouped - zero[..., None]) * scale[..., None]).reshape_as(p.weight)


def llmcompressor(order: str | None) -> Side:
    """Return GPTQ of llmcompressor; the fit is that of its observers, or ours where that is another grid."""

    def run(p: Problem, grid: Grid) -> Decode:
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.utils import calculate_qparams
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

        settings = QuantizationArgs(
            num_bits=grid.bits, symmetric=grid.symmetric, group_size=grid.group, actorder=order,
            strategy="group" if grid.group else "channel",
        )  # fmt: skip
        groups = p.weight.view(len(p.weight), -1, grid.group or p.weight.shape[1])
        lowest, highest = groups.amin(-1), groups.amax(-1)
        scale, zero = calculate_qparams(lowest, highest, settings)
        if grid.symmetric:
            scale = torch.maximum(-lowest, highest) / grid.qmax
        values, _, fallback = quantize_weight(
            p.weight[None].clone(), p.seen32[None].clone(), scale[None], zero[None], None, settings
        )
        if fallback.any():
            raise RuntimeError("llmcompressor fell back to rounding to nearest: no comparison")
        return lambda: values[0]

    return run


QUANTO, AO = "optimum.quanto", "torchao.quantization.quant_primitives"
HQQ, LLMC = "hqq.core.quantize", "llmcompressor.modifiers.gptq.gptq_quantize"
V1, V2 = "optimize_weights_proximal_legacy", "optimize_weights_proximal_v2"
TWO = (4, 2)  # quanto has no 3 bits

RIVALS = (
    Rival("quanto RTN asymmetric", QUANTO, our_rtn, quanto("MaxOptimizer", True), TWO),
    Rival("torchao RTN asymmetric", AO, our_rtn, torchao_rtn),
    Rival("torchao RTN symmetric", AO, our_rtn, torchao_rtn, symmetric=True),
    Rival("quanto float zero", QUANTO, our_float_zero, quanto("MaxOptimizer", False), TWO),
    Rival("quanto HQQ", QUANTO, our_hqq, quanto("HqqOptimizer", False), TWO),
    Rival("torchao HQQ", AO, our_hqq, torchao_hqq),
    Rival("hqq HQQ (default)", HQQ, our_hqq, hqq_package(V1)),
    Rival("hqq HQQ (v2)", HQQ, our_hqq, hqq_package(V2)),
    Rival("llmcompressor GPTQ in turn", LLMC, our_gptq(act_order=False), llmcompressor(None)),
    Rival("llmcompressor GPTQ ordered", LLMC, our_gptq(act_order=True), llmcompressor("static")),
    Rival(
        "llmcompressor GPTQ ordered, sym.",
        LLMC,
        our_gptq(act_order=True),
        llmcompressor("static"),
        symmetric=True,
    ),
)


# --- the comparison


@dataclass(frozen=True)
class Result:
    """Errors and seconds of one comparison, ours and the peer's."""

    name: str
    errors: tuple[float, float]
    seconds: tuple[float, float]

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        ours, theirs = self.errors
        fast, slow = (f"{1000 * each:.1f}" for each in self.seconds)
        return (
            self.name, f"{ours:.4f}", f"{theirs:.4f}", f"{ours / theirs:.3f}",
            fast, slow, f"{self.seconds[0] / self.seconds[1]:.2f}",
        )  # fmt: skip


HEADER = ("peer and method", "layer and grid", "error", "peer", "ratio", "ms", "peer", "ratio")


def compare(rival: Rival, p: Problem, grid: Grid) -> Result:
    """Run both sides: once for the error and to warm up, then in turn for the time."""
    sides = (rival.ours, rival.theirs)
    errors = [output_error(p.weight, side(p, grid)().float(), p.unseen) for side in sides]
    calls = max(1, int(LEAST / seconds(sides[0], p, grid, 1)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for side, taken in zip(sides, times, strict=True):
            taken.append(seconds(side, p, grid, calls))
    mine, yours = (statistics.median(taken) for taken in times)
    name = f"{len(p.weight)}x{p.weight.shape[1]} {grid}".replace(" asymmetric", "").replace(" symmetric", "")
    return Result(name, (errors[0], errors[1]), (mine, yours))


def seconds(side: Side, p: Problem, grid: Grid, calls: int) -> float:
    """Return the thread time of one call, averaged over some."""
    start = time.thread_time()
    for _ in range(calls):
        side(p, grid)
    return (time.thread_time() - start) / calls


def missing(rival: Rival) -> str | None:
    """Return why a peer cannot be imported, or None."""
    try:
        importlib.import_module(rival.module)
    except Exception as error:  # whatever a foreign package raises on import, it is not there for us
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:70]
    return None


def grids(rival: Rival, columns: int) -> Iterator[Grid]:
    """Yield the grids that both sides have."""
    for bits in rival.widths:
        for group in rival.groups:
            if group is None or columns % group == 0:
                yield Grid(bits, group, rival.symmetric)


def rows_of(rival: Rival, problems: Sequence[Problem]) -> Iterator[Result]:
    """Yield the results of one rival on all layers and grids."""
    for p in problems:
        for grid in grids(rival, p.weight.shape[1]):
            yield compare(rival, p, grid)


def main() -> None:
    """Print a row for each peer, method, layer and grid, and the worst ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--shape", help="this layer alone, as 128x256")
    parser.add_argument("--only", default="", help="peers and methods whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = [arguments.shape] if arguments.shape else LAYERS
    problems = [problem(*map(int, shape.split("x"))) for shape in shapes]
    rows: list[tuple[str, ...]] = [HEADER]
    counted: list[Result] = []
    rivals = [each for each in RIVALS if arguments.only in each.name]
    for rival in tqdm(rivals, disable=None):
        if (reason := missing(rival)) is not None:
            rows.append((f"{rival.name}: not installed ({reason})", *[""] * (len(HEADER) - 1)))
            continue
        results = list(rows_of(rival, problems))
        rows += [(rival.name, *result.row()) for result in results]
        counted += results
    print(align(rows))
    if counted:
        error = max(each.errors[0] / each.errors[1] for each in counted)
        slowest = max(each.seconds[0] / each.seconds[1] for each in counted)
        print(f"\nworst of {len(counted)}: {error:.3f} times the peer's error, {slowest:.2f} times its time")


if __name__ == "__main__":
    main()
