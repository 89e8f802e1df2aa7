"""The version of the library, which a checkout on the path that was never installed does not know."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def library_version() -> str | None:
    """Return the installed version, or None where there is no package metadata."""
    try:
        return version("quantdraft")
    except PackageNotFoundError:
        return None
