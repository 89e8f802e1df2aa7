"""Chat templates of well-known forms, recognised by their source and written with role markers.

Only for where jinja2 is not installed. A template counts as known if its source is that of a published form,
but for the text of a default system message: then both give the same prompt for every conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Messages = Sequence[Mapping[str, str]]
Named = Mapping[str, str]
Render = Callable[[Messages, Named], str]


class RefusedError(Exception):
    """A conversation that the form does not take."""


def chatml(messages: Messages, named: Named, system: str | None = None) -> str:
    """<|im_start|>user, newline, text, <|im_end|>; `system` stands in front where no system message does."""
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = (f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def llama2(messages: Messages, named: Named) -> str:
    """<s>[INST] text [/INST] answer </s>; a system message stands inside the first user's."""
    system = None
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    _alternating(messages)
    bos, eos, text = named.get("bos_token", ""), named.get("eos_token", ""), ""
    for i, each in enumerate(messages):
        content = each["content"]
        if i == 0 and system is not None:
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}"
        user = each["role"] == "user"
        text += (
            f"{bos}[INST] {content.strip()} [/INST]" if user else _answered(each, f" {content.strip()} {eos}")
        )
    return text


def llama3(messages: Messages, named: Named) -> str:
    """<|start_header_id|>user<|end_header_id|>, two newlines, text, <|eot_id|>."""
    turns = (f"{_header(each['role'])}{each['content'].strip()}<|eot_id|>" for each in messages)
    return named.get("bos_token", "") + "".join(turns) + _header("assistant")


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def gemma(messages: Messages, named: Named) -> str:
    """<start_of_turn>user, newline, text, <end_of_turn>; the assistant is called model, and no system."""
    if messages[0]["role"] == "system":
        raise RefusedError("System role not supported")
    _alternating(messages)
    text = named.get("bos_token", "")
    for each in messages:
        role = "model" if each["role"] == "assistant" else each["role"]
        text += f"<start_of_turn>{role}\n{each['content'].strip()}<end_of_turn>\n"
    return f"{text}<start_of_turn>model\n"


def zephyr(messages: Messages, named: Named) -> str:
    """<|user|>, newline, text, </s>, newline; TinyLlama's as well."""
    eos = named.get("eos_token", "")
    spoken = [each for each in messages if each["role"] in ("system", "user", "assistant")]
    # The template has a newline after each of its lines that write something.
    return "".join(f"<|{each['role']}|>\n{each['content']}{eos}\n" for each in spoken) + "<|assistant|>\n"


def vicuna(messages: Messages, named: Named, system: str) -> str:
    """Write a system text, then USER: text ASSISTANT: answer </s>."""
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    _alternating(messages)
    text, eos = named.get("bos_token", "") + system, named.get("eos_token", "")
    for each in messages:
        user = each["role"] == "user"
        text += f" USER: {each['content'].strip()}" if user else f" ASSISTANT: {each['content'].strip()}{eos}"
    return f"{text} ASSISTANT:"


def _alternating(messages: Messages) -> None:
    for i, each in enumerate(messages):
        if (each["role"] == "user") != (i % 2 == 0):
            raise RefusedError("Conversation roles must alternate user/assistant/user/assistant/...")


def _answered(message: Mapping[str, str], text: str) -> str:
    """Return the text of an assistant's message; Llama 2's template leaves those of other roles out."""
    return text if message["role"] == "assistant" else ""


# --- the sources; SYSTEM stands for any text

_TURNS = (
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles "
    "must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
SOURCES: dict[str, str] = {
    "ChatML": "{% for message in messages %}" + _TURNS,
    "ChatML with a system text": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}{% endif %}" + _TURNS
    ),
    "Llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        + _ALTERNATE
        + "{% if "
        "loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
        "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}"
        "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + "
        "' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "Llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
        "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "Gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
        "supported') }}{% endif %}{% for message in messages %}"
        + _ALTERNATE
        + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
        "role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "Zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + "
        "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + "
        "message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'"
        "+ message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "Vicuna": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = 'SYSTEM' %}{% endif %}{{ bos_token + system_message }}"
        "{% for message in loop_messages %}"
        + _ALTERNATE
        + "{% if message['role'] == 'user' %}{{ ' USER: ' + "
        "message['content'].strip() }}{% else %}{{ ' ASSISTANT: ' + message['content'].strip() + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    ),
}
MARKERS: dict[str, Callable[..., str]] = {
    "ChatML": chatml,
    "ChatML with a system text": chatml,
    "Llama 2": llama2,
    "Llama 3": llama3,
    "Gemma": gemma,
    "Zephyr": zephyr,
    "Vicuna": vicuna,
}


def known_markers(template: str) -> tuple[str, Render] | None:
    """Return name and renderer of the form that a template is, or None."""
    for name, source in SOURCES.items():
        pattern = re.escape(_normal(source)).replace("SYSTEM", r"([^'\"\\{}\n]*)")
        if match := re.fullmatch(pattern, _normal(template)):
            return name, _with_system(MARKERS[name], *match.groups())
    return None


def _with_system(render: Callable[..., str], *system: str) -> Render:
    return lambda messages, named: render(messages, named, *system)


def _normal(source: str) -> str:
    """Return a template's source with one spelling of newlines in literals and of spaces inside of tags."""
    literal = re.compile(r"'(?:[^'\\]|\\.)*'", re.DOTALL)
    escaped = literal.sub(lambda match: match[0].replace("\n", "\\n"), source)

    def inside(match: re.Match[str]) -> str:
        # Every second part is a literal; outside of them, a space more or less between words says nothing.
        parts = re.split(r"('(?:[^'\\]|\\.)*')", match[0])
        return "".join(
            part if i % 2 else re.sub(r" *([^\w ]+) *", r"\1", part) for i, part in enumerate(parts)
        )

    # Jinja drops one newline at the end of a template.
    return re.sub(r"\{[{%].*?[%}]\}", inside, escaped.removesuffix("\n"))
