"""What strangers hand in by mistake: each gets an error that says what, where and what to do; or it works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import draftlib
from draftlib import Confidence, FixedLength, NGramCache, SpeculativeDecoder
from draftlib.drafting.guess import Guess, Source, checked_guess
from draftlib.drafting.length import Length
from draftlib.state import State
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.errors import DraftError
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper

TARGET, DRAFT = tiny_llama(5).eval(), tiny_llama(1).eval()
DECODER = SpeculativeDecoder(TARGET, DRAFT)
PAIR = DECODER.vocabulary
IDS = [5, 6, 7, 8]
SHORT: dict[str, Any] = {"max_new_tokens": 6, "raw": True}


class Mine(Length):
    """A rule that says what it was given."""

    def __init__(self, max_tokens: Any = 3, said: Any = False):
        self.max_tokens, self._said = max_tokens, said

    def stop(self, drafted: Any) -> Any:
        return self._said


class Pairs(Source):
    """A source that guesses what it was given."""

    def __init__(self, guess: Any = None, name: Any = "pairs", state: Any = None):
        self.name, self._guess, self._state = name, guess, state

    def guess(self, text: Any) -> Any:
        return Guess(self.name, (), ()) if self._guess is None else self._guess

    def state(self) -> Any:
        return self._state


class Stops(Length):
    """A misspelt `stop`: the one that it inherits says nothing."""

    max_tokens = 4

    def stops(self, drafted: Any) -> bool:
        return True


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(DraftError) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.endswith((".", "?", ")")), message


# --- options


OPTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"max_tokens": 5}, ["no option 'max_tokens'", "'max_new_tokens'?"]),
    ({"max_new_token": 5}, ["no option 'max_new_token'", "'max_new_tokens'?"]),
    ({"max_length": 5}, ["no option 'max_length'", "'max_new_tokens'?"]),
    ({"temprature": 1.0}, ["no option 'temprature'", "'temperature'?"]),
    ({"do_sample": True}, ["no option 'do_sample'", "'temperature'?"]),
    ({"stop_strings": ["x"]}, ["no option 'stop_strings'", "'stop'?"]),
    ({"quux": 1}, ["no option 'quux'", "It has max_new_tokens, temperature"]),
    ({"max_new_tokens": "5"}, ["max_new_tokens is the str '5'"]),
    ({"max_new_tokens": 5.0}, ["max_new_tokens is the float 5.0"]),
    ({"max_new_tokens": True}, ["max_new_tokens is the bool True"]),
    ({"max_new_tokens": None}, ["max_new_tokens is None"]),
    ({"max_new_tokens": 0}, ["max_new_tokens=0"]),
    ({"max_new_tokens": -1}, ["max_new_tokens=-1"]),
    ({"max_new_tokens": [5]}, ["max_new_tokens is a list of 1 int"]),
    ({"max_new_tokens": torch.ones(3)}, ["max_new_tokens is a Tensor [3]"]),
    ({"temperature": None}, ["temperature is None", "0 is greedy"]),
    ({"temperature": "0.8"}, ["temperature is the str '0.8'"]),
    ({"temperature": True}, ["temperature is the bool True"]),
    ({"temperature": torch.ones(2)}, ["temperature is a Tensor [2]"]),
    ({"temperature": torch.tensor(True)}, ["temperature is a Tensor"]),
    ({"temperature": 1j}, ["temperature is a complex"]),
    ({"temperature": float("nan")}, ["temperature=nan"]),
    ({"temperature": float("inf")}, ["temperature=inf"]),
    ({"temperature": -0.5}, ["temperature=-0.5"]),
    ({"top_k": 0}, ["top_k=0", "None keeps all"]),
    ({"top_k": 2.5}, ["top_k is the float 2.5"]),
    ({"top_k": True}, ["top_k is the bool True"]),
    ({"top_k": "5"}, ["top_k is the str '5'"]),
    ({"top_p": "0.9"}, ["top_p is the str '0.9'"]),
    ({"top_p": 0}, ["top_p=0", "None keeps all"]),
    ({"top_p": 90}, ["top_p=90"]),
    ({"top_p": float("nan")}, ["top_p=nan"]),
    ({"top_p": False}, ["top_p is the bool False"]),
    ({"seed": -1}, ["seed=-1"]),
    ({"seed": None}, ["seed is None"]),
    ({"seed": 1.5}, ["seed is the float 1.5"]),
    ({"seed": "1"}, ["seed is the str '1'"]),
    ({"stop": b"x"}, ["stop is the bytes b'x'", "decode()"]),
    ({"stop": [b"x"]}, ["stop is the bytes b'x'", "decode()"]),
    ({"stop": ["a", None]}, ["stop is None"]),
    ({"stop": [True]}, ["stop is the bool True"]),
    ({"stop": [1.5]}, ["stop is the float 1.5"]),
    ({"stop": 1.5}, ["stop is the float 1.5"]),
    ({"stop": [["a"]]}, ["stop is a list of 1 str"]),
    ({"stop": {"a": 1}}, ["stop is a dict"]),
    ({"stop": [-1]}, ["stop=-1"]),
    ({"stop": ""}, ["empty string"]),
    ({"stop": ["a", ""]}, ["empty string"]),
    ({"stop": 10**6}, ["1000000", "not in the target's vocabulary"]),
    ({"raw": "no"}, ["raw is the str 'no'"]),
    ({"raw": None}, ["raw is None"]),
    ({"raw": 1}, ["raw is the int 1"]),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[str(options)[:40] for options, _ in OPTIONS])
def test_options(options: dict[str, Any], words: list[str]) -> None:
    for call in (DECODER.generate, DECODER.generate_target_only, DECODER.steps):
        refused(lambda call=call: call("a", **options), *words)  # type: ignore[misc]
    refused(lambda: list(DECODER.generate_many(["a"], **options)), *words)


def test_streaming() -> None:
    refused(lambda: DECODER.generate("a", stream=True), "no option 'stream'", "'on_text'?")  # type: ignore[call-arg]
    refused(lambda: DECODER.steps("a", stream=True), "steps has no option 'stream'")  # type: ignore[call-arg]
    for call in (DECODER.generate, DECODER.generate_target_only):
        refused(lambda call=call: call("a", on_text=True), "on_text is the bool True", "print")  # type: ignore[misc]
    refused(lambda: DECODER.generate_many(["a"], on_text="x"), "on_text is the str 'x'")  # type: ignore[arg-type]


def test_what_is_unambiguous_is_accepted() -> None:
    expected = DECODER.generate(IDS, temperature=0.5, seed=3, top_k=5, top_p=0.5, stop=[2], **SHORT).tokens
    found = DECODER.generate(
        IDS,
        max_new_tokens=np.int64(6),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        seed=torch.tensor(3),  # type: ignore[arg-type]
        top_k=np.int32(5),  # type: ignore[arg-type]
        top_p=torch.tensor(0.5),  # type: ignore[arg-type]
        stop=np.array([2]),  # type: ignore[arg-type]
        raw=np.bool_(True),  # type: ignore[arg-type]
    )
    assert found.tokens == expected
    big = DECODER.generate(IDS, temperature=1, seed=np.uint64(2**63 + 5), **SHORT)  # type: ignore[arg-type]
    assert big.tokens == DECODER.generate(IDS, temperature=1, seed=2**63 + 5, **SHORT).tokens
    assert DECODER.generate(IDS, stop=None, **SHORT).tokens == DECODER.generate(IDS, **SHORT).tokens
    for stop in ({"a", 5}, (each for each in ("a", 5)), torch.tensor([5]), torch.tensor(5), np.int64(5)):
        DECODER.generate(IDS, stop=stop, **SHORT)


# --- prompts


PROMPTS: list[tuple[Any, list[str]]] = [
    ("", ["prompt is empty"]),
    ([], ["prompt is empty"]),
    (None, ["The prompt is None", "Pass a str"]),
    (7, ["The prompt is the int 7"]),
    (True, ["The prompt is the bool True"]),
    (b"hello", ["The prompt is the bytes b'hello'", "decode()"]),
    (Path("a"), ["The prompt is a PosixPath"]),
    ({"role": "user"}, ["The prompt is a dict", "list of messages"]),
    ({5, 6}, ["The prompt is a set"]),
    (["hi", "there"], ["a list of 2 str", "generate_many"]),
    (["hi"], ["a list of 1 str", "generate_many"]),
    ([[5, 6], [7]], ["a list of 2 list", "generate_many"]),
    ([5, "a"], ["element 1 is the str 'a'", "not a token id"]),
    ([5, True], ["element 1 is the bool True"]),
    ([True, False], ["element 0 is the bool True"]),
    ([5, None], ["element 1 is None"]),
    ([5.0], ["element 0 is the float 5.0"]),
    (torch.ones(3), ["a Tensor [3] of float32", "whole numbers"]),
    (torch.ones(3, dtype=torch.bool), ["element 0 is the bool True"]),
    (torch.ones(2, 3, dtype=torch.long), ["a Tensor [2, 3]", "generate_many"]),
    (torch.tensor(5), ["a Tensor []", "one row"]),
    (np.ones(3), ["a ndarray [3] of float64", "whole numbers"]),
    (np.array(["a"]), ["a ndarray [1]", "whole numbers"]),
    (np.ones((1, 2, 3), int), ["a ndarray [1, 2, 3]", "one row"]),
]


@pytest.mark.parametrize(("prompt", "words"), PROMPTS, ids=[str(prompt)[:30] for prompt, _ in PROMPTS])
def test_prompts(prompt: Any, words: list[str]) -> None:
    for call in (DECODER.generate, DECODER.generate_target_only, DECODER.steps):
        refused(lambda call=call: call(prompt), *words)  # type: ignore[misc]


def test_token_ids_of_any_kind() -> None:
    expected = DECODER.generate(IDS, **SHORT).tokens
    ids = torch.tensor(IDS)
    for prompt in (
        tuple(IDS), range(5, 9), iter(IDS), [np.int64(each) for each in IDS], ids, ids.int(), ids[None],
        ids.numpy(), ids.numpy()[None].astype(np.uint16), list(ids),
    ):  # fmt: skip
        assert DECODER.generate(prompt, **SHORT).tokens == expected  # type: ignore[arg-type]


MANY: list[tuple[Any, list[str]]] = [
    ("hi", ["got one, the str 'hi'", "Use generate"]),
    (b"hi", ["got one, the bytes b'hi'"]),
    (None, ["got None", "list of strings"]),
    (5, ["got the int 5"]),
    ({"a": 1}, ["got a dict"]),
    (IDS, ["a list of 4 int, which is one"]),
    (torch.tensor(IDS), ["a Tensor [4] of int64, which is one"]),
    ([{"role": "user", "content": "a"}], ["a list of 1 dict, which is one"]),
    (["a", None], ["Prompt 1 is None"]),
    (["a", 5], ["Prompt 1 is the int 5"]),
    (["a", b"b"], ["Prompt 1 is the bytes b'b'"]),
    (["a", ["b", "c"]], ["Prompt 1 is a list of 2 str"]),
]


@pytest.mark.parametrize(("prompts", "words"), MANY, ids=[str(prompts)[:30] for prompts, _ in MANY])
def test_many_prompts_are_looked_through_before_the_first_answer(prompts: Any, words: list[str]) -> None:
    refused(lambda: DECODER.generate_many(prompts), *words)


def test_many_prompts_of_any_kind() -> None:
    one, two = (DECODER.generate(prompt, **SHORT).tokens for prompt in ("ab", "c"))
    expected = [one, two]
    views = {"ab": 1, "c": 2}.keys(), np.array(["ab", "c"]), (each for each in ("ab", "c"))
    for prompts in (["ab", "c"], ("ab", "c"), *views):
        assert [out.tokens for out in DECODER.generate_many(prompts, **SHORT)] == expected
    rows = torch.tensor([IDS, IDS])
    ids = DECODER.generate(IDS, **SHORT).tokens
    assert [out.tokens for out in DECODER.generate_many(rows, **SHORT)] == [ids, ids]  # type: ignore[arg-type]
    said: list[str] = []
    texts = [out.text for out in DECODER.generate_many(["ab", "c"], on_text=said.append, **SHORT)]
    assert "".join(said) == "".join(texts)
    assert list(DECODER.generate_many([])) == []
    mixed = (each for each in ("ab", None))
    answers = DECODER.generate_many(mixed, **SHORT)  # type: ignore[arg-type]
    assert next(answers).tokens == one
    refused(lambda: next(answers), "The prompt is None")


# --- the decoder


def build(*models: Any, **arguments: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(*(models or (TARGET, DRAFT)), **arguments)


MODELS: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: "smollm2-135m-instruct", ["the str", "load_model('smollm2-135m-instruct')"]),
    (lambda: Path("some/folder"), ["PosixPath", "load_model('some/folder')"]),
    (lambda: SimpleNamespace(model=TARGET), ["SimpleNamespace", "attribute `model`"]),
    (tiny_whisper, ["(Whisper) is no text model"]),
    (tiny_moonshine, ["(Moonshine) is no text model"]),
    (lambda: torch.nn.Linear(2, 2), ["(Linear) is no text model", "load_model"]),
    (lambda: None, ["(NoneType) is no text model"]),
    (lambda: TARGET.tokenizer, ["(Tokenizer) is no text model"]),
]


@pytest.mark.parametrize(("make", "words"), MODELS)
def test_models(make: Callable[[], Any], words: list[str]) -> None:
    refused(lambda: build(make(), DRAFT), "target", *words)
    if make() is not None:  # a decoder may do without a drafter
        refused(lambda: build(TARGET, make()), "draft", *words)


SETTINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"length": "auto"}, ["length is the str 'auto'", "FixedLength(5)", "Confidence(0.4)"]),
    ({"length": 0.4}, ["length is the float 0.4", "Confidence(0.4)"]),
    ({"length": True}, ["length is the bool True"]),
    ({"length": 0}, ["length=0"]),
    ({"length": -3}, ["length=-3"]),
    ({"length": 10**6}, ["do not fit"]),
    ({"length": FixedLength}, ["the class FixedLength", "FixedLength()"]),
    ({"length": SimpleNamespace(max_tokens=3)}, ["length is a SimpleNamespace"]),
    (
        {"length": SimpleNamespace(max_tokens=3, stop=len)},
        ["a SimpleNamespace", "inherits", "draftlib.Length"],
    ),
    ({"length": Mine(0)}, ["Mine.max_tokens=0"]),
    ({"length": Mine("3")}, ["Mine.max_tokens is the str '3'"]),
    ({"length": Mine(None)}, ["Mine.max_tokens is None"]),
    ({"length": Stops()}, ["Stops has no stop(drafted)", "FixedLength(5)"]),
    ({"cache": "folder"}, ["the str 'folder'", "NGramCache.load('folder', decoder.vocabulary)"]),
    ({"cache": Path("folder")}, ["NGramCache.load('folder', decoder.vocabulary)"]),
    ({"cache": True}, ["cache is the bool True", "NGramCache()"]),
    ({"cache": {}}, ["cache is a dict", "NGramCache()"]),
    ({"cache": NGramCache}, ["the class NGramCache", "NGramCache()"]),
    ({"sources": Pairs()}, ["sources is a Pairs", "sources=("]),
    ({"sources": [Pairs]}, ["the class Pairs", "Pairs()"]),
    ({"sources": [SimpleNamespace(name="a", guess=len)]}, ["a SimpleNamespace", "draftlib.Source"]),
    ({"sources": [Source()]}, ["Source has no guess(text)", "Guess(self.name"]),
    ({"sources": [Pairs(name=None)]}, ["Pairs: its name is None", "name = 'mine'"]),
    ({"sources": [Pairs(name="")]}, ["Pairs: its name is the str ''"]),
    ({"sources": [Pairs(name="a/b")]}, ["Pairs: its name is the str 'a/b'"]),
    ({"sources": ["suffix", Pairs(name="suffix")]}, ["'suffix' is taken"]),
    ({"sources": [Pairs(name="draft")]}, ["'draft' is taken"]),
    ({"verify": "exakt"}, ["verify='exakt'", "'exact'?"]),
    ({"verify": "path"}, ["verify='path'", "'path_revealed' or"]),
    ({"verify": "path-reveal"}, ["'path_revealed'?"]),
    ({"verify": None}, ["verify=None"]),
    ({"verify": True}, ["verify=True"]),
]


@pytest.mark.parametrize(("arguments", "words"), SETTINGS, ids=[str(each)[:40] for each, _ in SETTINGS])
def test_settings_of_the_decoder(arguments: dict[str, Any], words: list[str]) -> None:
    """When it is made, and when they are exchanged."""
    refused(lambda: build(**arguments), *words)
    decoder = build()
    for name, value in arguments.items():
        before = getattr(decoder, name)
        refused(lambda: setattr(decoder, name, value), *words)  # noqa: B023
        assert getattr(decoder, name) is before


def test_an_adapter_is_an_object_with_all_four_methods() -> None:
    refused(lambda: build(adapter=draftlib.OnlineAdapter), "the class OnlineAdapter", "OnlineAdapter()")
    refused(
        lambda: build(adapter=SimpleNamespace(bind=len)), "SimpleNamespace", "bind, observe, state, restore"
    )


# --- objects of one's own


GUESSES: list[tuple[Any, list[str]]] = [
    ((5, 6), ["'pairs' guessed a tuple of 2 int", "Guess(self.name, (), ())"]),
    (Guess("other", (5,), (1,)), ["a Guess of 'other'", "Guess(self.name"]),
    (Guess("draft", (5,), (1,)), ["a Guess of 'draft'"]),
    (Guess("pairs", (5, 6), (1,)), ["2 and 1", "one kind for each token"]),
    (Guess("pairs", (5, -1), (1, 1)), ["'pairs' guessed (5, -1)", "0 or more"]),
    (Guess("pairs", (5, 6.0), (1, 1)), ["token 1 of its guess is the float 6.0"]),  # type: ignore[arg-type]
    (Guess("pairs", (True,), (1,)), ["token 0 of its guess is the bool True"]),
    (Guess("pairs", (np.int64(-1),), (1,)), ["token 0 of its guess=-1"]),  # type: ignore[arg-type]
    (Guess("pairs", (5,), "pair"), ["the kinds of its guess are the str 'pair'"]),  # type: ignore[arg-type]
    (Guess("pairs", None, ()), ["the tokens of its guess are None"]),  # type: ignore[arg-type]
    (Guess("pairs", (5,), ([1],)), ["unhashable", "a str, a number or a tuple"]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("guess", "words"), GUESSES, ids=[str(guess)[:60] for guess, _ in GUESSES])
def test_guesses(guess: Any, words: list[str]) -> None:
    refused(
        lambda: build(sources=["suffix", Pairs(guess)]).generate(IDS, **SHORT), "The source 'pairs'", *words
    )


def test_guesses_that_are_accepted() -> None:
    for tokens in ((5, 6), [5, 6], np.array([5, 6]), torch.tensor([5, 6]), (np.int64(5), np.uint8(6))):
        guess = checked_guess(Guess("pairs", tokens, ("a", ("b", 1))), "pairs")  # type: ignore[arg-type]
        assert guess.tokens == (5, 6) and [type(token) for token in guess.tokens] == [int, int]
        assert guess.kinds == ("a", ("b", 1))
    plain = Guess("pairs", (5,), (1,))
    assert checked_guess(plain, "pairs") is plain


def test_what_a_length_rule_says_while_it_is_used() -> None:
    for said, words in ((None, "None"), (torch.zeros(2), "a Tensor [2]"), (np.zeros(2), "a ndarray [2]")):
        decoder = build(length=Mine(said=said))
        refused(lambda: decoder.generate(IDS, **SHORT), f"Mine.stop returned {words}", "Return True")  # noqa: B023
    expected = DECODER.generate(IDS, **SHORT).tokens
    for said in (True, 0, torch.tensor(True), np.bool_(False)):
        assert build(length=Mine(said=said)).generate(IDS, **SHORT).tokens == expected
    for later, words in ((0, "max_tokens=0"), (1.5, "max_tokens is the float 1.5")):
        decoder = build(length=(rule := Mine()))
        rounds = decoder.steps(IDS, **SHORT)
        next(rounds)
        rule.max_tokens = later
        refused(lambda: list(rounds), "length: Mine", words)  # noqa: B023


def test_states_that_no_file_can_hold(tmp_path: Path) -> None:
    """Each is found before anything is written."""
    states: list[tuple[Any, str]] = [
        ({"a": 1}, "its state is a dict"),
        (None, "its state is None"),
        (State({"a": [1]}, {}), "tensors['a'] is a list of 1 int"),  # type: ignore[dict-item]
        (State({}, {"a": torch.ones(2)}), "cannot be written as JSON"),
        (State({}, {"a": {1, 2}}), "cannot be written as JSON"),
        (State({}, {"a": [{"b": {7: 8}}]}), "has the key 7, which JSON would give back as a str"),
    ]
    for state, words in states:
        decoder = build(sources=[Pairs(state=state)])
        refused(lambda: decoder.save(tmp_path / "state"), "source pairs: ", words)  # noqa: B023
    assert list(tmp_path.iterdir()) == []
    decoder = build(sources=[Pairs(state=State({"a": torch.ones(2)}, {"b": [1, "c"]}))])
    decoder.save(tmp_path / "state")


def test_folders_of_states() -> None:
    for folder in (5, True, "", b"out"):
        refused(lambda: build(state=folder), "state is the", "'out/state'")  # noqa: B023
        refused(lambda: DECODER.save(folder), "folder is the", "'out/state'")  # type: ignore[arg-type]  # noqa: B023


def test_observers_are_looked_at_before_the_first_round() -> None:
    decoder = build()
    for observers, words in (
        (None, "observers is None"),
        ([print], "observe(round)"),
        ([Observer], "the class"),
    ):
        decoder.observers = observers  # type: ignore[assignment]
        for call in (decoder.generate, decoder.steps):
            refused(lambda call=call: call(IDS, **SHORT), words)  # type: ignore[misc]


class Observer:
    def observe(self, round: Any) -> None: ...


def test_an_adapter_belongs_to_its_decoder_from_the_beginning() -> None:
    with pytest.raises(AttributeError):
        build().adapter = draftlib.OnlineAdapter()  # type: ignore[misc]
    for adapter in (None, draftlib.OnlineAdapter, "online"):
        refused(lambda: draftlib.HeadTraining(adapter), "HeadTraining: adapter is", "OnlineAdapter(")  # type: ignore[arg-type]  # noqa: B023


def test_a_rule_may_be_written_in_any_usual_way() -> None:
    @dataclass
    class Field(Length):
        max_tokens: int

        def stop(self, drafted: Any) -> bool:
            return len(drafted) > 1

    class Property(Field):
        @property
        def max_tokens(self) -> int:  # type: ignore[override]
            return 3

        def __init__(self) -> None: ...

    expected = DECODER.generate(IDS, **SHORT).tokens
    for rule in (Field(4), Property(), Mine(2)):
        out = build(length=rule).generate(IDS, **SHORT)
        assert out.tokens == expected and out.stats.drafted > 0


def test_settings_that_are_accepted() -> None:
    assert build(length=3).length == build(length=np.int64(3)).length == FixedLength(3)  # type: ignore[arg-type]
    for spelled in ("path-revealed", "path revealed", "Path_Revealed"):
        assert build(verify=spelled).verify == "path_revealed"  # type: ignore[arg-type]
    assert build(verify="point mass").verify == "point_mass"  # type: ignore[arg-type]


def test_what_the_decoder_consists_of_may_be_exchanged_between_rounds() -> None:
    """In the middle of an answer; the text is the same."""
    decoder, expected = build(), DECODER.generate_target_only(IDS, max_new_tokens=24).tokens
    tokens: list[int] = []
    parts = [{"cache": NGramCache()}, {"length": 1}, {"length": Confidence(0.01, 7)}, {"cache": None}]
    for number, step in enumerate(decoder.steps(IDS, max_new_tokens=24)):
        tokens += step.tokens
        for name, value in parts[number % len(parts)].items():
            setattr(decoder, name, value)
    assert tuple(tokens) == expected
    other = VocabularyMap.from_bytes([b"a"], [b"a", b"aa"])
    foreign = NGramCache()
    foreign.bind(other)
    refused(lambda: setattr(decoder, "cache", foreign), "another pair of vocabularies")
    with pytest.raises(AttributeError):
        decoder.target = DRAFT  # type: ignore[misc]


def test_a_drafter_that_is_larger_than_its_target(caplog: pytest.LogCaptureFixture) -> None:
    large = tiny_llama(2, num_hidden_layers=4).eval()
    with caplog.at_level(logging.WARNING):
        build(large, DRAFT)
        assert not caplog.records
        build(DRAFT, large)
    assert "Are they swapped?" in caplog.text


# --- lengths, caches


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedLength("3"), ["FixedLength: max_tokens is the str '3'"]),  # type: ignore[arg-type]
        (lambda: FixedLength(2.0), ["FixedLength: max_tokens is the float 2.0"]),  # type: ignore[arg-type]
        (lambda: FixedLength(True), ["FixedLength: max_tokens is the bool True"]),
        (lambda: FixedLength(0), ["max_tokens=0"]),
        (lambda: Confidence("0.4"), ["Confidence: threshold is the str '0.4'"]),  # type: ignore[arg-type]
        (lambda: Confidence(None), ["Confidence: threshold is None"]),  # type: ignore[arg-type]
        (lambda: Confidence(True), ["Confidence: threshold is the bool True"]),
        (lambda: Confidence(8, 4), ["threshold=8.0", "between 0"]),
        (lambda: Confidence(float("nan")), ["threshold=nan"]),
        (lambda: Confidence(0.4, 0.5), ["Confidence: max_tokens is the float 0.5"]),  # type: ignore[arg-type]
        (lambda: NGramCache("50"), ["max_entries is the str '50'"]),  # type: ignore[arg-type]
        (lambda: NGramCache(True), ["max_entries is the bool True"]),
        (lambda: NGramCache(0), ["max_entries=0"]),
        (lambda: NGramCache(policy="lur"), ["policy='lur'", "'lru'?"]),  # type: ignore[arg-type]
        (lambda: NGramCache(policy=None), ["policy=None", "'lfu' or 'lru'"]),  # type: ignore[arg-type]
        (lambda: NGramCache(max_length=1), ["max_length=1"]),
        (lambda: NGramCache().bind(DECODER), ["not to a SpeculativeDecoder", "vocabulary"]),  # type: ignore[arg-type]
        (lambda: NGramCache().warm_start(TARGET), ["not to a Llama"]),  # type: ignore[arg-type]
        (lambda: NGramCache().merge({}), ["not a dict"]),  # type: ignore[arg-type]
    ],
)
def test_lengths_and_caches(make: Callable[[], Any], words: list[str]) -> None:
    refused(make, *words)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    assert type(FixedLength(np.int64(3)).max_tokens) is int  # type: ignore[arg-type]
    assert Confidence(np.float64(0.25), torch.tensor(4)) == Confidence(0.25, 4)  # type: ignore[arg-type]
    assert type(NGramCache(np.int64(3)).max_entries) is int  # type: ignore[arg-type]
    assert NGramCache(policy="LRU").policy == "lru"  # type: ignore[arg-type]
    assert (Confidence().threshold, Confidence().max_tokens) == (0.4, 8)


# --- what is printed


def test_the_decoder_shows_what_it_is() -> None:
    shown = repr(build(cache=NGramCache(50), length=3))
    for part in (
        "Llama of",
        "100.0% of the drafter's",
        "0 of at most 50 n-grams",
        "FixedLength(max_tokens=3)",
    ):
        assert part in shown
    assert "verify='exact'" in shown and len(shown) < 400


def test_an_answer_shows_itself() -> None:
    out = DECODER.generate(IDS, max_new_tokens=40)
    assert str(out) == out.text
    assert repr(out).startswith(f"<Output: {len(out.tokens)} tokens, ") and len(repr(out)) < 300


def test_the_target_alone_has_no_acceptance_rate() -> None:
    shown = str(DECODER.generate_target_only(IDS, max_new_tokens=6).stats)
    assert shown.startswith("6 tokens in 6 target calls, nothing drafted\n")
    assert "acceptance" not in shown and "speed-up" not in shown
    assert "acceptance" in str(build(length=3).generate(IDS, max_new_tokens=6).stats)


def test_errors_at_the_top() -> None:
    for name in ("DraftError", "FileError", "ModelError", "QlibError"):
        assert issubclass(getattr(draftlib, name), draftlib.QlibError) and name in draftlib.__all__
