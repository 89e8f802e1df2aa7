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

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlib.errors import (
    MissingExtraError,
    ModelError,
    list_names,
)
from qlib.models.chat_markers import MARKERS, RefusedError, chatml, known_markers
from qlib.models.chat_template import compile_template, jinja_installed, undefined_token
from qlib.models.messages import Message, read_messages, with_thoughts
from qlib.models.tokenizer import Tokenizer

log = logging.getLogger(__name__)


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
        if jinja_installed():
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
        if jinja_installed():
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
            compiled = compile_template(template)
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
                    messages=[with_thoughts(each) for each in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self.named,
                )
            )
        except Exception as error:  # templates refuse by raising, and stumble over what they do not expect
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ModelError:
        if missing := undefined_token(error):
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


# --- jinja2, as transformers sets it up
