"""Every move of a scale or an offset that the structure maps allow leaves the function as it was; others not.

All in float64 on miniatures whose norms and biases are random: with ones and zeros, half of the faults would
change nothing. Each check reads the whole model twice: teacher-forced, and token by token through the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.speech import SpeechModel
from qlib.models.structure import LayerGroup, apply_fold, fold
from qlib.models.tiny import tiny_moonshine, tiny_whisper
from qlib.models.whisper import Whisper

FRAMES, TOKENS = 20, 7


def make_whisper() -> SpeechModel:
    return tiny_whisper(seed=5, width=16, layers=2, heads=2, frames=FRAMES).double()


def make_moonshine() -> SpeechModel:
    return tiny_moonshine(seed=5).double()


MAKERS = {"whisper": make_whisper, "moonshine": make_moonshine}
REFERENCE = {name: make() for name, make in MAKERS.items()}


def heard(model: SpeechModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, Whisper):
        return model.encode(torch.randn(2, 80, 2 * FRAMES, generator=generator, dtype=torch.float64))
    return model.encode(0.1 * torch.randn(2, 16_000, generator=generator, dtype=torch.float64))


@torch.no_grad()
def logits(model: SpeechModel) -> Tensor:
    """Teacher-forced and cached logits, one after the other."""
    tokens = torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    states = heard(model)
    whole = model.decode(tokens, model.start(states))
    cache = model.start(states)
    steps = [model.decode(tokens[:, :3], cache)] + [
        model.decode(tokens[:, i : i + 1], cache) for i in range(3, TOKENS)
    ]
    return model.proj_out(torch.cat([whole, torch.cat(steps, dim=1)], dim=1))


EXPECTED = {name: logits(model) for name, model in REFERENCE.items()}


def change(family: str, move: Callable[[SpeechModel], None]) -> float:
    """Return by how much a move on a copy of the model changes its logits, relative to their size."""
    model = copy.deepcopy(REFERENCE[family])
    model.tie()
    move(model)
    expected = EXPECTED[family]
    return float((logits(model) - expected).abs().max() / expected.abs().max())


def random_scale(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 0.3


def folded(
    group: LayerGroup, scale: Tensor | None = None, shift: bool = False
) -> Callable[[SpeechModel], None]:
    def move(model: SpeechModel) -> None:
        parameters = dict(model.named_parameters())
        inputs = parameters[f"{group.layers[0]}.weight"].shape[1]
        chosen = group.tie(random_scale(inputs)) if scale is None else scale
        offset = random_scale(inputs, seed=1) - 1 if shift else None
        apply_fold(model, fold(parameters, group, chosen, offset))

    return move


GROUPS = [
    (family, group)
    for family, model in REFERENCE.items()
    for group in model.groups()
    if group.before is not None
]


def name_of(value: object) -> str:
    if isinstance(value, LayerGroup):
        return f"{value.before} to {value.layers[0]}".replace("model.", "")
    return str(value)


@pytest.mark.parametrize(("family", "group"), GROUPS, ids=name_of)
def test_every_group_can_be_scaled(family: str, group: LayerGroup) -> None:
    assert change(family, folded(group)) <= 1e-9


@pytest.mark.parametrize(("family", "group"), [(f, g) for f, g in GROUPS if g.shift], ids=name_of)
def test_every_group_that_says_so_can_be_shifted(family: str, group: LayerGroup) -> None:
    assert change(family, folded(group, shift=True)) <= 1e-9


@pytest.mark.parametrize("family", MAKERS)
def test_all_moves_together(family: str) -> None:
    def move(model: SpeechModel) -> None:
        for group in model.groups():
            if group.before is not None:
                folded(group, shift=group.shift)(model)

    assert change(family, move) <= 1e-9


# --- what the maps leave out would break the model


def group_of(family: str, layer: str) -> LayerGroup:
    (found,) = (group for group in REFERENCE[family].groups() if layer in group.layers)
    return found


LAYER = "model.decoder.layers.1"
CROSS = [f"{LAYER}.encoder_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
WRONG = [
    ("whisper", "cross-attention as one group", LayerGroup(tuple(CROSS), f"{LAYER}.encoder_attn_layer_norm")),
    (
        "moonshine",
        "cross-attention as one group",
        LayerGroup(tuple(CROSS), f"{LAYER}.post_attention_layernorm"),
    ),
    ("whisper", "k and v of one layer", LayerGroup(tuple(CROSS[1:]), "model.encoder.layer_norm")),
    ("moonshine", "k and v of one layer", LayerGroup(tuple(CROSS[1:]), "model.encoder.layer_norm")),
    ("whisper", "through GELU", LayerGroup((f"{LAYER}.fc2",), f"{LAYER}.fc1")),
    (
        "moonshine",
        "through GELU",
        LayerGroup(("model.encoder.layers.0.mlp.fc2",), "model.encoder.layers.0.mlp.fc1"),
    ),
    (
        "whisper",
        "without k",
        LayerGroup(
            (f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.v_proj"), f"{LAYER}.self_attn_layer_norm"
        ),
    ),
]


@pytest.mark.parametrize(
    ("family", "why", "group"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_illegal_move_breaks_the_model(family: str, why: str, group: LayerGroup) -> None:
    assert change(family, folded(group)) > 1e-2


def test_the_gate_of_moonshine_cannot_be_scaled() -> None:
    group = group_of("moonshine", f"{LAYER}.mlp.fc2")
    assert group.rows is not None
    gate = replace(group, rows=tuple(row + len(group.rows) for row in group.rows))
    assert change("moonshine", folded(group)) <= 1e-9
    assert change("moonshine", folded(gate)) > 1e-2


def test_a_key_offset_cannot_be_dropped_under_rotary_embeddings() -> None:
    """Whisper's k_proj may lose its constant; Moonshine's rotates it by the position, and scores change."""
    group = group_of("moonshine", f"{LAYER}.self_attn.k_proj")
    assert not group.shift
    model = copy.deepcopy(REFERENCE["moonshine"])
    constant = torch.randn(model.get_submodule(group.layers[1]).weight.shape[0], dtype=torch.float64)
    assert change("moonshine", lambda m: _add_key_bias(m, group.layers[1], 3 * constant)) > 1e-2
    cross = f"{LAYER}.encoder_attn.k_proj"
    assert change("moonshine", lambda m: _add_key_bias(m, cross, 3 * constant)) <= 1e-9


def _add_key_bias(model: SpeechModel, layer: str, bias: Tensor) -> None:
    model.get_submodule(layer).bias = torch.nn.Parameter(bias)


@pytest.mark.parametrize("family", MAKERS)
def test_the_tied_head_stays_as_it_is(family: str) -> None:
    model = REFERENCE[family]
    norm = {"whisper": "model.decoder.layer_norm", "moonshine": "model.decoder.norm"}[family]
    group = LayerGroup(("proj_out",), norm)
    changed = fold(
        {**dict(model.named_parameters()), "proj_out.weight": model.proj_out.weight},
        group,
        random_scale(16 if family == "whisper" else model.proj_out.in_features),
    )
    with pytest.raises(ModelError, match=r"proj_out\.weight is shared with the token embedding"):
        apply_fold(copy.deepcopy(model), changed)

    def by_force(copied: SpeechModel) -> None:
        for name, value in changed.items():
            module, _, parameter = name.rpartition(".")
            getattr(copied.get_submodule(module), parameter).data.copy_(value)

    assert change(family, by_force) > 1e-2


# --- refusals


def test_a_group_without_an_absorber_says_why() -> None:
    group = group_of("whisper", f"{LAYER}.fc2")
    with pytest.raises(ModelError, match=r"fc2: GELU stands between"):
        fold({}, group, torch.ones(64))


def test_an_offset_where_none_may_move() -> None:
    group = group_of("moonshine", f"{LAYER}.self_attn.q_proj")
    with pytest.raises(ModelError, match="No offset can move"):
        fold({}, group, torch.ones(16), torch.ones(16))


@pytest.mark.parametrize(
    "scale",
    [
        torch.zeros(16),
        -torch.ones(16),
        torch.full((16,), torch.nan),
        torch.full((16,), torch.inf),
        torch.ones(15),
    ],
)
def test_scales_of_the_wrong_kind(scale: Tensor) -> None:
    group = group_of("whisper", f"{LAYER}.fc1")
    with pytest.raises(ModelError, match=r"must be \[16\] finite numbers > 0"):
        fold(dict(REFERENCE["whisper"].named_parameters()), group, scale.double())


def test_tying_takes_the_geometric_mean() -> None:
    group = LayerGroup(("o",), "v", rows=(0, 1, 0, 1))
    torch.testing.assert_close(
        group.tie(torch.tensor([1.0, 2.0, 4.0, 8.0])), torch.tensor([2.0, 4.0, 2.0, 4.0])
    )
    with pytest.raises(ModelError, match="Tie them first"):
        fold(
            {"v.weight": torch.ones(2, 3), "o.weight": torch.ones(3, 4)},
            group,
            torch.tensor([1.0, 2.0, 4.0, 8.0]),
        )
