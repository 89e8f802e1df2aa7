"""Slow, obvious second implementations. They share no code with the library: that is their worth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# --- grids


def fit_oracle(values: Tensor, bits: int, symmetric: bool, share: float = 1.0) -> tuple[float, int]:
    """Scale and zero of one group (a vector), number by number."""
    lo = share * min(min(values.tolist()), 0.0)
    hi = share * max(max(values.tolist()), 0.0)
    if lo == hi:
        lo, hi = -1.0, 1.0
    if symmetric:
        return max(-lo, hi) / (2 ** (bits - 1) - 1), 0
    scale = (hi - lo) / (2**bits - 1)
    return scale, round(-lo / scale)  # Python rounds half to even as torch does


def round_oracle(values: Tensor, scale: float, zero: int, bits: int, symmetric: bool) -> list[int]:
    """Codes of a vector."""
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    return [min(max(round(value / scale) + zero, lowest), highest) for value in values.tolist()]


def encode_oracle(weight: Tensor, bits: int, group: int | None, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Codes and values of a float64 matrix, row by row and group by group."""
    codes, values = torch.zeros_like(weight), torch.zeros_like(weight)
    width = group or weight.shape[1]
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            part = weight[row, start : start + width]
            scale, zero = fit_oracle(part, bits, symmetric)
            numbers = torch.tensor(round_oracle(part, scale, zero, bits, symmetric), dtype=torch.float64)
            codes[row, start : start + width] = numbers
            values[row, start : start + width] = scale * (numbers - zero)
    return codes, values


def fit_mse_oracle(weight: Tensor, bits: int, group: int | None, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero [rows, groups] of the range search, one group at a time."""
    width = group or weight.shape[1]
    scales, zeros = [], []
    for row in weight:
        for part in row.split(width):
            tried = []
            for step in range(80):
                scale, zero = fit_oracle(part, bits, symmetric, 1 - step / 100)
                numbers = torch.tensor(round_oracle(part, scale, zero, bits, symmetric), dtype=torch.float64)
                error = (scale * (numbers - zero) - part).abs().pow(2.4).sum().item()
                tried.append((error, step, scale, zero))
            _, _, scale, zero = min(tried)
            scales.append(scale)
            zeros.append(zero)
    shape = (len(weight), -1)
    return (
        torch.tensor(scales, dtype=torch.float64).view(shape),
        torch.tensor(zeros, dtype=torch.float64).view(shape),
    )


def pack_oracle(codes: list[int], bits: int) -> list[int]:
    """Bytes of a dense little-endian bit stream, by one large integer."""
    stream = sum(code << (bits * k) for k, code in enumerate(codes))
    return list(stream.to_bytes(-(-len(codes) * bits // 8), "little"))


# --- GPTQ, in NumPy float64


def _fit_columns(block: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero of each row of a block of columns."""
    lo, hi = np.minimum(block.min(1), 0.0), np.maximum(block.max(1), 0.0)
    lo, hi = np.where(lo == hi, -1.0, lo), np.where(lo == hi, 1.0, hi)
    if symmetric:
        return np.maximum(-lo, hi) / (2 ** (bits - 1) - 1), np.zeros(len(block))
    scale = (hi - lo) / (2**bits - 1)
    return scale, np.round(-lo / scale)


def _codes(column: Array, scale: Array, zero: Array, bits: int, symmetric: bool) -> Array:
    lowest = -(2 ** (bits - 1)) if symmetric else 0
    return np.clip(np.round(column / scale) + zero, lowest, lowest + 2**bits - 1)


def gptq_oracle(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group: int | None,
    symmetric: bool,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Codes and values: one column at a time, the inverse of the free columns kept by Schur complements."""
    W, H = weight.double().numpy().copy(), hessian.double().numpy().copy()
    columns, width = W.shape[1], group or W.shape[1]
    dead = np.diag(H) == 0
    H += np.eye(columns) * damping * np.diag(H)[~dead].mean()
    H[dead, dead] = 1.0
    W[:, dead] = 0.0
    energy = hessian.double().numpy().diagonal()
    order = np.argsort(-energy, kind="stable") if act_order else np.arange(columns)
    static = {c: _fit_columns(W[:, c : c + width], bits, symmetric) for c in range(0, columns, width)}
    inverse = np.linalg.inv(H)
    codes, values = np.zeros_like(W), np.zeros_like(W)
    for step, j in enumerate(order):
        if static_groups:
            scale, zero = static[j // width * width]
        elif step % width == 0:
            scale, zero = _fit_columns(W[:, order[step : step + width]], bits, symmetric)
        codes[:, j] = _codes(W[:, j], scale, zero, bits, symmetric)
        values[:, j] = scale * (codes[:, j] - zero)
        error = (W[:, j] - values[:, j]) / inverse[j, j]
        W -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return torch.from_numpy(codes), torch.from_numpy(values)


def least_squares_oracle(
    weight: Tensor,
    inputs: Tensor,
    bits: int,
    group: int | None,
    symmetric: bool,
    act_order: bool = False,
    static_groups: bool = False,
) -> Tensor:
    """Codes by the definition: round a column, then solve anew for all free columns, from the data itself."""
    W, X = weight.double().numpy(), inputs.double().numpy()
    columns, width = W.shape[1], group or W.shape[1]
    damping = 0.01 * (X**2).sum(0).mean()
    A = np.vstack([X, np.sqrt(damping) * np.eye(columns)])  # damping is a few more tokens
    energy = (X**2).sum(0)
    order = np.argsort(-energy, kind="stable") if act_order else np.arange(columns)
    moved, codes = W.copy(), np.zeros_like(W)
    for step, j in enumerate(order):
        if static_groups:
            start = j // width * width
            scale, zero = _fit_columns(W[:, start : start + width], bits, symmetric)
        elif step % width == 0:
            scale, zero = _fit_columns(moved[:, order[step : step + width]], bits, symmetric)
        codes[:, j] = _codes(moved[:, j], scale, zero, bits, symmetric)
        moved[:, j] = scale * (codes[:, j] - zero)
        fixed, free = order[: step + 1], order[step + 1 :]
        target = A[:, free] @ W[:, free].T + A[:, fixed] @ (W[:, fixed] - moved[:, fixed]).T
        moved[:, free] = np.linalg.lstsq(A[:, free], target, rcond=None)[0].T if len(free) else 0.0
    return torch.from_numpy(codes)
