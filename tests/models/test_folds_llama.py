"""Scales folded through Llama's layers: every legal move leaves the logits alone, every illegal one does not.

All in float64, on miniatures whose norms are random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.structure import LayerGroup, apply_fold, fold
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_gemma3, tiny_llama

EXACT, BROKEN = 1e-9, 1e-2
VARIANTS: dict[str, Callable[[], TextModel]] = {
    "plain": lambda: tiny_llama(4, kv_heads=4),
    "grouped": lambda: tiny_llama(4, kv_heads=2),
    "one key head, biases": lambda: tiny_llama(4, kv_heads=1, attention_bias=True, mlp_bias=True),
    "untied": lambda: tiny_llama(4, tie_word_embeddings=False),
    "qwen2": lambda: tiny_llama(4, model_type="qwen2"),
    "qwen3": lambda: tiny_llama(4, model_type="qwen3", attention_bias=True),
    "gemma3": lambda: tiny_gemma3(4),
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def random_scale(count: int, generator: torch.Generator) -> Tensor:
    """Between 0.3 and 3, as far apart as a transformation would choose them."""
    return (2.2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1.1).exp()


def parameters(model: TextModel) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def folded(model: TextModel, changed: dict[str, Tensor]) -> TextModel:
    other = copy.deepcopy(model)
    apply_fold(other, changed)
    return other


def cached_logits(model: TextModel, tokens: Tensor) -> Tensor:
    """Return logits decoded with a cache: a prompt, single tokens, a few at once."""
    cache = model.start(rows=len(tokens), capacity=tokens.shape[1])
    return model.logits(torch.cat([model.decode(part, cache) for part in tokens.split([5, 1, 1, 5], 1)], 1))


def difference(model: TextModel, other: TextModel, tokens: Tensor) -> float:
    plain = float((model(tokens) - other(tokens)).abs().max())
    cached = float((model(tokens) - cached_logits(other, tokens)).abs().max())
    assert abs(plain - cached) < EXACT
    return plain


def legal(model: TextModel) -> Iterator[LayerGroup]:
    return (group for group in model.groups() if group.before is not None)


def inputs(model: TextModel, group: LayerGroup) -> int:
    return model.get_parameter(f"{group.layers[0]}.weight").shape[1]


def group_of(model: TextModel, layer: str) -> LayerGroup:
    return next(group for group in model.groups() if layer in group.layers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_legal_fold_leaves_the_logits_alone(
    variant: str, tokens: Tensor, generator: torch.Generator
) -> None:
    model = VARIANTS[variant]().double()
    assert isinstance(model, TextModel)
    for group in legal(model):
        scale = group.tie(random_scale(inputs(model, group), generator))
        changed = fold(parameters(model), group, scale)
        assert f"{group.before}.weight" in changed and all(f"{x}.weight" in changed for x in group.layers)
        other = folded(model, changed)
        assert difference(model, other, tokens) < EXACT, group


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_folds_together_leave_the_logits_alone(
    variant: str, tokens: Tensor, generator: torch.Generator
) -> None:
    model = VARIANTS[variant]().double()
    assert isinstance(model, TextModel)
    other = copy.deepcopy(model)
    for group in legal(model):
        scale = group.tie(random_scale(inputs(model, group), generator))
        apply_fold(other, fold(parameters(other), group, scale))
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, other.state_dict()[name])
    ]
    assert len(moved) > 4 and difference(model, other, tokens) < EXACT


@pytest.mark.parametrize(
    ("variant", "kinds"),
    [
        ("grouped", {"input_layernorm", "v_proj", "post_attention_layernorm", "up_proj"}),
        ("untied", {"input_layernorm", "v_proj", "post_attention_layernorm", "up_proj", "norm"}),
        ("gemma3", {"v_proj", "up_proj"}),
    ],
)
def test_where_scales_may_go(variant: str, kinds: set[str]) -> None:
    model = VARIANTS[variant]()
    assert {str(group.before).split(".")[-1] for group in legal(model)} == kinds
    assert len(list(legal(model))) == len(model.model.layers) * len(kinds - {"norm"}) + ("norm" in kinds)


# --- moves that look right and are not


@pytest.fixture
def model() -> TextModel:
    return tiny_llama(4, width=24, heads=6, kv_heads=2).double()  # type: ignore[no-any-return]


def raw_fold(model: TextModel, group: LayerGroup, scale: Tensor, per_row: Tensor) -> dict[str, Tensor]:
    """Fold without any check: rows of `before` / per_row, columns of the layers * scale."""
    before = parameters(model)[f"{group.before}.weight"]
    changed = {f"{group.before}.weight": before / per_row.view(-1, *[1] * (before.dim() - 1))}
    return changed | {f"{x}.weight": parameters(model)[f"{x}.weight"] * scale for x in group.layers}


def test_grouped_heads_repeated_in_turn_instead_of_each(
    model: TextModel, tokens: Tensor, generator: torch.Generator
) -> None:
    group = group_of(model, "model.layers.0.self_attn.o_proj")
    per_row = random_scale(8, generator)
    right = per_row.view(2, 1, 4).expand(2, 3, 4).reshape(-1)
    wrong = per_row.repeat(3)
    assert difference(model, folded(model, raw_fold(model, group, right, per_row)), tokens) < EXACT
    assert difference(model, folded(model, raw_fold(model, group, wrong, per_row)), tokens) > BROKEN
    with pytest.raises(ModelError, match=r"come from one row of .*v_proj have different scales"):
        fold(parameters(model), group, wrong)
    torch.testing.assert_close(group.tie(right), right)


def test_scales_of_single_heads_are_tied_or_refused(model: TextModel, generator: torch.Generator) -> None:
    group = group_of(model, "model.layers.0.self_attn.o_proj")
    free = random_scale(24, generator)
    with pytest.raises(ModelError, match=r"Tie them first: group\.tie\(scale\)"):
        fold(parameters(model), group, free)
    tied = group.tie(free)
    torch.testing.assert_close(tied[0], (free[0] * free[4] * free[8]).pow(1 / 3))
    fold(parameters(model), group, tied)


def test_gate_instead_of_up(model: TextModel, tokens: Tensor, generator: torch.Generator) -> None:
    group = group_of(model, "model.layers.0.mlp.down_proj")
    wrong = replace(group, before="model.layers.0.mlp.gate_proj")
    changed = fold(parameters(model), wrong, random_scale(48, generator))
    assert difference(model, folded(model, changed), tokens) > BROKEN


def test_part_of_a_norm_s_readers(model: TextModel, tokens: Tensor, generator: torch.Generator) -> None:
    for layer, others in (("self_attn.q_proj", 1), ("mlp.gate_proj", 1)):
        group = group_of(model, f"model.layers.0.{layer}")
        changed = fold(
            parameters(model), replace(group, layers=group.layers[:-others]), random_scale(24, generator)
        )
        assert difference(model, folded(model, changed), tokens) > BROKEN


def test_final_norm_into_a_tied_head(model: TextModel, tokens: Tensor, generator: torch.Generator) -> None:
    group = LayerGroup(("lm_head",), "model.norm")
    changed = fold(parameters(model), group, random_scale(24, generator))
    with pytest.raises(ModelError, match="shared with the token embedding"):
        folded(model, changed)
    other = copy.deepcopy(model)
    for name, value in changed.items():
        other.get_parameter(name).data.copy_(value)
    assert difference(model, other, tokens) > BROKEN
    assert all("lm_head" not in group.layers for group in model.groups())


def test_gain_of_one_plus_weight(tokens: Tensor, generator: torch.Generator) -> None:
    gemma = tiny_gemma3(4).double()
    assert isinstance(gemma, TextModel)
    group = group_of(gemma, "model.layers.0.mlp.up_proj")
    with pytest.raises(ModelError, match=r"No scale can move .* 1 \+ weight"):
        fold(parameters(gemma), group, random_scale(16, generator))
    wrong = replace(group, before="model.layers.0.pre_feedforward_layernorm")
    changed = fold(parameters(gemma), wrong, random_scale(16, generator))
    assert difference(gemma, folded(gemma, changed), tokens) > BROKEN


def test_no_offset_moves(model: TextModel) -> None:
    for group in model.groups():
        kwargs: dict[str, Any] = {"scale": torch.ones(inputs(model, group)).double()}
        with pytest.raises(ModelError, match="No offset can move"):
            fold(parameters(model), group, shift=torch.zeros(inputs(model, group)).double(), **kwargs)
