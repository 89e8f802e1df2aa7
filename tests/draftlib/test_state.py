"""What a decoder has learned, on disk: each part goes on as if nothing had happened, or is refused."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import PROMPTS, answer, decoder, draft, learner, target, weights
from storage_cases import ROUNDS

import draftlib
from draftlib import AcceptanceHead, FixedLength, NGramCache, SpeculativeDecoder, state_folder
from draftlib.drafting.sources import ALL
from qlib.errors import DraftError, QlibError
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.text_config import TextGeneration
from qlib.models.tiny import tiny_byte_tokenizer

NAMES = ["code", "buffer", "parts", "a name with spaces, and ümlauts"]
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "all weights": lambda: {"adapter": learner()},
    "low rank": lambda: {"adapter": learner(lora_rank=2)},
    "in the background": lambda: {"adapter": learner(background=True)},
    "long answers": lambda: {"adapter": learner(update_every=1000, update_tokens=8)},
    "hybrid loss": lambda: {"adapter": learner(loss="hybrid")},
    "acceptance head": lambda: {"length": AcceptanceHead(train_every=1)},
    # Without "recycle": what it learns depends on who proposed, and so on measured times.
    "sources": lambda: {"sources": ("answers", "suffix", "tail"), "length": FixedLength(2)},
    "few n-grams": lambda: {"cache": NGramCache(max_entries=3)},
}


def learned(one: SpeculativeDecoder) -> dict[str, Any]:
    """All that a decoder has learned, apart from how long it took; tensors by their bits."""
    parts: dict[str, Any] = {f"source {each.name}": each.state() for each in one.sources}
    if one.adapter is not None:
        parts["adapter"] = one.adapter.state()
    if isinstance(one.length, AcceptanceHead):
        parts["length"] = one.length.state()
    assert one.cache is not None
    found: dict[str, Any] = {"n-grams": (one.cache._rows(), one.cache._clock)}
    for name, (tensors, values) in parts.items():
        found |= {f"{name}/{key}": each.numpy().tobytes() for key, each in tensors.items()}
        counts = {key: value for key, value in values.get("counts", {}).items() if key != "seconds"}
        found[name] = {**values, "decoding": 0, "counts": counts}
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=[*SETTINGS])
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_loaded_goes_on_as_if_it_had_never_been_saved(
    settings: Callable[[], dict[str, Any]], before: int, tmp_path: Path
) -> None:
    one = decoder(**settings())
    for prompt in PROMPTS[:before]:
        one.generate(prompt, max_new_tokens=24)
    one.save(tmp_path / "state")
    two = decoder(**settings(), state=tmp_path / "state")
    assert learned(two) == learned(one)
    for each in (one, two):
        for prompt in PROMPTS:
            each.generate(prompt, max_new_tokens=24)
            if isinstance(each.adapter, draftlib.OnlineAdapter):
                each.adapter.wait()  # in the background it would depend on when it ends
    assert learned(two) == learned(one)


def test_an_adapter_may_have_any_name(tmp_path: Path) -> None:
    """Also one that the saved state uses for something else."""
    adapter = learner()
    one = decoder(adapter)
    for name in NAMES:
        adapter.switch(name)
    answer(one)
    one.save(tmp_path / "state")
    again = learner()
    decoder(again, state=tmp_path / "state")
    assert again.names == adapter.names == tuple(sorted(["default", *NAMES])) and again.name == NAMES[-1]
    assert all(torch.equal(a, b) for a, b in zip(weights(adapter), weights(again), strict=True))


def test_what_the_decoder_does_not_have_is_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the next save drops it: a user who goes on with other options is told before that."""
    folder = tmp_path / "state"
    settings = {"length": AcceptanceHead(train_every=1), "sources": ("answers",)}
    one = decoder(**settings)
    answer(one)
    one.save(folder)
    decoder(**settings, state=folder)
    assert "left out" not in caplog.text
    two = decoder(length=FixedLength(2), sources=(), state=folder)
    for part in ("length AcceptanceHead", "source answers"):
        assert f"{folder}: the decoder has no {part}; what that had learned is left out" in caplog.text
    assert caplog.text.count("the next save drops it") == 2
    two.save(folder)
    assert state_folder.look(folder) == {}


