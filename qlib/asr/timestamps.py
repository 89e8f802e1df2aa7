"""Whisper's timestamps: which tokens may come next, and the segments that they mark.

Paper: Radford et al. 2022, arXiv 2212.04356, sections 2.3 and 3.8; the rules are those of its code.

    <|0.00|> He is here.<|1.40|><|1.40|> He was<|2.06|> ...
    ^ start              ^ end   ^ start of the next

A timestamp token counts steps of 20 ms from the window's start, one encoder state each: ``<|0.00|>`` is the
first id after ``<|notimestamps|>``. Between segments there are two, the end of one and the start of the
next.

B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STEP_SECONDS = 0.02  # from one timestamp token to the next
MAX_INITIAL_STEP = 50  # 1.0 s: the first segment of a window starts no later


def apply_timestamp_rules(
    logits: Tensor, texts: Sequence[Sequence[int]], end: int, no_timestamps: int
) -> None:
    """Rule out, in place, what may not come next in a text with timestamps.

    Parameters
    ----------
    logits : Tensor
        ``[B, V]``, of the next tokens, after those that are never chosen were set to minus infinity.
    texts : sequence of sequence of int
        The tokens of each text so far, without the prompt.
    end : int
        Id that ends a text; text tokens are below it.
    no_timestamps : int
        Id of ``<|notimestamps|>``; the timestamps follow it.
    """
    first = no_timestamps + 1
    logits[:, no_timestamps] = -torch.inf
    for row, text in zip(logits, texts, strict=True):
        # 1. A text begins with a timestamp, of at most 1.0 s.
        if not text:
            row[:first] = -torch.inf
            row[first + MAX_INITIAL_STEP + 1 :] = -torch.inf
            continue
        last = next(token for token in reversed(text) if token >= first)
        if text[-1] < first:
            # 2. Behind text: more of it, or the segment's end, later than its start.
            row[first : last + 1] = -torch.inf
        elif len(text) == 1 or text[-2] >= first:
            # 3. Behind a segment's start: text.
            row[first:] = -torch.inf
        else:
            # 4. Behind a segment's end: the start of the next, no earlier; or the end of the text.
            row[:end] = -torch.inf
            row[first:last] = -torch.inf
    # 5. If all timestamps together are more probable than the best other token, it is one of them.
    any_timestamp = logits[:, first:].float().logsumexp(-1)
    best_other = logits[:, :first].float().amax(-1)
    logits[:, :first].masked_fill_((any_timestamp > best_other)[:, None], -torch.inf)


@dataclass(frozen=True)
class Piece:
    """A segment of a window, in steps of 20 ms from the window's start."""

    start: int
    end: int
    tokens: tuple[int, ...]  # timestamps included


def cut_into_pieces(
    tokens: Sequence[int], no_timestamps: int, sound_steps: int
) -> tuple[list[Piece], int | None]:
    """Cut the text of a window into segments, and say where the next window starts.

    Parameters
    ----------
    tokens : sequence of int
        As decoded under the rules, without prompt and end.
    no_timestamps : int
        As in `apply_timestamp_rules`.
    sound_steps : int
        How long the window's sound is: the end of a text that says nothing about its own.

    Returns
    -------
    pieces : list of Piece
        In order. What follows the last pair of timestamps is left out unless it has an end: the next
        window hears it again, as a whole.
    seek : int or None
        Steps from this window's start to that of the next; None: at this window's end.

    >>> cut_into_pieces([100, 7, 8, 170, 170, 9, 203, 203, 5], no_timestamps=99, sound_steps=1500)
    ([Piece(start=0, end=70, tokens=(100, 7, 8, 170)), Piece(start=70, end=103, tokens=(170, 9, 203))], 103)
    """
    first = no_timestamps + 1
    is_timestamp = [token >= first for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if is_timestamp[i - 1] and is_timestamp[i]]
    if not cuts:  # one segment: from the window's start to its last timestamp
        times = [token - first for token in tokens if token > first]
        return [Piece(0, times[-1] if times else sound_steps, tuple(tokens))], None
    seek = None
    if is_timestamp[-2:] == [False, True]:  # the last segment has an end, and nothing follows
        cuts.append(len(tokens))
    else:
        seek = tokens[cuts[-1] - 1] - first
    pieces = [tuple(tokens[start:stop]) for start, stop in pairwise([0, *cuts])]
    return [Piece(piece[0] - first, piece[-1] - first, piece) for piece in pieces], seek
