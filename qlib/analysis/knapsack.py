"""The multiple-choice knapsack: one option for each layer, least total loss, total cost within a budget.

    minimise  sum_l loss[l, g_l]    subject to    sum_l cost[l, g_l] <= budget

Costs are whole numbers, and many plans cost the same. So a walk over the layers remembers, for each cost,
the least loss that reaches it, and drops whatever a cheaper plan beats (Nemhauser and Ullmann 1969). It also
drops what cannot lead to the best plan any more: with a price p for a unit of cost, the layers to come lose
at least

    sum_l min_g (loss[l, g] + p cost[l, g]) - p (what is left of the budget)

which is Lagrange's bound, and the best plan loses no more than the plan that the price itself leads to.
Nothing is approximated: the result is the best of all plans.

>>> least_loss([[2, 4], [2, 4]], [[9.0, 1.0], [5.0, 2.0]], budget=6)  # only one may have 4
[1, 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Table = list["np.ndarray[Any, np.dtype[Any]]"]  # of each layer, a number for each option
HALVINGS = 100  # of an interval of prices


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
    With k options a layer and S states, n layers take O(n k S log(k S)) time and O(n S) memory. S is at most
    the number of different sums of costs up to the budget, so at most budget / (greatest common divisor of
    the costs) + 1; the bound leaves a small part of them.
    """
    cost_of = [np.array(options, np.int64) for options in costs]
    loss_of = [np.array(options, np.float64) for options in losses]
    price, enough = _price(cost_of, loss_of, budget)
    smallest = [int(options.min()) for options in cost_of]
    priced = [float((loss + price * cost).min()) for cost, loss in zip(cost_of, loss_of, strict=True)]
    cost, loss = np.zeros(1, np.int64), np.zeros(1)  # of each state: the best plan so far of that cost
    steps = []
    for layer in range(len(costs)):
        # 1. Every state with every option
        sums = np.add.outer(cost, cost_of[layer]).ravel()
        errors = np.add.outer(loss, loss_of[layer]).ravel()
        # 2. Those that leave room for the cheapest options of the layers to come, and may still be the best
        left = budget - sums
        bound = errors + sum(priced[layer + 1 :]) - price * left
        fit = np.flatnonzero((left >= sum(smallest[layer + 1 :])) & (bound <= enough))
        # 3. By cost; a state stays if its loss is below that of all cheaper ones
        order = fit[np.lexsort((errors[fit], sums[fit]))]
        least = np.minimum.accumulate(errors[order])
        states = order[np.append(True, errors[order][1:] < least[:-1])]
        cost, loss = sums[states], errors[states]
        steps.append(states)
    # 4. The dearest state that stayed has the least loss: back along its way
    chosen, state = [], len(cost) - 1
    for states, options in zip(reversed(steps), reversed(cost_of), strict=True):
        state, option = divmod(int(states[state]), len(options))
        chosen.append(option)
    return chosen[::-1]


def _price(costs: Table, losses: Table, budget: int) -> tuple[float, float]:
    """Return the lowest price at which the plan of least loss + price x cost is within the budget.

    And what that plan loses, with a little room for rounding errors in sums.
    """

    def plan(price: float) -> tuple[int, float]:
        chosen = [int((loss + price * cost).argmin()) for cost, loss in zip(costs, losses, strict=True)]
        spent = sum(int(cost[option]) for cost, option in zip(costs, chosen, strict=True))
        return spent, sum(float(loss[option]) for loss, option in zip(losses, chosen, strict=True))

    size = sum(float(np.abs(loss).max()) for loss in losses)
    low, high = 0.0, 2 * size + 1.0  # a price above all differences of losses: the cheapest options
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if plan(middle)[0] <= budget else (middle, high)
    return high, plan(high)[1] + 1e-9 * (size + high * budget)
