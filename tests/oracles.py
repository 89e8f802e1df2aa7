"""Slow, obvious second implementations. They share no code with the library: that is their worth."""

from __future__ import annotations

import torch
from torch import Tensor

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
