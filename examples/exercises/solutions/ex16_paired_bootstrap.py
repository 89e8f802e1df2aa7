"""Solution of exercise 16. One index for both systems: what is hard for both cancels out."""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def interval(errors_a: Counts, errors_b: Counts, words: Counts, draws: Counts) -> tuple[float, float]:
    more = (errors_b - errors_a)[draws].sum(1)
    low, high = np.percentile(100 * more / words[draws].sum(1), [2.5, 97.5])
    return float(low), float(high)
