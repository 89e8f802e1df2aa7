"""Lesson 10: rounding what a layer reads.

What you will learn
- weights are rounded once, inputs each time the model runs: so their range has to be found in no time, or
  beforehand;
- a few tokens are many times as large as the others. One range for all leaves the small ones a few codes;
- a range of its own for each token costs a minimum and a maximum, and no calibration;
- a range found beforehand is exceeded by what was not there: of a louder recording, large tokens are cut off.

Paper: ZeroQuant (Yao et al. 2022, arXiv 2206.01861), section 4.1. Page: docs/activations.md
Source: qlib/activation.py, qlib/histogram.py    Exercise: examples/exercises/ex01_encode_decode.py
Run: python examples/10_rounding_inputs.py        (seconds)
"""

from __future__ import annotations

from typing import Any

import torch
from rounding_pictures import draw_roundings
from torch import Tensor

from qlib.activation import FixedRange, PerTensor, PerToken
from qlib.histogram import Histogram
from qlib.models.table import align

TOKENS, WIDTH = 1000, 64
LARGE = 100  # one token in so many is 30 times as large
PERCENTILE = 99
WIDTHS = range(2, 9)


# %% What is computed
def inputs(seed: int, loud: float = 1) -> Tensor:
    """Return tokens [TOKENS, WIDTH] of different sizes, one in a hundred far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    sizes = loud * (0.5 + torch.rand(TOKENS, 1, generator=generator))
    sizes[::LARGE] *= 30
    return sizes * torch.randn(TOKENS, WIDTH, generator=generator)


def relative(rounded: Tensor, exact: Tensor) -> Tensor:
    """Return the relative error of each token, [TOKENS]."""
    return (rounded - exact).norm(dim=1) / exact.norm(dim=1)


def by_hand(token: Tensor, bits: int) -> Tensor:
    """Round one token [WIDTH] on an asymmetric grid of its own: what `PerToken` does to each row."""
    low, high = min(float(token.min()), 0.0), max(float(token.max()), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    codes = (torch.round(token / scale) + zero).clamp(0, 2**bits - 1)
    return scale * (codes - zero)


def roundings(bits: int, seen: Tensor) -> dict[str, Any]:
    """Return five ways to round an input, the last three calibrated on tokens."""
    histogram = Histogram()
    histogram.add(seen)
    share = PerTensor(bits, fit="percentile", percentile=PERCENTILE)
    return {
        "each token": PerToken(bits),
        "each call": PerTensor(bits, dynamic=True),
        "calibrated, all values": PerTensor(bits).calibrated(histogram),
        "calibrated, least squares": PerTensor(bits, fit="mse").calibrated(histogram),
        f"calibrated, {PERCENTILE} %": share.calibrated(histogram),
    }


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. One token by hand
    seen, unseen = inputs(seed=0), inputs(seed=1)
    same = torch.allclose(by_hand(unseen[3], 8), PerToken(8)(unseen[3:4])[0], atol=1e-5)
    print(f"a token rounded by hand equals PerToken: {same}\n")

    # %% 2. Five ranges: small tokens and large ones, and the same speech three times as loud
    small = torch.arange(TOKENS) % LARGE != 0
    rows = [("range of", "small tokens %", "large ones %", "louder: small %", "large %", "outside %")]
    errors = {}
    for name, rounding in roundings(8, seen).items():
        errors[name] = relative(rounding(unseen), unseen)
        if isinstance(rounding, FixedRange):
            rounding.reset()
        loud = inputs(seed=2, loud=3)
        louder = relative(rounding(loud), loud)
        outside = f"{100 * rounding.exceeded_share:.2f}" if isinstance(rounding, FixedRange) else "-"
        found = [float(each[kind].mean()) for each in (errors[name], louder) for kind in (small, ~small)]
        rows.append((name, *(f"{100 * each:.2f}" for each in found), outside))
    print(f"8 bits; mean relative error of a token\n\n{align(rows)}")
    print("\nlouder: a recording three times as loud; outside: the share of its values that exceed the")
    print("calibrated range and are cut off. A range of all values cuts off large tokens only. The small")
    print("ones gain: they are larger now, and reach more codes. A narrow one, as of 99 %, small ones, too.")

    # %% 3. How many bits a range of its own is worth
    lines: dict[str, list[float]] = {name: [] for name in errors}
    for bits in WIDTHS:
        for name, rounding in roundings(bits, seen).items():
            lines[name].append(float(relative(rounding(unseen), unseen)[small].mean()))
    worth = next(bits for bits, error in zip(WIDTHS, lines["each token"], strict=True)
                 if error < lines["each call"][-1])  # fmt: skip
    print(f"\n{worth} bits for each token do what 8 bits for each call do to the small tokens.")
    draw_roundings(unseen.norm(dim=1), {name: errors[name] for name in list(errors)[:2]}, WIDTHS, lines)


# %% Try this: predict first, then run
# 1. One large token in all (`LARGE = 10**6`): how much nearer does "each call" come to "each token"?
#    And with none (without the line `sizes[::LARGE] *= 30`)?
# 2. `torch.nn.functional.gelu` around what `inputs` returns, and `PerToken(bits, symmetric=True)` as another
#    row of `roundings`: which of the two grids loses a bit, and why?
# 3. PERCENTILE = 99.9: the large tokens are one in a hundred. Are they inside of the range now?

if __name__ == "__main__":
    main()
