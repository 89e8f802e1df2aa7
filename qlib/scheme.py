"""Schemes in short: `W4A16` for weights of 4 bits and inputs in float.

    W<bits>A<bits>[G<group> | C][S<bits>][E<bits>]

    W, A    bits of weights, 2 to 8; of inputs, 2 to 8 (per token), or 16: in float
    G, C    G128: 128 weights share a scale; C: a whole row does; G64 if not given
    S       bits of a scale, 16 or 2 to 8; 32 if not given
    E       bits of the token embedding (and of a head that shares its weight), which else stays in float

>>> print(*parse_scheme("W4A8"), sep=", ")
w4 g64 asymmetric, a8 per token asymmetric
>>> grids, _ = parse_scheme("W3A16S16E4")
>>> for pattern, grid in grids.items():
...     print(pattern, grid)
* w3 g64 asymmetric, 16-bit scales
embed_tokens w4 g64 asymmetric, 16-bit scales
"""

from __future__ import annotations

import re
from dataclasses import replace

from qlib.activation import PerToken
from qlib.errors import QuantError
from qlib.grid import Grid

GRAMMAR = (
    "W<bits>A<bits>[G<group> | C][S<bits>][E<bits>], such as W4A16, W8A8C (per channel) or W4A16G128S16E4 "
    "(groups of 128, scales of 16 bits, a token embedding of 4)"
)
GROUP = 64
FLOAT = 16  # bits of inputs that are not rounded
TABLE = "embed_tokens"  # the token embedding, in every model
_SCHEME = re.compile(r"w(\d+)a(\d+)(?:g(\d+)|(c))?(?:s(\d+))?(?:e(\d+))?", re.IGNORECASE)
_WEIGHT = re.compile(r"(\d+)(?:g(\d+)|(c))?(?:s(\d+))?", re.IGNORECASE)


def parse_scheme(text: str, *, symmetric: bool = False) -> tuple[Grid | dict[str, Grid], PerToken | None]:
    """Return the grid of weights, by pattern where the token embedding has one, and how inputs are rounded.

    Parameters
    ----------
    text : str
        As above; upper or lower case.
    symmetric : bool
        Of the weights' grid.

    Raises
    ------
    QuantError
        It is no scheme, or bits or group are out of their range; the message shows the grammar.
    """
    found = _SCHEME.fullmatch(text.strip())
    if found is None:
        raise QuantError(f"{text!r} is no scheme. Write {GRAMMAR}.")
    bits, inputs, group, channel, scale_bits, table = found.groups()
    try:
        activation = None if int(inputs) == FLOAT else PerToken(int(inputs))
        grid = _grid(bits, group, channel, scale_bits, symmetric)
        return grid if table is None else {"*": grid, TABLE: replace(grid, bits=int(table))}, activation
    except QuantError as error:
        raise QuantError(f"{text}: {error} A scheme is {GRAMMAR}.") from error


def parse_grid(text: str, *, symmetric: bool = False) -> Grid:
    """Return the grid of some layers: `4`, `4G128`, `8C` or `4S16`.

    Raises
    ------
    QuantError
        It is none.
    """
    found = _WEIGHT.fullmatch(text.strip())
    if found is None:
        raise QuantError(
            f"{text!r} is no grid. Write <bits>[G<group> | C][S<bits>], such as 4, 4G128, 8C or 4S16."
        )
    try:
        bits, group, channel, scale_bits = found.groups()
        return _grid(bits, group, channel, scale_bits, symmetric)
    except QuantError as error:
        raise QuantError(f"{text}: {error}") from error


def _grid(bits: str, group: str | None, channel: str | None, scale_bits: str | None, symmetric: bool) -> Grid:
    width = None if channel else GROUP if group is None else int(group)
    return Grid(int(bits), width, symmetric, 32 if scale_bits is None else int(scale_bits))
