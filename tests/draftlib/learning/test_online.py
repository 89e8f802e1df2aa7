"""Learning while decoding, on miniatures: it helps, it is undone, it is kept exactly, and the text stays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import PROMPTS, answer, decoder, draft, learner, target, weights

import draftlib
from draftlib import CostAware, FixedLength, NGramCache, OnlineAdapter, SpeculativeDecoder
from draftlib.learning import online
from draftlib.learning.lora import LoRALinear, add_lora, folded_copy
from draftlib.learning.train import Loss
from draftlib.metrics import Stats
from qlib.errors import DraftError
from qlib.models.tiny import tiny_llama


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_drafts_is_a_copy_of_what_learns(rank: int | None, dtype: torch.dtype) -> None:
    """Rounding the drafter to what packs best leaves the weights that learn as they are."""
    adapter = learner(lora_rank=rank)
    one = SpeculativeDecoder(target(), draft().to(dtype), adapter=adapter, length=FixedLength(4))
    before = {name: each.clone() for name, each in adapter._trainee.model.state_dict().items()}
    adapter._trainee.packed()
    assert all(torch.equal(each, before[name]) for name, each in adapter._trainee.model.state_dict().items())
    assert all(each.dtype == torch.float32 for each in adapter._trainee.model.parameters())
    answer(one, 2)
    assert adapter.updates > 3 and adapter.dropped == 0


def test_the_drafter_becomes_better() -> None:
    def accepted() -> float:
        adapter.frozen = True
        found = Stats()
        for prompt in PROMPTS:
            found += one.generate(prompt, max_new_tokens=24).stats
        adapter.frozen = False
        return found.accepted_per_round

    adapter = learner()
    one = decoder(adapter)
    first = accepted()
    answer(one, 4)
    before, after = adapter.losses[0][0], adapter.losses[-1][1]
    assert adapter.kept > 5 and after < 0.9 * before
    assert accepted() > first + 0.2  # of 4


@pytest.mark.parametrize("positions", [24, 64, 128])
@pytest.mark.parametrize("loss", ["acceptance", "hybrid"])
def test_a_drafter_with_fewer_positions_than_the_text(positions: int, loss: Loss) -> None:
    """Of a text that is longer than the drafter reads, the end is learned."""
    target = tiny_llama(5, max_position_embeddings=256)
    drafter = tiny_llama(1, max_position_embeddings=positions)
    adapter = learner(loss=loss, update_tokens=100)
    one = SpeculativeDecoder(target, drafter, adapter=adapter, length=4)
    for prompt in PROMPTS[:4]:
        alone = one.generate_target_only(prompt * 8, max_new_tokens=100).tokens
        assert one.generate(prompt * 8, max_new_tokens=100).tokens == alone
    assert adapter.updates and all(len(each.tokens) <= positions for each in adapter.buffer.examples)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"background": True},
        {"lora_rank": 4},
        {"loss": "hybrid"},
        {"loss": "hybrid", "ngram_weight": "probability"},
        {"update_tokens": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_stays_while_the_drafter_learns(settings: dict[str, Any], temperature: float) -> None:
    adapter = learner(**settings)
    one = decoder(adapter, cache=NGramCache(max_entries=5), sources=("suffix", "tail"), length=CostAware())
    for number, prompt in enumerate(PROMPTS * 2):
        options: draftlib.Options = {"max_new_tokens": 24, "temperature": temperature, "seed": number}
        if number % 5 == 4:
            adapter.switch(f"adapter {number % 2}")
        assert one.generate(prompt, **options).tokens == one.generate_target_only(prompt, **options).tokens
    adapter.wait()
    assert adapter.updates > 3 and adapter.dropped == 0


def test_an_update_that_makes_it_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: Iterator[float] = iter([0.5, 0.6, 0.7, 0.8] * 50)
    monkeypatch.setattr(OnlineAdapter, "_judge", lambda self, held_out: next(losses))
    adapter = learner()
    one = decoder(adapter)
    packed, begin = one.draft, weights(adapter)
    adapter.buffer.held_out.append(None)  # type: ignore[arg-type]
    one.generate(PROMPTS[0], max_new_tokens=24)
    one.generate(PROMPTS[1], max_new_tokens=24)
    assert (adapter.updates, adapter.kept, adapter.undone) == (1, 0, 1)
    assert one.draft is packed
    assert all(torch.equal(a, b) for a, b in zip(begin, weights(adapter), strict=True))
    assert adapter._rate == 1  # and the learning rate is smaller


@pytest.mark.parametrize("rank", [None, 2])
def test_it_learns_in_whatever_mode_the_caller_is(tmp_path: Path, rank: int | None) -> None:
    usual, adapter, again = learner(lora_rank=rank), learner(lora_rank=rank), learner(lora_rank=rank)
    answer(decoder(usual), 2)
    with torch.inference_mode():
        one = decoder(adapter)
        answer(one)
        adapter.switch("other")
        adapter.switch("default")
        one.save(tmp_path / "state")
        answer(decoder(again, state=tmp_path / "state"))
        again.switch("other")
        answer(one)
    assert usual.updates == adapter.updates > 4 and again.updates > 4
    assert all(torch.equal(a, b) for a, b in zip(weights(usual), weights(adapter), strict=True))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("step", [3, 13])
def test_an_update_that_is_interrupted_leaves_what_was_judged(
    monkeypatch: pytest.MonkeyPatch, step: int, background: bool
) -> None:
    """In step 3 nothing of the update was judged, in step 13 the first of three learning rates was."""
    adapter = learner(background=background, update_every=8)
    one = decoder(adapter)
    for prompt in PROMPTS[:7]:
        one.generate(prompt, max_new_tokens=24)
    begin, judged = adapter._trainee.weights.copy(), []
    steps, train, train_step = count(1), OnlineAdapter._train, online.train_step

    def remember(self: OnlineAdapter, *arguments: Any) -> bool:
        learned = train(self, *arguments)
        judged.append(self._trainee.weights.copy())
        return learned

    def interrupted(*arguments: Any) -> bool:
        if next(steps) == step:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(OnlineAdapter, "_train", remember)
    monkeypatch.setattr(online, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.generate(PROMPTS[7], max_new_tokens=24)
        adapter.wait()
    expected = judged[0] if judged else begin
    for part in ("trained", "first", "second"):
        pairs = zip(getattr(expected, part), getattr(adapter._trainee.weights, part), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert adapter._trainee.weights.steps == expected.steps == 8 * (step > 8)
    assert all(torch.equal(a, b) for a, b in zip(expected.trained, weights(adapter), strict=True))
    answer(one)  # and it goes on
    adapter.wait()
    assert adapter.updates == 2


def test_without_held_out_examples_the_learning_rate_stays() -> None:
    """Nothing says then which of the three is the best: the last one tried would always be kept."""
    adapter = learner()
    one = decoder(adapter)
    begin = weights(adapter)
    for prompt in PROMPTS[:2]:
        one.generate(prompt, max_new_tokens=24)
    assert not adapter.buffer.held_out and (adapter.updates, adapter.kept) == (1, 1)
    assert adapter._rate == 0 and adapter._trainee.weights.steps == online.STEPS
    assert not torch.equal(begin[0], weights(adapter)[0]) and adapter.losses == []


def test_a_loss_that_is_no_number_drops_the_update(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        online.Teacher, "__call__", lambda self, model, examples: model.lm_head.weight.sum() * math.nan
    )
    adapter = learner()
    one = decoder(adapter)
    begin = weights(adapter)
    answer(one)
    assert adapter.dropped >= 1 and adapter.kept == 0 and "not a number" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(begin, weights(adapter), strict=True))


def test_learning_takes_no_more_than_its_share() -> None:
    adapter = learner(share=1e-9)
    answer(decoder(adapter))
    assert adapter.updates <= 1


def test_named_adapters_come_back_as_they_were() -> None:
    adapter = learner()
    one = decoder(adapter)
    begin = weights(adapter)
    answer(one)
    learned = weights(adapter)
    adapter.switch("code")
    assert all(torch.equal(a, b) for a, b in zip(begin, weights(adapter), strict=True))
    adapter.switch("default")
    assert all(torch.equal(a, b) for a, b in zip(learned, weights(adapter), strict=True))
    assert adapter.names == ("code", "default") and not torch.equal(begin[0], learned[0])
    with pytest.raises(DraftError, match="name"):
        adapter.switch("")


# --- state


@pytest.mark.parametrize("rank", [None, 4])
def test_a_state_goes_on_exactly(tmp_path: Path, rank: int | None) -> None:
    adapter = learner(lora_rank=rank)
    one = decoder(adapter)
    answer(one)
    adapter.switch("other")
    adapter.switch("default")
    one.save(tmp_path / "state")
    answer(one)
    again = learner(lora_rank=rank)
    two = decoder(again, state=tmp_path / "state")
    assert again.names == ("default", "other")
    answer(two)
    assert again.updates == adapter.updates > 4
    assert all(torch.equal(a, b) for a, b in zip(weights(adapter), weights(again), strict=True))
    assert again.losses == adapter.losses


def test_sources_n_grams_and_the_length_rule_are_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sources": ("answers",), "length": CostAware()}
    one = decoder(**settings)
    said = one.generate(PROMPTS[0], max_new_tokens=24)
    one.save(tmp_path / "state")
    two = decoder(**settings, state=tmp_path / "state")
    guess = two.sources[0].guess([*said.tokens[:5]])
    assert guess.tokens == said.tokens[5 : 5 + len(guess.tokens)] and len(guess.tokens) > 10
    for name, table in one.length.state().tensors.items():  # type: ignore[attr-defined]
        assert torch.equal(table, two.length.state().tensors[name])  # type: ignore[attr-defined]
    assert two.cache is not None and one.cache is not None and len(two.cache) == len(one.cache)


def refused(*words: str, **settings: Any) -> None:
    with pytest.raises(DraftError) as caught:
        decoder(**settings)
    for word in words:
        assert word in str(caught.value)


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    one = decoder(learner(), sources=("answers",))
    answer(one)
    one.save(folder)
    refused("OnlineAdapter()", "frozen", state=folder)
    refused("lora_rank=None", adapter=learner(lora_rank=4), state=folder)
    with pytest.raises(DraftError, match="another draft model"):
        SpeculativeDecoder(target(), draft(2), adapter=learner(), state=folder)
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**content, "version": 99}))
    refused("version 99", adapter=learner(), state=folder)
    (folder / "state.json").write_text(json.dumps({**content, "parts": {}}))
    refused("state.json", "sha256", adapter=learner(), state=folder)
    (folder / "state.json").write_text(json.dumps(content))
    tensors = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    refused("state.safetensors", "damaged", adapter=learner(), state=folder)
    refused("no state", adapter=learner(), state=tmp_path / "not there")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DraftError, match=r"letter\.txt"):
        one.save(tmp_path / "mine")


def test_a_failure_at_any_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    adapter = learner()
    one = decoder(adapter)
    one.save(folder)
    old = adapter.updates
    answer(one)
    calls = {"count": 0, "fail": -1}

    def breaking(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls["count"] += 1
            if calls["count"] == calls["fail"]:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return call

    for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (Path, "rename"), (Path, "replace")):
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    monkeypatch.setattr("os.fsync", breaking(__import__("os").fsync))
    for fail in range(1, 100):
        calls.update(count=0, fail=fail)
        try:
            one.save(folder)
        except draftlib.QlibError:
            calls["fail"] = -1
            again = learner()
            decoder(again, state=folder)
            assert again.updates in (old, adapter.updates)
        else:
            break
    assert fail > 5
    calls["fail"] = -1
    again = learner()
    decoder(again, state=folder)
    assert again.updates == adapter.updates > old


# --- what cannot be


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"share": 0}, "frozen"),
        ({"update_every": 0}, "update_every"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"loss": "hybird"}, "Did you mean"),
        ({"background": 1}, "background"),
    ],
)
def test_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DraftError, match=words):
        OnlineAdapter(**settings)


def test_an_adapter_without_a_decoder_has_nothing_to_switch() -> None:
    with pytest.raises(DraftError, match="no decoder"):
        learner().switch("code")


def test_drafters_that_cannot_learn() -> None:
    with pytest.raises(DraftError, match="no draft model"):
        SpeculativeDecoder(target(), adapter=learner())
    with pytest.raises(DraftError, match="packed"):
        SpeculativeDecoder(target(), draft().packed_copy(), adapter=learner())
    adapter = learner()
    decoder(adapter)
    with pytest.raises(DraftError, match="another decoder"):
        decoder(adapter)
    with pytest.raises(DraftError, match=r"lora_rank=999: layer model\.layers\.0.*inputs"):
        decoder(learner(lora_rank=999))


# --- LoRA


def test_an_adapter_begins_as_no_change_and_folds() -> None:
    model, tokens = draft().double(), torch.arange(3, 12)[None]
    before = model(tokens).detach()
    trained = add_lora(model, 3)
    assert torch.equal(model(tokens), before)
    assert all(each.requires_grad for each in trained) and not model.lm_head.weight.requires_grad
    with torch.no_grad():
        for each in trained:
            each += 0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0))
    changed = model(tokens).detach()
    plain = folded_copy(model)
    assert not any(isinstance(each, LoRALinear) for each in plain.modules())
    assert float((changed - before).abs().max()) > 1e-3
    assert torch.allclose(plain(tokens), changed, atol=1e-5)
