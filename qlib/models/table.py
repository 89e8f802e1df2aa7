"""Rows of text as a table with columns of equal width."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    r"""Return rows of text as lines in which every column is as wide as its longest cell.

    Parameters
    ----------
    rows : sequence of sequences of str
        All of the same length; the first is usually the heading.
    left : int
        The first `left` columns are aligned to the left, the others to the right, as numbers are.

    Examples
    --------
    >>> align([("layer", "bits"), ("fc1", "4"), ("proj_out", "8")])
    'layer     bits\nfc1          4\nproj_out     8'
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    lines = (
        "  ".join(pad(cell, width) for pad, cell, width in zip(sides, row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
