"""The true distribution of each translated token, as far as the drafted path reveals it.

Problem   Draft tokens d_1..d_k are drawn from q and merged by greedy longest match into t_1..t_m. For
          verification by rejection the distribution Q_i of t_i is needed, given what is known before position
          i. Merging looks ahead: 'a' stays 'a' only if the next token does not complete an n-gram, so the
          distribution of t_i is not the distribution q of its first token.
Rule      Reveal as little as possible, but always so much that Q_i needs no q off the drafted path. Walk
          through the n-grams token by token. A token after which a longer n-gram is still possible is
          revealed. One after which none is stays hidden: Q_i then follows from the one q it was drawn from.
Why       Q_i is a conditional distribution given any information F_i that is fixed before position i is
          verified. Revealing is a choice of F_i; more revealed means a narrower Q_i and fewer accepted
          tokens, never a wrong output.
Horizon   N-grams that do not fit into the tokens that the round could still draft do not count; whether the
          round *did* end early is revealed only with the token after which it ended.
Shapes    D: drafter's vocabulary, V: target's vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.vocabulary.ngram_table import NGramTable


class Proposed(NamedTuple):
    """A proposed target token and the distribution that it was drawn from, given all that is known before it.

    `probabilities` is [V].
    """

    token: int
    probabilities: Tensor


def path_revealed(draft: Draft, table: NGramTable, size: int) -> list[Proposed]:
    """Return the translation of a draft, each token with its exact conditional distribution.

    Parameters
    ----------
    draft : Draft
        Tokens drawn independently from `draft.logprobs`.
    table : NGramTable
        Direct counterparts and n-grams as they were when the round began.
    size : int
        The target's vocabulary, V.
    """
    # 'a b b' with the n-grams ab and abc, three tokens drafted of three possible:
    #   start 0   'a' could become ab or abc, then 'ab' abc: both are revealed.   revealed_upto = 2
    #   hidden    the third token. After 'ab' only c completes an n-gram.         completing = {c}
    #   Q_1       abc with q_3(c), ab with all the rest; it was b, so t_1 = ab.   excluded = {c}
    #   start 2   b is the last token: no n-gram fits, and it stays hidden.       continuing = {}
    #   Q_2       q_3 without c, normalised; t_2 = b.
    proposed: list[Proposed] = []
    tokens = draft.tokens
    start = 0  # first draft token that is not translated yet
    revealed_upto = 0  # the tokens before this one are revealed
    excluded: set[int] = set()  # what the first hidden token cannot be: an earlier n-gram was not completed
    while start < len(tokens):
        # 1. Reveal tokens for as long as a longer n-gram is possible.
        stop = start
        while stop < len(tokens):
            prefix, horizon_left = tokens[start:stop], draft.horizon - stop
            continuing, completing = next_tokens(table, prefix, horizon_left)
            if tokens[stop] not in continuing:
                break
            stop += 1
            if stop > revealed_upto:
                revealed_upto, excluded = stop, set()
        match = table.longest(tokens[start : stop + 1])
        if match is None or match[1] >= size:
            break
        length, token = match
        if stop < revealed_upto or stop == len(tokens):
            # 2. The next token is revealed, or there is none: so is the translation, and Q is all on it.
            probabilities = draft.logprobs.new_zeros(size)
            probabilities[token] = 1
        else:
            # 3. The next token is hidden, and it is none of those that would have been revealed.
            q = draft.logprobs[stop].exp()
            q[list(continuing | excluded)] = 0
            probabilities = hidden_probabilities(table, prefix, completing, q, size)
            probabilities = probabilities / probabilities.sum()
            # It is still hidden where the n-gram ended before it.
            excluded = excluded | continuing | completing if start + length <= stop else set()
            revealed_upto = max(revealed_upto, start + length)
        proposed.append(Proposed(token, probabilities))
        start += length
    return proposed


def next_tokens(table: NGramTable, prefix: tuple[int, ...], horizon_left: int) -> tuple[set[int], set[int]]:
    """Return the tokens after which a longer n-gram is still possible, and those that complete the last one.

    Parameters
    ----------
    table : NGramTable
        Direct counterparts and n-grams.
    prefix : tuple of int
        Draft tokens that may be the beginning of an n-gram.
    horizon_left : int
        Number of tokens that the round could still draft after `prefix`.

    Returns
    -------
    continuing, completing : set of int
        Draft tokens. The second set is empty for an empty prefix: a single token is no n-gram.

    >>> next_tokens(NGramTable.of({(0, 1): 5, (0, 1, 1): 6, (0, 2): 7}, draft_size=3), (0,), horizon_left=2)
    ({1}, {2})
    """
    children = table.children(prefix)
    continuing = {token for token, further in children.items() if 0 < further < horizon_left}
    if not prefix:
        return continuing, set()
    others = children.keys() - continuing
    return continuing, {token for token in others if table.target((*prefix, token)) is not None}


def hidden_probabilities(
    table: NGramTable, prefix: tuple[int, ...], completing: set[int], q: Tensor, size: int
) -> Tensor:
    """Return the distribution of the next target token, [V], not normalised.

    The draft token after `prefix` is hidden.

    1. Empty prefix: a draft token of its own; those without a direct counterpart end the translation and have
       no part.
    2. Otherwise each token of `completing` gives its merged token, and all others leave the prefix to its
       longest match. If it has none, the translation ends: they have no part.
    3. A target token beyond the `size` outputs of the model ends the translation as well.

    `q` [D] is the hidden token's distribution, 0 where it cannot be. Several draft tokens that lead to the
    same target token add up.
    """
    probabilities = q.new_zeros(size)
    if not prefix:
        known = (table.direct >= 0) & (table.direct < size)
        return probabilities.index_add_(0, table.direct[known], q[known])
    rest = q.clone()
    for token in completing:
        merged = table.target((*prefix, token))
        if merged is not None:
            rest[token] = 0
            if merged < size:
                probabilities[merged] += q[token]
    match = table.longest(prefix)
    if match is not None and match[1] < size:
        probabilities[match[1]] += rest.sum()
    return probabilities
