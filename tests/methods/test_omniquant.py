"""OmniQuant: gradients against two oracles, a result that composes, never worse than RTN, often better."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from blocks import DECODER, ENCODER, find_task, heard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlib.activation import PerToken
from qlib.errors import QuantError
from qlib.grid import Grid, fit_minmax
from qlib.methods.contracts import BlockMethod, BlockTask, LayerStats, Needs
from qlib.methods.gptq import gptq
from qlib.methods.omniquant import (
    START,
    Learned,
    OmniQuant,
    clip_range,
    fake_quant,
    fake_quant_plain,
    initial_scale,
    round_ste,
)
from qlib.methods.rtn import rtn
from qlib.methods.smoothquant import smoothing_scale
from qlib.models.speech_structure import SpeechBatch
from qlib.models.structure import LayerGroup
from qlib.models.tiny import tiny_moonshine, tiny_whisper

FLOAT64 = torch.float64
INF = float("inf")
COLUMNS = 20
GRIDS = [
    Grid(b, g, s) for b, g, s in itertools.product([2, 4], [None, 5, 8], [False, True])
]  # 8: the last has 4
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def weights(rows: int = 6, seed: int = 0, dtype: torch.dtype = FLOAT64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, COLUMNS, generator=generator, dtype=FLOAT64).to(dtype)


def logits(weight: Tensor, grid: Grid, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Random u and l between -1 and 4: ranges of 27 to 98 %."""
    shape = (len(weight), len(grid.slices(weight.shape[1])))
    generator = torch.Generator().manual_seed(seed)
    upper, lower = (5 * torch.rand(shape, generator=generator, dtype=FLOAT64) - 1 for _ in range(2))
    return upper.to(weight.dtype), None if grid.symmetric else lower.to(weight.dtype)


def full(weight: Tensor, grid: Grid, value: float) -> tuple[Tensor, Tensor | None]:
    upper = weight.new_full((len(weight), len(grid.slices(weight.shape[1]))), value)
    return upper, None if grid.symmetric else upper.clone()


