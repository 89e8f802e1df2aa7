"""Lesson 24: a real pair, round by round, with its seconds.

What you will learn
- to read a round: what the drafter wrote, how it was translated, what was accepted, and the target's token;
- where its time goes: a round is one pass of the target, some steps of the drafter, and next to nothing else;
- a speed-up is (tokens per round) x (time of a token alone) / (time of a round). Each of the three is
  measured here;
- the text is the target's own, token for token.

Paper: OmniDraft (arXiv 2507.02659), section 3; Leviathan et al. (arXiv 2211.17192), section 3.4.
Page: docs/drafting/metrics.md, docs/drafting/speed.md    Source: draftlib/answer.py, seconds.py, metrics.py
Exercise: examples/exercises/ex14_a_lossless_length_rule.py, after lesson 26
Run: python examples/24_a_real_pair_round_by_round.py        (half a minute; with SmolLM2 if it was fetched)
"""

from __future__ import annotations

from itertools import accumulate
from time import perf_counter

from real_pair import real_pair
from speculation_pictures import draw_rounds

from draftlib import FixedLength, NGramCache, SpeculativeDecoder, Stats, Step
from qlib.models.table import align

PROMPT, TOKENS, K = "What is gravity? Answer in three sentences.", 64, 4


# %% 1. The target alone, with its seconds
def write_alone(decoder: SpeculativeDecoder) -> tuple[tuple[int, ...], float]:
    """Return the target's own text, and the seconds of a token; the prompt is read twice and taken out."""
    started = perf_counter()
    decoder.generate_target_only(PROMPT, max_new_tokens=1)
    first = perf_counter()
    text = decoder.generate_target_only(PROMPT, max_new_tokens=TOKENS).tokens
    seconds = perf_counter() - first - (first - started)
    return text, seconds / (len(text) - 1)


# %% 2. Every round in figures
def table(steps: list[Step]) -> str:
    """Return tokens and milliseconds of each of the first rounds."""
    rows = [("round", "drafted", "proposed", "accepted", "tokens", "draft ms", "target ms", "rest ms")]
    for step in steps[:10]:
        spent = step.seconds
        counts = (step.number, len(step.drafted), len(step.proposed), step.accepted, len(step.tokens))
        times = (spent.draft, spent.target, spent.overhead)
        rows.append((*map(str, counts), *(f"{1000 * each:.1f}" for each in times)))
    return align(rows)


def main() -> None:
    """Print rounds and two tables, draw one picture."""
    # %% 3. Rounds in words: draft -> translation, [merged by an n-gram] => accepted | the target's own
    target, draft = real_pair()
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), length=FixedLength(K), sources=())
    list(decoder.steps(PROMPT, max_new_tokens=8))  # warms up
    steps = list(decoder.steps(PROMPT, max_new_tokens=TOKENS))
    for step in steps:
        if step.number <= 6 or "[" in str(step):  # the first six, and those with an n-gram
            print(step)

    # %% 4. The same in figures
    print(f"\n{table(steps)}\n")

    # %% 5. The speed-up, taken apart
    text, plain = write_alone(decoder)
    assert text == tuple(token for step in steps for token in step.tokens)  # the target's own text
    stats = Stats.of(steps)
    round_seconds = stats.seconds.decoding / stats.rounds
    rows = [
        ("tokens per round", f"{stats.tokens / stats.rounds:.2f}"),
        ("a token alone, ms", f"{1000 * plain:.1f}"),
        ("a round, ms", f"{1000 * round_seconds:.1f}"),
        ("    of it the target's pass", f"{1000 * stats.seconds.target / stats.rounds:.1f}"),
        (f"    of it {K} steps of the drafter", f"{1000 * stats.seconds.draft / stats.rounds:.1f}"),
        ("speed-up", f"{stats.tokens / stats.rounds * plain / round_seconds:.2f}"),
        ("accepted of proposed", f"{stats.accepted} of {stats.proposed}"),
    ]
    print(align(rows))

    phases = {
        "drafter": [1000 * step.seconds.draft for step in steps],
        "target": [1000 * step.seconds.target for step in steps],
        "all else": [1000 * step.seconds.overhead for step in steps],
    }
    times = accumulate(step.seconds.decoding for step in steps)
    written = accumulate(len(step.tokens) for step in steps)
    alone = [(plain * i, i) for i in range(len(text) + 1)]
    draw_rounds(phases, alone, [(0.0, 0), *zip(times, written, strict=True)])


# %% Try this: predict first, then run
# 1. K = 1 and K = 8: which of the three factors of the speed-up change, and in which direction?
# 2. max_new_tokens=TOKENS in the line that warms up: the prompt runs a second time. A token in brackets is
#    accepted now: which n-gram made it?
# 3. The fallback pair (without SmolLM2) has two models of equal size: can it ever be faster than alone?

if __name__ == "__main__":
    main()
