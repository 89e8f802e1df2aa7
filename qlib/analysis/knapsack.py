"""The multiple-choice knapsack: one option for each layer, least total loss, total cost within a budget.

    minimise  sum_l loss[l, g_l]    subject to    sum_l cost[l, g_l] <= budget

Costs are whole numbers, and many plans cost the same. So a walk over the layers remembers, for each cost, the
least loss that reaches it, and drops whatever a cheaper plan beats (Nemhauser and Ullmann 1969). That is
exact: no relaxation, no rounding of costs.

>>> least_loss([[2, 4], [2, 4]], [[9.0, 1.0], [5.0, 2.0]], budget=6)  # only one may have 4
[1, 0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def least_loss(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Return the option of each layer that makes the total loss least within a budget, exactly.

    Parameters
    ----------
    costs, losses : sequence of sequences
        ``[layers][options]``: whole numbers >= 0, and real numbers.
    budget : int
        The most that all may cost together; at least the sum of the smallest costs.

    Returns
    -------
    list of int
        The number of the option of each layer; of plans with the same loss, one of the cheapest.

    Notes
    -----
    With k options a layer and S different sums of costs up to the budget, n layers take O(n k S log(k S))
    time and O(n S) memory. S is at most budget / (greatest common divisor of the costs) + 1: a few thousand
    for a network whose layers have few shapes.
    """
    smallest = [min(options) for options in costs]
    to_come = sum(smallest)
    cost, loss = np.zeros(1, np.int64), np.zeros(1)  # of each state: the best plan so far of that cost
    steps = []
    for layer, options in enumerate(costs):
        # 1. Every state with every option
        sums = np.add.outer(cost, np.array(options, np.int64)).ravel()
        errors = np.add.outer(loss, np.array(losses[layer], np.float64)).ravel()
        # 2. Those that leave room for the cheapest options of the layers to come
        to_come -= smallest[layer]
        fit = np.flatnonzero(sums <= budget - to_come)
        # 3. By cost; a state stays if its loss is below that of all cheaper ones
        order = fit[np.lexsort((errors[fit], sums[fit]))]
        least = np.minimum.accumulate(errors[order])
        states = order[np.append(True, errors[order][1:] < least[:-1])]
        cost, loss = sums[states], errors[states]
        steps.append(states)
    # 4. The dearest state that stayed has the least loss: back along its way
    chosen, state = [], len(cost) - 1
    for states, options in zip(reversed(steps), reversed(costs), strict=True):
        state, option = divmod(int(states[state]), len(options))
        chosen.append(option)
    return chosen[::-1]
