"""The pictures of the pages in docs/methods: each computed by the library on small data with a fixed seed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from chart import BLUE, ORANGE, PURPLE, RED, TEXT, Axes, Picture
from torch import Tensor

from qlib.grid import Grid, fit_minmax, fit_mse
from qlib.methods.awq import awq_scale
from qlib.methods.gptq import gptq_steps, hessian
from qlib.methods.hessian import statistics
from qlib.methods.hqq import hqq
from qlib.methods.omniquant import fake_quant
from qlib.methods.quik import quik
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.methods.spqr import spqr
from qlib.quantized_weight import QuantizedWeight


def draw(*shape: int, seed: int) -> Tensor:
    """Return standard normal numbers, float64: the last bits of a sum then never show in a picture."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rtn_grids() -> Picture:
    """Draw weights with more positive values, on three grids of eight values."""
    weight = (0.3 * draw(1, 28, seed=4) + 0.25).clamp(-0.3)
    weight[0, 5] = 1.25
    picture = Picture("A zero point moves the eight values of a 3-bit grid to where the weights are", 304)
    rows = [
        ("symmetric: the values lie around 0, and some are never used", Grid(3, symmetric=True), fit_minmax),
        ("asymmetric: from the smallest weight to the largest", Grid(3), fit_minmax),
        ('fit="mse": the range is cut where the sum of errors becomes least', Grid(3), fit_mse),
    ]
    axis = Axes(picture, 40, 40, 600, 230, (-1.7, 1.3), (0, 1))
    for i, (label, grid, fit) in enumerate(rows):
        params = fit(weight, grid)
        every = torch.arange(grid.qmin, grid.qmax + 1, dtype=weight.dtype)[None]
        zero = 0 if params.zero is None else params.zero.to(weight)
        values = (params.scale * (every - zero))[0].tolist()
        rounded = rtn(weight, grid, fit="mse" if fit is fit_mse else "minmax").decode()
        error = float((rounded - weight).square().mean().sqrt())
        _grid_row(axis, 60 + 88 * i, label, weight[0].tolist(), values, [int(c) for c in every[0].tolist()])
        picture.text(654, 60 + 88 * i + 22, f"error {error:.3f}", style="bold")
    return picture


def hqq_zero() -> Picture:
    """Draw the four weights of the page that all lie above a value of the grid."""
    weight = torch.tensor([[0.0, 0.12, 0.12, 0.12, 0.22, 0.3]], dtype=torch.float64)
    picture = Picture(
        "HQQ moves the zero point, and with it the whole grid, to where most weights agree", 216
    )
    axis = Axes(picture, 40, 40, 600, 160, (-0.03, 0.34), (0, 1))
    grid = Grid(bits=2)
    rows = [("an integer zero point: the four inner weights are all 0.02 off", rtn(weight, grid))]
    rows += [("HQQ's zero point: those are met, the two at the ends pay", hqq(weight, grid))]
    for i, (label, quantized) in enumerate(rows):
        values = _values(quantized, grid)
        _grid_row(axis, 62 + 86 * i, label, weight[0].tolist(), values, range(4))
        error = float((quantized.decode() - weight).abs().mean())
        picture.text(648, 62 + 86 * i + 22, f"mean error {error:.4f}", style="bold", size=11)
    return picture


def _values(quantized: QuantizedWeight, grid: Grid) -> list[float]:
    """Return the values of the grid of the first row."""
    assert quantized.zero is not None
    codes = torch.arange(grid.levels, dtype=torch.float64)
    found: list[float] = (quantized.scale[0].double() * (codes - quantized.zero[0].double())).tolist()
    return found


def _grid_row(
    axis: Axes, y: float, label: str, weights: list[float], values: list[float], codes: Iterable[int]
) -> None:
    """Draw weights as dots over the values of a grid, and which value takes each."""
    picture = axis.picture
    picture.text(axis.left, y - 14, label)
    left, right = axis.left, axis.left + axis.width
    picture.line([(left, y + 34), (right, y + 34)], TEXT + "60", width=1)
    for i, weight in enumerate(weights):
        nearest = min(values, key=lambda value: abs(value - weight))
        (x, _), (u, _) = axis.at(weight, 0), axis.at(nearest, 0)
        picture.line([(x, y + 12), (u, y + 29)], BLUE + "70", width=1)
        picture.circle(x, y + 10 - 6 * weights[:i].count(weight), BLUE, 3)  # equal ones on top of one another
    for code, value in zip(codes, values, strict=True):
        x, _ = axis.at(value, 0)
        picture.line([(x, y + 28), (x, y + 40)], ORANGE, width=2.5)
        picture.text(x, y + 51, str(code), anchor="middle", size=10, colour=ORANGE)


