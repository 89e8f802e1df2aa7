r"""What stands around a conversation so that a chat model answers it: the checkpoint's own template.

    [{"role": "user", "content": "What is gravity?"}]
        -> <s>[INST] What is gravity? [/INST]                            Llama 2
        -> <bos><start_of_turn>user\nWhat is gravity?<end_of_turn> ...    Gemma

Templates are written in Jinja. Where the package jinja2 is installed they are rendered by it, in its sandbox
and with the settings of transformers, so that the prompt is the same character for character. Without it,
templates of well-known forms go by their role markers (`chat_markers`), and any other is an error. A
checkpoint without a template that has ChatML's two special tokens is taken for ChatML.

Left out: tools, documents, pictures.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import ModuleType
from typing import Any

from qlib.errors import (
    MissingExtraError,
    ModelError,
    QlibError,
    describe,
    did_you_mean,
    list_names,
    require_extra,
)
from qlib.models.chat_markers import MARKERS, RefusedError, chatml, known_markers
from qlib.models.tokenizer import Tokenizer

log = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant", "tool", "developer")
JINJA = (3, 1, 6)  # older ones have known ways out of the sandbox; templates come from anyone
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read the first
Message = Mapping[str, str | None]


@dataclass(frozen=True)
class Chat:
    """How one checkpoint wants to be talked to.

    Attributes
    ----------
    template : str or None
        Its own template; None: ChatML's role markers, which its tokenizer has.
    named : mapping of str to str
        Special tokens by name, for the template: bos_token, eos_token, ...
    where : str
        Where the template comes from, for messages.
    """

    template: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    where: str = "the chat template"

    @classmethod
    def find(
        cls, tokenizer: Tokenizer | None, template: str | None = None, where: str = "the chat template"
    ) -> Chat | None:
        """Return what the template says, else ChatML if the tokenizer has its special tokens, else None."""
        if tokenizer is None:
            return None
        if template is not None:
            return cls(template, tokenizer.named, where)
        return cls() if tokenizer.has_special("<|im_start|>", "<|im_end|>") else None

    @property
    def way(self) -> str:
        """By what a prompt is made: the template, or the role markers of a known form."""
        if self.template is None:
            return "role markers of ChatML (the checkpoint has no template)"
        if _installed():
            return "its own template"
        name = known_markers(self.template)
        return (
            f"role markers of {name[0]} (jinja2 is not installed)" if name else "nothing: jinja2 is missing"
        )

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text that the model continues with its answer, start token included.

        Parameters
        ----------
        messages : sequence of mapping
            A conversation, oldest first: ``[{"role": "user", "content": "Hello"}]``.

        Raises
        ------
        ModelError
            A message is not of this form, or the template is damaged or does not take these messages.
        MissingExtraError
            Only jinja2 can render the template, and it is not installed, or too old.
        """
        checked = read_messages(messages)
        log.info("chat prompt by %s", self.way)
        if self.template is None:
            return chatml(checked, self.named)
        if _installed():
            return self._by_template(self.template, checked)
        if (known := known_markers(self.template)) is None:
            raise MissingExtraError(
                f"{self.where} is none of the forms that are known by their markers "
                f"({list_names(MARKERS, 9)}), and jinja2, which renders any, is not installed. Run: "
                "pip install 'quantdraft[chat]', or continue the text as it stands with raw=True."
            )
        try:
            return known[1](checked, self.named)
        except RefusedError as error:
            raise self._refusal(error) from error

    def prompt(self, user: str, system: str | None = None) -> str:
        r"""Return the text that the model continues with its answer to one user's words.

        >>> Chat().prompt("What is gravity?")
        '<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n'
        """
        first = [] if system is None else [{"role": "system", "content": system}]
        return self.render([*first, {"role": "user", "content": user}])

    def _by_template(self, template: str, messages: list[dict[str, str]]) -> str:
        try:
            compiled = _compile(template)
        except MissingExtraError:
            raise
        except Exception as error:  # a syntax error mostly; a hostile template may raise anything
            line = getattr(error, "lineno", None)
            at = "" if line is None else f", line {line}"
            raise ModelError(
                f"{self.where}{at}: the chat template is damaged: {error}. Copy the file again, or continue "
                "the text as it stands with raw=True."
            ) from error
        try:
            return str(
                compiled.render(
                    messages=[_with_thoughts(each) for each in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self.named,
                )
            )
        except Exception as error:  # templates refuse by raising, and stumble over what they do not expect
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ModelError:
        if missing := _undefined_token(error):
            known = ", ".join(f"{name}={token!r}" for name, token in self.named.items())
            return ModelError(
                f"{self.where}: the chat template writes {missing}, and no file of the folder names one "
                f"(named: {known or 'none'}). Add it to tokenizer_config.json, or continue the text as it "
                "stands with raw=True."
            )
        return ModelError(
            f"{self.where}: the chat template does not take these messages: {error}. Change them (some "
            "models have no system role, most want user and assistant in turn), or continue the text as it "
            "stands with raw=True."
        )

    def __repr__(self) -> str:
        return f"Chat(by {self.way})"


def _undefined_token(error: Exception) -> str | None:
    """Return the name of a special token that a template wanted, if that is the error."""
    match = re.fullmatch(r"'(\w+_token)' is undefined", str(error))
    return match and match[1]


def read_messages(messages: Any, error: type[QlibError] = ModelError) -> list[dict[str, str]]:
    """Return a conversation, checked and copied; entries that are None are left out.

    Parameters
    ----------
    messages : sequence of mapping
        Each with the keys "role" and "content", both texts.
    error : type of QlibError
        What to raise.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise error(
            f"A conversation is a list of messages, not {describe(messages)}. "
            'Pass [{"role": "user", "content": "..."}].'
        )
    if not messages:
        raise error('The conversation is empty. Pass at least one message: {"role": "user", "content": ...}.')
    count = len(messages)
    return [_message(each, f"Message {i} of {count}", error) for i, each in enumerate(messages, 1)]


def _message(message: Any, where: str, error: type[QlibError]) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise error(f'{where} is {describe(message)}. Pass {{"role": "user", "content": "..."}}.')
    for key in ("role", "content"):
        if key not in message:
            near = did_you_mean(key, [each for each in message if isinstance(each, str)])
            raise error(
                f"{where} has no {key!r}; its keys are {list_names(map(repr, message)) or 'none'}.{near} "
                f"Each message has a role ({list_names(ROLES, 9)}) and a content."
            )
    for key, value in message.items():
        if not isinstance(value, str) and (value is not None or key in ("role", "content")):
            raise error(
                f"{where}: {key!r} is {describe(value)}, not text. Pass a str; parts that are pictures or "
                "calls of tools are not supported."
            )
    if message["role"] not in ROLES:
        raise error(
            f"{where}: the role {message['role']!r} is unknown.{did_you_mean(message['role'], ROLES)} "
            f"Roles: {list_names(ROLES, 9)}."
        )
    # str() of a subclass's plain text: a template must not reach the methods of foreign objects.
    return {str(key): str.__str__(value) for key, value in message.items() if value is not None}


def _with_thoughts(message: dict[str, str]) -> dict[str, str]:
    """Return a message whose reasoning, if it has one, stands under the names that templates read."""
    found = next((message[name] for name in _THOUGHTS if name in message), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


# --- jinja2, as transformers sets it up


def _installed() -> bool:
    try:
        _jinja()
    except MissingExtraError:
        return False
    return True


def _jinja() -> ModuleType:
    return require_extra("jinja2", "chat", "A chat template")


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
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
