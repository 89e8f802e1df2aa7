"""Word alignments: which word was written for which, with the fewest errors.

The search is jiwer's. Where several alignments have equally few errors, its choice decides which words count
as wrong, but not how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import jiwer
import numpy as np

from qlib.asr.bootstrap import Counts

Pair = tuple[str, str]  # word said, word written; one of them is empty where nothing stands beside the other
Alignment = list[Pair]
Kind = Literal["hit", "substitution", "deletion", "insertion"]
KINDS: tuple[Kind, ...] = ("hit", "substitution", "deletion", "insertion")


@dataclass(frozen=True)
class WordError:
    """One error: a word (or character) that was not recognized, or one that nobody said."""

    utterance: str  # id
    kind: Kind  # never a hit
    reference: str  # what was said, normalized; empty for an insertion
    hypothesis: str  # what was written instead; empty for a deletion
    position: int  # in the normalized reference, from 0; of an insertion, that of the word after it


def align(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """Align what was said with what was written, utterance by utterance.

    Parameters
    ----------
    references, hypotheses : sequence of str
        Normalized texts of the same utterances; no reference is empty.

    Returns
    -------
    list of list of (str, str)
        Of each utterance, pairs of a word said and a word written, in their order.
    """
    # jiwer splits at single spaces only; transcripts may hold tabs and line ends.
    said, written = ([" ".join(text.split()) for text in side] for side in (references, hypotheses))
    chunks = jiwer.process_words(said, written).alignments
    return [
        [pair for chunk in row for pair in _pairs(chunk, reference.split(), hypothesis.split())]
        for row, reference, hypothesis in zip(chunks, said, written, strict=True)
    ]


def kind_of(pair: Pair) -> Kind:
    """Return what a pair of an alignment is.

    >>> kind_of(("cat", "cat")), kind_of(("cat", "cut")), kind_of(("cat", "")), kind_of(("", "cut"))
    ('hit', 'substitution', 'deletion', 'insertion')
    """
    said, written = pair
    if not said:
        return "insertion"
    if not written:
        return "deletion"
    return "hit" if said == written else "substitution"


def count_kinds(alignments: Sequence[Alignment]) -> Counts:
    """Return hits, substitutions, deletions and insertions of each utterance, [4, utterances]."""
    counts = np.zeros((len(KINDS), len(alignments)), dtype=np.int64)
    for i, alignment in enumerate(alignments):
        for pair in alignment:
            counts[KINDS.index(kind_of(pair)), i] += 1
    return counts


def word_errors(utterance: str, alignment: Alignment) -> Iterator[WordError]:
    """Yield the errors of one utterance in their order."""
    position = 0
    for said, written in alignment:
        kind = kind_of((said, written))
        if kind != "hit":
            yield WordError(utterance, kind, said, written, position)
        position += kind != "insertion"


def marked(alignment: Alignment) -> str:
    """Return the text with its errors marked: ``[-said-]{+written+}``."""
    parts = []
    for kind, run in groupby(alignment, kind_of):
        said, written = (" ".join(filter(None, words)) for words in zip(*run, strict=True))
        if kind == "hit":
            parts.append(said)
        else:
            parts.append((f"[-{said}-]" if said else "") + (f"{{+{written}+}}" if written else ""))
    return " ".join(parts)


def _pairs(chunk: jiwer.AlignmentChunk, said: list[str], written: list[str]) -> Iterator[Pair]:
    """Yield the pairs of one of jiwer's runs of words that are hits, or errors of one kind."""
    references = said[chunk.ref_start_idx : chunk.ref_end_idx]
    hypotheses = written[chunk.hyp_start_idx : chunk.hyp_end_idx]
    if chunk.type == "delete":
        yield from ((word, "") for word in references)
    elif chunk.type == "insert":
        yield from (("", word) for word in hypotheses)
    else:
        yield from zip(references, hypotheses, strict=True)