def test_a_rule_with_half_of_the_two_calls_is_not_saved(tmp_path: Path) -> None:
    """`state` may also be an attribute that has nothing to do with saving."""

    class Counts(FixedLength):
        state = 0

    decoder(length=Counts(2)).save(tmp_path / "state")
    assert state_folder.look(tmp_path / "state") == {}


# --- damage


def test_one_flipped_byte_of_any_file_is_refused_by_name(tmp_path: Path) -> None:
    folder, dice = tmp_path / "state", random.Random(0)
    one = decoder(learner(), sources=ALL)
    answer(one)
    one.save(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [path.name for path in files] == [
        "ngrams.json", "ngrams.safetensors", "state.json", "state.safetensors",
    ]  # fmt: skip
    for path, number in itertools.product(files, range(ROUNDS or 6)):
        content = path.read_bytes()
        at = dice.randrange(min(len(content), [64, len(content)][number % 2]))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
        with pytest.raises(DraftError, match=path.name):
            decoder(learner(), sources=ALL, state=folder)
        path.write_bytes(content)
    decoder(learner(), sources=ALL, state=folder)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "ngrams"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    decoder(learner()).save(tmp_path / "state")
    (tmp_path / "state" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(DraftError, match=name):
        decoder(learner(), state=tmp_path / "state")


def test_another_pair_is_refused(tmp_path: Path) -> None:
    """The vocabularies are others, or only the drafter's weights are."""
    decoder(learner()).save(tmp_path / "state")
    tokenizer = tiny_byte_tokenizer()
    config = LlamaConfig(**{**vars(draft().config), "vocab_size": tokenizer.vocab_size})
    reader = Llama(config, TextGeneration(eos=(tokenizer.token_id("</s>"),)), tokenizer)
    with pytest.raises(DraftError, match="another pair of vocabularies"):
        SpeculativeDecoder(target(), reader, adapter=learner(), state=tmp_path / "state")
    for other in (draft(2), draft().bfloat16()):
        with pytest.raises(DraftError, match="another draft model"):
            SpeculativeDecoder(target(), other, adapter=learner(), state=tmp_path / "state")


# --- killed while saving


def save_for_ever(folder: Path, numbers: Any) -> None:
    """Save one state after another; report the number of each that is complete."""
    torch.set_num_threads(1)
    adapter = learner()
    one = decoder(adapter, sources=ALL)
    for number in itertools.count(1):
        adapter.updates = number  # what tells the states apart
        one.save(folder)
        numbers.value = number


@pytest.mark.slow
def test_killed_at_any_moment_the_last_complete_state_loads(tmp_path: Path) -> None:
    folder, dice = tmp_path / "state", random.Random(0)
    context = multiprocessing.get_context("spawn")
    for _ in range(ROUNDS or 4):
        complete = context.Value("i", 0)
        child = context.Process(target=save_for_ever, args=(folder, complete))
        child.start()
        while complete.value < 2:
            assert child.is_alive()
            time.sleep(0.01)
        time.sleep(dice.random() * 0.2)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        adapter = learner()
        decoder(adapter, sources=ALL, state=folder)
        assert adapter.updates in (complete.value, complete.value + 1)


def test_the_next_save_after_a_failed_one_succeeds(tmp_path: Path) -> None:
    """Each fsync, rename and write of a save fails once; nothing is left over."""
    folder, adapter = tmp_path / "in" / "state", learner()
    one = decoder(adapter, sources=ALL)
    one.save(folder)
    for fail in itertools.count(1):
        adapter.updates = fail
        calls = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"),
                                (Path, "write_bytes"), (Path, "write_text")):  # fmt: skip
                patch.setattr(owner, name, fails_once(getattr(owner, name), calls, fail))
            try:
                one.save(folder)
            except QlibError as error:
                assert "No space left" in str(error) and str(folder.parent) in str(error)
                raised = True
            else:
                raised = False
        again = learner()
        decoder(again, sources=ALL, state=folder)
        assert again.updates in ((fail - 1, fail) if raised else (fail,))
        one.save(folder)
        assert [path.name for path in folder.parent.iterdir()] == ["state"]
        if next(calls) <= fail:
            break
    assert fail > 6


def fails_once(real: Callable[..., Any], calls: Any, fail: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == fail:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    return call
