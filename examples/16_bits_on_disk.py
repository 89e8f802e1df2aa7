"""Lesson 16: bits on disk, or what a file stores for a weight.

What you will learn
- codes of 3 bits are packed without gaps: code k takes the bits 3k to 3k + 2 of a stream of bytes;
- a group stores a scale and a zero point as well. At 4 bits and groups of 64 that is
  4 + 32/64 + 4/64 = 4.56 bits per weight, and with a scale of 16 bits 4.31;
- scales can be rounded too, which pays for smaller groups;
- what stays in float is counted with its place: a method is compared at equal stored bits.

Paper: SpQR (Dettmers et al. 2023, arXiv 2306.03078), section 4 (bilevel). Page: docs/checkpoints.md
Source: qlib/packing.py, qlib/quantized_weight.py
Exercise: examples/exercises/ex02_groups_and_stored_bits.py
Run: python examples/16_bits_on_disk.py        (seconds)
"""

from __future__ import annotations

import torch
from rounding_pictures import draw_stored
from torch import Tensor

from qlib import Grid, QuantizedWeight
from qlib.methods.hessian import hessian
from qlib.methods.hqq import hqq
from qlib.methods.rtn import rtn
from qlib.methods.spqr import spqr
from qlib.models.table import align
from qlib.packing import pack, unpack

ROWS = COLUMNS = 384


# %% What is computed
def weights() -> Tensor:
    """Return a weight with a few entries far out, as trained layers have them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return torch.where(torch.rand(ROWS, COLUMNS, generator=generator) < 1 / 500, 5 * weight, weight)


def bits_by_hand(grid: Grid) -> dict[str, float]:
    """Return the stored bits per weight of round to nearest, part by part (no ragged group)."""
    width = grid.group or COLUMNS
    short = {"scales": grid.scale_bits / width}
    if grid.scale_bits < 16:  # two levels: 16 rows share a scale and a zero point of 16 bits each
        short = {"scales": grid.scale_bits / width, "scales of scales": (16 + 16) / 16 / width}
    return {"codes": float(grid.bits), "zero points": grid.bits / width, **short}


def error(weight: Tensor, quantized: QuantizedWeight) -> float:
    """Return |W - W^| / |W|."""
    return float((quantized.decode() - weight).norm() / weight.norm())


def main() -> None:
    """Print three tables, draw one picture."""
    # %% 1. Eight codes of three bits are three bytes
    codes, bits = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]), 3
    packed = pack(codes, bits=bits)
    stream = "".join(f"{byte:08b}"[::-1] for byte in packed.tolist())  # the lowest bit of a byte comes first
    print("codes ", *(f"{code:>{bits}}" for code in codes.tolist()))
    print("bits  ", *(stream[bits * k : bits * (k + 1)] for k in range(len(codes))), "  (lowest bit first)")
    print("bytes ", *packed.tolist(), "  and back:", unpack(packed, bits, codes.shape).tolist())

    # %% 2. What a group adds: by hand, and as the library counts it
    weight = weights()
    rows = [("grid", "codes", "zero points", "scales", "together", "counted")]
    parts: dict[str, dict[str, float]] = {}
    for grid in (Grid(4), Grid(4, 64), Grid(4, 64, scale_bits=16), Grid(4, 16), Grid(4, 16, scale_bits=16),
                 Grid(4, 16, scale_bits=4)):  # fmt: skip
        found = bits_by_hand(grid)
        scales = sum(value for name, value in found.items() if name.startswith("scales"))
        counted = rtn(weight, grid).bits(grid) / weight.numel()
        together = sum(found.values())
        assert abs(together - counted) < 1e-9
        columns = (found["codes"], found["zero points"], scales, together, counted)
        rows.append((str(grid), *(f"{each:.3f}" for each in columns)))
        name = "row" if grid.group is None else f"group {grid.group}"
        parts[f"{name}, {grid.scale_bits}-bit scale"] = found
    print(f"\nbits per weight\n\n{align(rows)}")

    # %% 3. About five bits each: methods that store more than codes
    inputs = torch.randn(2000, COLUMNS, generator=torch.Generator().manual_seed(1))
    rows = [("method and grid", "bits per weight", "error %")]
    found_by = {
        "RTN, Grid(4, 32)": (Grid(4, 32), rtn(weight, Grid(4, 32))),
        "HQQ, Grid(4, 64)": (Grid(4, 64), hqq(weight, Grid(4, 64))),
        "RTN, Grid(5)": (Grid(5), rtn(weight, Grid(5))),
        "SpQR, Grid(4, 16)": (
            Grid(4, 16), spqr(weight, hessian(inputs), Grid(4, 16), threshold=0.1)
        ),
    }  # fmt: skip
    for name, (grid, quantized) in found_by.items():
        size = quantized.bits(grid) / weight.numel()
        rows.append((name, f"{size:.2f}", f"{100 * error(weight, quantized):.2f}"))
    print(f"\nall that is stored is counted; the error is that of the weights\n\n{align(rows)}")

    # %% 4. Short scales pay for small groups
    curves = {}
    for scale_bits in (32, 16, 4):
        grids = [Grid(3, group, scale_bits=scale_bits) for group in (8, 16, 32, 64, 128)]
        results = [(grid, rtn(weight, grid)) for grid in grids]
        curves[f"scales of {scale_bits} bits"] = [
            (each.bits(grid) / weight.numel(), error(weight, each)) for grid, each in results
        ]
    draw_stored(parts, curves)


# %% Try this: predict first, then run
# 1. HQQ's zero points are no whole numbers. How many bits per weight do they cost at groups of 64, and at 16
#    (a further line in `found_by`)?
# 2. Pack nine codes of 3 bits, a further one in `codes`: how many bytes? And how many with bits = 8?
# 3. A kept weight takes 16 bits for its value and 8 or 16 for its place. How many of 1000 weights can be kept
#    for 0.1 bits per weight?

if __name__ == "__main__":
    main()
