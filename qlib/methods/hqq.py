"""HQQ: move the zero point of each group to where its rounded weights, outliers aside, are closest. No data.

Paper: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (a report by
Mobius Labs, not on arXiv), and the solver `optimize_weights_proximal_v2` of its code.
Problem: minimise sum |W - W_r|^p over the zero points z (p = 0.7), W_r = s (q - z),
      q = clamp(round(W / s + z)).
Rule (`hqq_plain`): E = the part of the error R = W - W_r that is given up as outliers, z = the best fit to
      the rest:
          E = sign(R) max(|R| - |R|^(p-1) / beta, 0)      z = mean over the group of q - (W - E) / s
      then beta *= kappa; stop when mean |W - W_r| over the whole weight no longer falls, keep the best z.
Why it works: for p < 1 few large errors cost less than many small ones. With E split off by a penalty
    beta/2 |E - R|^2 ("half-quadratic") each of the two problems has a solution in one line.
Shapes: W [outputs, inputs]; s and z [outputs, groups], groups run along the inputs; z need not be whole.
Needs: nothing. Changes: this weight only.
Left out: groups along the outputs (the package's default, axis=0), which no other method here has; its limits
    for float16 (scale > 5e-5); that it rounds the first zero points to whole numbers at 4 bits. A scale never
    moves: an extreme weight still stretches its group's range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError, as_whole, real_number
from qlib.grid import (
    CHUNK,
    Grid,
    as_compute_dtype,
    encode,
    fit_float_zero,
    short_zero,
    to_codes_float_zero,
    to_values,
)
from qlib.methods.checks import check_types
from qlib.methods.contracts import LayerStats, Needs
from qlib.quantized_weight import QuantizedWeight

# --- the formulas of the paper


def shrink(R: Tensor, p: float, beta: float) -> Tensor:
    """Return E, the part of the errors R that counts as outliers: it minimises |E|^p + beta/2 |E - R|^2.

    The exact solution for p = 1; for p < 1 the paper's approximation of it. It is 0 where
    |R| <= beta^(-1/(2-p)), and nearly all of R where |R| is large. Any shape.

    >>> shrink(torch.tensor([-2.0, 0.1, 0.5, 3.0]), p=1.0, beta=2.0).tolist()
    [-1.5, 0.0, 0.0, 2.5]
    """
    return R.sign() * (R.abs() - R.abs() ** (p - 1) / beta).relu()  # R = 0: relu(-inf) = 0


def hqq_plain(
    weight: Tensor, grid: Grid, *, p: float = 0.7, beta: float = 10, kappa: float = 1.01, iterations: int = 20
) -> QuantizedWeight:
    """Round a weight as `hqq` does, by the formulas of the paper: slower, and equal up to the last bits.

    Arguments, result and errors are those of `hqq`.
    """
    check_settings(p, beta, kappa, iterations)
    params = fit_float_zero(weight, grid)
    W = as_compute_dtype(weight.detach())
    best, least = params, inf
    for _ in range(iterations + 1):
        s, z = params.per_column()
        assert z is not None
        # 1. Round: q = clamp(round(W / s + z)).
        q = to_codes_float_zero(W, s, z, grid)
        # 2. The error that is left: R = W - s (q - z). Stop when its mean no longer falls.
        R = W - to_values(q, s, z)
        error = float(R.abs().mean())
        if not error < least:
            break
        best, least = params, error
        # 3. Give up the outliers: E = sign(R) max(|R| - |R|^(p-1) / beta, 0).
        E = shrink(R, p, beta)
        # 4. Move the zero point to the best fit for the rest: z = mean over the group of q - (W - E) / s.
        fits = q - (W - E) / s
        means = [fits[:, group].mean(1) for group in grid.slices(W.shape[1])]
        params = replace(params, zero=short_zero(torch.stack(means, dim=1), grid))
        # 5. Tie E more tightly to R.
        beta *= kappa
    return QuantizedWeight.of(encode(W, best, grid), best)


# --- the same in parts that fit into the processor's cache


@dataclass(frozen=True)
class HQQStep:
    """One iteration of `hqq_steps`.

    Parameters
    ----------
    iteration : int
        0 is the start, before any move.
    zero : Tensor
        The zero points tried, [outputs, groups].
    error : float
        Mean |W - W_r| over the whole weight with these zero points.
    outliers : float
        Share of the weights with E other than 0.
    beta : float
        Weight of the penalty that ties E to R.
    kept : bool
        Whether the error fell; the first step where it did not is the last.
    """

    iteration: int
    zero: Tensor
    error: float
    outliers: float
    beta: float
    kept: bool


def hqq(
    weight: Tensor, grid: Grid, *, p: float = 0.7, beta: float = 10, kappa: float = 1.01, iterations: int = 20
) -> QuantizedWeight:
    """Round a weight with the zero points that half-quadratic splitting finds.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    grid : Grid
        Bits and group; asymmetric.
    p : float
        Exponent of the error, 0 < p <= 1.
    beta : float
        Errors above beta^(-1/(2-p)), in units of the weight, count as outliers. The larger, the more of them.
    kappa : float
        Growth of beta from one iteration to the next, >= 1.
    iterations : int
        Moves of the zero points, at most. 0: only the plain fit with a float zero.

    Returns
    -------
    QuantizedWeight
        With a float `zero` [outputs, groups].

    Raises
    ------
    QuantError
        NaN weights, a group larger than the layer, a symmetric grid, a setting out of range.

    Examples
    --------
    Four weights agree that the grid should lie higher; the two ends pay for it.

    >>> weight = torch.tensor([[0.0, 0.12, 0.12, 0.12, 0.22, 0.3]])
    >>> for count in (0, 20):
    ...     [round(value, 3) for value in hqq(weight, Grid(2), iterations=count).decode()[0].tolist()]
    [0.0, 0.1, 0.1, 0.1, 0.2, 0.3]
    [0.013, 0.113, 0.113, 0.113, 0.213, 0.313]
    """
    params = fit_float_zero(weight, grid)
    for step in hqq_steps(weight, grid, p=p, beta=beta, kappa=kappa, iterations=iterations):
        if step.kept:
            params = replace(params, zero=step.zero)
    return QuantizedWeight.of(encode(weight.contiguous(), params, grid), params)


def hqq_steps(
    weight: Tensor, grid: Grid, *, p: float = 0.7, beta: float = 10, kappa: float = 1.01, iterations: int = 20
) -> Iterator[HQQStep]:
    """Yield each iteration of `hqq`, the last one included; arguments and errors as there."""
    check_settings(p, beta, kappa, iterations)
    params = fit_float_zero(weight, grid)
    W = as_compute_dtype(weight.detach()).contiguous()  # sums in one order, however it is stored
    zero, least = params.zero, inf
    assert zero is not None
    for iteration in range(iterations + 1):
        error, outliers, moved = _iterate(W, params.scale, zero, grid, p, beta)
        step = HQQStep(iteration, zero, error, outliers, beta, error < least)
        yield step
        if not step.kept:
            break
        least, zero, beta = error, short_zero(moved, grid), beta * kappa


def _iterate(
    W: Tensor, scale: Tensor, zero: Tensor, grid: Grid, p: float, beta: float
) -> tuple[float, float, Tensor]:
    """Return mean |R|, the share of outliers, and the next zero points: steps 1 to 4 of `hqq_plain`.

    With W = R + s (q - z), step 4 becomes z - mean(R - E) / s, and R - E is R clamped to
    +-|R|^(p-1) / beta. Where no |R| exceeds beta^(-1/(2-p)), E is 0 and no power has to be computed. With the
    defaults that limit is 0.17, and errors of ordinary weights (of size 0.05) never reach it.
    """
    limit = beta ** (-1 / (2 - p))  # where |R| = |R|^(p-1) / beta
    total = torch.zeros((), dtype=torch.float64, device=W.device)
    outliers, moved = 0, torch.empty_like(zero)
    for part, s, z, new in _parts(W, grid.group or W.shape[1], scale, zero, moved):
        R = part - to_values(to_codes_float_zero(part, s, z, grid), s, z)
        size = R.abs()
        total += size.sum()
        beyond = int((size > limit).sum())
        if beyond:
            outliers += beyond
            bound = size.pow_(p - 1).div_(beta)  # infinite where R = 0: such an R is not clamped
            R = R.clamp_(-bound, bound)
        torch.sub(z, R.mean(-1, keepdim=True).div_(s), out=new)
    return float(total) / W.numel(), outliers / W.numel(), moved


def _parts(W: Tensor, width: int, *numbers: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of W that fit into the processor's cache, and the numbers of their groups.

    Shapes: a part is [rows, groups, width], each of its numbers [rows, groups, 1]. A narrower last group
    comes by itself.
    """
    columns = W.shape[1]
    full = columns // width * width
    for start, stop in [(0, full), (full, columns)] if full < columns else [(0, columns)]:
        groups = slice(start // width, -(-stop // width))
        height = max(1, CHUNK // (stop - start))
        for rows in (slice(row, row + height) for row in range(0, len(W), height)):
            part = W[rows, start:stop]
            part = part.view(len(part), -1, min(width, stop - start))
            yield part, *(each[rows, groups].unsqueeze(-1) for each in numbers)


# --- settings


def check_settings(p: float, beta: float, kappa: float, iterations: int) -> None:
    """Refuse settings out of range."""
    real_p, real_beta, real_kappa = (
        real_number(value, f"{name} in HQQ", QuantError)
        for name, value in (("p", p), ("beta", beta), ("kappa", kappa))
    )
    whole = as_whole(iterations)
    for name, value, good, remedy in (
        ("p", p, 0 < real_p <= 1, "is outside 0 < p <= 1. Use p=0.7"),
        ("beta", beta, 0 < real_beta < inf, "is not a number > 0. Use beta=10"),
        ("kappa", kappa, 1 <= real_kappa < inf, "is not a number >= 1. Use kappa=1.01"),
        ("iterations", iterations, whole is not None and whole >= 0, "is not >= 0. Use iterations=20"),
    ):
        if not good:
            raise QuantError(f"{name}={value!r} in HQQ {remedy}.")


@dataclass(frozen=True)
class HQQ:
    """Settings of HQQ; see `hqq`. The defaults are the paper's."""

    p: float = 0.7  # exponent of the error
    beta: float = 10.0  # the larger, the more errors count as outliers
    kappa: float = 1.01  # growth of beta from one iteration to the next
    iterations: int = 20  # at most

    name: ClassVar[str] = "hqq"
    paper: ClassVar[str] = "Badri and Shaji 2023, Mobius Labs"
    needs: ClassVar[Needs] = Needs.NOTHING

    def __post_init__(self) -> None:
        check_types(self, ("p", "beta", "kappa"), ("iterations",))
        check_settings(self.p, self.beta, self.kappa, self.iterations)

    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        """Refuse a symmetric grid, which has no zero to move."""
        if grid.symmetric:
            raise QuantError(
                f"HQQ moves zero points, and {grid} has none: it needs an asymmetric grid. "
                "Use Grid(..., symmetric=False), or another method."
            )

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer; `stats` is not looked at."""
        return hqq(weight, grid, p=self.p, beta=self.beta, kappa=self.kappa, iterations=self.iterations)
