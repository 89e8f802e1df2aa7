"""Two vocabularies meet: which draft token is which target token, decided by the bytes they stand for.

Special tokens stand for no bytes; they are mapped by their role, whatever they are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftlib.vocabulary.spelling import Speller
from draftlib.vocabulary.token_bytes import token_bytes
from qlib.errors import DraftError, list_names
from qlib.models import Tokenizer

END_OF_TEXT, END_OF_TURN = "end of text", "end of turn"
ROLES: dict[str, tuple[str, ...]] = {
    "start of text": ("<s>", "<bos>", "<|begin_of_text|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
    END_OF_TEXT: (
        "<|endoftext|>",
        "</s>",
        "<eos>",
        "<|end_of_text|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
    "start of turn": ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>"),
    END_OF_TURN: ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>"),
}
_READABLE = bytes(range(0x20, 0x7F)) + b"\n"


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Which draft token is which target token; made by `of` (tokenizers) or `from_bytes` (tables).

    Attributes
    ----------
    draft_bytes, target_bytes : tuple of (bytes or None)
        What each token stands for; None for special tokens.
    direct : Tensor
        int64 [draft vocabulary], the target token of each draft token, or -1.
    special_to_target, special_to_draft : mapping of int to int
        Special tokens with the same role. Two may lead to one where a vocabulary has a single ending.
    roles : mapping of str to (int, int)
        Draft and target id of each role that both have.
    ends : frozenset of int
        Draft tokens that end a text or a turn.
    speller : Speller
        Spells bytes with draft tokens.
    coverage : float
        Share of the draft tokens with bytes that have a target token with the same bytes.
    fingerprint : str
        sha256 of both vocabularies; caches are kept for one pair.
    """

    draft_bytes: tuple[bytes | None, ...]
    target_bytes: tuple[bytes | None, ...]
    special_to_target: Mapping[int, int]
    special_to_draft: Mapping[int, int]
    roles: Mapping[str, tuple[int, int]]
    ends: frozenset[int]
    speller: Speller = field(repr=False)
    direct: Tensor = field(init=False)
    _direct: list[int] = field(init=False, repr=False)  # the same, for one token at a time
    coverage: float = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        # The later of two target tokens with the same bytes, for the reason given in Speller.
        targets = {piece: number for number, piece in enumerate(self.target_bytes) if piece}
        direct = [-1 if piece is None else targets.get(piece, -1) for piece in self.draft_bytes]
        readable = sum(piece is not None for piece in self.draft_bytes)
        found = sum(number >= 0 for number in direct)
        for draft, target in self.special_to_target.items():
            direct[draft] = target
        object.__setattr__(self, "_direct", direct)
        object.__setattr__(self, "direct", torch.tensor(direct, dtype=torch.int64))
        object.__setattr__(self, "coverage", found / max(readable, 1))
        specials = [sorted(self.special_to_target.items()), sorted(self.special_to_draft.items())]
        state = hashlib.sha256(repr(specials).encode())
        for pieces in (self.draft_bytes, self.target_bytes):
            state.update(repr(pieces).encode())
        object.__setattr__(self, "fingerprint", state.hexdigest())

    @classmethod
    def of(cls, draft: Tokenizer, target: Tokenizer) -> VocabularyMap:
        """Compare two tokenizers.

        Raises
        ------
        DraftError
            The pair cannot work: bytes of tokens unknown, no token that ends a text or turn on one side,
            no common token, or a drafter that cannot spell plain text.
        """
        tables = [json.loads(tokenizer.to_json()) for tokenizer in (draft, target)]
        draft_bytes, target_bytes = (tuple(token_bytes(table)) for table in tables)
        names = [_special_names(table) for table in tables]
        draft_roles, target_roles = (_roles(each) for each in names)
        for side, roles, known in zip(("draft", "target"), (draft_roles, target_roles), names, strict=True):
            _check_ending(side, roles, known)
        # By name first, then by role, which overrides it: tokens of the same name may have different roles.
        to_target = {names[0][name]: names[1][name] for name in names[0] if name in names[1]}
        to_draft = {target_id: draft_id for draft_id, target_id in to_target.items()}
        to_target |= _by_role(draft_roles, target_roles)
        to_draft |= _by_role(target_roles, draft_roles)
        shared = {
            role: (draft_roles[role], target_roles[role])
            for role in ROLES
            if role in draft_roles and role in target_roles
        }
        ends = frozenset(draft_roles[role] for role in (END_OF_TEXT, END_OF_TURN) if role in draft_roles)
        speller = Speller(draft_bytes, draft)
        found = cls(draft_bytes, target_bytes, to_target, to_draft, shared, ends, speller)
        found._check()
        return found

    @classmethod
    def from_bytes(
        cls,
        draft_bytes: Sequence[bytes | None],
        target_bytes: Sequence[bytes | None],
        specials: Mapping[int, int] | None = None,
        ends: Collection[int] = (),
    ) -> VocabularyMap:
        """Compare two tables of bytes, without tokenizers: for toys of a few tokens.

        Parameters
        ----------
        draft_bytes, target_bytes : sequence of (bytes or None)
            What each token stands for; None for special tokens.
        specials : mapping of int to int, optional
            Target token of each special draft token.
        ends : collection of int
            Special draft tokens that end a text.
        """
        to_target = dict(specials or {})
        to_draft = {target: draft for draft, target in to_target.items()}
        tables = tuple(draft_bytes), tuple(target_bytes)
        return cls(*tables, to_target, to_draft, {}, frozenset(ends), Speller(tables[0]))

    def target_of(self, draft_token: int) -> int:
        """Return the target token of one draft token, or -1, also for ids beyond the tokenizer's.

        A model may have more outputs than its tokenizer has tokens.
        """
        return self._direct[draft_token] if 0 <= draft_token < len(self._direct) else -1

    def _check(self) -> None:
        if not self.coverage:
            raise DraftError(
                f"None of the drafter's {len(self.draft_bytes)} tokens has the bytes of one of the target's "
                f"{len(self.target_bytes)}. Choose a drafter for the same kind of text."
            )
        if missing := self.speller.missing(_READABLE):
            raise DraftError(
                f"The drafter's tokenizer cannot spell plain text: of {len(_READABLE)} letters, digits, "
                f"signs, space and newline it lacks {len(missing)}, among them {missing[:8]!r}. Choose a "
                "drafter with all single bytes in its vocabulary."
            )

    def __str__(self) -> str:
        readable = sum(piece is not None for piece in self.draft_bytes)
        writable = {piece for piece in self.target_bytes if piece}
        reached = len(writable & set(self.draft_bytes))
        share = reached / max(len(writable), 1)
        return (
            f"{round(self.coverage * readable):,} of {readable:,} draft tokens ({self.coverage:.1%}) are "
            f"target tokens; {reached:,} of {len(writable):,} target tokens ({share:.1%}) are single draft "
            f"tokens. Special tokens mapped: {list_names(self.roles, 9) or len(self.special_to_target)}."
        )


