"""Schemes in short: `W4A16` for weights of 4 bits and inputs in float.

    W<bits>A<bits>[G<group> | C]      bits of weights 2 to 8; of inputs 2 to 8 (per token), or 16: in float
                                      G128: 128 weights share a scale; C: a whole row does; G64 if not given

>>> print(*parse_scheme("W4A8"), sep=", ")
w4 g64 asymmetric, a8 per token asymmetric
"""

from __future__ import annotations

import re

from qlib.activation import PerToken
from qlib.errors import QuantError
from qlib.grid import Grid

GRAMMAR = "W<bits>A<bits>, such as W4A16 or W8A8, with G<group> or C (per channel) behind it: W4A16G128"
GROUP = 64
FLOAT = 16  # bits of inputs that are not rounded
_SCHEME = re.compile(r"w(\d+)a(\d+)(?:g(\d+)|(c))?", re.IGNORECASE)
_WEIGHT = re.compile(r"(\d+)(?:g(\d+)|(c))?", re.IGNORECASE)


def parse_scheme(text: str, *, symmetric: bool = False) -> tuple[Grid, PerToken | None]:
    """Return the grid of weights, and how inputs are rounded.

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
    bits, inputs, group, channel = found.groups()
    try:
        activation = None if int(inputs) == FLOAT else PerToken(int(inputs))
        return _grid(bits, group, channel, symmetric), activation
    except QuantError as error:
        raise QuantError(f"{text}: {error} A scheme is {GRAMMAR}.") from error


def parse_grid(text: str, *, symmetric: bool = False) -> Grid:
    """Return the grid of some layers: `4`, `4G128` or `8C`.

    Raises
    ------
    QuantError
        It is none.
    """
    found = _WEIGHT.fullmatch(text.strip())
    if found is None:
        raise QuantError(f"{text!r} is no grid. Write bits, and G<group> or C behind them: 4, 4G128, 8C.")
    try:
        bits, group, channel = found.groups()
        return _grid(bits, group, channel, symmetric)
    except QuantError as error:
        raise QuantError(f"{text}: {error}") from error


def _grid(bits: str, group: str | None, channel: str | None, symmetric: bool) -> Grid:
    width = None if channel else GROUP if group is None else int(group)
    return Grid(int(bits), width, symmetric)
