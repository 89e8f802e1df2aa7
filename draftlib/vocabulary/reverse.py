"""From target tokens back to draft tokens: the drafter's spelling of the text, kept up as the text grows.

    said        "Snow" "flake" "stamps"     --append----->   "Snow" "f" "la" "ke" "st" "amps"

The bytes stay what they were. The drafter's context may be any spelling of the text: a poor one costs
accepted tokens, never exactness. Accepted tokens keep the spelling that was drafted, and the drafter's
key/value cache stays valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from draftlib.vocabulary.mapping import VocabularyMap
from qlib.errors import DraftError

_SPACE = b" \n\t\r"


# A word may still grow, so its draft tokens are spelled anew with each target token. Text without spaces is
# cut where it is longer than this. Chosen, not measured: 16 draft tokens are longer than nearly every word,
# and so few are spelled in microseconds. It decides how the drafter reads a text, never what the text is.
_WINDOW = 16


_SPECIAL = 256  # a special token is one unit, numbered after the 256 bytes


_UNMAPPED = -1  # a special draft token without a target token: a unit that equals no other


Spelled = tuple[tuple[int, ...], int]  # draft tokens and the target token that they stand for


class ReverseTranslator:
    """The drafter's spelling of what the target has said, kept up token by token.

    Parameters
    ----------
    vocabulary_map : VocabularyMap
        The pair of vocabularies.
    prefix : sequence of int
        Draft tokens in front of everything (a start of text, the drafter's own prompt); they never change.

    Attributes
    ----------
    tokens : list of int
        Draft tokens: the prefix, then the spelling of all target tokens. Special tokens of the target that
        the drafter lacks are left out, as are bytes that it cannot spell. Not to be changed.
    """

    def __init__(self, vocabulary_map: VocabularyMap, prefix: Sequence[int] = ()):
        self._map = vocabulary_map
        self.tokens = list(prefix)
        self._settled = len(self.tokens)  # tokens before this one stay as they are
        self._tail = b""  # bytes after them: perhaps half a word or half a character

    def append(self, target_tokens: Sequence[int], spelling: Sequence[int] | None = None) -> list[Spelled]:
        """Add what the target emitted.

        The last few draft tokens may change where a word goes on; nothing before them does.

        Parameters
        ----------
        target_tokens : sequence of int
            Newly emitted target tokens.
        spelling : sequence of int, optional
            Draft tokens that stand for the first of them, as they were drafted and accepted: they are kept.

        Returns
        -------
        list of (tuple of int, int)
            Those of `target_tokens` that are several draft tokens exactly, with these: entries for an
            n-gram cache.

        Raises
        ------
        DraftError
            The spelling does not stand for the first target tokens, or an id is not in the vocabulary.
        """
        for token in target_tokens:
            if not 0 <= token < len(self._map.target_bytes):
                raise DraftError(
                    f"Target token {token} is not in the vocabulary of {len(self._map.target_bytes)}. "
                    "Is the map made for this target's tokenizer?"
                )
        pairs: list[Spelled] = []
        rest = list(target_tokens)
        if spelling:
            covered = self._keep(rest, spelling, pairs)
            rest = rest[covered:]
        run: list[int] = []
        for token in rest:
            if self._map.target_bytes[token] is not None:
                run.append(token)
                continue
            pairs += self._spell(run)
            run = []
            self._settle(len(self.tokens), b"")
            if token in self._map.special_to_draft:
                self.tokens.append(self._map.special_to_draft[token])
                self._settle(len(self.tokens), b"")
        return pairs + self._spell(run)

    def common_prefix(self, processed: Sequence[int]) -> int:
        """Return how many of the draft tokens that the drafter has processed are still right.

        Parameters
        ----------
        processed : sequence of int
            Draft tokens in the drafter's key/value cache, drafted ones included; crop it to the result.
        """
        limit = min(len(processed), len(self.tokens))
        at, step = 0, 256  # whole slices compare fast
        while at < limit and list(processed[at : at + step]) == self.tokens[at : at + step]:
            at += step
        while at < limit and processed[at] == self.tokens[at]:
            at += 1
        return min(at, limit)

    def _keep(self, target_tokens: Sequence[int], spelling: Sequence[int], pairs: list[Spelled]) -> int:
        """Append a spelling as it is and return how many target tokens it stands for."""
        wanted, draft_stops = _units(spelling, self._map.draft_bytes, self._map.special_to_target)
        found, target_stops = _units(target_tokens, self._map.target_bytes, None)
        covered = target_stops.index(len(wanted)) + 1 if len(wanted) in target_stops else 0
        if not covered or found[: len(wanted)] != wanted:
            raise DraftError(
                f"The spelling {list(spelling)} does not stand for the first of the target tokens "
                f"{list(target_tokens)}. Pass the draft tokens of accepted target tokens only."
            )
        pairs += self._pairs(target_tokens[:covered], 0, spelling, draft_stops)
        self.tokens += spelling
        self._settle(len(self.tokens), b"")
        return covered

    def _spell(self, target_tokens: Sequence[int]) -> list[Spelled]:
        """Append target tokens that are text; the unsettled tail is spelled anew together with them."""
        if not target_tokens:
            return []
        offset = len(self._tail)
        data = self._tail + b"".join(self._map.target_bytes[token] or b"" for token in target_tokens)
        spelling, stops = self._map.speller.spell(data)
        del self.tokens[self._settled :]
        self.tokens += spelling
        cut = _last_word(data, stops)
        if cut:
            self._settle(self._settled + cut, data[stops[cut - 1] :])
        else:
            self._tail = data
        return self._pairs(target_tokens, offset, spelling, stops)

    def _settle(self, count: int, tail: bytes) -> None:
        self._settled, self._tail = count, tail

    def _pairs(
        self, target_tokens: Sequence[int], offset: int, spelling: Sequence[int], stops: Sequence[int]
    ) -> list[Spelled]:
        """Find the target tokens that begin and end where draft tokens do, and take several of these."""
        index = {0: 0} | {stop: number for number, stop in enumerate(stops, 1)}
        pairs = []
        start = offset
        for token in target_tokens:
            piece = self._map.target_bytes[token]
            stop = start + (1 if piece is None else len(piece))  # a special token takes one unit
            if piece is not None and start in index and stop in index and index[stop] - index[start] > 1:
                key = tuple(spelling[index[start] : index[stop]])
                if b"".join(self._map.draft_bytes[each] or b"" for each in key) == piece:
                    pairs.append((key, token))
            start = stop
        return pairs


def _units(
    tokens: Iterable[int], pieces: Sequence[bytes | None], specials: Mapping[int, int] | None
) -> tuple[list[int], list[int]]:
    """Return tokens as a list of bytes, and where each ends; a special token is one unit of its own."""
    units: list[int] = []
    stops: list[int] = []
    for token in tokens:
        piece = pieces[token] if 0 <= token < len(pieces) else None
        if piece is not None:
            units += piece
        elif specials is None:
            units.append(_SPECIAL + token)
        else:
            units.append(_SPECIAL + specials[token] if token in specials else _UNMAPPED)
        stops.append(len(units))
    return units, stops


def _last_word(data: bytes, stops: Sequence[int]) -> int:
    """Return how many tokens stand before the last word: what follows cannot change their spelling.

    A space after a letter begins a word in all tokenizers that are read here. Text without spaces is cut in
    the middle of the last `_WINDOW` tokens.
    """
    for number in range(len(stops) - 1, 0, -1):
        at = stops[number - 1]
        if data[at] in _SPACE and data[at - 1] not in _SPACE:
            return number
    return len(stops) - _WINDOW // 2 if len(stops) > _WINDOW else 0
