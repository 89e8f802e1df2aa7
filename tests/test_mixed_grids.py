"""A grid for each layer: which pattern wins, what is refused, and every method against the single-grid runs.

The oracle: each layer's codes belong to the grid that the mapping gives it, and come out as they do where the
whole model has that grid, for methods that take one layer at a time on the first block, whose inputs nothing
has changed. What takes layers together is compared with the method's own functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qlib
from qlib.errors import QuantError
from qlib.grid import Grid, decode, encode, fit_minmax
from qlib.methods.awq import awq_scale
from qlib.methods.contracts import BlockTask, LayerStats, Needs
from qlib.methods.omniquant import OmniQuant
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama
from qlib.selection import choose_grids, choose_layers

TEXTS = ["the heart of the matter is at the heat", "at a heath there was a hat", "the cat sat at the hat"]
FINE, COARSE = Grid(6, 4), Grid(3, 8)
MIXED = {"*": COARSE, "v_proj": FINE, "model.layers.0.mlp": FINE}
METHODS: list[Any] = [
    qlib.RTN(), qlib.HQQ(), qlib.GPTQ(), qlib.SmoothQuant(), qlib.AWQ(), OmniQuant(epochs=1), qlib.SpQR(),
    qlib.QUIK(columns=2),
]  # fmt: skip


def model() -> Llama:
    return tiny_llama(seed=5)


def run(method: Any, weight: Any, **options: Any) -> qlib.Result:
    methods = method if isinstance(method, list) else [method]
    return qlib.quantize(model(), methods, weight=weight, calib=TEXTS, progress=False, **options)


def grid_of(name: str) -> Grid:
    """The rule of `MIXED`, written out."""
    return FINE if name.startswith("model.layers.0.mlp.") or name.endswith(".v_proj") else COARSE


def codes(result: qlib.Result, name: str) -> Tensor:
    layer = result.model.get_submodule(name)
    assert isinstance(layer, qlib.FakeQuantLinear)
    return layer.codes


# --- which grid


def chosen(weight: Any) -> dict[str, Grid]:
    return choose_grids(model(), choose_layers(model(), ())[0], weight)


def test_the_last_pattern_wins_and_a_full_name_before_all() -> None:
    name = "model.layers.1.self_attn.v_proj"
    grids = chosen({name: Grid(8), "*": Grid(2), "v_proj": Grid(4), "model.layers.1.self_attn": Grid(5)})
    assert grids[name] == Grid(8)
    assert grids["model.layers.0.self_attn.v_proj"] == Grid(4)
    assert grids["model.layers.1.self_attn.q_proj"] == Grid(5)
    assert grids["model.layers.1.mlp.up_proj"] == Grid(2)
    assert chosen(MIXED) == {layer: grid_of(layer) for layer in grids}
    assert set(chosen(Grid(4)).values()) == {Grid(4)}


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"*": COARSE, "v_porj": FINE}, r"'v_porj', which matches no linear layer.*Did you mean 'v_proj'"),
        ({"*": COARSE, "input_layernorm": FINE}, r"'input_layernorm', which matches no linear layer"),
        (
            {"v_proj": FINE, "mlp": COARSE},
            r"no grid to 6 of 14 layers: model\.layers\.0\.self_attn\.q_proj.*Put '\*': qlib\.Grid.*skip=",
        ),
        ({"v_proj": FINE, "*": COARSE}, r"the later '\*' covers all its layers.*Put 'v_proj' after '\*'"),
        ({}, r"weight is an empty dict"),
        ({"*": 4}, r"gives the int 4 to '\*'. Pass one Grid, or a dict of patterns"),
        ({3: COARSE}, r"to 3\. Pass one Grid"),
        (
            {"*": COARSE, "down_proj": Grid(4, 512)},
            r"group=512 is larger than the .* columns of model\.layers",
        ),
    ],
)
def test_what_is_no_choice_is_refused(weight: Any, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        run(qlib.RTN(), weight)


def test_skipped_layers_need_no_grid() -> None:
    result = run(qlib.RTN(), {"self_attn": COARSE}, skip=["mlp"])
    assert len(result.report.layers) == 8


def test_a_method_checks_each_grid() -> None:
    with pytest.raises(QuantError, match=r"symmetric"):
        run(qlib.HQQ(), {"*": COARSE, "v_proj": Grid(4, symmetric=True)})


# --- every method


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_layer_is_on_its_own_grid(method: Any, tmp_path: Path) -> None:
    result = run(method, MIXED, work=tmp_path / "work")
    for layer in result.report.layers:
        quantized = result.model.get_submodule(layer.name)
        assert isinstance(quantized, qlib.FakeQuantLinear)
        grid = grid_of(layer.name)
        assert quantized.grid == grid and layer.grid == str(grid)
        assert grid.qmax / 2 < int(quantized.codes.max()) <= grid.qmax
        assert layer.bits_per_weight == quantized.quantized.bits(grid) / quantized.codes.numel()
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    resumed = run(method, MIXED, work=tmp_path / "work")
    for name, value in result.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_equal_grids_in_a_mapping_are_one_grid(method: Any) -> None:
    one, mapped = run(method, COARSE), run(method, {"*": COARSE, "v_proj": COARSE})
    assert one.report.layers == mapped.report.layers
    for name, value in one.model.state_dict().items():
        assert torch.equal(mapped.model.state_dict()[name], value), name


@pytest.mark.parametrize("method", [m for m in METHODS if hasattr(m, "quantize_layer")], ids=lambda m: m.name)
def test_a_layer_comes_out_as_in_a_model_on_its_grid(method: Any) -> None:
    """The first block's inputs are the same in all three runs."""
    mixed, runs = run(method, MIXED), {grid: run(method, grid) for grid in (FINE, COARSE)}
    names = [layer.name for layer in mixed.report.layers if layer.name.startswith("model.layers.0.")]
    assert {grid_of(name) for name in names} == {FINE, COARSE}
    for name in names:
        assert torch.equal(codes(mixed, name), codes(runs[grid_of(name)], name)), name


