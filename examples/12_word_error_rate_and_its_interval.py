"""Lesson 12: a word error rate and its interval.

What you will learn
- WER = (substitutions + deletions + insertions) / reference words, all errors over all words; above 1 too;
- it is an estimate from some clips. Drawing the clips again and again shows how far it may be off;
- two systems make their errors on the same hard clips. Draw the same clips for both (a paired bootstrap), and
  what is hard for both cancels out: differences become visible that two intervals hide;
- half the width needs four times the clips; and one clip in which a model loops can decide a whole row.

Paper: Bisani and Ney 2004 (ICASSP), equations 2 to 5. Page: docs/wer.md
Source: qlib/asr/wer.py, bootstrap.py, comparison.py    Exercise: examples/exercises/ex16_paired_bootstrap.py
Run: python examples/12_word_error_rate_and_its_interval.py        (seconds)
"""

from __future__ import annotations

import numpy as np
from rounding_pictures import draw_intervals

from qlib.asr.bootstrap import percentile_interval, resampled_rates
from qlib.asr.comparison import compare
from qlib.asr.wer import score
from qlib.models.table import align

CLIPS, RESAMPLES = 100, 4000
SAID = "the cat sat on the mat and the dog sat on the rug"
WRITTEN = "the cat sat on a mat and dog sat down on the rug"


# %% What is computed
def errors_of_two(clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return words, and errors of two systems, of each clip; some clips are far harder than others.

    The second system makes the errors of the first but for a tenth of them, about as many others in their
    place, and one more in 60 words.
    """
    generator = np.random.default_rng(seed)
    words = generator.integers(5, 40, clips)
    hard = generator.beta(0.5, 4, clips)  # of each clip: the share of words that are recognized wrongly
    first = generator.binomial(words, hard)
    second = generator.binomial(first, 0.9) + generator.poisson(words / 60 + 0.1 * first)
    return words, first, second


def half_width(drawn: np.ndarray) -> float:
    """Return half the width of the 95 % interval."""
    low, high = percentile_interval(drawn)
    return (high - low) / 2


def bootstrap_by_hand(errors: np.ndarray, words: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the rate in percent of so many lists of clips drawn with replacement."""
    generator, rates = np.random.default_rng(seed), []
    for _ in range(resamples):
        clips = generator.integers(len(words), size=len(words))
        rates.append(100 * errors[clips].sum() / words[clips].sum())  # all errors over all words
    return np.array(rates)


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. One sentence: which words went wrong
    result = score([SAID], [WRITTEN])
    print(result.marked())
    print(f"({result.substitutions} substitution + {result.deletions} deletion + {result.insertions} "
          f"insertion) / {result.words} words = {result.wer:.1f} %\n")  # fmt: skip

    # %% 2. A hundred clips, two systems: each with an interval of its own
    words, first, second = errors_of_two(CLIPS)
    rates = {name: bootstrap_by_hand(errors, words, RESAMPLES, seed=1)
             for name, errors in (("first", first), ("second", second))}  # fmt: skip
    rows = [("system", "WER %", "95 % interval")]
    for name, errors in (("first", first), ("second", second)):
        low, high = percentile_interval(rates[name])
        rows.append((name, f"{100 * errors.sum() / words.sum():.2f}", f"{low:.2f} to {high:.2f}"))

    # %% 3. The same clips for both: draw the difference
    rates["difference"] = bootstrap_by_hand(second - first, words, RESAMPLES, seed=1)
    more = f"{100 * (second - first).sum() / words.sum():+.2f}"
    for name in list(rates)[2:]:  # one, but for the second question below
        low, high = percentile_interval(rates[name])
        rows.append((name, more, f"{low:+.2f} to {high:+.2f}"))
    print(f"{CLIPS} clips\n\n{align(rows)}")

    # %% 4. The library's own: texts in, an interval and a verdict out (other draws: the last digits differ)
    # Words without digits: Whisper's normalizer makes two of "w1", "w" and "one", and errors count twice.
    texts = [" ".join(["right"] * count) for count in words]
    systems = [
        [" ".join(["wrong"] * n + ["right"] * (count - n)) for n, count in zip(errors, words, strict=True)]
        for errors in (np.minimum(first, words), np.minimum(second, words))
    ]
    before, after = (score(texts, each) for each in systems)
    print(f"\n{compare(before, after)}")

    # %% 5. How many clips are needed
    counts = [25, 50, 100, 200, 400, 800]
    widths: dict[str, list[float]] = {"one system": [], "difference, paired": []}
    for clips in counts:
        w, a, b = errors_of_two(clips, seed=2)
        widths["one system"].append(half_width(resampled_rates(a, w, RESAMPLES, 0)))
        widths["difference, paired"].append(half_width(resampled_rates(b - a, w, RESAMPLES, 0)))
    rows = [("clips", *(str(count) for count in counts))]
    rows += [(name, *(f"{each:.2f}" for each in line)) for name, line in widths.items()]
    print(f"\nhalf of the 95 % interval, percentage points\n\n{align(rows)}")

    # A width falls as 1 / sqrt(clips): so many are needed until the interval of a difference excludes 0.
    rows = [("difference to be seen, points", "clips, unpaired", "clips, paired")]
    per_clip = [np.mean([half * clips**0.5 for half, clips in zip(line, counts, strict=True)])
                for line in widths.values()]  # fmt: skip
    for points in (0.5, 1.0, 2.0):
        needed = (
            (2**0.5 * per_clip[0] / points) ** 2,
            (per_clip[1] / points) ** 2,
        )  # two widths add in squares
        rows.append((f"{points:g}", *(f"{each:,.0f}" for each in needed)))
    print(f"\n{align(rows)}")

    # %% 6. One clip that loops: the model writes the same words until its positions are full
    looped = first.copy()
    looped[0] += 200
    low, high = percentile_interval(bootstrap_by_hand(looped, words, RESAMPLES, seed=1))
    print(f"\nwith 200 words too many in one clip: {100 * looped.sum() / words.sum():.2f} % "
          f"[{low:.2f}, {high:.2f}]")  # fmt: skip
    draw_intervals(rates, widths, counts)


# %% Try this: predict first, then run
# 1. Draw single words, each right or wrong, in place of clips (`rates["first"] = bootstrap_by_hand(
#    np.arange(words.sum()) < first.sum(), np.ones(words.sum()), RESAMPLES, 1)` before the loop of part 2):
#    is the interval narrower? Why is that wrong?
# 2. Other clips for the second system (`rates["unpaired"] = bootstrap_by_hand(second, words, RESAMPLES, 2)
#    - rates["first"]` below the difference of part 3): how wide is the interval now?
# 3. `generator.beta(50, 400, clips)`: all clips equally hard. What does pairing gain now?

if __name__ == "__main__":
    main()
