"""What the passes of both models cost, measured while they are used.

    target(n)    seconds of a pass of the target over n tokens; n = 1 is what a token costs without drafting
    step         seconds of one step of the drafter

Of each the median of the last `KEPT` measurements holds: a single one is off by a tenth, or by ten times
where other work has interrupted it.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from draftlib.round import Round

KEPT = 15
# What one more token adds to a pass, as a share of a pass over one, before anything was measured:
# SmolLM2-135M, packed, as in the replays of docs/drafting/learning.md. On one thread it is 0.08
# (docs/drafting/speed.md): the first rounds correct it.
MORE_ROWS = 0.03


class Costs:
    """Seconds of passes and steps."""

    def __init__(self) -> None:
        self._target: dict[int, deque[float]] = {}
        self._step: deque[float] = deque(maxlen=KEPT)
        self._rest: deque[float] = deque(maxlen=KEPT)
        self._medians: dict[int, float] = {}

    def learn(self, round: Round) -> None:
        """Take the times of a round."""
        spent, rows = round.seconds, len(round.proposed) + 1
        self._target.setdefault(rows, deque(maxlen=KEPT)).append(spent.target)
        self._medians[rows] = median(self._target[rows])
        self._rest.append(spent.overhead)
        if round.draft is not None:
            self._step.append(spent.draft / len(round.draft.tokens))

    @property
    def plain(self) -> float | None:
        """Seconds of a round without a draft; None before one was measured."""
        return None if 1 not in self._medians else self._medians[1] + median(self._rest)

    @property
    def plain_rounds(self) -> int:
        """Rounds without a draft that the measurement rests on."""
        return len(self._target.get(1, ()))

    @property
    def step(self) -> float | None:
        """Seconds of a step of the drafter; None before one was measured."""
        return median(self._step) if self._step else None

    def round(self, proposed: int) -> float:
        """Return the seconds of a round in which so many tokens are verified, drafting left out.

        Rows that were never measured are taken from those below and above.
        """
        return self._rows(proposed + 1) + (median(self._rest) if self._rest else 0.0)

    def _rows(self, rows: int) -> float:
        known = self._medians
        if rows in known:
            return known[rows]
        below = max((each for each in known if each < rows), default=None)
        above = min((each for each in known if each > rows), default=None)
        if below is None and above is None:
            return 1 + MORE_ROWS * (rows - 1)  # in passes: nothing is known of seconds
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        near = below if below is not None else above
        assert near is not None
        return known[near] * (1 + MORE_ROWS * (rows - 1)) / (1 + MORE_ROWS * (near - 1))
