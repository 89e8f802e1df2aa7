"""Lesson 14: the n-gram cache filling up.

What you will learn
- the cache starts empty and takes in what the target says: every token that the drafter spells with several;
- few n-grams are said often and many once, so hits come early and growth slows down;
- a bounded cache must let something go: the least often used (LFU) or the longest unused (LRU). Here the
  subject changes from page to page, and LRU finds more; on tasks of one kind the paper finds LFU better;
- the text never depends on it: a missing n-gram costs speed, nothing else.

Run: python examples/14_the_ngram_cache_filling_up.py        (seconds)
"""

from __future__ import annotations

from dataclasses import dataclass

from drawing import BLUE, GREEN, INK, ORANGE, canvas, save
from two_tokenizers import PAGES, byte_level, sentence_pieces

from draftlib import NGramCache, VocabularyMap
from draftlib.translate import ReverseTranslator, Spelled

WINDOW = 500  # tokens averaged for one point of the curves


@dataclass(frozen=True)
class Curve:
    """What happened along the way, a point each `WINDOW` tokens."""

    hits: list[float]
    sizes: list[int]
    cache: NGramCache


def stream(pair: VocabularyMap, said: list[int]) -> list[list[Spelled]]:
    """Return, for each target token, the n-gram that it makes, if any."""
    spelling = ReverseTranslator(pair)
    return [spelling.append([token]) for token in said]


def fill(pair: VocabularyMap, spellings: list[list[Spelled]], cache: NGramCache) -> Curve:
    """Let the target speak; before each n-gram is added, look whether it was there."""
    cache.bind(pair)
    found, hits, sizes = [], [], []
    for number, pairs in enumerate(spellings, 1):
        for key, token in pairs:
            found.append(cache.longest(key, 0) == (len(key), token))
            cache.add(key, token)
        cache.commit()
        if number % WINDOW == 0:
            hits.append(sum(found) / max(len(found), 1))
            sizes.append(len(cache))
            found = []
    return Curve(hits, sizes, cache)


def main() -> None:
    """Print a table, draw one picture."""
    target = sentence_pieces(2000)
    pair = VocabularyMap.of(byte_level(500), target)
    said = target.encode("".join(PAGES))
    spellings = stream(pair, said)
    entries = len({key for pairs in spellings for key, _ in pairs})
    caches = {
        "all kept": NGramCache(),
        "a quarter, LFU": NGramCache(entries // 4),
        "a quarter, LRU": NGramCache(entries // 4, "lru"),
        "a sixteenth, LFU": NGramCache(max(entries // 16, 1)),
    }
    curves = {name: fill(pair, spellings, cache) for name, cache in caches.items()}
    merged = sum(map(len, spellings))
    print(
        f"{len(said):,} target tokens, {merged:,} of them n-grams for the drafter, {entries:,} kinds ones\n"
    )
    print(f"{'cache':18}{'entries':>8}{'evicted':>9}{'kB':>6}   found: first {WINDOW}   all")
    for name, curve in curves.items():
        mean = sum(curve.hits) / len(curve.hits)
        cache = curve.cache
        size = f"{len(cache):8,}{cache.evicted:9,}{cache.memory_bytes / 1e3:6.0f}"
        print(f"{name:18}{size}{curve.hits[0]:19.1%}{mean:8.1%}")
    print("\nthe most used:", ", ".join(repr(pair.target_bytes[each.target_token]) for each, _ in zip(
        caches["all kept"], range(8), strict=False)))  # fmt: skip
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2)
    for (name, curve), color in zip(curves.items(), (INK, GREEN, ORANGE, BLUE), strict=True):
        tokens = [WINDOW * (i + 1) / 1000 for i in range(len(curve.hits))]
        left.plot(tokens, [100 * share for share in curve.hits], color=color, label=name)
        right.plot(tokens, curve.sizes, color=color, label=name)
    left.set(
        title="What the target has said, it says again",
        xlabel="thousand target tokens",
        ylabel="n-grams found in the cache, %",
        ylim=(0, 100),
    )
    right.set(title="Growth slows down", xlabel="thousand target tokens", ylabel="entries")
    right.legend()
    save(figure, "14_the_ngram_cache_filling_up")


if __name__ == "__main__":
    main()
