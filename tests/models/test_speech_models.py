"""What holds for every speech model: the cache, truncation, dropped rows, stages, groups, folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlib.calibrate import watch_inputs
from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.moonshine import Moonshine
from qlib.models.speech import SpeechModel
from qlib.models.speech_structure import SpeechBatch
from qlib.models.structure import select
from qlib.models.tiny import tiny_moonshine, tiny_whisper, write_folder
from qlib.models.whisper import Whisper

FRAMES = {Whisper: 20, Moonshine: 11}


@pytest.fixture(scope="module", params=["whisper", "moonshine"])
def model(request: pytest.FixtureRequest) -> SpeechModel:
    return tiny_whisper(seed=1, frames=20) if request.param == "whisper" else tiny_moonshine(seed=1)


@pytest.fixture(scope="module")
def heard(model: SpeechModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Whisper):
        return torch.randn(3, 80, 40, generator=generator)
    return 0.1 * torch.randn(3, 5000, generator=generator)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))


def batch_of(model: SpeechModel, heard: Tensor | None, tokens: Tensor) -> SpeechBatch:
    frames = torch.ones(3, FRAMES[type(model)], dtype=torch.bool)
    return SpeechBatch(heard, frames, tokens, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize("split", [1, 4, 8])
def test_cached_decoding_equals_one_pass(
    model: SpeechModel, heard: Tensor, tokens: Tensor, split: int
) -> None:
    cache = model.start(model.encode(heard), capacity=9)
    parts = [model.decode(tokens[:, :split], cache)]
    parts += [model.decode(tokens[:, i : i + 1], cache) for i in range(split, 9)]
    logits = model.proj_out(torch.cat(parts, dim=1))
    torch.testing.assert_close(logits, model(heard, tokens), rtol=0, atol=1e-5)


def test_truncated_cache_forgets_what_was_written(model: SpeechModel, heard: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(heard))
    model.decode(tokens[:, :4], cache)
    model.decode(tokens.flip(0)[:, :5], cache)  # wrong tokens, to be forgotten
    cache.truncate(4)
    again = model.decode(tokens[:, 4:], cache)
    torch.testing.assert_close(model.proj_out(again), model(heard, tokens)[:, 4:], rtol=0, atol=1e-5)


def test_dropped_row_gives_its_place_to_the_last(model: SpeechModel, heard: Tensor, tokens: Tensor) -> None:
    cache = model.start(model.encode(heard))
    model.decode(tokens[:, :4], cache)
    cache.drop(0)  # rows are now 2, 1
    hidden = model.decode(tokens[[2, 1], 4:], cache)
    torch.testing.assert_close(model.proj_out(hidden), model(heard, tokens)[[2, 1], 4:], rtol=0, atol=1e-5)
    cache.drop(1)
    assert cache.rows == 1


def test_several_new_tokens_do_not_see_the_future(model: SpeechModel, heard: Tensor, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 6] += 1
    torch.testing.assert_close(model(heard, tokens)[:, :6], model(heard, changed)[:, :6])
    assert not torch.equal(model(heard, tokens)[:, 6:], model(heard, changed)[:, 6:])


def test_more_tokens_than_positions_are_refused(model: SpeechModel, heard: Tensor) -> None:
    with pytest.raises(ModelError, match="65 tokens are more than the decoder's 64 positions"):
        model(heard[:1], torch.zeros(1, 65, dtype=torch.long))


def test_head_is_tied_and_a_folder_keeps_every_weight(model: SpeechModel, tmp_path: Path) -> None:
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    again = load_model(write_folder(model, tmp_path))
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight
    assert again.config == model.config and again.generation == model.generation
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.tokenizer.encode("the heart") == model.tokenizer.encode("the heart")


def test_stages_reproduce_the_forward_pass(model: SpeechModel, heard: Tensor, tokens: Tensor) -> None:
    batch = batch_of(model, heard, tokens)
    for stage in model.stages():
        hidden = stage.enter(batch)
        for name in stage.blocks:
            hidden = stage.run(model.get_submodule(name), hidden, batch)
        batch = stage.leave(hidden, batch)
        assert stage.valid(batch, "encoder").shape == batch.frame_mask.shape
        assert stage.valid(batch, "hidden").shape == hidden.shape[:2]
    decoder = model.model.decoder
    norm = decoder.layer_norm if isinstance(model, Whisper) else decoder.norm
    torch.testing.assert_close(model.proj_out(norm(hidden)), model(heard, tokens), rtol=0, atol=1e-5)
    assert batch.features is None, "the encoder's input is not needed any more"
    with pytest.raises(ModelError, match="through the encoder"):
        model.stages()[0].enter(batch)


@pytest.mark.parametrize("rows", [1, 3])
def test_marked_vectors_are_computed_alone_or_cut_out(
    model: SpeechModel, heard: Tensor, tokens: Tensor, rows: int
) -> None:
    """`run(only=mask)` equals `run` where the mask is True, and its layers read what a whole pass reads."""
    frames = torch.arange(FRAMES[type(model)]) % 3 > 0
    batch = replace(batch_of(model, heard, tokens), features=heard[:rows], tokens=tokens[:rows])
    batch = replace(batch, frame_mask=frames.repeat(rows, 1), token_mask=batch.token_mask[:rows])
    sources = {group.layers[0]: group.source for group in model.groups()}
    for stage in model.stages():
        hidden = stage.enter(batch)
        for name in stage.blocks:
            block = model.get_submodule(name)
            mine = {layer: source for layer, source in sources.items() if layer.startswith(f"{name}.")}
            whole: dict[str, Tensor] = {}
            part: dict[str, Tensor] = {}
            modules = {layer: model.get_submodule(layer) for layer in mine}
            with watch_inputs(modules, whole.__setitem__):
                after = stage.run(block, hidden, batch)
            with watch_inputs(modules, part.__setitem__):
                marked = stage.run(block, hidden, batch, stage.valid(batch, "hidden"))
            torch.testing.assert_close(marked, after[stage.valid(batch, "hidden")], rtol=0, atol=1e-5)
            for layer, source in mine.items():
                expected = whole[layer][stage.valid(batch, source)]
                found = select(part[layer], stage.valid(batch, source))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            hidden = after
        batch = stage.leave(hidden, batch)


def test_groups_list_every_linear_once_and_share_their_input(
    model: SpeechModel, heard: Tensor, tokens: Tensor
) -> None:
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    listed = [layer for group in model.groups() for layer in group.layers]
    assert sorted(listed) == sorted(linears - {"proj_out"})
    seen: dict[str, Tensor] = {}
    with watch_inputs({name: model.get_submodule(name) for name in listed}, seen.__setitem__):
        model(heard, tokens)
    stages = dict(zip(("encoder", "decoder"), model.stages(), strict=True))
    batch = batch_of(model, None, tokens)
    for group in model.groups():
        first, *others = (seen[name] for name in group.layers)
        assert all(torch.equal(first, other) for other in others)
        assert (group.before is None) == bool(group.reason)
        assert group.before is None or model.get_submodule(group.before)
        assert group.shift == (isinstance(model, Whisper) and group.before is not None)
        counted = stages[group.layers[0].split(".")[1]].valid(batch, group.source)
        assert counted.shape == first.shape[:2], "each input has the mask of its stream"
    inputs = [seen[group.layers[0]] for group in model.groups()]
    alike = [
        (i, j)
        for i, a in enumerate(inputs)
        for j, b in enumerate(inputs[:i])
        if a.shape == b.shape and torch.equal(a, b)
    ]
    assert not alike, "two groups that read the same tensor should be one"
