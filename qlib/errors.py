"""Errors of the library: each says what is wrong, where, with which numbers, and what to do.

All derive from `QlibError`, so one `except` catches whatever the library refuses. `MissingExtraError`
is also an `ImportError`; the others are also `ValueError`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType


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