def gptq_columns() -> Picture:
    """Draw how far each column is moved while the columns before it are rounded, and what the outputs see."""
    columns = 12
    weight = draw(64, columns, seed=0)
    inputs = draw(400, 5, seed=1) @ draw(5, columns, seed=2) + 0.4 * draw(400, columns, seed=3)
    H, grid = hessian(inputs), Grid(bits=2)
    total = float((inputs @ weight.T).norm())
    plain, original = rtn(weight, grid).decode(), weight.clone()
    picture = Picture("GPTQ: later columns make up for each rounded one, and the outputs change less", 348)
    cell, left, top = 20, 62, 62
    curves: list[list[float]] = [[], []]
    for step, state in enumerate(gptq_steps(weight, H, grid)):
        moved = (state.weight - original).square().mean(0).sqrt().tolist()
        for column, size in enumerate(moved):
            colour = BLUE if column <= step else ORANGE
            shade = min(1.0, size / 1.2) if column > step else 0.25 + 0.5 * (column == step)
            if shade >= 0.01:
                place = (left + cell * column, top + cell * step)
                picture.box(*place, cell - 1.5, cell - 1.5, colour, opacity=shade)
        mixed = torch.cat([plain[:, : step + 1], original[:, step + 1 :]], 1)
        for curve, now in zip(curves, (mixed, state.weight), strict=True):
            curve.append(float(((now - original) @ inputs.T).norm()) / total)
    picture.text(left, 48, "column of the weight, 0 to 11")
    picture.text(left - 8, top + 14, "step 0", anchor="end", size=11)
    picture.text(left - 8, top + 14 + cell * (columns - 1), "step 11", anchor="end", size=11)
    picture.legend(
        left, top + cell * columns + 16, [(BLUE, "rounded"), (ORANGE, "moved to make up for it")], 16
    )
    axes = Axes(picture, 420, 62, 300, cell * columns - 10, (1, columns), (0, 0.4))
    axes.frame(
        range(2, 13, 2), (0, 0.1, 0.2, 0.3, 0.4), "columns rounded so far", "relative error of the outputs"
    )
    for curve, colour, name in zip(curves, (TEXT, ORANGE), ("RTN", "GPTQ"), strict=True):
        axes.curve(list(enumerate(curve, 1)), colour)
        x, y = axes.at(columns, curve[-1])
        picture.text(x, y - 9, f"{name} {curve[-1]:.2f}", anchor="end", colour=colour, style="bold")
    return picture


def smoothquant_ranges() -> Picture:
    """Draw largest inputs and weights of 24 channels, before and after."""
    inputs, weight = draw(500, 24, seed=0), 0.05 * draw(64, 24, seed=1)
    inputs[:, [6, 17]] *= torch.tensor([30.0, 60.0], dtype=torch.float64)
    ranges = inputs.abs().amax(0)
    scale = smoothing_scale(ranges, [weight])
    picture = Picture("SmoothQuant: inputs hand their outliers to the weights, and both fit their grids", 268)
    sides = [("before", ranges, weight), ("after, alpha = 0.5", ranges / scale, weight * scale)]
    for i, (label, x, w) in enumerate(sides):
        axes = Axes(picture, 48 + 360 * i, 66, 320, 140, (-0.7, 23.7), (0.05, 400), log_y=True)
        axes.frame(
            (0, 6, 12, 17, 23), (0.1, 1, 10, 100), f"channel, {label}", "largest |x| and |w|" * (not i)
        )
        for values, colour, shift in ((x, BLUE, -0.2), (w.abs().amax(0), ORANGE, 0.2)):
            for j, value in enumerate(values.tolist()):
                place, y = axes.at(j + shift, value)
                picture.box(place - 2.5, y, 5, axes.top + axes.height - y, colour)
    picture.legend(48, 256, [(BLUE, "inputs")])
    picture.legend(140, 256, [(ORANGE, "weights")])
    return picture


def awq_alpha() -> Picture:
    """Draw output error over the exponent, for outliers of three sizes."""
    weight = draw(64, 48, seed=1)
    picture = Picture(
        "AWQ: where some inputs are large, it pays to enlarge their weights before rounding", 300
    )
    axes = Axes(picture, 60, 64, 520, 180, (0, 0.95), (0.2, 1.4))
    axes.frame(
        (0, 0.2, 0.4, 0.6, 0.8), (0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4), "exponent alpha; 0: rounding to nearest",
        "squared output error, 1 at alpha = 0",
    )  # fmt: skip
    for factor, colour in ((1, TEXT), (5, BLUE), (20, ORANGE)):
        inputs = draw(400, 48, seed=2)
        inputs[:, [3, 20, 41]] *= factor
        _, losses = awq_scale([weight], inputs.T @ inputs, inputs.abs().mean(0), Grid(3, 16))
        curve = [(k / 20, float(loss / losses[0])) for k, loss in enumerate(losses)]
        shown = [point for point in curve if point[1] <= 1.4]
        axes.curve(shown, colour, dots=False)
        best = min(curve, key=lambda point: point[1])
        picture.circle(*axes.at(*best), colour, 5)
        label = f"{factor} times as large" if factor > 1 else "no large inputs"
        picture.text(596, axes.at(*shown[-1])[1] + 4, label, colour=colour)
    picture.text(60, 292, "48 inputs, three of them large; a dot marks the exponent that is taken", size=11)
    return picture


