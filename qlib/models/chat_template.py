"""A checkpoint's own chat template, compiled in jinja2's sandbox as the field renders it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from types import ModuleType
from typing import Any

from qlib.errors import (
    MissingExtraError,
    require_extra,
)

JINJA = (3, 1, 6)  # older ones have known ways out of the sandbox; templates come from anyone


def undefined_token(error: Exception) -> str | None:
    """Return the name of a special token that a template wanted, if that is the error."""
    match = re.fullmatch(r"'(\w+_token)' is undefined", str(error))
    return match and match[1]


def jinja_installed() -> bool:
    """Return whether jinja2 can be imported."""
    try:
        _jinja()
    except MissingExtraError:
        return False
    return True


def _jinja() -> ModuleType:
    return require_extra("jinja2", "chat", "A chat template")


@lru_cache(maxsize=16)
def compile_template(template: str) -> Any:
    """Return a template compiled in jinja2's sandbox."""
    jinja2, sandbox = _jinja(), require_extra("jinja2.sandbox", "chat", "A chat template")
    found = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if found < JINJA:
        raise MissingExtraError(
            f"Chat templates need jinja2 {'.'.join(map(str, JINJA))} or newer, whose sandbox holds; "
            f"installed is {jinja2.__version__}. Run: pip install -U 'quantdraft[chat]'"
        )
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda layout: datetime.now().strftime(layout),
        dict=_Dict(),
        namespace=_namespace(),
    )
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter writes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _jinja().exceptions.TemplateError(message)


def _generation_tag() -> type:
    """Return the extension for ``{% generation %}``, which marks what an assistant said, for training."""
    extension: Any = require_extra("jinja2.ext", "chat", "A chat template").Extension

    def parse(self: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return type("GenerationTag", (extension,), {"tags": {"generation"}, "parse": parse})


class _Dict:
    """`dict` for templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict with these keys."""
        return dict.fromkeys(*args)


def _namespace() -> type:
    """Return Jinja's namespace without names that begin with an underscore: these lead out of the sandbox."""
    jinja2 = _jinja()

    def check(names: Any) -> None:
        if hidden := [name for name in names if str(name).startswith("_")]:
            raise jinja2.exceptions.SecurityError(f"A namespace takes no names such as {hidden[0]!r}.")

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc, name-defined]
        def __init__(*args: Any, **kwargs: Any) -> None:  # self may be a name in it
            values = dict(*args[1:], **kwargs)
            check(values)
            jinja2.utils.Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            check([name])
            super().__setitem__(name, value)

    return Namespace
