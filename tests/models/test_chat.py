"""Chat prompts: rendered as transformers does, role markers that render the same, refusals that say why."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from text_oracles import todays_rules

from qlib.errors import MissingExtraError, ModelError
from qlib.models.chat import Chat
from qlib.models.chat_markers import SOURCES, known_markers
from qlib.models.chat_template import compile_template
from qlib.models.messages import read_messages
from qlib.models.tiny import CHAT_SPECIALS, tiny_tokenizer

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Hi"}
TEXTS = ("Hi", " spaces \n", "", 'it\'s "{{ bos_token }}" {% x %}\\n')
ROLES = ("user", "assistant", "system", "tool")
FORMS = {name: source.replace("SYSTEM", "Be kind, please.") for name, source in SOURCES.items()}


def by_transformers(template: str, messages: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    found, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **NAMED)
    return str(found[0])


@pytest.fixture
def without_jinja(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("jinja2", "jinja2.sandbox", "jinja2.ext"):
        monkeypatch.setitem(sys.modules, name, None)
    compile_template.cache_clear()
    yield
    compile_template.cache_clear()


def conversations() -> Iterator[list[dict[str, str]]]:
    """Every order of up to three roles, with texts in turn."""
    texts = itertools.cycle(TEXTS)
    for count in (1, 2, 3):
        for roles in itertools.product(ROLES, repeat=count):
            yield [{"role": role, "content": next(texts)} for role in roles]
    yield [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": " b "}, USER]


# --- by the template

SPECIAL = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {{ m.role }}\n  {% endif %}\n{% endfor %}\n",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ messages | tojson(indent=1) }}{{ {'\u00e9': '<&>'} | tojson(ensure_ascii=True, sort_keys=True) }}",
    "{% generation %}{{ messages[-1]['content'] }}{% endgeneration %}{{ eos_token }}{{ pad_token }}",
    "{{ strftime_now('%Y') }}{{ bos_token }}{% if tools is none and not documents %}x{% endif %}",
    "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=2) }}{{ dict.fromkeys('c') }}",
    "{{ 'x' if add_generation_prompt else 'y' }}{{ enable_thinking is defined }}{{ tools is defined }}",
]


@pytest.mark.parametrize("template", [*SPECIAL, *FORMS.values()])
def test_templates_render_as_in_transformers(template: str) -> None:
    for messages in ([USER], [USER, {"role": "assistant", "content": TEXTS[3]}, USER]):
        assert Chat(template, NAMED).render(messages) == by_transformers(template, messages)


@todays_rules
def test_reasoning_has_its_usual_names() -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }};{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        messages = [USER, {"role": "assistant", "content": "a", name: "hm"}]
        assert Chat(template).render(messages) == by_transformers(template, messages) == "|;hm|hm;"


def test_one_user_s_words_with_and_without_a_system_text() -> None:
    chat = Chat("{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}")
    assert chat.prompt("Hi") == "user:Hi "
    assert chat.prompt("Hi", system="Be brief") == "system:Be brief user:Hi "


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if x %}", r"dir/chat_template\.jinja, line 1: the chat template is damaged: .*end of template"),
        ("a\n{{ messages[0]. }}", "line 2: the chat template is damaged"),
        ("{% nothing %}", "damaged: Encountered unknown tag 'nothing'"),
        ("{{ raise_exception('System role not supported') }}", "these messages: System role not supported"),
        ("{{ messages[0].x.y }}", "does not take these messages: .*has no attribute 'x'"),
        ("{{ messages[0].content + 1 }}", "does not take these messages: .*str"),
        ("{{ ''.__class__.__mro__ }}", "does not take these messages: access to attribute"),
        ("{{ messages.append(1) }}", "does not take these messages: access to attribute 'append'"),
        ("{% set ns = namespace(__init__=1) %}", "takes no names such as '__init__'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "takes no names such as '_x'"),
        ("{{ dict.__class__.__mro__ }}", "does not take these messages"),
        ("{{ range(10**9) | list }}", "does not take these messages: Range too big"),
    ],
)
def test_templates_that_fail_name_their_file(template: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        Chat(template, NAMED, "dir/chat_template.jinja").prompt("Hi")
    assert str(error.value).startswith("dir/chat_template.jinja") and "raw=True" in str(error.value)


def test_a_token_without_a_name_is_said() -> None:
    with pytest.raises(ModelError, match=r"x: .* writes eos_token, .*\(named: bos_token='<s>'\)\. Add it to"):
        Chat("{{ 'a' + eos_token }}", {"bos_token": "<s>"}, "x").prompt("Hi")


def test_an_old_sandbox_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    compile_template.cache_clear()
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(MissingExtraError, match=r"jinja2 3\.1\.6 or newer.*installed is 3\.1\.5"):
        Chat("x").prompt("Hi")
    assert Chat(None).prompt("Hi")


def test_copies_and_pickles() -> None:
    chat = Chat(FORMS["Llama 3"], NAMED)
    expected = chat.prompt("Hi")
    assert copy.deepcopy(chat).prompt("Hi") == pickle.loads(pickle.dumps(chat)).prompt("Hi") == expected


# --- by role markers


def test_chatml_without_a_template_goes_by_its_special_tokens() -> None:
    chat = Chat.find(tiny_tokenizer(CHAT_SPECIALS))
    assert chat is not None and chat.template is None
    assert chat.prompt("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompt("Hi", system="Be brief").startswith("<|im_start|>system\nBe brief<|im_end|>\n<|im_st")
    assert "ChatML" in repr(chat)


def test_no_template_and_no_special_tokens() -> None:
    assert Chat.find(tiny_tokenizer()) is None
    assert Chat.find(tiny_tokenizer((*CHAT_SPECIALS[:2],))) is None
    assert Chat.find(None, FORMS["ChatML"]) is None


def test_a_template_is_not_overruled_by_special_tokens() -> None:
    chat = Chat.find(tiny_tokenizer(CHAT_SPECIALS), "Q: {{ messages[0].content }} A:")
    assert chat is not None and chat.prompt("Hi") == "Q: Hi A:"


def test_markers_become_single_tokens() -> None:
    tokenizer = tiny_tokenizer(CHAT_SPECIALS)
    ids = tokenizer.encode(Chat().prompt("Hi"))
    assert [number for number in ids if number in tokenizer.special_ids] == [
        tokenizer.token_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|im_start|>")
    ]


@pytest.mark.parametrize("name", FORMS)
def test_markers_render_what_the_template_does(name: str) -> None:
    """Every conversation: the same text, or both refuse."""
    found = known_markers(FORMS[name])
    assert found is not None and found[0] == name
    refused = 0
    for messages in conversations():
        try:
            expected = Chat(FORMS[name], NAMED).render(messages)
        except ModelError:
            refused += 1
            with pytest.raises(Exception, match=r"must alternate|not supported"):
                found[1](messages, NAMED)
        else:
            assert found[1](messages, NAMED) == expected
    assert bool(refused) == (name in ("Llama 2", "Gemma", "Vicuna"))


def test_other_spellings_of_the_same_source() -> None:
    source = FORMS["ChatML with a system text"]
    for other in (source.replace("\\n", "\n"), source.replace(" + ", "+"), source + "\n"):
        assert other != source
        found = known_markers(other)
        assert found is not None
        assert found[1]([USER], NAMED) == Chat(other, NAMED).render([USER])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ChatML", "'\\n' + message['content']", "'\\n' + message['content'].strip()"),
        ("ChatML", "{% endfor %}", "{% endfor -%}"),
        ("ChatML", "'\\n'}}{% endfor", "' \\n'}}{% endfor"),
        ("ChatML", "{% for", "{{ bos_token }}{% for"),
        ("ChatML", "assistant\\n'", "assistant\\n<think>\\n'"),
        ("ChatML", "}}{% endfor", "}}\n\n{% endfor"),
        ("ChatML with a system text", "Be kind, please.", "Be kind' + x + '"),
        ("ChatML with a system text", "Be kind, please.", "Be\\tkind"),
        ("Llama 3", " | trim", ""),
        ("Zephyr", "{% if loop.last", "{%- if loop.last"),
    ],
)
def test_a_template_that_is_almost_known_is_not_known(name: str, old: str, new: str) -> None:
    assert old in FORMS[name]
    assert known_markers(FORMS[name].replace(old, new)) is None


@pytest.mark.usefixtures("without_jinja")
def test_without_jinja_known_forms_go_by_markers(caplog: pytest.LogCaptureFixture) -> None:
    chat = Chat(FORMS["Llama 3"], NAMED)
    with caplog.at_level(logging.INFO, "qlib.models.chat"):
        text = chat.prompt("Hi")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert text == f"<s>{header.format('user')}Hi<|eot_id|>{header.format('assistant')}"
    assert "role markers of Llama 3 (jinja2 is not installed)" in caplog.text
    assert repr(chat) == "Chat(by role markers of Llama 3 (jinja2 is not installed))"
    with pytest.raises(ModelError, match="does not take these messages: System role not supported"):
        Chat(FORMS["Gemma"], NAMED).prompt("Hi", system="no")


@pytest.mark.usefixtures("without_jinja")
def test_without_jinja_any_other_template_is_an_error() -> None:
    other = FORMS["Llama 3"].replace(" | trim", "")
    with pytest.raises(MissingExtraError, match=r"x\.jinja is none of .*pip install 'quantdraft\[chat\]'"):
        Chat(other, NAMED, "x.jinja").prompt("Hi")
    assert "jinja2 is missing" in repr(Chat(other))
    assert Chat().prompt("Hi")  # ChatML by its tokens needs none


def test_which_way_is_said(caplog: pytest.LogCaptureFixture) -> None:
    chat = Chat(FORMS["Llama 3"], NAMED)
    with caplog.at_level(logging.INFO, "qlib.models.chat"):
        chat.prompt("Hi")
    assert "chat prompt by its own template" in caplog.text
    assert repr(chat) == "Chat(by its own template)"


# --- messages


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "The conversation is empty"),
        ("Hi", "not the str 'Hi'"),
        (USER, "list of messages, not a dict of 2 str"),
        (None, "not None"),
        ([USER, "Hi"], "Message 2 of 2 is the str 'Hi'"),
        ([{"content": "Hi"}], "Message 1 of 1 has no 'role'; its keys are 'content'"),
        ([{"role": "user"}], "has no 'content'"),
        ([{"role": "user", "contents": "Hi"}], "has no 'content'.* Did you mean 'contents'"),
        ([{}], "its keys are none"),
        ([{"role": "user", "content": None}], "'content' is None, not text"),
        ([{"role": "user", "content": 3}], "'content' is the int 3, not text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'content' is a list of 1 dict, not text"),
        ([{"role": "usr", "content": "Hi"}], "role 'usr' is unknown. Did you mean 'user'"),
        ([{"role": 3, "content": "Hi"}], "'role' is the int 3"),
        ([{**USER, "tool_calls": [1]}], "'tool_calls' is a list of 1 int, not text"),
    ],
)
def test_messages_of_another_form(messages: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_messages(messages)
    with pytest.raises(ModelError, match=words):
        Chat().render(messages)


def test_messages_are_copied_and_empty_entries_left_out() -> None:
    message = {**USER, "name": None}
    found = read_messages((message,))
    assert found == [USER] and found[0] is not message