def _special_names(table: Mapping[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in table["added_tokens"] if token["special"]}


def _roles(names: Mapping[str, int]) -> dict[str, int]:
    found = {
        role: next((names[name] for name in known if name in names), None) for role, known in ROLES.items()
    }
    return {role: number for role, number in found.items() if number is not None}


def _check_ending(side: str, roles: Mapping[str, int], names: Mapping[str, int]) -> None:
    if END_OF_TEXT not in roles and END_OF_TURN not in roles:
        known = (*ROLES[END_OF_TEXT], *ROLES[END_OF_TURN])
        raise DraftError(
            f"The {side} tokenizer has no special token that ends a text or a turn. Its {len(names)} "
            f"special tokens: {list_names(sorted(names)) or 'none'}; looked for {list_names(known, 9)}. "
            "Mark the one it has as special in tokenizer.json, under one of these names."
        )


def _by_role(source: Mapping[str, int], other: Mapping[str, int]) -> dict[int, int]:
    """Map special tokens to those of the same role; an ending without its like to the other ending."""
    found = {number: other[role] for role, number in source.items() if role in other}
    for role, instead in ((END_OF_TEXT, END_OF_TURN), (END_OF_TURN, END_OF_TEXT)):
        if role in source and role not in other:
            found[source[role]] = other[instead]
    return found