def plain_fake_quant(
    weight: Tensor, grid: Grid, upper: Tensor, lower: Tensor | None, constants: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Oracle, group by group, by autograd: values, and round(x) - x of each weight (given: no rounding)."""
    values, errors = torch.zeros_like(weight), torch.zeros_like(weight)
    for number, part in enumerate(grid.slices(weight.shape[1])):
        w = weight[:, part]
        hi = w.max(1).values.relu()
        lo = -(-w.min(1).values).relu()
        if lower is None:
            hi = torch.maximum(hi, -lo) * upper[:, number].sigmoid()
            lo = -hi
            scale, zero = hi / grid.qmax, torch.zeros_like(hi)
        else:
            hi, lo = hi * upper[:, number].sigmoid(), lo * lower[:, number].sigmoid()
            scale = (hi - lo) / grid.qmax
            zero = (-lo / scale).round().detach()
        x = torch.minimum(torch.maximum(w, lo[:, None]), hi[:, None]) / scale[:, None]
        error = (x.round() - x).detach() if constants is None else constants[:, part]
        codes = x + error + zero[:, None]
        if constants is None:
            codes = codes.clamp(grid.qmin, grid.qmax)
        values[:, part] = scale[:, None] * (codes - zero[:, None])
        errors[:, part] = error
    return values, errors


class TestRoundSte:
    def test_by_hand(self) -> None:
        x = torch.tensor([-3.2, -0.4, 0.5, 1.5, 6.0], requires_grad=True)
        rounded_x = round_ste(x, torch.tensor(-2.0), torch.tensor(3.0))
        assert rounded_x.tolist() == [-2, 0, 0, 2, 3]
        assert torch.autograd.grad((rounded_x * torch.arange(5.0)).sum(), x)[0].tolist() == [0, 1, 2, 3, 4]


class TestFakeQuant:
    @every_grid
    def test_plain_form_has_the_same_values_and_gradients(self, grid: Grid) -> None:
        """Autograd through `round_ste` against the gradient that is written out."""
        weight = weights().requires_grad_()
        up, low = (None if each is None else each.requires_grad_() for each in logits(weight, grid))
        assert up is not None
        inputs = [each for each in (weight, up, low) if each is not None]
        by = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT64)
        values, plain = fake_quant(weight, grid, up, low), fake_quant_plain(weight, grid, up, low)
        torch.testing.assert_close(values, plain, rtol=1e-12, atol=1e-12)
        found, expected = (torch.autograd.grad((each * by).sum(), inputs) for each in (values, plain))
        for each, other in zip(found, expected, strict=True):
            torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-12)
            assert (each != 0).any()

    @every_grid
    def test_values_are_those_of_the_plain_form(self, grid: Grid) -> None:
        weight = weights()
        up, low = logits(weight, grid)
        expected, _ = plain_fake_quant(weight, grid, up, low)
        torch.testing.assert_close(fake_quant(weight, grid, up, low), expected, rtol=1e-12, atol=1e-12)

    @every_grid
    def test_gradients_are_those_of_autograd(self, grid: Grid) -> None:
        weight = weights().requires_grad_()
        up, low = (None if each is None else each.requires_grad_() for each in logits(weight, grid))
        assert up is not None
        inputs = [each for each in (weight, up, low) if each is not None]
        by = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT64)
        expected = torch.autograd.grad((plain_fake_quant(weight, grid, up, low)[0] * by).sum(), inputs)
        found = torch.autograd.grad((fake_quant(weight, grid, up, low) * by).sum(), inputs)
        for each, other in zip(found, expected, strict=True):
            torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-12)

    @every_grid
    def test_gradients_are_finite_differences_with_rounding_errors_held(self, grid: Grid) -> None:
        weight = weights().requires_grad_()
        up, low = (None if each is None else each.requires_grad_() for each in logits(weight, grid))
        assert up is not None
        by = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT64)
        torch.autograd.backward((fake_quant(weight, grid, up, low) * by).sum())
        _, errors = plain_fake_quant(weight, grid, up, low)
        for variable in (weight, up, low):
            if variable is None:
                continue
            assert variable.grad is not None
            for place in range(variable.numel()):
                moved = []
                with torch.no_grad():
                    for step in (1e-6, -1e-6):
                        variable.view(-1)[place] += step
                        moved.append((plain_fake_quant(weight, grid, up, low, errors)[0] * by).sum())
                        variable.view(-1)[place] -= step
                slope = (moved[0] - moved[1]) / 2e-6
                torch.testing.assert_close(variable.grad.view(-1)[place], slope, rtol=1e-6, atol=1e-8)

    @every_grid
    @pytest.mark.parametrize("logit", [30.0, INF])
    def test_no_clipping_is_rtn(self, grid: Grid, logit: float) -> None:
        weight = weights(dtype=torch.float32)
        assert torch.equal(fake_quant(weight, grid, *full(weight, grid, logit)), rtn(weight, grid).decode())

    def test_the_first_ranges_are_not_rtn(self) -> None:
        weight = weights(dtype=torch.float32)
        values = fake_quant(weight, Grid(4), *full(weight, Grid(4), START))
        assert not torch.equal(values, rtn(weight, Grid(4)).decode())

    @every_grid
    def test_every_logit_gets_a_gradient(self, grid: Grid) -> None:
        weight = weights(dtype=torch.float32)
        for part in grid.slices(COLUMNS):
            weight[:, part.start], weight[:, part.start + 1] = 2, -1.5
        up, low = (None if each is None else each.requires_grad_() for each in full(weight, grid, START))
        assert up is not None
        torch.autograd.backward((fake_quant(weight, grid, up, low) - weight).square().sum())
        for each in (up, low):
            if each is not None:
                assert each.grad is not None and (each.grad != 0).all()

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_groups_of_zeros_and_of_one_sign(self, symmetric: bool) -> None:
        grid = Grid(3, 4, symmetric)
        weight = weights(3)
        weight[:, :4] = 0
        weight[:, 4:8] = weight[:, 4:8].abs() + 0.1
        weight[:, 8:12] = -weight[:, 8:12].abs() - 0.1
        weight[:, 12] = 0
        weight.requires_grad_()
        up, low = (None if each is None else each.requires_grad_() for each in logits(weight, grid))
        assert up is not None
        values = fake_quant(weight, grid, up, low)
        assert (values[:, :4] == 0).all() and (values[:, 12] == 0).all() and values.isfinite().all()
        torch.autograd.backward((values * weights(3, seed=4)).sum())
        for each in filter(lambda each: each is not None, (weight, up, low)):
            assert each is not None and each.grad is not None and each.grad.isfinite().all()
        assert up.grad is not None and (up.grad[:, 0] == 0).all()  # nothing to clip
        if low is not None:
            assert low.grad is not None
            assert (low.grad[:, 1] == 0).all() and (up.grad[:, 1] != 0).all()  # lo is 0 and stays there
            assert (up.grad[:, 2] == 0).all() and (low.grad[:, 2] != 0).all()


class TestClipRange:
    @every_grid
    @pytest.mark.parametrize("dtype", [torch.float32, FLOAT64], ids=str)
    def test_rounding_the_clamped_weight_is_the_learned_rounding(
        self, grid: Grid, dtype: torch.dtype
    ) -> None:
        for seed in range(10):
            weight = weights(16, seed, dtype)
            up, low = logits(weight, grid, seed)
            clipped = clip_range(weight, grid, up, low)
            assert torch.equal(rtn(clipped, grid).decode(), fake_quant(weight, grid, up, low))
            assert (clipped.abs() <= weight.abs()).all() and not torch.equal(clipped, weight)

    @given(
        numbers=st.lists(st.integers(-24, 24), min_size=8, max_size=8),
        logit=st.sampled_from([(0.0, 0.0), (INF, 0.0), (0.0, INF), (1.0, -1.0), (30.0, 4.0)]),
        bits=st.sampled_from([2, 3, 4]),
        symmetric=st.booleans(),
    )
    @settings(deadline=None, max_examples=200)
    def test_at_ties(
        self, numbers: list[int], logit: tuple[float, float], bits: int, symmetric: bool
    ) -> None:
        """Halves and quarters: weights, and ends of ranges, lie in the middle between two codes."""
        grid, weight = Grid(bits, None, symmetric), torch.tensor([numbers]) / 4
        up, low = torch.tensor([[logit[0]]]), None if symmetric else torch.tensor([[logit[1]]])
        assert torch.equal(
            rtn(clip_range(weight, grid, up, low), grid).decode(), fake_quant(weight, grid, up, low)
        )

    def test_a_tie_at_the_end_of_the_range(self) -> None:
        """lo = -2.5 and hi = 12.5 have the step 1: both ends are rounded down, and code 15 is never used."""
        weight = torch.tensor([[-5.0, 25.0, 20.0, 13.0, 12.0]])
        values = fake_quant(weight, Grid(4), torch.zeros(1, 1), torch.zeros(1, 1))
        assert values.tolist() == [[-2.0, 12.0, 12.0, 12.0, 12.0]]
        clipped = clip_range(weight, Grid(4), torch.zeros(1, 1), torch.zeros(1, 1))
        assert clipped.tolist() == [[-2.5, 12.5, 12.5, 12.5, 12.0]]
        assert torch.equal(rtn(clipped, Grid(4)).decode(), values)

    def test_gptq_finds_the_learned_scale_too(self) -> None:
        grid = Grid(3, 8)
        weight = weights(dtype=torch.float32)
        clipped = clip_range(weight, grid, *logits(weight, grid))
        result = gptq(clipped, torch.eye(COLUMNS), grid)
        assert torch.equal(result.scale, fit_minmax(clipped, grid).scale)
        assert torch.equal(result.decode(), fake_quant(weight, grid, *logits(weight, grid)))


class TestInitialScale:
    def test_is_smoothquant_s(self) -> None:
        some, more = torch.tensor([[1.0, -4.0], [0.5, 0.0]]), torch.tensor([[-2.0, 1.0]])
        scale = initial_scale([some, more], torch.tensor([8.0, 1.0]), alpha=0.5)
        torch.testing.assert_close(scale, torch.tensor([2.0, 0.5]))
        torch.testing.assert_close(
            initial_scale([some, more], torch.tensor([8.0, 1.0]), alpha=1.0), torch.tensor([8.0, 1.0])
        )
        torch.testing.assert_close(
            initial_scale([some, more], torch.tensor([8.0, 1.0]), alpha=0.0), torch.tensor([0.5, 0.25])
        )

    def test_is_what_smoothquant_returns(self) -> None:
        some, more = weights(6), weights(4, seed=1)
        absmax = weights(1, seed=2).abs()[0]
        absmax[3] = 0
        for alpha in (0.0, 0.3, 1.0):
            expected = smoothing_scale(absmax, [some, more], alpha)
            assert torch.equal(initial_scale([some, more], absmax, alpha), expected)

    def test_inputs_without_effect_keep_their_scale(self) -> None:
        scale = initial_scale([torch.tensor([[1.0, 0.0, 3.0]])], torch.tensor([0.0, 5.0, 3.0]), alpha=0.5)
        assert scale.tolist() == [1, 1, 1]
        assert initial_scale([torch.ones(1, 1)], torch.tensor([1e-30]), 0.5).item() >= 1e-3


# --- whole blocks


def one_layer(
    weight: Tensor, inputs: list[Tensor], activation: Callable[[Tensor], Tensor] | None = None
) -> BlockTask:
    """A "block" of one linear layer, its own output in float being the target."""
    name = "block.linear"
    read = activation or (lambda x: x)
    return BlockTask(
        parameters={f"{name}.weight": weight},
        layers=(name,),
        groups=(),
        stats={name: LayerStats()},
        samples=len(inputs),
        output=lambda parameters, i: read(inputs[i]) @ parameters[f"{name}.weight"].T,
        target=lambda i: inputs[i] @ weight.T,
        rounds_inputs=activation is not None,
    )


def planted(count: int, seed: int) -> list[Tensor]:
    """Inputs whose first channels hardly speak: what their weights are does not matter."""
    generator = torch.Generator().manual_seed(seed)
    gain = torch.ones(32)
    gain[:3] = 0.01
    return [torch.randn(40, 32, generator=generator) * gain for _ in range(count)]


def planted_weight() -> Tensor:
    """... although they are the largest ones."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(5))
    weight[:, :3] *= 5
    return weight


def rounded(task: BlockTask, changed: Mapping[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    parameters = {**task.parameters, **changed}
    for layer in task.layers:
        parameters[f"{layer}.weight"] = rtn(parameters[f"{layer}.weight"], grid).decode()
    return parameters


@torch.no_grad()
def loss_of(task: BlockTask, changed: Mapping[str, Tensor], grid: Grid | None) -> float:
    """Mean over utterances of the mean squared error, the weights rounded by the library's RTN."""
    parameters = {**task.parameters, **changed} if grid is None else rounded(task, changed, grid)
    losses = [(task.output(parameters, i) - task.target(i)).square().mean() for i in range(task.samples)]
    return float(torch.stack(losses).mean())


def small_task(name: str = ENCODER, activation: PerToken | None = None, seed: int = 0) -> BlockTask:
    return find_task(tiny_whisper(seed=1, layers=1, frames=20), heard(4, seed), name, activation)


def two_layers() -> BlockTask:
    """Two linear layers in a row: scale and offset may move from the second one's input into the first."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"a.weight": (8, 6), "a.bias": (8,), "b.weight": (5, 8), "b.bias": (5,)}
    own = {key: torch.randn(*size, generator=generator, dtype=FLOAT64) for key, size in sizes.items()}
    inputs = torch.randn(3, 20, 6, generator=generator, dtype=FLOAT64)
    own["a.weight"][:, 0] *= 5  # large weights, weak inputs: there is something to clip
    inputs[..., 0] *= 0.02

    def output(p: Mapping[str, Tensor], sample: int) -> Tensor:
        return (inputs[sample] @ p["a.weight"].T + p["a.bias"]) @ p["b.weight"].T + p["b.bias"]

    between = inputs @ own["a.weight"].T + own["a.bias"]
    stats = LayerStats(60, low=between.amin((0, 1)), high=between.amax((0, 1)))
    return BlockTask(
        own, ("a", "b"), (LayerGroup(("b",), "a", shift=True),), {"b": stats}, 3, output,
        lambda sample: output(own, sample), rounds_inputs=True,
    )  # fmt: skip


def plain_learning(
    task: BlockTask, grid: Grid, epochs: int, rates: tuple[float, float], alpha: float
) -> tuple[dict[str, Tensor], list[float]]:
    """Oracle for `two_layers`: folding, rounding and Adam written out. Rounded values; loss of each epoch."""
    w1, b1, w2, b2 = task.parameters.values()
    low, high = task.stats["b"].low, task.stats["b"].high
    assert low is not None and high is not None
    log_s = (high.maximum(-low) ** alpha / w2.abs().amax(0) ** (1 - alpha)).log()
    clips = [full(w, grid, 4.0) for w in (w1, w2)]
    variables = [each for pair in clips for each in pair if each is not None] + [log_s, z := (low + high) / 2]
    for variable in variables:
        variable.requires_grad_()

    def values() -> dict[str, Tensor]:
        s = log_s.exp()
        moved = (w1 / s[:, None], w2 * s)
        one, two = (plain_fake_quant(w, grid, *ends)[0] for w, ends in zip(moved, clips, strict=True))
        return {"a.weight": one, "a.bias": (b1 - z) / s, "b.weight": two, "b.bias": b2 + w2 @ z}

    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in variables]
    losses = []
    for step in range(1, epochs * task.samples + 1):
        sample = (step - 1) % task.samples
        loss = (task.output(values(), sample) - task.target(sample)).square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, variables)
        for each, g, (m, v) in zip(variables, gradients, moments, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            rate = rates[1] if each is log_s or each is z else rates[0]
            each.data -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    means = torch.tensor(losses, dtype=FLOAT64).view(epochs, -1).mean(1).tolist()
    return {key: value.detach() for key, value in values().items()}, means


class TestFit:
    def test_is_a_block_method(self) -> None:
        assert isinstance(OmniQuant(), BlockMethod)
        assert Needs.BLOCK in OmniQuant.needs and Needs.RANGE in OmniQuant.needs

    @pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
    @pytest.mark.parametrize("group", [None, 12])
    def test_better_than_rtn_also_on_other_inputs(self, group: int | None, symmetric: bool) -> None:
        grid, task = Grid(3, group, symmetric), one_layer(planted_weight(), planted(8, seed=0))
        changed = OmniQuant(epochs=30, clip_rate=0.1).fit(task, grid)
        assert set(changed) == {"block.linear.weight"}
        for data in (task, one_layer(planted_weight(), planted(8, seed=1))):
            assert loss_of(data, changed, grid) < 0.75 * loss_of(data, {}, grid)

    @pytest.mark.parametrize("name", [ENCODER, DECODER])
    @pytest.mark.parametrize("activation", [None, PerToken(bits=4)], ids=str)
    @pytest.mark.parametrize("grid", [Grid(3, 6), Grid(2, 8, True)], ids=str)
    def test_never_worse_than_rtn_nor_than_the_start(
        self, name: str, activation: PerToken | None, grid: Grid
    ) -> None:
        task = small_task(name, activation)
        methods = [OmniQuant(epochs=epochs, clip_rate=0.03) for epochs in (0, 12)]
        losses = [loss_of(task, method.fit(task, grid), grid) for method in methods]
        assert losses[1] < losses[0] <= loss_of(task, {}, grid)
        start = Learned.start(task, grid, START)
        if activation is not None:
            start.start_scales(task, 0.5)
        assert losses[0] <= loss_of(task, start.clipped(task, grid), grid)

    def test_what_learning_saw_is_what_rtn_makes_of_it(self) -> None:
        """The loss of the learned rounding, recomputed from the returned float parameters."""
        task, grid = small_task(DECODER, PerToken(bits=4)), Grid(3, 6)
        learned = Learned.start(task, grid, 1.0)
        learned.start_scales(task, 0.5)
        seen = learned.rounded(task, grid)
        changed = learned.clipped(task, grid)
        for key, value in rounded(task, changed, grid).items():
            assert torch.equal(value, seen[key]), key

    def test_nothing_changes_where_nothing_gets_better(self) -> None:
        """Weights that lie on the grid already: rounding to nearest has no error at all."""
        weight = torch.randint(0, 4, (5, 8), generator=torch.Generator().manual_seed(0)).float()
        weight[:, 0], weight[:, 1] = 0, 3
        task = one_layer(weight, [torch.randn(10, 8, generator=torch.Generator().manual_seed(1))])
        assert OmniQuant(epochs=3).fit(task, Grid(2)) == {}

    def test_a_rate_that_is_too_high_does_no_harm(self) -> None:
        """One huge step: the first guess beats what was learned, and rounding to nearest."""
        grid, task = Grid(3), one_layer(planted_weight(), planted(1, seed=0))
        start = Learned.start(task, grid, START).clipped(task, grid)
        assert loss_of(task, start, grid) < loss_of(task, {}, grid)
        changed = OmniQuant(epochs=1, clip_rate=30.0).fit(task, grid)
        assert torch.equal(changed["block.linear.weight"], start["block.linear.weight"])

    def test_the_best_epoch_is_kept(self) -> None:
        """Losses on the way fall, then explode; the last parameters are far out of range."""
        grid, inputs = Grid(4), planted(2, seed=0)
        task, seen = one_layer(planted_weight(), inputs), []
        calls = itertools.count()

        def output(parameters: Mapping[str, Tensor], sample: int) -> Tensor:
            late = next(calls) >= task.samples + 6 * task.samples  # before that: RTN, and 6 epochs
            return task.output(parameters, sample) * (1e3 if late and torch.is_grad_enabled() else 1)

        broken = replace(task, output=output, progress=seen.append)
        changed = OmniQuant(epochs=9, clip_rate=0.3).fit(broken, grid)
        assert seen[5] < seen[0] and min(seen[6:]) > 10 * seen[0]
        expected = OmniQuant(epochs=6, clip_rate=0.3).fit(task, grid)
        assert torch.equal(changed["block.linear.weight"], expected["block.linear.weight"])

    @pytest.mark.parametrize("grid", [Grid(2, 4), Grid(3, None, True)], ids=str)
    def test_steps_are_those_of_a_plain_loop(self, grid: Grid) -> None:
        task, seen = two_layers(), []
        expected, losses = plain_learning(task, grid, epochs=3, rates=(0.2, 0.03), alpha=0.4)
        assert losses[-1] == min(losses)  # so the last epoch is the one that is kept
        method = OmniQuant(epochs=3, clip_rate=0.2, scale_rate=0.03, alpha=0.4)
        changed = method.fit(replace(task, progress=seen.append), grid)
        assert seen == pytest.approx(losses, rel=1e-9)
        for key, value in rounded(task, changed, grid).items():
            assert key in changed
            torch.testing.assert_close(value, expected[key])

    def test_progress_is_the_mean_loss_of_each_epoch(self) -> None:
        seen: list[float] = []
        task = replace(one_layer(planted_weight(), planted(4, seed=0)), progress=seen.append)
        OmniQuant(epochs=3).fit(task, Grid(3))
        assert len(seen) == 3 and seen[2] < seen[0]
        start = Learned.start(task, Grid(3), START).clipped(task, Grid(3))
        assert seen[0] == pytest.approx(loss_of(task, start, Grid(3)), rel=0.1)

    def test_same_twice_and_the_task_is_left_alone(self) -> None:
        task, grid = small_task(DECODER, PerToken(bits=4)), Grid(3, 6)
        before = {key: value.clone() for key, value in task.parameters.items()}
        state = torch.get_rng_state()
        first, second = (OmniQuant(epochs=2).fit(task, grid) for _ in range(2))
        assert first.keys() == second.keys() and first
        assert all(torch.equal(value, second[key]) for key, value in first.items())
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in task.parameters.items())
        assert not any(value.requires_grad for value in first.values())

    def test_works_where_gradients_are_off(self) -> None:
        task = one_layer(planted_weight(), planted(2, seed=0))
        with torch.no_grad():
            changed = OmniQuant(epochs=2).fit(task, Grid(3))
        expected = OmniQuant(epochs=2).fit(task, Grid(3))
        assert torch.equal(changed["block.linear.weight"], expected["block.linear.weight"])

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_dead_rows_and_groups(self, symmetric: bool) -> None:
        weight = planted_weight()
        weight[2], weight[:, 8:16], weight[4, 16:24] = 0, 0, weight[4, 16:24].abs()
        task, grid = one_layer(weight, planted(3, seed=0)), Grid(3, 8, symmetric)
        changed = OmniQuant(epochs=5).fit(task, grid)["block.linear.weight"]
        assert changed.isfinite().all()
        assert (changed[2] == 0).all() and (changed[:, 8:16] == 0).all()
        assert loss_of(task, {"block.linear.weight": changed}, grid) < loss_of(task, {}, grid)


class TestScales:
    @pytest.mark.parametrize("name", [ENCODER, DECODER])
    def test_the_start_leaves_the_float_block_as_it_is(self, name: str) -> None:
        model = tiny_whisper(seed=1, layers=1, frames=20).double()
        task = find_task(model, heard(2, dtype=FLOAT64), name)
        learned = Learned.start(task, Grid(4), START)
        learned.start_scales(task, alpha=0.5)
        assert len(learned.shift) == len(learned.log_scale) == len(task.groups) > 0
        folded = learned.folded(task)
        assert sum(not torch.equal(folded[key], value) for key, value in task.parameters.items()) >= 10
        assert (
            max(float((task.output(folded, i) - task.target(i)).detach().abs().max()) for i in range(2))
            <= 1e-9
        )

    def test_the_start_is_smoothquant_and_the_middle(self) -> None:
        task = small_task()
        learned = Learned.start(task, Grid(4), START)
        learned.start_scales(task, alpha=0.3)
        group = task.groups[0]
        stats = task.stats[group.layers[0]]
        assert stats.absmax is not None and stats.low is not None and stats.high is not None
        scale = initial_scale(
            [task.parameters[f"{layer}.weight"] for layer in group.layers], stats.absmax, 0.3
        )
        torch.testing.assert_close(learned.log_scale[group.layers[0]].exp(), scale)
        torch.testing.assert_close(learned.shift[group.layers[0]], (stats.low + stats.high) / 2)

    def test_every_variable_gets_a_gradient(self) -> None:
        task, grid = small_task(DECODER, PerToken(bits=4)), Grid(3, 6)
        learned = Learned.start(task, grid, START)
        learned.start_scales(task, alpha=0.5)
        torch.autograd.backward((task.output(learned.rounded(task, grid), 0) - 1).square().sum())
        for some in (learned.upper, learned.lower, learned.log_scale, learned.shift):
            assert some
            for key, variable in some.items():
                assert variable.grad is not None and variable.grad.isfinite().all(), key
                assert (variable.grad != 0).double().mean() > 0.9, key

    def test_gradients_of_scales_are_finite_differences(self) -> None:
        """Without rounding, a scale does nothing; with held rounding errors, what plain autograd says."""
        model = tiny_whisper(seed=1, layers=1, frames=20).double()
        task, grid = find_task(model, heard(1, dtype=FLOAT64), ENCODER), Grid(3, 6)
        learned = Learned.start(task, grid, 2.0)
        learned.start_scales(task, alpha=0.5)

        def plainly_rounded() -> dict[str, Tensor]:
            parameters = learned.folded(task)
            for key, upper in learned.upper.items():
                lower = learned.lower.get(key)
                parameters[key] = plain_fake_quant(parameters[key], grid, upper, lower)[0]
            return parameters

        variables = [*learned.log_scale.values(), *learned.shift.values(), *learned.upper.values()]
        found, expected = (
            torch.autograd.grad((task.output(parameters, 0) - 1).square().sum(), variables)
            for parameters in (learned.rounded(task, grid), plainly_rounded())
        )
        for each, other in zip(found, expected, strict=True):
            torch.testing.assert_close(each, other, rtol=1e-8, atol=1e-10)
            assert (each != 0).any()

    @pytest.mark.parametrize(
        ("let", "activation", "expected"),
        [
            (None, None, False),
            (None, PerToken(bits=4), True),
            (True, None, True),
            (False, PerToken(bits=4), False),
        ],
    )
    def test_are_learned_where_inputs_are_rounded_or_asked_for(
        self, let: bool | None, activation: PerToken | None, expected: bool
    ) -> None:
        task = small_task(ENCODER, activation)
        changed = OmniQuant(epochs=10, clip_rate=0.03, let=let).fit(task, Grid(3, 6))
        weights = {f"{layer}.weight" for layer in task.layers}
        assert weights <= set(changed)
        assert (f"{ENCODER}.final_layer_norm.weight" in changed) == expected
        assert (set(changed) == weights) == (not expected)

    def test_help_where_inputs_have_outliers(self) -> None:
        """A channel 50 times as large: with it, four bits of a token leave nothing for the others."""
        model = tiny_whisper(seed=1, layers=1, frames=20)
        with torch.no_grad():
            model.get_submodule(f"{ENCODER}.final_layer_norm").weight[3] *= 50
            model.get_submodule(f"{ENCODER}.fc1").weight[:, 3] /= 50
        grid, activation = Grid(4), PerToken(bits=4)
        task = find_task(model, heard(6), ENCODER, activation)
        fit = {let: OmniQuant(epochs=5, let=let).fit(task, grid) for let in (True, False)}
        for data in (task, find_task(model, heard(6, seed=9), ENCODER, activation)):
            losses = {let: loss_of(data, changed, grid) for let, changed in fit.items()}
            assert losses[True] < 0.7 * losses[False]

    def test_folding_keeps_the_function_after_learning_too(self) -> None:
        task = small_task(DECODER, PerToken(bits=4))
        task64 = find_task(
            tiny_whisper(seed=1, layers=1, frames=20).double(), heard(4, dtype=FLOAT64), DECODER
        )
        learned = Learned.start(task64, Grid(4), INF)
        learned.start_scales(task64, 0.5)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for variable in (*learned.log_scale.values(), *learned.shift.values()):
                variable += 0.3 * torch.randn(variable.shape, generator=generator)
        assert loss_of(task64, learned.folded(task64), None) <= 1e-20
        assert task.samples == task64.samples

    def test_dead_channels(self) -> None:
        model = tiny_whisper(seed=1, layers=1, frames=20)
        norm = model.get_submodule(f"{ENCODER}.final_layer_norm")
        with torch.no_grad():
            norm.weight[[2, 5]], norm.bias[[2, 5]] = 0, 0
        task = find_task(model, heard(3), ENCODER, PerToken(bits=4))
        changed = OmniQuant(epochs=3).fit(task, Grid(3, 6))
        assert all(value.isfinite().all() for value in changed.values())
        assert loss_of(task, changed, Grid(3, 6)) < loss_of(task, {}, Grid(3, 6))

    def test_shared_rows_stay_tied(self) -> None:
        """Channels that come from one row of `before` get one scale, whatever was learned for each."""
        group = LayerGroup(("out",), "value", rows=(0, 0, 1, 1))
        generator = torch.Generator().manual_seed(0)
        value, out = torch.randn(2, 3, generator=generator), torch.randn(5, 4, generator=generator)
        inputs = torch.randn(9, 3, generator=generator)

        def output(parameters: Mapping[str, Tensor], sample: int) -> Tensor:
            return (inputs @ parameters["value.weight"].T)[:, [0, 0, 1, 1]] @ parameters["out.weight"].T

        parameters = {"value.weight": value, "out.weight": out}
        ends = (inputs @ value.T)[:, [0, 0, 1, 1]]
        task = BlockTask(
            parameters, ("out",), (group,), {"out": LayerStats(9, low=ends.amin(0), high=ends.amax(0))}, 1,
            output, lambda sample: output(parameters, 0), rounds_inputs=True,
        )  # fmt: skip
        learned = Learned.start(task, Grid(2), START)
        learned.start_scales(task, 0.5)
        assert len(learned.log_scale["out"].exp().unique()) == 4 and not learned.shift
        torch.testing.assert_close(output(learned.folded(task), 0), task.target(0))
        changed = OmniQuant(epochs=20).fit(task, Grid(2))
        assert loss_of(task, changed, Grid(2)) <= loss_of(task, {}, Grid(2))


def test_moonshine_without_biases() -> None:
    """No offset may move there, and the gated layer's scale goes into half of the rows only."""
    model = tiny_moonshine(seed=1, layers=1).double()
    sound = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    frames = model.encode(sound).shape[1]
    tokens = torch.arange(7)[None]
    masks = torch.ones(1, frames, dtype=torch.bool), torch.ones(1, 7, dtype=torch.bool)
    batches = [SpeechBatch(sound, masks[0], tokens, masks[1])]
    for name in (model.stages()[0].blocks[0], model.stages()[1].blocks[0]):
        task = find_task(model, batches, name, PerToken(bits=4))
        learned = Learned.start(task, Grid(3), START)
        learned.start_scales(task, 0.5)
        assert task.groups and not learned.shift
        free = find_task(model, batches, name)
        torch.testing.assert_close(
            free.output(learned.folded(task), 0).detach(), task.target(0), rtol=1e-6, atol=1e-6
        )
        changed = OmniQuant(epochs=30).fit(task, Grid(3))
        assert changed and loss_of(task, changed, Grid(3)) < loss_of(task, {}, Grid(3))


class TestErrors:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": -1},
            {"clip_rate": 0.0},
            {"scale_rate": INF},
            {"alpha": 1.5},
            {"clip_rate": float("nan")},
        ],
        ids=str,
    )
    def test_settings(self, wrong: dict[str, float]) -> None:
        ((key, value),) = wrong.items()
        with pytest.raises(QuantError, match=rf"{key}={value}.*epochs must be >= 0.*Use OmniQuant\(\)"):
            OmniQuant(**wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("when", [0, 7])
    def test_a_loss_that_is_not_finite(self, when: int) -> None:
        task, calls = one_layer(planted_weight(), planted(2, seed=0)), itertools.count()

        def output(parameters: Mapping[str, Tensor], sample: int) -> Tensor:
            return task.output(parameters, sample) * (float("nan") if next(calls) == when else 1)

        with pytest.raises(
            QuantError,
            match=rf"block of block\.linear is nan for utterance {when % 2} of 2.*smaller clip_rate",
        ):
            OmniQuant(epochs=3).fit(replace(task, output=output), Grid(3))

    def test_a_group_larger_than_the_layer(self) -> None:
        task = one_layer(planted_weight(), planted(1, seed=0))
        with pytest.raises(QuantError, match=r"group=64 is larger than the 32 columns of block\.linear"):
            OmniQuant().fit(task, Grid(3, 64))

    def test_short_floats(self) -> None:
        task = one_layer(planted_weight().half(), planted(1, seed=0))
        with pytest.raises(QuantError, match=r"block\.linear is torch\.float16.*model\.float\(\)"):
            OmniQuant().fit(task, Grid(3))

    def test_no_utterances(self) -> None:
        with pytest.raises(QuantError, match=r"no utterances for the block of block\.linear"):
            OmniQuant().fit(one_layer(planted_weight(), []), Grid(3))

    def test_no_ranges(self) -> None:
        task = small_task()
        task = replace(task, stats={layer: LayerStats() for layer in task.layers})
        assert OmniQuant(epochs=1).fit(task, Grid(3))
        with pytest.raises(QuantError, match=rf"No ranges for the input of {ENCODER}.*Needs.RANGE"):
            OmniQuant(let=True).fit(task, Grid(3))
