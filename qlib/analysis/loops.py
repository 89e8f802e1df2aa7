"""Text that nobody said: n-grams that a decoder repeats, and runs of inserted words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from qlib.asr.wer import WerResult

LONGEST = 12  # words of an n-gram that is looked for
REPEATS = 3  # so often in a row: people say a word twice, rarely a phrase three times
INVENTED = 5  # inserted words in a row


@dataclass(frozen=True)
class Loop:
    """An n-gram that stands several times in a row."""

    words: tuple[str, ...]
    times: int

    def __str__(self) -> str:
        return f"{' '.join(self.words)!r} {self.times} times in a row"


@dataclass(frozen=True)
class MadeUp:
    """What one utterance's transcript has that nobody said."""

    utterance: str  # id
    loop: Loop | None  # None: a run of inserted words that is no loop
    words: int  # inserted


def find_loop(words: Sequence[str]) -> Loop | None:
    """Return the repetition that covers most words, the shortest n-gram first; None below `REPEATS` times.

    An n-gram at position i is repeated as long as words i, i + 1, ... equal those n places later. So for
    each n one pass counts, and the whole takes `LONGEST` passes.

    >>> print(find_loop("so it goes on and on and on and on".split()))
    'on and' 3 times in a row
    >>> find_loop("no no".split()) is None
    True
    """
    best: Loop | None = None
    for n in range(1, LONGEST + 1):
        run = 0  # words that equal those n places later
        for i in range(len(words) - n):
            run = run + 1 if words[i] == words[i + n] else 0
            times = run // n + 1
            if times >= REPEATS and (best is None or times * n > best.times * len(best.words)):
                start = i - run + 1
                best = Loop(tuple(words[start : start + n]), times)
    return best


def made_up(result: WerResult) -> list[MadeUp]:
    """Return the utterances with a loop that the reference does not have, or a run of inserted words.

    The most inserted words first.
    """
    inserted: dict[str, int] = {}
    longest: dict[str, int] = {}
    for (name, kind, _), errors in groupby(result.errors(), lambda e: (e.utterance, e.kind, e.position)):
        if kind == "insertion":
            count = len(list(errors))
            inserted[name] = inserted.get(name, 0) + count
            longest[name] = max(longest.get(name, 0), count)
    found = []
    texts = zip(result.ids, result.normalized_references, result.normalized_hypotheses, strict=True)
    for name, reference, hypothesis in texts:
        loop, said = find_loop(hypothesis.split()), find_loop(reference.split())
        if loop is not None and said is not None and said.times >= loop.times:
            loop = None
        if loop is not None or longest.get(name, 0) >= INVENTED:
            found.append(MadeUp(name, loop, inserted.get(name, 0)))
    return sorted(found, key=lambda each: -each.words)
