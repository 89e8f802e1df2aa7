"""Lesson 23: the n-gram cache filling up.

What you will learn
- the cache starts empty and takes in what the target says: every token that the drafter spells with several;
- nearly every n-gram that is said once is said again: more and more are found, and growth slows down;
- a bounded cache must let something go: the least often used (LFU) or the longest unused (LRU). Plain LFU is
  far behind: the subject changes from page to page, old favourites never leave, and what is new goes again
  before it is said twice. So `NGramCache` lets them age: to a count it adds the age of the cache. Then LFU
  finds nearly what LRU finds, and more where there is room for thousands of n-grams;
- the text never depends on it: a missing n-gram costs speed, nothing else.

Paper: OmniDraft (arXiv 2507.02659), section 3.1; LFU-DA (Arlitt et al. 2000).
Page: docs/drafting/how_it_works.md#the-n-gram-cache    Source: draftlib/vocabulary/ngram_cache.py
Exercise: examples/exercises/ex13_merging_an_ngram.py
Run: python examples/23_the_ngram_cache_filling_up.py        (seconds)
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle

from drawing import BLUE, GREEN, INK, ORANGE, canvas, save
from two_tokenizers import PAGES, byte_level, sentence_pieces

from draftlib import NGramCache, VocabularyMap
from draftlib.vocabulary.reverse import ReverseTranslator, Spelled

WINDOW = 500  # tokens from one point of the curves to the next
SHUFFLED = False  # True: the sentences of all pages in random order


# %% What is computed
@dataclass(frozen=True)
class Curve:
    """Share of all n-grams so far that were found, and entries, each `WINDOW` tokens."""

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
    return Curve(hits, sizes, cache)


def without_ageing(spellings: list[list[Spelled]], most: int) -> float:
    """Return the share found by plain LFU: the least often said n-gram goes, of equals the oldest."""
    counts: dict[tuple[int, ...], tuple[int, int]] = {}
    found = 0
    said = [key for pairs in spellings for key, _ in pairs]
    for number, key in enumerate(said):
        found += key in counts
        counts[key] = counts.get(key, (0, 0))[0] + 1, number
        if len(counts) > most:
            del counts[min(counts, key=counts.__getitem__)]
    return found / len(said)


def main() -> None:
    """Print a table, draw one picture."""
    # %% 1. What the target says, and what of it are n-grams
    target = sentence_pieces(2000)
    pair = VocabularyMap.of(byte_level(500), target)
    sentences = "".join(PAGES).split(". ")
    if SHUFFLED:
        random.Random(0).shuffle(sentences)
    said = target.encode(". ".join(sentences))
    spellings = stream(pair, said)
    distinct = {key for pairs in spellings for key, _ in pairs}
    entries = len(distinct)
    # %% 2. Four caches
    caches = {
        "all kept": NGramCache(),
        "a quarter, LFU": NGramCache(entries // 4),
        "a quarter, LRU": NGramCache(entries // 4, "lru"),
        "a sixteenth, LFU": NGramCache(max(entries // 16, 1)),
    }
    curves = {name: fill(pair, spellings, cache) for name, cache in caches.items()}
    merged = sum(map(len, spellings))
    longest = caches["all kept"].max_length
    longer = sum(len(key) > longest for key in distinct)
    print(f"{len(said):,} target tokens, {merged:,} of them n-grams for the drafter, {entries:,} distinct")
    print(f"({longer} of more than {longest} draft tokens: a cache passes over them)\n")
    print(f"{'cache':18}{'entries':>8}{'evicted':>9}{'kB':>6}   found: first {WINDOW}   all")
    for name, curve in curves.items():
        cache = curve.cache
        size = f"{len(cache):8,}{cache.evicted:9,}{cache.memory_bytes / 1e3:6.0f}"
        print(f"{name:18}{size}{curve.hits[0]:19.1%}{curve.hits[-1]:8.1%}")
    print(f"{'a quarter, without ageing':60}{without_ageing(spellings, entries // 4):8.1%}")
    print("\nthe most used:", ", ".join(repr(pair.target_bytes[each.target_token]) for each, _ in zip(
        caches["all kept"], range(8), strict=False)))  # fmt: skip
    # %% 3. Found, and entries, along the text
    figure = canvas(12, 4)
    left, right = figure.subplots(1, 2)
    for (name, curve), color in zip(curves.items(), cycle((INK, GREEN, ORANGE, BLUE)), strict=False):
        tokens = [WINDOW * (i + 1) / 1000 for i in range(len(curve.hits))]
        left.plot(tokens, [100 * share for share in curve.hits], color=color, label=name)
        right.plot(tokens, curve.sizes, color=color, label=name)
    left.set(
        title="What the target has said, it says again",
        xlabel="thousand target tokens",
        ylabel="n-grams found so far, %",
        ylim=(0, 100),
    )
    right.set(title="Growth slows down", xlabel="thousand target tokens", ylabel="entries")
    right.legend()
    save(figure, "23_the_ngram_cache_filling_up")


# %% Try this: predict first, then run
# 1. SHUFFLED = True: why does a quarter find less now? Which policy is ahead, LFU or LRU?
# 2. `sentence_pieces(700)`, a smaller target: are more or fewer of its tokens n-grams? See the first line.
# 3. `cache.warm_start(pair)` after `cache.bind(pair)` enters every token at once: what is found in the first
#    500, and at what price? What of it is left in the bounded caches?

if __name__ == "__main__":
    main()
