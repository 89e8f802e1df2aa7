"""The true law of each translated token, as far as the drafted path reveals it.

Problem   Draft tokens d_1..d_k are drawn from q and merged by greedy longest match into t_1..t_m. For
          verification by rejection the law Q_i of t_i is needed, given what is known before position i.
          Merging looks ahead: 'a' stays 'a' only if the next token does not complete a key, so the law of t_i
          is not the law q of its first token.
Rule      Reveal as little as possible, but always so much that Q_i needs no law off the drafted path. Walk
          the trie of keys. A token after which the walk could still go on is revealed. One after which it
          cannot stays hidden: Q_i then follows from the one law it was drawn from.
Why       Q_i is a conditional law given any information F_i that is fixed before position i is verified.
          Revealing is a choice of F_i; more revealed means a narrower Q_i and fewer accepted tokens, never a
          wrong output.
State     `start`: first token of the open segment. `known`: tokens before it are revealed. `ruled_out`: draft
          tokens that the first hidden one cannot be, because an earlier segment did not merge with it.
Horizon   Keys that do not fit into the tokens that the round could still draft do not count; whether the
          round *did* end early is revealed only with the token after which it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.vocabulary.dictionary import Dictionary, longest_match


class Proposed(NamedTuple):
    """A proposed target token and the law it came from, [V], given all that is known before it."""

    token: int
    law: Tensor


def path_revealed(draft: Draft, dictionary: Dictionary, size: int) -> list[Proposed]:
    """Return the translation of a draft, each token with its exact conditional law.

    Parameters
    ----------
    draft : Draft
        Tokens drawn independently from `draft.logprobs`.
    dictionary : Dictionary
        Direct map and n-grams as they were when the round began.
    size : int
        The target's vocabulary, V.
    """
    return list(_walk(draft, dictionary, size))


def _walk(draft: Draft, dictionary: Dictionary, size: int) -> Iterator[Proposed]:
    tokens, start, known = draft.tokens, 0, 0
    ruled_out: set[int] = set()
    while start < len(tokens):
        # 1. Reveal tokens for as long as the walk through the trie could go on.
        stop = start
        while stop < len(tokens):
            on, last = branches(dictionary, tokens[start:stop], draft.horizon - stop)
            if tokens[stop] not in on:
                break
            stop += 1
            if stop > known:
                known, ruled_out = stop, set()
        match = longest_match(dictionary, tokens[start : stop + 1])
        if match is None or match[1] >= size:
            return
        length, token = match
        # 2. The next token is known, or there is none: so is the translation, and Q is a point.
        if stop < known or stop == len(tokens):
            law = draft.logprobs.new_zeros(size)
            law[token] = 1
            yield Proposed(token, law)
            start += length
            continue
        # 3. The next token is hidden, and it is none of those that would have been revealed.
        q = draft.logprobs[stop].exp()
        q[list(on | ruled_out)] = 0
        law = hidden_law(dictionary, tokens[start:stop], last, q, size)
        yield Proposed(token, law / law.sum())
        start += length
        ruled_out = ruled_out | on | last if start <= stop else set()
        known = max(known, start)


def branches(dictionary: Dictionary, w: tuple[int, ...], room: int) -> tuple[set[int], set[int]]:
    """Return the tokens after which a walk from `w` could go on, and those that end it on a key.

    `room` is the number of tokens that the round could still draft after `w`. The second set is empty for an
    empty `w`: a single token is no merge.

    >>> from draftlib.vocabulary.dictionary import Snapshot
    >>> branches(Snapshot({(0, 1): 5, (0, 1, 1): 6, (0, 2): 7}, draft_size=3), (0,), room=2)
    ({1}, {2})
    """
    on, last = set(), set()
    for token in dictionary.children(w):
        if 0 < dictionary.missing((*w, token)) < room:
            on.add(token)
        elif w and dictionary.target((*w, token)) is not None:
            last.add(token)
    return on, last


def hidden_law(dictionary: Dictionary, w: tuple[int, ...], last: set[int], q: Tensor, size: int) -> Tensor:
    """Return the law of the next target token, up to a factor, [V]; the token after `w` is hidden.

    1. w empty: a draft token of its own; those without a direct image end the translation and have no part.
    2. Otherwise each token of `last` gives its merged token, and all others leave w to its longest match. If
       it has none, the translation ends: they have no part.
    3. A target token beyond the `size` outputs of the model ends the translation as well.

    `q` [D] is the hidden token's law, 0 where it cannot be. Several tokens with the same target token add up.
    """
    law = q.new_zeros(size)
    if not w:
        direct = dictionary.direct
        known = (direct >= 0) & (direct < size)
        return law.index_add_(0, direct[known], q[known])
    rest = q.clone()
    for token in last:
        merged = dictionary.target((*w, token))
        if merged is not None:
            rest[token] = 0
            if merged < size:
                law[merged] += q[token]
    match = longest_match(dictionary, w)
    if match is not None and match[1] < size:
        law[match[1]] += rest.sum()
    return law
