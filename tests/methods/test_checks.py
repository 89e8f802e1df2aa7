"""What methods check alike: damping, the order of the columns, statistics that belong to a layer, tokens."""

from __future__ import annotations

import pytest
import torch

from qlib import GPTQ, QUIK, SpQR
from qlib.errors import QuantError
from qlib.grid import Grid
from qlib.methods.checks import (
    check_absmax,
    check_act_order,
    check_damping,
    check_layer,
    check_layer_stats,
    with_token_note,
)
from qlib.methods.contracts import LayerStats, Needs
from qlib.methods.gptq import gptq
from qlib.methods.spqr import spqr
from qlib.quantized_weight import QuantizedWeight

ROWS, COLUMNS = 5, 12
W = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
H = torch.eye(COLUMNS)


class TestSettings:
    @pytest.mark.parametrize("damping", [-1e-9, float("nan"), float("inf")])
    def test_damping(self, damping: float) -> None:
        check_damping(0, "ANY")
        with pytest.raises(QuantError, match=f"damping={damping} in ANY"):
            check_damping(damping, "ANY")

    def test_the_remedy_is_the_default_of_what_was_called(self) -> None:
        with pytest.raises(QuantError, match=r"Use damping=0\.3\."):
            GPTQ(damping=-1)
        with pytest.raises(QuantError, match=r"Use damping=0\.01\."):
            gptq(W, H, Grid(3), damping=-1)
        with pytest.raises(QuantError, match=r"Use damping=0\.01\."):
            QUIK(damping=-1)
        with pytest.raises(QuantError, match=r"Use damping=1\.0\."):
            spqr(W, H, Grid(3), damping=-1)
        for method, default in ((GPTQ(), 0.3), (QUIK(), 0.01), (SpQR(), 1.0)):
            assert method.damping == default

    @pytest.mark.parametrize(
        ("word", "remedy"),
        [
            ("off", r"act_order=False\."),
            ("dynamic", r"act_order=True\."),
            ("static", r"act_order=True, static_groups=True\."),
            ("off-static", r"act_order=False, static_groups=True\."),
            ("on", r"act_order=True or act_order=False\."),
        ],
    )
    def test_words_for_the_order_say_which_switches_they_were(self, word: str, remedy: str) -> None:
        message = (
            f"act_order='{word}' in GPTQ: act_order and static_groups are each True or False. Use {remedy}"
        )
        with pytest.raises(QuantError, match=message):
            check_act_order(word, "GPTQ")
        if "static" in remedy:  # SpQR has no such switch
            remedy = r"act_order=True or act_order=False\."
        with pytest.raises(QuantError, match=f"'{word}' in SpQR: act_order is True or False. Use {remedy}"):
            check_act_order(word, "SpQR", static_groups=False)

    def test_order_is_a_bool(self) -> None:
        assert check_act_order(True, "ANY") is True
        with pytest.raises(QuantError, match="act_order in ANY is the int 1, neither True nor False"):
            check_act_order(1, "ANY")


class TestStatistics:
    def test_are_returned_in_one_order(self) -> None:
        stats = LayerStats(4, H, -3 * torch.ones(COLUMNS), torch.ones(COLUMNS), 8 * torch.ones(COLUMNS))
        everything = Needs.MAGNITUDE | Needs.RANGE | Needs.HESSIAN
        found, absmax, magnitude = check_layer_stats(stats, W, everything, "ANY")
        assert found is H
        assert (absmax == 3).all() and (magnitude == 2).all()
        assert len(check_layer_stats(stats, W, Needs.RANGE, "ANY")) == 1

    @pytest.mark.parametrize(
        ("needs", "message"),
        [
            (Needs.HESSIAN, r"ANY got statistics without a Hessian\. Calibrate with needs=Needs\.HESSIAN\."),
            (Needs.RANGE, r"without the range of the inputs\. .*Needs\.RANGE"),
            (Needs.HESSIAN | Needs.MAGNITUDE, r"a Hessian and mean \|x\|.*HESSIAN \| Needs\.MAGNITUDE"),
        ],
    )
    def test_missing(self, needs: Needs, message: str) -> None:
        with pytest.raises(QuantError, match=message):
            check_layer_stats(LayerStats(60), W, needs, "ANY")

    def test_of_another_layer(self) -> None:
        stats = LayerStats(60, H[1:, 1:], torch.zeros(11), torch.ones(11))
        with pytest.raises(QuantError, match=r"ANY got .*Hessian of shape \(11, 11\) for 12 inputs"):
            check_layer_stats(stats, W, Needs.HESSIAN, "ANY")
        with pytest.raises(QuantError, match=r"range of the inputs of shape \(11,\) for 12 inputs"):
            check_layer_stats(stats, W, Needs.RANGE, "ANY")
        with pytest.raises(QuantError, match="ANY got a Tensor"):
            check_layer_stats(H, W, Needs.HESSIAN, "ANY")  # type: ignore[arg-type]
        with pytest.raises(QuantError, match="cannot be quantized"):
            check_layer_stats(stats, W[0], Needs.HESSIAN, "ANY")

    def test_range(self) -> None:
        check_absmax(torch.ones(COLUMNS), COLUMNS)
        with pytest.raises(QuantError, match=r"absmax of shape \(12,\) for 11 inputs"):
            check_absmax(torch.ones(COLUMNS), 11)


def test_layer() -> None:
    square = H.clone().requires_grad_()
    assert check_layer(W, square, Grid(3)).dtype == torch.float64
    assert not check_layer(W, square, Grid(3)).requires_grad
    with pytest.raises(QuantError, match=r"Hessian of shape \(11, 11\) for 12 inputs"):
        check_layer(W, H[1:, 1:], Grid(3))
    with pytest.raises(QuantError, match="group=13 is larger than the 12 columns"):
        check_layer(W, H, Grid(3, 13))
    with pytest.raises(QuantError, match="cannot be quantized"):
        check_layer(W[0], H, Grid(3))


@pytest.mark.parametrize(
    ("tokens", "note"),
    [
        (0, "0 tokens for 12 inputs: the Hessian has rank 0 at most"),
        (11, "11 tokens for 12 inputs: the Hessian has rank 11 at most"),
        (12, "12 tokens for 12 inputs: so few leave much to chance. Calibrate on 48 or more"),
        (47, "47 tokens for 12 inputs: so few leave much to chance. Calibrate on 48 or more"),
        (48, None),
    ],
)
def test_note_on_tokens(tokens: int, note: str | None) -> None:
    codes = torch.zeros(ROWS, COLUMNS, dtype=torch.uint8)
    notes = with_token_note(QuantizedWeight(codes, torch.ones(ROWS, 1), notes=("x",)), tokens).notes
    assert notes[-1] == "x"
    assert len(notes) == 1 if note is None else notes[0].startswith(note)