def test_smoothquant_does_not_look_at_grids() -> None:
    mixed, runs = run(qlib.SmoothQuant(), MIXED), {g: run(qlib.SmoothQuant(), g) for g in (FINE, COARSE)}
    for layer in mixed.report.layers[:7]:
        assert torch.equal(codes(mixed, layer.name), codes(runs[grid_of(layer.name)], layer.name))


def test_awq_searches_with_the_grid_of_each_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(6, 16, generator=generator) for _ in range(3)]
    X = torch.randn(50, 16, generator=generator) * torch.linspace(0.1, 4, 16)
    grids = [COARSE, FINE, Grid(2)]
    a = X.abs().mean(0)
    scale, losses = awq_scale(weights, X.T @ X, a, grids)
    expected = []
    for k in range(20):
        s = a ** (k / 20)
        s = s / (s.max() * s.min()).sqrt()
        loss = 0.0
        for W, grid in zip(weights, grids, strict=True):
            fit = fit_minmax(W * s, grid)
            D = decode(encode(W * s, fit, grid), fit) / s - W
            loss += float((X @ D.T).square().sum())
        expected.append(loss)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=0)
    single = [awq_scale([W], X.T @ X, a, grid)[1] for W, grid in zip(weights, grids, strict=True)]
    torch.testing.assert_close(losses, sum(single), rtol=1e-6, atol=0)  # type: ignore[arg-type]
    torch.testing.assert_close(qlib.AWQ().scale_mixed(weights, stats_of(X), grids), scale)


def stats_of(X: Tensor) -> LayerStats:
    return LayerStats(len(X), (X.T @ X).double(), X.amin(0), X.amax(0), X.abs().sum(0, dtype=torch.float64))


def test_omniquant_learns_each_range_on_its_own_grid() -> None:
    """Two layers that do not touch each other: each is learned as if it were alone with its grid."""
    generator = torch.Generator().manual_seed(1)
    weights = {f"{name}.weight": torch.randn(8, 16, generator=generator) for name in "ab"}
    inputs = torch.randn(3, 20, 16, generator=generator)

    def task(names: str) -> BlockTask:
        def output(p: Any, i: int) -> Tensor:
            # A sum over layers, so that the gradient of one does not depend on the other
            return torch.cat([inputs[i] @ p[f"{name}.weight"].T for name in names], 1)

        own = {f"{name}.weight": weights[f"{name}.weight"] for name in names}
        return BlockTask(own, tuple(names), (), {}, 3, output, lambda i: output(own, i))

    both = task("ab")
    grids = {"a": Grid(2, 8), "b": Grid(3, symmetric=True)}
    learned = OmniQuant(epochs=1, clip_rate=0.01).fit_mixed(BlockTask(**{**both.__dict__, "grids": grids}))
    for name, grid in grids.items():
        alone = OmniQuant(epochs=1, clip_rate=0.01).fit(task(name), grid)
        key = f"{name}.weight"
        torch.testing.assert_close(
            learned.get(key, weights[key]), alone.get(key, weights[key]), rtol=1e-3, atol=1e-3
        )


# --- methods from outside that know one grid


