"""Lesson 21: two tokenizers meet.

What you will learn
- token strings of two tokenizers cannot be compared: a space is U+0120 in one and U+2581 in the other. Bytes
  can;
- the direct map (tokens with the same bytes) covers much of a small vocabulary and little of a large one;
- what the target says in one token and the drafter in several is never proposed by the direct map alone: the
  target expects the whole word, and rejects its first syllable;
- an n-gram in the cache turns those syllables into the word, and both ways the text stays what it was.

Paper: OmniDraft (arXiv 2507.02659), section 3.1. Page: docs/drafting/how_it_works.md#two-vocabularies
Source: draftlib/vocabulary/mapping.py, translate.py, reverse.py
Exercise: examples/exercises/ex13_merging_an_ngram.py
Run: python examples/21_two_tokenizers_meet.py        (seconds)
"""

from __future__ import annotations

from drawing import BLUE, GREEN, canvas, save
from two_tokenizers import PAGES, byte_level, sentence_pieces

from draftlib import NGramCache, VocabularyMap
from draftlib.vocabulary.reverse import ReverseTranslator
from draftlib.vocabulary.translate import translate

SENTENCE = " the largest weight of each group decides the scale"
ROUND = 4
DRAFT_SIZE = 600
SIZES = [700, 1000, 1500, 2000]


# %% What is computed
def spelled(table: tuple[bytes | None, ...], tokens: list[int] | tuple[int, ...]) -> str:
    """Return tokens with bars between them."""
    return "|".join((table[token] or b"?").decode(errors="replace") for token in tokens)


def agreement(pair: VocabularyMap, said: list[int], cache: NGramCache | None) -> float:
    """Return the share of the target's tokens that a drafter would get accepted that knows the text.

    It drafts `ROUND` target tokens at a time; what follows a token that the target says otherwise is lost.
    """
    accepted = 0
    for start in range(0, len(said), ROUND):
        spelling = ReverseTranslator(pair)
        spelling.append(said[start : start + ROUND])
        proposed = translate(spelling.tokens, pair, cache).tokens
        for token, wanted in zip(proposed, said[start:], strict=False):
            if token != wanted:
                break
            accepted += 1
    return accepted / len(said)


def crossings(
    pair: VocabularyMap, said: list[int], cache: NGramCache
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Return rounds of the target, and their translations, that have the same bytes and other tokens."""
    found = []
    for start in range(0, len(said), ROUND):
        part = said[start : start + ROUND]
        spelling = ReverseTranslator(pair)
        spelling.append(part)
        proposed = translate(spelling.tokens, pair, cache).tokens
        spellings = [[pair.target_bytes[token] or b"" for token in tokens] for tokens in (part, proposed)]
        text = b"".join(spellings[0]).decode(errors="replace")
        if spellings[0] != spellings[1] and b"".join(spellings[1]) == text.encode() and text.isprintable():
            found.append((part, proposed))
    return found


def main() -> None:
    """Print one sentence and a table, draw one picture."""
    # %% 1. Four sizes of the target's vocabulary
    drafter, shares = byte_level(DRAFT_SIZE), []
    print(f"a drafter with {DRAFT_SIZE} tokens; share of the target's tokens accepted if it knew the text\n")
    print(f"{'target tokens':>13}{'draft covered':>15}{'target covered':>16}{'direct map':>12}{'n-grams':>9}")
    for size in SIZES:
        target = sentence_pieces(size)
        pair = VocabularyMap.of(drafter, target)
        cache = NGramCache()
        cache.bind(pair)
        cache.warm_start(pair)
        said = target.encode(PAGES[0])
        writable = {piece for piece in pair.target_bytes if piece}
        covered = len(writable & set(pair.draft_bytes)) / len(writable)
        shares.append((agreement(pair, said, None), agreement(pair, said, cache)))
        print(f"{size:13d}{pair.coverage:15.1%}{covered:16.1%}{shares[-1][0]:12.1%}{shares[-1][1]:9.1%}")
    print("draft covered: draft tokens whose bytes are a target token; target covered: the other way round")

    # %% 2. One sentence in both spellings, all of it proposed at once
    said = target.encode(SENTENCE)
    spelling = ReverseTranslator(pair)
    spelling.append(said)
    print(f"\nthe target says    {spelled(pair.target_bytes, said)}")
    print(f"the drafter spells {spelled(pair.draft_bytes, spelling.tokens)}")
    for name, ngrams in (("direct map", None), ("with n-grams", cache)):
        proposed = translate(spelling.tokens, pair, ngrams).tokens
        pairs = zip(proposed, said, strict=False)
        right = next((i for i, (token, wanted) in enumerate(pairs) if token != wanted), len(proposed))
        kept, lost = (spelled(pair.target_bytes, part) for part in (proposed[:right], proposed[right:]))
        print(f"{name:18} {kept}{f'|[{lost}]' if lost else ''}")
    print("in brackets: the first token that the target rejects, and all behind it, which is lost with it")

    # %% 3. Why not 100 % with n-grams: the longest match may cross a border of the target's tokens
    print("\nThe same bytes, other tokens (an n-gram may go on where the target's token ends)")
    for said, proposed in crossings(pair, target.encode(PAGES[0]), cache)[:3]:
        alone, merged = (spelled(pair.target_bytes, tokens) for tokens in (said, proposed))
        print(f"the target says {alone:20} n-grams {merged}")

    # %% 4. What would be accepted
    figure = canvas(7, 4)
    axes = figure.subplots()
    axes.plot(SIZES, [100 * direct for direct, _ in shares], color=BLUE, marker="o", label="direct map")
    axes.plot(SIZES, [100 * merged for _, merged in shares], color=GREEN, marker="o", label="with n-grams")
    axes.set(
        title="The larger the target's vocabulary, the more an n-gram cache matters",
        xlabel="tokens in the target's vocabulary",
        ylabel="accepted if the drafter knew the text, %",
        ylim=(0, 105),
    )
    axes.legend()
    save(figure, "21_two_tokenizers_meet")


# %% Try this: predict first, then run
# 1. DRAFT_SIZE = 2000, and look at the target of 700: why do both shares fall, and no n-gram helps? Do they
#    now fall or rise with the target's size?
# 2. ROUND = 1: nothing is lost after a wrong token. How near do the two lines come?
# 3. Leave out the line with `warm_start`: what does the cache know? (Here nothing fills it; lesson 23 does.)

if __name__ == "__main__":
    main()
