"""Text that nobody said: n-grams that a decoder repeats, and runs of inserted words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from qlib.asr.loops import Loop, find_loop
from qlib.asr.wer import WerResult

INVENTED = 5  # inserted words in a row


@dataclass(frozen=True)
class MadeUp:
    """What one utterance's transcript has that nobody said."""

    utterance: str  # id
    loop: Loop | None  # None: a run of inserted words that is no loop
    words: int  # inserted


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
