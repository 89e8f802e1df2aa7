"""The sources that guess without a drafter, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from draftlib.drafting.choice import DRAFT
from draftlib.drafting.guess import Source
from draftlib.drafting.lookup import AnswerLookup, TextLookup
from draftlib.drafting.recycle import Recycling
from draftlib.drafting.tail import RejectedTail
from qlib.errors import DraftError, describe, did_you_mean, list_names

SOURCES: Mapping[str, Callable[[], Source]] = {
    "suffix": TextLookup,
    "answers": AnswerLookup,
    "recycle": Recycling,
    "tail": RejectedTail,
}
ALL = tuple(SOURCES)


def as_sources(sources: Any) -> tuple[Source, ...]:
    """Return sources; a name stands for a new one of its kind.

    Raises
    ------
    DraftError
        One is no source, has no `guess` or no name of its own, or two have the same name.
    """
    if isinstance(sources, str) or not isinstance(sources, Iterable):
        raise DraftError(
            f"sources is {describe(sources)}. Pass several, for example sources=('suffix', 'recycle'), or () "
            "for none."
        )
    found = tuple(_as_source(each) for each in sources)
    names = [source.name for source in found]
    if twice := {name for name in names if names.count(name) > 1 or name == DRAFT}:
        raise DraftError(
            f"sources: the name {list_names(sorted(map(repr, twice)))} is taken. Each source has a name of "
            "its own, by which statistics count it."
        )
    return found


def _as_source(source: Any) -> Source:
    if isinstance(source, str):
        name = source.lower()
        if name not in SOURCES:
            known = list_names(map(repr, SOURCES), len(SOURCES))
            raise DraftError(f"There is no source {source!r}, only {known}.{did_you_mean(name, ALL)}")
        return SOURCES[name]()
    if isinstance(source, Source):
        return _checked(source)
    if isinstance(source, type) and issubclass(source, Source):
        raise DraftError(f"sources: {describe(source)} is no object. Make one of it: {source.__name__}().")
    raise DraftError(
        f"sources: {describe(source)} is no source. Pass one of {list_names(map(repr, SOURCES), 9)}, or an "
        "object that inherits from draftlib.Source."
    )


def _checked(source: Source) -> Source:
    """Return an object that inherits from `Source`, with what it must say itself."""
    where = f"sources: {type(source).__name__}"
    if type(source).guess is Source.guess:
        raise DraftError(
            f"{where} has no guess(text) of its own. Write one that returns Guess(self.name, tokens, kinds)."
        )
    name = getattr(source, "name", None)
    if not isinstance(name, str) or not name or "/" in name:  # files join names by "/"
        raise DraftError(
            f"{where}: its name is {describe(name)}. Give it one without '/', in the class: name = 'mine'."
        )
    return source
