"""Whisper against transformers on miniatures, and against itself: cache, truncation, dropped rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.load import load_model
from qlib.models.speech import SpeechBatch
from qlib.models.tiny import tiny_whisper, write_folder
from qlib.models.whisper import Whisper, WhisperConfig, WhisperGeneration

FRAMES = 20


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=1, frames=FRAMES)


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, 80, 2 * FRAMES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("width", "heads", "layers"), [(16, 2, 2), (24, 4, 1)])
def test_logits_equal_those_of_transformers(
    tmp_path: Path,
    features: Tensor,
    tokens: Tensor,
    dtype: torch.dtype,
    tolerance: float,
    width: int,
    heads: int,
    layers: int,
) -> None:
    from transformers import WhisperForConditionalGeneration

    folder = write_folder(tiny_whisper(3, width, layers, heads, frames=FRAMES), tmp_path)
    ours = load_model(folder, dtype=dtype)
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        expected = theirs(input_features=features.to(dtype), decoder_input_ids=tokens).logits
        found = ours(features.to(dtype), tokens)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < tolerance


@pytest.mark.parametrize("split", [1, 4, 8])
def test_cached_decoding_equals_one_pass(
    model: Whisper, features: Tensor, tokens: Tensor, split: int
) -> None:
    cache = model.start(model.encode(features), capacity=9)
    parts = [model.decode(tokens[:, :split], cache)]
    parts += [model.decode(tokens[:, i : i + 1], cache) for i in range(split, 9)]
    logits = model.proj_out(torch.cat(parts, dim=1))
    torch.testing.assert_close(logits, model(features, tokens), rtol=0, atol=1e-5)


def test_truncated_cache_forgets_what_was_written(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(features))
    model.decode(tokens[:, :4], cache)
    model.decode(tokens.flip(0)[:, :5], cache)  # wrong tokens, to be forgotten
    cache.truncate(4)
    again = model.decode(tokens[:, 4:], cache)
    torch.testing.assert_close(model.proj_out(again), model(features, tokens)[:, 4:], rtol=0, atol=1e-5)


def test_dropped_row_gives_its_place_to_the_last(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(features))
    model.decode(tokens[:, :4], cache)
    cache.drop(0)  # rows are now 2, 1
    hidden = model.decode(tokens[[2, 1], 4:], cache)
    torch.testing.assert_close(model.proj_out(hidden), model(features, tokens)[[2, 1], 4:], rtol=0, atol=1e-5)
    cache.drop(1)
    assert cache.rows == 1


def test_several_new_tokens_do_not_see_the_future(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 6] += 1
    torch.testing.assert_close(model(features, tokens)[:, :6], model(features, changed)[:, :6])
    assert not torch.equal(model(features, tokens)[:, 6:], model(features, changed)[:, 6:])


def test_head_is_tied_to_the_embedding(model: Whisper) -> None:
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_stages_reproduce_the_forward_pass(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    frames, text = torch.ones(3, FRAMES, dtype=torch.bool), torch.ones(3, 9, dtype=torch.bool)
    batch = SpeechBatch(features, frames, tokens, text)
    for stage in model.stages():
        hidden = stage.enter(batch)
        for name in stage.blocks:
            hidden = stage.run(model.get_submodule(name), hidden, batch)
        batch = stage.leave(hidden, batch)
    logits = model.proj_out(model.model.decoder.layer_norm(hidden))
    torch.testing.assert_close(logits, model(features, tokens), rtol=0, atol=1e-5)
    assert batch.features is None, "the encoder's input is not needed any more"
    with pytest.raises(ModelError, match="through the encoder"):
        model.stages()[0].enter(batch)


def test_groups_list_every_linear_once_and_share_their_input(
    model: Whisper, features: Tensor, tokens: Tensor
) -> None:
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    listed = [layer for group in model.groups() for layer in group.layers]
    assert sorted(listed) == sorted(linears - {"proj_out"})
    seen: dict[str, Tensor] = {}
    for name in listed:
        model.get_submodule(name).register_forward_pre_hook(
            lambda m, x, name=name: seen.__setitem__(name, x[0])
        )
    try:
        model(features, tokens)
    finally:
        for name in listed:
            model.get_submodule(name)._forward_pre_hooks.clear()
    for group in model.groups():
        first, *others = (seen[name] for name in group.layers)
        assert all(torch.equal(first, other) for other in others)
        assert (group.before is None) == bool(group.reason)
        assert group.before is None or model.get_submodule(group.before)
    inputs = [seen[group.layers[0]] for group in model.groups()]
    alike = [
        (i, j)
        for i, a in enumerate(inputs)
        for j, b in enumerate(inputs[:i])
        if a.shape == b.shape and torch.equal(a, b)
    ]
    assert not alike, "two groups that read the same tensor should be one"


@pytest.mark.parametrize(
    ("language", "task", "expected"),
    [("en", "transcribe", [50, 3, 7, 9]), ("de", "translate", [50, 4, 8, 9])],
)
def test_multilingual_prompt(language: str, task: str, expected: list[int]) -> None:
    generation = WhisperGeneration(
        50, 51, 9, languages=(("<|en|>", 3), ("<|de|>", 4)), tasks=(("transcribe", 7), ("translate", 8))
    )
    assert generation.prompt(language, task) == expected
    with pytest.raises(ModelError, match=r"Unknown language 'fr'. Known: de, en"):
        generation.prompt("fr")
    with pytest.raises(ModelError, match=r"Unknown task 'sing'\. Known: transcribe, translate"):
        generation.prompt("en", "sing")
    assert WhisperGeneration.from_dict(generation.to_dict()) == generation


def test_english_only_prompt() -> None:
    assert WhisperGeneration(50, 51, 9).prompt() == [50, 9]
    with pytest.raises(ModelError, match="only transcribes English"):
        WhisperGeneration(50, 51, 9).prompt("de")


@pytest.mark.parametrize("shape", [(1, 80, 39), (1, 79, 40), (80, 40)])
def test_features_of_another_shape_are_refused(model: Whisper, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"\[batch, 80, 40\]: pad or cut"):
        model.encode(torch.zeros(shape))


def test_more_tokens_than_positions_are_refused(model: Whisper, features: Tensor) -> None:
    with pytest.raises(ModelError, match="65 tokens are more than the decoder's 64 positions"):
        model(features[:1], torch.zeros(1, 65, dtype=torch.long))


def test_cache_errors_say_the_numbers(model: Whisper, features: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(features), capacity=4)
    with pytest.raises(ModelError, match="holds 4 positions and 9 are needed"):
        model.decode(tokens, cache)
    with pytest.raises(ModelError, match="Cannot truncate a cache of 0 positions to 2"):
        cache.truncate(2)
    with pytest.raises(ModelError, match="Row 3 is not one of the 3"):
        cache.drop(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ({"d_model": None}, "lacks d_model"),
    ],
)
def test_config_that_cannot_be_honoured(change: dict[str, object], message: str) -> None:
    values = {**tiny_whisper(frames=FRAMES).config.to_dict(), **change}
    with pytest.raises(ModelError, match=message):
        WhisperConfig.from_dict({key: value for key, value in values.items() if value is not None})


def test_generation_config_without_a_needed_token() -> None:
    with pytest.raises(ModelError, match="lacks 'eos_token_id'"):
        WhisperGeneration.from_dict({"decoder_start_token_id": 1})
