"""`check_method`: the library's methods pass, and each check has a method that fails it; the two oracles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from oracles import gptq_oracle
from torch import Tensor

import qlib
from qlib.errors import CheckError, QuantError
from qlib.grid import Grid, encode, fit_minmax, round_to_nearest
from qlib.methods.contracts import BlockTask, Fitted, Fold, LayerStats, Needs, apply_folds
from qlib.methods.gptq import gptq, hessian
from qlib.methods.rtn import rtn
from qlib.quantized_weight import QuantizedWeight
from qlib.testing import best_rounding, check_method, gptq_column_by_column, method_checks, problems
from qlib.testing.gain import _errors
from qlib.testing.sides import sides_of

# --- the library's own


@pytest.mark.parametrize(
    ("method", "better_at"),
    [
        (qlib.RTN("mse"), "weights"),
        (qlib.HQQ(), "weights"),
        (qlib.GPTQ(), "outputs"),
        (qlib.QUIK(), "outputs"),
        (qlib.SpQR(), "outputs"),
        (qlib.SmoothQuant(), "rounded inputs"),
        (qlib.AWQ(), "outputs"),
        (qlib.OmniQuant(epochs=2), "outputs"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_methods_of_the_library_pass(method: Any, better_at: Any) -> None:
    check_method(method, better_at=better_at)


def test_rounding_to_nearest_is_not_better_than_itself() -> None:
    check_method(qlib.RTN())
    with pytest.raises(CheckError, match=r"better_at='weights'"):
        check_method(qlib.RTN(), better_at="weights")


def test_what_rounds_has_no_other_contract_and_awq_has_two() -> None:
    """`fit` of GPTQ is a setting and no method of blocks."""
    calls = [
        {str(check).split("-")[0] for check in method_checks(each)} for each in (qlib.GPTQ(), qlib.AWQ())
    ]
    assert calls == [{"quantize_layer"}, {"scale_group", "clip_layer"}]


def test_what_rounds_and_scales_is_two_methods() -> None:
    class Both(Rounds):
        def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
            raise AssertionError("nobody calls it")

        def fit(self, task: Any, grid: Grid) -> dict[str, Tensor]:
            raise AssertionError("nor this")

    with pytest.raises(QuantError, match=r"mine has quantize_layer and scale_group, fit.*two objects"):
        check_method(Both())


# --- methods that are wrong in one thing


@dataclass(frozen=True)
class Rounds:
    """Round to nearest; each class below does one thing otherwise."""

    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.NOTHING

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight, grid)


class OwnNames(Rounds):
    """Arguments go by their place, as in `quantize`."""

    def quantize_layer(self, W: Tensor, _: LayerStats, g: Grid) -> QuantizedWeight:
        return rtn(W, g)


@dataclass(frozen=True)
class Scales:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.RANGE

    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        assert stats.absmax is not None
        return stats.absmax.clamp(min=1e-3).sqrt()


@dataclass(frozen=True)
class Clips:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.NOTHING

    def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        end = 0.9 * weight.abs().amax(1, keepdim=True)
        return weight.clamp(-end, end)


@dataclass(frozen=True)
class Learns:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.BLOCK | Needs.RANGE

    def fit(self, task: BlockTask, grid: Grid) -> Mapping[str, Tensor]:
        folds = []
        for group in task.groups:
            absmax = task.stats[group.first].absmax
            assert absmax is not None
            scale = group.tie(absmax.clamp(min=1e-3).sqrt())
            folds.append(Fold(group, scale.to(task.parameters[f"{group.first}.weight"])))
        return Fitted(apply_folds(task.parameters, folds), folds).without(task.parameters)


@pytest.mark.parametrize(
    "method", [Rounds(), Scales(), Clips(), Learns(), OwnNames()], ids=lambda each: type(each).__name__
)
def test_methods_from_outside_pass(method: Any) -> None:
    check_method(method)


class NoPaper(Rounds):
    paper: ClassVar[Any] = None


class TooLarge(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        good = rtn(weight, grid)
        return replace(good, codes=good.codes + 1)


class NotFinite(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        good = rtn(weight, grid)
        return replace(good, scale=good.scale / 0)


class Transposed(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        good = rtn(weight, grid)
        return replace(good, codes=good.codes.T)


class Even(Rounds):
    """Groups by reshape, which must come out even."""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        weight.reshape(len(weight), -1, grid.group or weight.shape[1])
        return rtn(weight, grid)


class Squeezed(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        spread = (weight - weight.mean(0)).square().sum() / (len(weight) - 1)  # NaN where there is one row
        good = rtn(weight, grid)
        return replace(good, scale=good.scale + 0 * spread)


class DividesByInputs(Rounds):
    needs: ClassVar[Needs] = Needs.RANGE

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        assert stats.absmax is not None
        return rtn(weight * stats.absmax / stats.absmax, grid)


class Float32(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight.float(), grid)


class LongScales(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        good = rtn(weight, grid)
        return replace(good, scale=good.scale.double() * (1 + 1e-9))


class LongValues(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return replace(
            rtn(weight, grid), outliers=torch.tensor([3]), outlier_values=weight.flatten()[[3]].double()
        )


class LeavesOutTheSecondLevel(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        params = fit_minmax(weight, grid)
        return QuantizedWeight(encode(weight, params, grid), params.scale, params.zero, params.index)


class InPlace(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight.clamp_(-1, 1), grid)


class ChangesStatistics(Rounds):
    needs: ClassVar[Needs] = Needs.HESSIAN

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        assert stats.hessian is not None
        stats.hessian.diagonal().add_(1)
        return rtn(weight, grid)


class ReadsHessian(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return gptq(weight, stats.hessian, grid)  # type: ignore[arg-type]


class LooksForMagnitude(Rounds):
    """Does not fail without it, but is another method then."""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight, grid) if stats.absolute is None else rtn(weight.clamp(-1, 1), grid)


class NoGrid(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats) -> QuantizedWeight:  # type: ignore[override]
        return rtn(weight, Grid(4))


class RefusesByValueError(Rounds):
    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        raise ValueError("no symmetric grids")


class RunningMean(Rounds):
    """Clips by the mean range of all layers so far."""

    seen: ClassVar[list[float]] = []

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        self.seen.append(float(weight.abs().max()))
        end = 0.8 * sum(self.seen) / len(self.seen)
        return rtn(weight.clamp(-end, end), grid)


class KeepsShape(Rounds):
    shapes: ClassVar[list[torch.Size]] = []

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        self.shapes.append(weight.shape)
        return rtn(weight.view(self.shapes[0]), grid)


class Random(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return rtn(weight + 0.01 * torch.rand_like(weight), grid)


@dataclass(frozen=True)
class HiddenFloats(QuantizedWeight):
    """Decodes to something that no field holds."""

    def decode(self) -> Tensor:
        return super().decode() + 0.001


class NotOnDisk(Rounds):
    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        good = rtn(weight, grid)
        return HiddenFloats(good.codes, good.scale, good.zero, good.index)


@dataclass(frozen=True)
class OddSettings(Rounds):
    settings_of_mine: Any = torch.float32  # no plain data


class NoZeroPoint(Rounds):
    """Subtracts the zero points twice: codes and zeros do not belong together."""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        params = fit_minmax(weight, grid)
        wrong = params if params.zero is None else replace(params, zero=0 * params.zero)
        return QuantizedWeight.of(encode(weight, params, grid), wrong)


class NegativeScales(Scales):
    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        return -super().scale_group(weights, stats, grid)


class ZeroScales(Scales):
    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        assert stats.absmax is not None
        return stats.absmax.sqrt()


class ScalesByHessian(Scales):
    def scale_group(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        assert stats.hessian is not None
        return stats.hessian.diagonal().clamp(min=1e-3).sqrt().float()


class Widens(Clips):
    def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        return 1.1 * weight


class ClipsInPlace(Clips):
    def clip_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        return weight.clamp_(-1, 1)


class UnknownNames(Learns):
    def fit(self, task: BlockTask, grid: Grid) -> Mapping[str, Tensor]:
        return {name.upper(): value for name, value in task.parameters.items()}


class OtherFold(Learns):
    """Names a fold that leaves out the layer it moves into."""

    def fit(self, task: BlockTask, grid: Grid) -> Mapping[str, Tensor]:
        fitted = super().fit(task, grid)
        assert isinstance(fitted, Fitted)
        wrong = [replace(fold, group=replace(fold.group, layers=())) for fold in fitted.folds]
        return Fitted(fitted, wrong)


class LearnsInPlace(Learns):
    def fit(self, task: BlockTask, grid: Grid) -> Mapping[str, Tensor]:
        for layer in task.layers:
            task.parameters[f"{layer}.weight"].mul_(0.99)
        return {}


BROKEN: list[tuple[Any, str, str]] = [
    (NoPaper(), "says_what_it_is", r"NoPaper\.paper is None.*ClassVar\[str\]"),
    (TooLarge(), "returns_what_it_promises", r"\[12, 24\].*w4 per channel.*codes from 1 to 16.*Clamp"),
    (
        NoGrid(),
        "returns_what_it_promises",
        r"weight, stats, grid: too many.*def quantize_layer\(self, weight",
    ),
    (
        RefusesByValueError(),
        "takes_one_row",
        r"check_weights on .*failed in test_testing.py.*by a QuantError",
    ),
    (NotFinite(), "returns_what_it_promises", r"NaN or infinite"),
    (Transposed(), "returns_what_it_promises", r"\[24, 12\].*for a weight \[12, 24\]"),
    (NegativeScales(), "returns_what_it_promises", r"24 of 24 scales that are 0 or below"),
    (UnknownNames(), "returns_what_it_promises", r"BLOCK\.NORM\.WEIGHT.*does not have"),
    (Even(), "takes_a_ragged_last_group", r"last group has 4 columns.*shape '\[12, -1, 10\]'"),
    (Squeezed(), "takes_one_row", r"with one output.*NaN or infinite"),
    (DividesByInputs(), "takes_unused_inputs", r"two inputs of which are always 0.*NaN"),
    (ZeroScales(), "takes_unused_inputs", r"always 0.*2 of 24 scales that are 0 or below.*the scale 1"),
    (Float32(), "takes_every_float", r"in float64.*is torch\.float32.*as_compute_dtype"),
    (LongScales(), "takes_every_float", r"in float16.*its scale is float64, and 64 bits"),
    (LongValues(), "takes_every_float", r"in float16.*its outlier_values is float64.*values\.float"),
    (
        LeavesOutTheSecondLevel(),
        "returns_what_it_promises",
        r"w4 g8 asymmetric, 4-bit scales.*codes of 4 bits",
    ),
    (InPlace(), "leaves_its_arguments", r"changed \d+ of 288 numbers of weight.*clone"),
    (ChangesStatistics(), "leaves_its_arguments", r"changed 24 of 576 numbers of stats\.hessian"),
    (ClipsInPlace(), "leaves_its_arguments", r"numbers of weight"),
    (LearnsInPlace(), "leaves_its_arguments", r"numbers of task\.parameters\['block\.fc1\.weight'\]"),
    (ReadsHessian(), "names_what_it_needs", r"reads stats\.hessian.*Add Needs\.HESSIAN to needs"),
    (LooksForMagnitude(), "names_what_it_needs", r"reads stats\.absolute.*Add Needs\.MAGNITUDE"),
    (ScalesByHessian(), "names_what_it_needs", r"reads stats\.hessian.*Needs\.RANGE.*Add Needs\.HESSIAN"),
    (Random(), "is_repeatable", r"two results.*codes.*Generator"),
    (RunningMean(), "is_repeatable", r"two results.*keep nothing between two calls"),
    (KeepsShape(), "comes_back_from_disk", r"tiny_llama.*self_attn.*mine failed with RuntimeError: shape"),
    (NotOnDisk(), "comes_back_from_disk", r"tensors differ|codes, scale, zero and index"),
    (OddSettings(), "comes_back_from_disk", r"settings of mine.*plain numbers"),
    (NoZeroPoint(), "is_close_with_8_bits", r"w8 g10 asymmetric.*of them, where rounding to nearest has"),
    (Widens(), "narrows_the_range", r"outside of the range.*clamp"),
    (OtherFold(), "names_its_folds", r"the 1 folds.*change the float output"),
]


@pytest.mark.parametrize(
    ("method", "expected", "message"), BROKEN, ids=[f"{type(method).__name__}" for method, _, _ in BROKEN]
)
def test_a_broken_method_fails_the_check_that_is_for_it(method: Any, expected: str, message: str) -> None:
    (check,) = [each for each in method_checks(method) if str(each).endswith(expected)]
    with pytest.raises(CheckError, match=f"(?s){message}"):
        check()


def test_every_check_has_a_broken_method() -> None:
    every = {
        str(each).split("-")[1]
        for method in (Rounds(), Scales(), Clips(), Learns())
        for each in method_checks(method)
    }
    assert every == {name for _, name, _ in BROKEN}


@dataclass(frozen=True)
class KeepsLargeInputs(Rounds):
    """The two inputs that are 20 times larger stay in float; the rest is rounded to nearest."""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        columns = torch.tensor([number for number in problems.LARGE if number < weight.shape[1]])
        rest = torch.ones(weight.shape[1], dtype=torch.bool).index_fill(0, columns, False)
        params = fit_minmax(weight[:, rest], grid)
        codes = torch.zeros(weight.shape, dtype=grid.code_dtype)
        codes[:, rest] = encode(weight[:, rest], params, grid)
        index = None
        if params.index is not None:
            index = torch.zeros(weight.shape[1], dtype=torch.int64)
            index[rest] = params.index
        found = QuantizedWeight.of(codes, replace(params, index=index))
        return replace(found, columns=columns, column_values=weight[:, columns])


def test_inputs_of_columns_in_float_are_not_rounded() -> None:
    """As in `quantize`: with the two large inputs rounded too, most of the error would be theirs."""
    (side,) = sides_of(KeepsLargeInputs())
    mine, nearest = _errors(KeepsLargeInputs(), side, problems.layer(), Grid(8), "rounded inputs")
    assert mine < nearest / 20
    W, X = problems.layer().weight.double(), problems.layer().inputs.double()
    values = (
        KeepsLargeInputs().quantize_layer(problems.layer().weight, LayerStats(), Grid(8)).decode().double()
    )
    inputs = qlib.PerToken(8)(X.index_fill(1, torch.tensor(problems.LARGE), 0))
    inputs[:, problems.LARGE] = X[:, problems.LARGE]
    assert mine == pytest.approx(float((inputs @ values.T - X @ W.T).square().sum()))
    check_method(KeepsLargeInputs(), better_at="rounded inputs")


def test_a_method_without_fields_and_an_unknown_claim_are_refused() -> None:
    with pytest.raises(QuantError, match="has no"):
        check_method(object())
    with pytest.raises(QuantError, match="'speed' is unknown"):
        check_method(Rounds(), better_at="speed")  # type: ignore[arg-type]


def test_a_method_that_refuses_all_layers_says_why() -> None:
    with pytest.raises(CheckError, match=r"check_weights refuses.*columns=24.*small layers"):
        check_method(qlib.QUIK(columns=24))


@pytest.mark.parametrize(
    "allowed",
    [
        lambda grid: grid.group is not None,
        lambda grid: grid.group is None,
        lambda grid: grid.bits == 4,
        lambda grid: grid.bits == 2,
        lambda grid: grid.symmetric,
        lambda grid: grid.group in (4, 8, 16),
    ],
    ids=["groups", "rows", "4 bits", "2 bits", "symmetric", "powers of two"],
)
def test_checks_without_a_grid_are_left_out(allowed: Callable[[Grid], bool]) -> None:
    class Picky(qlib.RTN):
        def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
            if not allowed(grid):
                raise QuantError(f"Picky does not take {grid}. Choose another grid.")

    check_method(Picky())


def test_a_fold_that_is_only_named_is_found() -> None:
    class Names:
        name, paper, needs = "names", "none", Needs.BLOCK

        def fit(self, task: BlockTask, grid: Grid) -> Fitted:
            group = task.groups[0]
            size = task.parameters[f"{group.first}.weight"].shape[1]
            return Fitted({}, [Fold(group, torch.full((size,), 2.0))])

    with pytest.raises(CheckError, match=r"its folds move .*which its result does not hold"):
        check_method(Names())


def test_a_before_that_returns_nothing_is_refused() -> None:
    class Forgets(qlib.SmoothQuant):
        def before(self, rounding: str) -> None:
            return None

    for call in (
        lambda: qlib.quantize_matrix(
            torch.randn(4, 8), qlib.statistics(torch.randn(20, 8)), Grid(4), [Forgets(), qlib.RTN()]
        ),
        lambda: check_method(Forgets()),
    ):
        with pytest.raises(QuantError, match=r"smoothquant\.before\('rtn'\) returned None"):
            call()


# --- oracles


def oracle_problem() -> tuple[Tensor, Tensor]:
    """A weight [6, 12] and a Hessian, one input of which was always 0; in float64."""
    weight, inputs = torch.randn(6, 12, dtype=torch.float64), torch.randn(40, 12, dtype=torch.float64)
    inputs[:, 7] = 0
    return weight, hessian(inputs)


@pytest.mark.parametrize("scale_bits", [16, 3])
def test_the_oracle_has_scales_in_the_bits_of_the_grid(scale_bits: int) -> None:
    weight, H = oracle_problem()
    grid = Grid(3, 5, scale_bits=scale_bits)
    values = gptq_column_by_column(weight, H, grid)
    torch.testing.assert_close(values, gptq(weight, H, grid).decode())
    assert not torch.allclose(values, gptq_column_by_column(weight, H, Grid(3, 5)), rtol=1e-5)


def test_the_oracle_damps_in_float64() -> None:
    """Damping in float32 would move the columns, and with them the next scales, by some 1e-8."""
    weight, H = oracle_problem()
    values = gptq_column_by_column(weight, H, Grid(2, 5), damping=0.7)
    right = gptq(weight, H, Grid(2, 5), damping=0.7).decode()
    torch.testing.assert_close(values, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grid", [Grid(3), Grid(2, 5), Grid(4, 4, symmetric=True)], ids=str)
def test_gptq_column_by_column(grid: Grid) -> None:
    """Against the library, and against a third one in NumPy by Schur complements."""
    weight, H = oracle_problem()
    values = gptq_column_by_column(weight, H, grid)
    torch.testing.assert_close(values, gptq(weight, H, grid).decode())
    torch.testing.assert_close(values, gptq_oracle(weight, H, grid.bits, grid.group, grid.symmetric)[1])


@pytest.mark.parametrize("grid", [Grid(2), Grid(2, 2, symmetric=True)], ids=str)
def test_best_rounding(grid: Grid) -> None:
    """Row by row by itertools; never worse than any method on the same scales, and RTN where H = 1."""
    weight, inputs = torch.randn(3, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    H = hessian(inputs)
    scale, zero = fit_minmax(weight, grid).per_column()
    for row, best in enumerate(best_rounding(weight, H, grid)):
        errors = []
        for codes in itertools.product(range(grid.qmin, grid.qmax + 1), repeat=4):
            values = scale[row] * (torch.tensor(codes) - (0 if zero is None else zero[row]))
            errors.append(float((inputs @ (values - weight[row])).square().sum()))
        assert float((inputs @ (best - weight[row])).square().sum()) == pytest.approx(min(errors))
    assert torch.equal(best_rounding(weight, torch.eye(4), grid), round_to_nearest(weight, grid))


def test_best_rounding_refuses_what_would_take_too_long() -> None:
    with pytest.raises(QuantError, match=r"4,294,967,296 codings.*Use fewer"):
        best_rounding(torch.randn(1, 8), torch.eye(8), Grid(4))