def omniquant_clip() -> Picture:
    """Draw output error over the share of the range that is kept, for the page's four weights."""
    weight, none = torch.tensor([[0.4, 0.4, 0.8, 3.0]], dtype=torch.float64), torch.zeros(1, 1).double()
    picture = Picture("OmniQuant: how far to cut a range depends on the inputs, and a gradient finds it", 296)
    axes = Axes(picture, 60, 64, 470, 176, (0.3, 1), (0, 0.3))
    axes.frame(
        (0.4, 0.6, 0.8, 1), (0, 0.1, 0.2, 0.3), "share of the range that is kept", "squared output error"
    )
    for last, colour, label in ((1.0, TEXT, "all inputs alike"), (0.1, ORANGE, "the input of 3.0 is weak")):
        sizes, curve = torch.tensor([1.0, 1.0, 1.0, last]).double(), []
        for kept in (i / 100 for i in range(30, 101, 2)):
            u = torch.logit(torch.tensor([[kept]]).double()).clamp(max=30)
            error = (fake_quant(weight, Grid(bits=2), u, none) - weight) * sizes
            curve.append((kept, float(error.square().mean())))
        axes.curve([point for point in curve if point[1] <= 0.3], colour, dots=False)
        best = min(curve, key=lambda point: point[1])
        picture.circle(*axes.at(*best), colour, 5)
        picture.text(548, 100 + 20 * (last < 1), label, colour=colour, style="bold")
    picture.text(548, 150, "weights 0.4, 0.4, 0.8, 3.0")
    picture.text(548, 168, "on four values")
    picture.text(
        60, 290, "A dot marks the least error: nearly the whole range, or two fifths of it.", size=11
    )
    return picture


def quik_columns() -> Picture:
    """Draw the largest inputs in descending order, and the error by how many stay in float."""
    inputs, weight = draw(500, 64, seed=0) @ draw(64, 64, seed=1), draw(32, 64, seed=2)
    inputs[:, [5, 40]] *= 50
    exact, largest = inputs @ weight.T, inputs.abs().amax(0)
    picture = Picture(
        "QUIK: two inputs are far larger than the others; two columns in float undo the harm", 280
    )
    axes = Axes(picture, 60, 64, 290, 160, (-0.6, 15.6), (10, 3000), log_y=True)
    axes.frame((0, 5, 10, 15), (10, 100, 1000), "inputs, the largest first (16 of 64)", "largest |x|")
    for i, value in enumerate(sorted(largest.tolist(), reverse=True)[:16]):
        x, y = axes.at(i, value)
        picture.box(x - 6, y, 12, axes.top + axes.height - y, ORANGE if i < 2 else BLUE)
    right = Axes(picture, 440, 64, 290, 160, (0, 8), (0, 0.2))
    right.frame(range(0, 9, 2), (0, 0.1, 0.2), "columns in float", "relative error of the outputs at 4 bits")
    curve = []
    for k in range(9):
        result = quik(weight, statistics(inputs), Grid(bits=4, symmetric=True), columns=k)
        curve.append((float(k), float((inputs @ result.decode().double().T - exact).norm() / exact.norm())))
    right.curve(curve, ORANGE)
    return picture


def spqr_outliers() -> Picture:
    """Draw which weights stay in float, and the error over their share."""
    rows, columns = 32, 48
    weight = draw(rows, columns, seed=0) * draw(rows, columns, seed=1).abs()
    inputs = draw(400, columns, seed=2)
    exact, H = inputs @ weight.T, hessian(inputs)
    picture = Picture("SpQR: two weights in a hundred stay in float, and a quarter of the error is gone", 300)
    cell, left, top = 6.2, 40, 62
    kept = spqr(weight, H, Grid(bits=3, group=16), threshold=0.3).outliers
    places = [] if kept is None else kept.tolist()
    picture.box(left, top, cell * columns, cell * rows, TEXT, opacity=0.12)
    for place in places:
        x, y = left + cell * (place % columns), top + cell * (place // columns)
        picture.box(x, y, cell - 0.8, cell - 0.8, RED)
    picture.text(left, 50, f"threshold 0.3: {len(places)} of {rows * columns} weights in float")
    picture.text(left, top + cell * rows + 18, "32 outputs x 48 inputs")
    curve = []
    for threshold in (float("inf"), 1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1):
        result = spqr(weight, H, Grid(bits=3, group=16), threshold=threshold)
        count = 0 if result.outliers is None else len(result.outliers)
        error = float((inputs @ result.decode().double().T - exact).norm() / exact.norm())
        curve.append((100 * count / weight.numel(), error, threshold))
    axes = Axes(picture, 430, 62, 300, 190, (0, 10), (0, 0.2))
    axes.frame(
        (0, 2, 4, 6, 8, 10),
        (0, 0.05, 0.1, 0.15, 0.2),
        "% of the weights in float",
        "relative error of the outputs",
    )
    axes.curve([(share, error) for share, error, _ in curve if share <= 10], PURPLE)
    for share, error, threshold in curve:
        if threshold in (float("inf"), 0.3, 0.2, 0.1) and share <= 10:
            x, y = axes.at(share, error)
            picture.text(x + 6, y - 7, "none" if threshold > 1 else f"{threshold:g}", size=11, colour=PURPLE)
    return picture
