"""Codes and bytes: b bits a code, without gaps, as checkpoints store them.

>>> pack(torch.tensor([1, 2, 3]), bits=4).tolist()
[33, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlib.errors import QuantError
from qlib.grid import Grid


def to_unsigned(codes: Tensor, grid: Grid) -> Tensor:
    """Return codes counted from 0 (uint8), as `pack` wants them."""
    return (codes.to(torch.int16) - grid.qmin).to(torch.uint8)


def from_unsigned(codes: Tensor, grid: Grid) -> Tensor:
    """Undo `to_unsigned`: codes from `grid.qmin` on, in the grid's dtype."""
    return (codes.to(torch.int16) + grid.qmin).to(grid.code_dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes without gaps: code k takes the bits k * bits to (k + 1) * bits - 1 of the stream.

    Bit i of the stream is bit i % 8 (counted from the lowest) of byte i // 8.

    Parameters
    ----------
    codes : Tensor
        Whole numbers 0 .. 2^bits - 1 of any shape, flattened in row-major order.
    bits : int
        2 to 8.

    Returns
    -------
    Tensor
        uint8, ceil(codes.numel() * bits / 8) bytes; the last byte is filled up with zero bits.

    Raises
    ------
    QuantError
        A code that needs more bits.

    Examples
    --------
    >>> pack(torch.tensor([1, 2, 3]), bits=4).tolist()
    [33, 3]
    """
    count = codes.numel()
    low, high = (int(codes.min()), int(codes.max())) if count else (0, 0)
    if low < 0 or high >= 1 << bits:
        raise QuantError(
            f"codes from {low} to {high} do not fit into {bits} unsigned bits. "
            "Shift signed codes by to_unsigned(codes, grid) first."
        )
    octets = pad(codes.flatten(), (0, -count % 8)).view(-1, 8)  # 8 codes fill exactly `bits` bytes
    word = torch.zeros(len(octets), dtype=torch.int64, device=codes.device)
    for k in range(8):
        word |= octets[:, k].to(torch.int64) << (bits * k)
    packed = torch.empty(len(octets), bits, dtype=torch.uint8, device=codes.device)
    for k in range(bits):
        packed[:, k] = (word >> (8 * k)) & 0xFF
    return packed.flatten()[: -(-count * bits // 8)]


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo `pack`.

    Parameters
    ----------
    packed : Tensor
        uint8, [ceil(prod(shape) * bits / 8)].
    bits : int
        2 to 8.
    shape : sequence of int
        Shape of the codes.

    Returns
    -------
    Tensor
        uint8 codes of that shape.

    Raises
    ------
    QuantError
        The number of bytes does not belong to that many codes.
    """
    count = prod(shape)
    needed = -(-count * bits // 8)
    if packed.shape != (needed,):
        raise QuantError(
            f"{count} codes of {bits} bits take {needed} bytes, but the packed tensor has shape "
            f"{tuple(packed.shape)}. Is the file complete, and are bits and shape those it was written with?"
        )
    octets = pad(packed, (0, -needed % bits)).view(-1, bits)
    word = torch.zeros(len(octets), dtype=torch.int64, device=packed.device)
    for k in range(bits):
        word |= octets[:, k].to(torch.int64) << (8 * k)
    codes = torch.empty(len(octets), 8, dtype=torch.uint8, device=packed.device)
    for k in range(8):
        codes[:, k] = (word >> (bits * k)) & ((1 << bits) - 1)
    return codes.flatten()[:count].view(tuple(shape))
