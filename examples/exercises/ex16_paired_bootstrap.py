"""Exercise 16: a paired bootstrap, or whether system b is worse than system a.

Draw as many clips as there are, with replacement, and take the word error rates of both systems on the same
drawn clips:

    difference = 100 (sum of b's errors - sum of a's errors) / sum of words        in percentage points

Many draws give many differences; the 95 % interval lies between the 2.5th and the 97.5th percentile of them.
A word error rate is errors over words of all clips together, not a mean of the clips' rates.

Lesson: examples/12_word_error_rate_and_its_interval.py    Page: docs/wer.md    Grade: pytest -m ex16
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def interval(errors_a: Counts, errors_b: Counts, words: Counts, draws: Counts) -> tuple[float, float]:
    """Return the two ends of the interval.

    errors and words are counts of each clip, [n]; a row of draws [draws, n] is the clips of one draw. Use
    np.percentile.
    """
    raise NotImplementedError
