"""Errors of the library: each says what is wrong, where, with which numbers, and what to do.

All derive from `QlibError`, so one `except` catches whatever the library refuses. `MissingExtraError`
is also an `ImportError`, `FileError` an `OSError`, `CheckError` an `AssertionError`; the others are also
`ValueError`.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from numbers import Real
from types import ModuleType
from typing import Any


class QlibError(Exception):
    """Base class of everything that this library raises on purpose."""


class QuantError(QlibError, ValueError):
    """A weight, a grid, a method or a calibration set that cannot be used as asked."""


class ModelError(QlibError, ValueError):
    """A checkpoint, a tensor or a configuration that is missing, damaged or unknown."""


class FetchError(ModelError):
    """A model package that could not be downloaded, verified or converted."""


class DataError(QlibError, ValueError):
    """A manifest, an audio file or a transcript that cannot be used."""


class DraftError(QlibError, ValueError):
    """A pair of models, a tokenizer, a cache or a setting that drafting cannot use."""


class CheckError(QlibError, AssertionError):
    """A method of the user's own that does not keep its contract; see `qlib.testing`."""


class FileError(QlibError, OSError):
    """A file or folder that could not be written or read: a full disk, missing rights, a broken path."""


class MissingExtraError(QlibError, ImportError):
    """An optional package that is needed now and is not installed."""


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional third-party module, or say which extra brings it.

    Parameters
    ----------
    module : str
        Import name, for example ``"soxr"``.
    extra : str
        The extra of this distribution that installs it, for example ``"asr"``.
    purpose : str
        What it is needed for, as the beginning of the error's sentence.

    Raises
    ------
    MissingExtraError
        The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module!r}, which is not installed. "
            f"Run: pip install 'quantdraft[{extra}]'"
        ) from error


def list_names(names: Iterable[str], limit: int = 4) -> str:
    """Return the first names and a count of the rest, for an error message.

    >>> list_names(["a", "b", "c"], limit=2)
    'a, b (and 1 more)'
    """
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} (and {len(names) - limit} more)"


def describe(value: Any) -> str:
    """Say in a few words what a value is, for a message about one of the wrong kind.

    >>> describe([1, 2, 3]), describe("abc"), describe(7), describe(None)
    ('a list of 3 int', "the str 'abc'", 'the int 7', 'None')
    """
    kind = type(value).__name__
    a = "an" if kind[0] in "AEIOaeio" else "a"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | bytes | bool | int | float):
        text = repr(value)
        return f"the {kind} {text if len(text) <= 60 else text[:57] + '...'}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{a} {kind} {list(shape)} of {str(dtype).removeprefix('torch.')}"
    if isinstance(value, list | tuple | Set | Mapping):
        kinds = sorted({type(each).__name__ for each in value})
        return f"a {kind} of {len(value)} {' and '.join(kinds[:3])}".rstrip()
    return f"{a} {kind}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word that is nearest, or nothing where none is near.

    >>> did_you_mean("max_tokens", ["max_new_tokens", "seed"])
    " Did you mean 'max_new_tokens'?"
    """
    close = get_close_matches(str(word), list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before already, or None.

    >>> repeated(["a", "b", "a"]), repeated("abc")
    ('a', None)
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def check_one_of(value: Any, name: str, known: Sequence[str], error: type[QlibError]) -> None:
    """Raise the error of a word that is none of those known; it lists them and names the nearest."""
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(str(value), known)
        raise error(f"{name}={value!r} is unknown. Use {', '.join(map(repr, known))}.{near}")


def as_whole(value: Any) -> int | None:
    """Return a whole number as an int, NumPy's and torch's too; None for all else, bool included."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool":
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # what tensors of several numbers raise
        return None


def whole_number(
    value: Any, name: str, error: type[QlibError], least: int, most: int | None = None, remedy: str = ""
) -> int:
    """Return a whole number as an int; NumPy's and torch's are accepted, bool and float are not.

    Parameters
    ----------
    value : Any
        What the user gave.
    name : str
        Its name in the message, for example ``"batch_size"``.
    error : type of QlibError
        What to raise.
    least, most : int
        Smallest and largest number allowed.
    remedy : str
        Last sentence of the message: what to do.

    >>> import numpy
    >>> whole_number(numpy.int64(4), "bits", QuantError, 2, 8)
    4
    """
    number = as_whole(value)
    if number is None:
        raise error(f"{name} is {describe(value)}, not a whole number. {remedy}".rstrip())
    if number < least or (most is not None and number > most):
        span = f"{least} or more" if most is None else f"{least} to {most}"
        raise error(f"{name}={number} is not {span}. {remedy}".rstrip())
    return number


def real_number(value: Any, name: str, error: type[QlibError], remedy: str = "") -> float:
    """Return an int or float; single numbers of NumPy and torch become one, all else is refused, bool too.

    NaN and infinity pass: whether they are allowed depends on what the number is for.

    >>> import numpy
    >>> real_number(numpy.float32(0.5), "alpha", QuantError)
    0.5
    """
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise error(f"{name} is {describe(value)}, not a number. {remedy}".rstrip())
    return float(number)


def true_or_false(value: Any, name: str, error: type[QlibError], remedy: str = "") -> bool:
    """Return a bool; NumPy's is accepted, and nothing else that only counts as true."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise error(f"{name} is {describe(value)}, neither True nor False. {remedy}".rstrip())
    return bool(value)


def settle(settings: object, **values: Any) -> None:
    """Set checked values in a frozen dataclass, from its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