class Halve:
    """A transformation with one grid."""

    name, paper, needs = "halve", "none", Needs.RANGE

    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        assert isinstance(grid, Grid) and stats.absmax is not None
        return torch.full_like(stats.absmax, 2.0)


class HalveMixed(Halve):
    """The same with several grids, which it keeps."""

    def __init__(self) -> None:
        self.seen: list[list[Grid]] = []

    def settings(self) -> dict[str, Any]:
        return {}

    def scale_mixed(self, weights: list[Tensor], stats: LayerStats, grids: list[Grid]) -> Tensor:
        self.seen.append(list(grids))
        return self.scale_group(weights, stats, grids[0])


def test_a_transformation_gets_the_grid_of_each_weight() -> None:
    method = HalveMixed()
    run(method, {"*": COARSE, "v_proj": FINE, "model.layers.0.mlp.gate_proj": Grid(4)})
    attention = [COARSE, COARSE, FINE]
    assert method.seen == [attention, [Grid(4), COARSE], attention]


class Same:
    """A method that learns nothing, with one grid."""

    name, paper, needs = "same", "none", Needs.BLOCK | Needs.RANGE

    def fit(self, task: BlockTask, grid: Grid) -> dict[str, Tensor]:
        assert set(task.grids.values()) == {grid}
        return {}


def test_one_grid_methods_work_where_layers_together_share_one() -> None:
    """Halve takes groups, Same whole blocks."""
    by_group = {"*": COARSE, "down_proj": FINE}
    assert len(run(Halve(), by_group).report.layers) == 14
    by_block = {"*": COARSE, "model.layers.1": FINE}
    assert len(run([Halve(), Same()], by_block).report.layers) == 14


@pytest.mark.parametrize(
    ("method", "weight", "message"),
    [
        (Halve(), {"*": COARSE, "v_proj": FINE},
         r"halve\.scale_group takes one grid for 3 layers together.*q_proj \(w3 g8 asymmetric\), "
         r".*v_proj \(w6 g4 asymmetric\)\. Give these layers one grid, or the method a scale_mixed"),
        (Same(), {"*": COARSE, "down_proj": FINE}, r"same\.fit takes one grid for 7 layers.*fit_mixed"),
    ],
    ids=["transform", "learns"],
)  # fmt: skip
def test_one_grid_methods_refuse_before_the_work(
    method: Any, weight: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlib.pipeline.BlockQuantizer", None)  # would fail with a TypeError if reached
    with pytest.raises(QuantError, match=message):
        run(method, weight)


def test_a_float_layer_takes_part_in_the_search_with_the_grid_of_the_first() -> None:
    """q_proj stays in float, and k_proj and v_proj share its input: as with one grid for all."""
    found = run(
        qlib.AWQ(), {"k_proj": COARSE, "v_proj": COARSE, "o_proj": COARSE, "mlp": COARSE}, skip="q_proj"
    )
    expected = run(qlib.AWQ(), COARSE, skip="q_proj")
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


# --- what is written down


def test_texts_and_settings_name_every_grid(tmp_path: Path) -> None:
    result = run(qlib.RTN(), MIXED)
    assert result.report.grids == "w3 g8 asymmetric (9 layers), w6 g4 asymmetric (5 layers)"
    assert "14 layers quantized by rtn to w3 g8 asymmetric (9 layers), w6" in str(result)
    assert "to w3 g8 asymmetric (9 layers), w6 g4 asymmetric (5 layers), " in repr(result)
    weight = json.loads((result.save(tmp_path / "saved") / "manifest.json").read_text())["settings"]["weight"]
    fine, coarse = (
        {"bits": g.bits, "group": g.group, "symmetric": False, "scale_bits": 32} for g in (FINE, COARSE)
    )
    assert weight == [["*", coarse], ["v_proj", fine], ["model.layers.0.mlp", fine]]
    assert run(qlib.RTN(), COARSE).settings["weight"] == coarse


def test_the_bar_names_methods_and_grids(capsys: pytest.CaptureFixture[str]) -> None:
    qlib.quantize(model(), weight={"*": COARSE, "v_proj": FINE}, progress=True)
    assert "rtn w3 g8 asymmetric, v_proj w6 g4 asymmetric" in capsys.readouterr().err


def test_a_work_folder_knows_its_mapping(tmp_path: Path) -> None:
    run(qlib.RTN(), MIXED, work=tmp_path)
    for other in (COARSE, {"*": COARSE, "model.layers.0.mlp": FINE, "v_proj": FINE}):
        with pytest.raises(QuantError, match="holds another run: weight was"):
            run(qlib.RTN(), other, work=tmp_path)
