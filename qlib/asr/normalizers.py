"""Text normalizers: what counts as the same word. Name and version belong to a word error rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from qlib.asr.languages import WITHOUT_SPACES, language_code
from qlib.errors import DataError, require_extra

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no text


LETTER = "\N{PHAGS-PA LETTER KA}"  # stands for it in a normalizer, which keeps letters


@dataclass(frozen=True)
class Normalizer:
    """A text normalizer with the name and version that make a word error rate comparable."""

    name: str
    version: str
    function: Callable[[str], str] = field(repr=False)

    def __call__(self, text: str) -> str:
        """Return `text` in the form that is scored: words between single spaces, or characters."""
        return self.function(text)

    def hypothesis(self, text: str) -> str:
        """Return what a system wrote in the form that is scored; each broken byte stays, as a word."""
        if BROKEN not in text:
            return self.function(text)
        return self.function(text.replace(BROKEN, f" {LETTER} ")).replace(LETTER, BROKEN)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def unit(self) -> str:
        """What is counted."""
        return "characters" if self.name.endswith("characters") else "words"


def normalizer(name: str = "whisper-english") -> Normalizer:
    """Return a text normalizer by name.

    Parameters
    ----------
    name : str
        ``"whisper-english"``: lower case, no punctuation, no fillers, numbers as digits, contractions spelled
        out, British spelling made American, anything in brackets removed.
        ``"whisper-basic"``: lower case, no punctuation, no combining marks, anything in brackets removed.
        ``"whisper-basic-characters"``: the same, with a space between any two characters.

    Raises
    ------
    DataError
        Unknown name.
    MissingExtraError
        The ``asr`` extra is not installed.
    """
    if name not in NORMALIZERS:
        *names, last = map(repr, NORMALIZERS)
        raise DataError(f"normalizer {name!r} is unknown. Use {', '.join(names)} or {last}.")
    module, function, options = NORMALIZERS[name]
    # Imported here: it brings packages that only scoring needs.
    found = require_extra(f"whisper_normalizer.{module}", "asr", "The word error rate")
    return Normalizer(name, version("whisper_normalizer"), getattr(found, function)(**options))


NORMALIZERS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "whisper-english": ("english", "EnglishTextNormalizer", {}),
    "whisper-basic": ("basic", "BasicTextNormalizer", {}),
    "whisper-basic-characters": ("basic", "BasicTextNormalizer", {"split_letters": True}),
}


def normalizer_of(language: str) -> str:
    """Return the name of the normalizer by which texts of a language (a code) are scored."""
    if language == "en":
        return "whisper-english"
    return "whisper-basic-characters" if language in WITHOUT_SPACES else "whisper-basic"


def normalizers_of(languages: str | Sequence[str], count: int) -> list[Normalizer]:
    """Return the normalizer of each utterance; those of one language share theirs."""
    listed = [languages] * count if isinstance(languages, str) else list(languages)
    if len(listed) != count:
        raise DataError(
            f"{len(listed)} languages, {count} references. Pass one language, or one for each reference."
        )
    names = [normalizer_of(language_code(each, "languages")) for each in listed]
    made = {name: normalizer(name) for name in dict.fromkeys(names)}
    return [made[name] for name in names]


def as_written(normalize: Normalizer, reference: str, hypothesis: str) -> tuple[str, str]:
    """Return a pair as it is, cut into characters where these are counted."""
    if normalize.unit == "words":
        return reference, hypothesis
    return " ".join("".join(reference.split())), " ".join("".join(hypothesis.split()))
