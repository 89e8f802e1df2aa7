"""Typed values out of config.json and generation_config.json; what is wrong is said with file, key and value.

JSON takes any type anywhere, and a value of another type than expected either fails far from its cause or
computes something else. Each reader here returns its type or raises a ModelError. A null counts as absent, as
the tools that write these files mean it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from qlib.errors import ModelError, describe, list_names

# Above all published models, and small enough to build a model without memory in a second.
MOST_LAYERS, MOST_HEADS, MOST_WIDTH, MOST_TOKENS, MOST_POSITIONS = 1000, 2**16, 2**20, 2**24, 2**31
_LARGEST = sys.float_info.max
_REMEDY = "Correct the file, or download the checkpoint again."


class ConfigValues:
    """The values of a configuration file, or of one that stands over another.

    Parameters
    ----------
    values : mapping
        Content of the file.
    file : str or Path
        Its name for messages.
    behind : ConfigValues, optional
        Where a value comes from that this file lacks.
    """

    def __init__(
        self, values: Mapping[str, Any], file: object = "config.json", behind: ConfigValues | None = None
    ):
        self.values = dict(values)
        self.file = str(file)
        self.behind = behind

    @classmethod
    def of(cls, values: Mapping[str, Any] | ConfigValues) -> ConfigValues:
        """Return plain values as values of a config.json; what is read already stays as it is."""
        return values if isinstance(values, ConfigValues) else cls(values)

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigValues:
        """Return these values over what a file means where it is silent; a null takes a default away."""
        return ConfigValues({**defaults, **self.values}, self.file, self.behind)

    def get(self, key: str) -> Any:
        """Return a value as it stands, None where it is absent or null."""
        value = self.values.get(key)
        return self.behind.get(key) if value is None and self.behind is not None else value

    def where(self, key: str) -> str:
        """Return the name of the file that a value comes from."""
        if self.values.get(key) is None and self.behind is not None and self.behind.get(key) is not None:
            return self.behind.where(key)
        return self.file

    def refusal(self, key: str, supported: str, remedy: str = _REMEDY) -> ModelError:
        """Return the error about a value that cannot be used."""
        return ModelError(f"{self.where(key)}: {key}={_shown(self.get(key))} is not {supported}. {remedy}")

    def require(self, keys: Iterable[str], kind: str) -> None:
        """Raise a ModelError where one of these values is absent; `kind` says of which model they are."""
        if missing := [key for key in keys if self.get(key) is None]:
            raise ModelError(f"{self.file} lacks {list_names(missing)}. Is this {kind} checkpoint?")

    def check(self, supported: Mapping[str, Any]) -> None:
        """Refuse values that are present and not the only one that this implementation computes."""
        for key, only in supported.items():
            if (value := self.get(key)) is not None and value != only:
                raise ModelError(
                    f"{self.where(key)}: {key}={value!r} is not supported, only {only!r}. Use a checkpoint "
                    "with that setting: weights trained with the other one would compute something else."
                )

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = MOST_WIDTH) -> int:
        """Return a whole number from `least` to `most`; without a default it must be there."""
        value = default if (found := self.get(key)) is None else found
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refusal(key, f"a whole number from {least} to {most:,}")
        return value

    def number(self, key: str, default: float, above: float = -math.inf, most: float = math.inf) -> float:
        """Return a finite number above `above` and not above `most`."""
        value = default if (found := self.get(key)) is None else found
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not above < value <= min(most, _LARGEST):  # also false for NaN
            span = f" above {above:g}" if above > -math.inf else ""
            span += f" and at most {most:g}" if most < math.inf else ""
            raise self.refusal(key, f"a finite number{span}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = default if (found := self.get(key)) is None else found
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def words(self, key: str, known: Iterable[str]) -> tuple[str, ...] | None:
        """Return a list of words, each a known one; None where it is absent."""
        if (value := self.get(key)) is None:
            return None
        if not isinstance(value, list) or any(each not in [*known] for each in value):
            raise self.refusal(key, f"a list of {list_names(map(repr, known))}")
        return tuple(value)

    def section(self, key: str) -> ConfigValues | None:
        """Return the values of an object within the file; None where it is absent or empty."""
        if (value := self.get(key)) is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.refusal(key, "an object with settings")
        return ConfigValues(value, f"{self.where(key)}: {key}")

    def ids(self, key: str, vocabulary: int) -> tuple[int, ...]:
        """Return token ids given as one number or as a list; empty where there are none."""
        if (value := self.get(key)) is None:
            return ()
        found = value if isinstance(value, list) else [value]
        if not all(_is_id(each) and 0 <= each < vocabulary for each in found):
            raise self._foreign(key, vocabulary, "a token id, or a list of token ids,")
        return tuple(dict.fromkeys(found))

    def id(self, key: str, vocabulary: int) -> int | None:
        """Return one token id; None where it is absent."""
        if (value := self.get(key)) is None:
            return None
        if not _is_id(value) or not 0 <= value < vocabulary:
            raise self._foreign(key, vocabulary, "one token id")
        return int(value)

    def suppressed(self, key: str, vocabulary: int) -> tuple[int, ...]:
        """Return a list of ids that are never chosen: those outside of the vocabulary cannot be anyway."""
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(map(_is_id, value))):
            raise self.refusal(key, "a list of token ids")
        return tuple(dict.fromkeys(each for each in value or () if 0 <= each < vocabulary))

    def ids_by_name(self, key: str, vocabulary: int) -> tuple[tuple[str, int], ...]:
        """Return the token ids of an object {name: id}; empty where it is absent."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self._foreign(key, vocabulary, "an object with names and token ids")
        for name, number in value.items():
            if not _is_id(number) or not 0 <= number < vocabulary:
                named = ConfigValues({f"{key}[{name!r}]": number}, self.where(key))
                raise named._foreign(f"{key}[{name!r}]", vocabulary, "a token id")
        return tuple(value.items())

    def _foreign(self, key: str, vocabulary: int, supported: str) -> ModelError:
        return ModelError(
            f"{self.where(key)}: {key}={_shown(self.get(key))} is not {supported} from 0 to "
            f"{vocabulary - 1}; the vocabulary has {vocabulary} tokens. Correct the file: special tokens and "
            "their ids stand in tokenizer.json."
        )


def divide(values: ConfigValues, whole: str, parts: str) -> int:
    """Return the width of a head: the width under one key, divided by the heads under the other."""
    width, count = values.get(whole), values.get(parts)
    if width % count:
        raise ModelError(
            f"{values.where(parts)}: {whole}={width} does not divide into {count} heads ({parts}). {_REMEDY}"
        )
    return int(width // count)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"({describe(value)})"


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
