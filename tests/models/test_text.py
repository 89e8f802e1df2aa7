"""Decoder-only models against themselves: cache, truncation, batches, stages, groups, saving, training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.text import TextModel
from qlib.models.text_config import TextGeneration
from qlib.models.text_structure import TextBatch
from qlib.models.tiny import tiny_gemma3, tiny_llama, write_folder

LENGTH = 17
MODELS: dict[str, Callable[[], TextModel]] = {
    "llama": lambda: tiny_llama(seed=1),
    "llama, one key head": lambda: tiny_llama(seed=1, kv_heads=1, tie_word_embeddings=False),
    "qwen3": lambda: tiny_llama(seed=1, model_type="qwen3", attention_bias=True),
    "gemma3": lambda: tiny_gemma3(seed=1, window=4),
    "gemma3, untied": lambda: tiny_gemma3(seed=1, window=1, tie_word_embeddings=False),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> TextModel:
    return MODELS[request.param]().double()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("splits", [[1] * LENGTH, [9, *[1] * 8], [5, 4, 1, 7], [16, 1], [2, 2, 13]], ids=str)
def test_cached_decoding_equals_one_pass(model: TextModel, tokens: Tensor, splits: list[int]) -> None:
    cache = model.start(rows=3, capacity=LENGTH)
    parts = [model.decode(part, cache) for part in tokens.split(splits, dim=1)]
    assert cache.length == LENGTH
    close(model.logits(torch.cat(parts, dim=1)), model(tokens))


@pytest.mark.parametrize("kept", [0, 3, 4, 9])
def test_truncated_cache_forgets_what_was_written(model: TextModel, tokens: Tensor, kept: int) -> None:
    cache = model.start(rows=3)
    model.decode(tokens[:, :kept], cache) if kept else None
    model.decode(tokens.flip(0)[:, : LENGTH - kept], cache)  # wrong tokens, to be forgotten
    cache.truncate(kept)
    close(model.logits(model.decode(tokens[:, kept:], cache)), model(tokens)[:, kept:])


def test_dropped_row_gives_its_place_to_the_last(model: TextModel, tokens: Tensor) -> None:
    cache = model.start(rows=3)
    model.decode(tokens[:, :7], cache)
    cache.drop(0)  # rows are now 2, 1
    close(model.logits(model.decode(tokens[[2, 1], 7:], cache)), model(tokens)[[2, 1], 7:])


def test_rows_of_a_batch_do_not_see_each_other(model: TextModel, tokens: Tensor) -> None:
    close(model(tokens)[1:2], model(tokens[1:2]))


def test_tokens_do_not_see_the_future(model: TextModel, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 10] += 1
    torch.testing.assert_close(model(tokens)[:, :10], model(changed)[:, :10])
    assert not torch.equal(model(tokens)[:, 10:], model(changed)[:, 10:])


def test_stages_reproduce_the_forward_pass(model: TextModel, tokens: Tensor) -> None:
    lengths = torch.tensor([[LENGTH], [5], [1]])
    batch = TextBatch(tokens, torch.arange(LENGTH) < lengths)
    (stage,) = model.stages()
    hidden = stage.enter(batch)
    for name in stage.blocks:
        hidden = stage.run(model.get_submodule(name), hidden, batch)
    assert stage.leave(hidden, batch) is batch
    close(model.logits(model.model.norm(hidden)), model(tokens))
    assert stage.valid(batch, "hidden").sum() == LENGTH + 5 + 1


def test_groups_list_every_linear_once_and_share_their_input(model: TextModel, tokens: Tensor) -> None:
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    listed = [layer for group in model.groups() for layer in group.layers]
    tied_head = {"lm_head"} if model.tied else set()
    assert sorted(listed) == sorted(linears - tied_head)
    model = copy.deepcopy(model)
    seen: dict[str, Tensor] = {}
    for name in listed:
        model.get_submodule(name).register_forward_pre_hook(
            lambda m, x, name=name: seen.__setitem__(name, x[0])
        )
    model(tokens)
    for group in model.groups():
        first, *others = (seen[name] for name in group.layers)
        assert all(torch.equal(first, other) for other in others)
        assert (group.before is None) == bool(group.reason)
        assert group.before is None or model.get_submodule(group.before)
        assert group.rows is None or len(group.rows) == first.shape[-1]
        assert not group.shift
    inputs = [seen[group.layers[0]] for group in model.groups()]
    alike = [
        (i, j)
        for i, a in enumerate(inputs)
        for j, b in enumerate(inputs[:i])
        if a.shape == b.shape and torch.equal(a, b)
    ]
    assert not alike, "two groups that read the same tensor should be one"


def test_saved_folder_gives_the_same_model(model: TextModel, tokens: Tensor, tmp_path: Path) -> None:
    model = copy.deepcopy(model)
    model.chat_template = "Be brief\n{{ messages[0].content }}"
    again = load_model(write_folder(model, tmp_path), dtype=torch.float64)
    assert isinstance(again, TextModel) and type(again) is type(model)
    close(again(tokens), model(tokens))
    assert again.config == model.config and again.generation == model.generation
    assert again.chat_template == model.chat_template
    assert again.chat is not None and again.chat.prompt("the heart") == "Be brief\nthe heart"


def test_half_precision_attends_in_float32_and_stays_close(model: TextModel, tokens: Tensor) -> None:
    half = copy.deepcopy(model).bfloat16()
    cache = half.start(rows=3, capacity=LENGTH)
    assert cache.keys_values.dtype == torch.float32
    found = half.logits(torch.cat([half.decode(part, cache) for part in tokens.split([9, 1, 7], 1)], 1))
    assert found.dtype == torch.bfloat16
    expected = model(tokens)
    assert (found - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_flow_without_a_cache_also_after_inference(name: str, tokens: Tensor) -> None:
    model = MODELS[name]()  # a new one, without tables
    with torch.inference_mode():
        model.decode(tokens, model.start(rows=3))  # makes the rotary tables
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(tokens).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_positions_beyond_the_context_are_refused(model: TextModel) -> None:
    cache = model.start()
    assert cache.capacity == 64
    model.decode(torch.zeros(1, 60, dtype=torch.long), cache)
    with pytest.raises(ModelError, match="65 tokens are more than the model's 64 positions"):
        model.decode(torch.zeros(1, 5, dtype=torch.long), cache)
    with pytest.raises(ModelError, match="holds 4 positions and 5 are needed"):
        model.decode(torch.zeros(1, 5, dtype=torch.long), model.start(capacity=4))


def test_scores_name_the_queries_and_keys_of_every_layer(model: TextModel) -> None:
    found = {layer for group in model.groups() for layer in group.scores}
    count = len(model.model.layers)
    assert found == {f"model.layers.{i}.self_attn.{name}_proj" for i in range(count) for name in "qk"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, TextGeneration()),
        ({"bos_token_id": 0, "eos_token_id": 2}, TextGeneration(0, (2,))),
        ({"eos_token_id": [2, 3], "pad_token_id": 0}, TextGeneration(None, (2, 3), 0)),
    ],
)
def test_token_ids_by_role(values: dict[str, object], expected: TextGeneration) -> None:
    assert TextGeneration.from_dict(values) == expected
    assert expected.to_dict() == values


def test_older_folders_keep_the_chat_template_in_the_tokenizer_settings(tmp_path: Path) -> None:
    folder = write_folder(tiny_llama(), tmp_path)
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"chat_template": "Be kind, {{ messages[0].role }}"}')
    model = load_model(folder)
    assert isinstance(model, TextModel) and model.chat is not None
    assert model.chat.prompt("a") == "Be kind, user" and model.chat.where == str(settings)
    several = [{"name": "rag", "template": "y"}, {"name": "default", "template": "x"}]
    for content in (several, {each["name"]: each["template"] for each in several}):
        settings.write_text(json.dumps({"chat_template": content}))
        model = load_model(folder)
        assert isinstance(model, TextModel) and model.chat_template == "x"
    (folder / "chat_template.jinja").write_text("z")  # a file of its own comes first
    model = load_model(folder)
    assert isinstance(model, TextModel) and model.chat_template == "z"


def test_chat_templates_that_are_none(tmp_path: Path) -> None:
    folder = write_folder(tiny_llama(), tmp_path)
    settings = folder / "tokenizer_config.json"
    for content, words in [
        ([{"name": "rag", "template": "y"}], r"tokenizer_config\.json: .*\(rag\) none is called 'default'"),
        ([], "none is called 'default'"),
        (7, "chat_template is the int 7, not text"),
        ({"default": ["x"]}, "chat_template is a list of 1 str, not text"),
    ]:
        settings.write_text(json.dumps({"chat_template": content}))
        with pytest.raises(ModelError, match=words):
            load_model(folder)
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        load_model(folder)
