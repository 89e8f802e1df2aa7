"""Whether a method of your own keeps its contract, and slow roundings to compare it with.

    from qlib.testing import check_method
    check_method(Mine())                          raises a CheckError that says what is wrong
    check_method(Mine(), better_at="outputs")     and smaller errors than rounding to nearest

In a test suite, each check by itself:

    @pytest.mark.parametrize("check", method_checks(Mine()), ids=str)
    def test_mine(check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from qlib.chain import make_chain
from qlib.methods.contracts import BlockMethod, Clip, Transform, WeightMethod
from qlib.testing import checks, own_checks
from qlib.testing.gain import Claim, check_claim, is_better_than_nearest
from qlib.testing.oracles import best_rounding, gptq_column_by_column
from qlib.testing.sides import Side, sides_of

__all__ = ["Check", "Claim", "best_rounding", "check_method", "gptq_column_by_column", "method_checks"]

SHARED: tuple[Callable[[Any, Side], None], ...] = (
    checks.says_what_it_is,
    checks.names_what_it_needs,  # early: without its statistics a method fails everywhere
    checks.returns_what_it_promises,
    checks.takes_a_ragged_last_group,
    checks.takes_one_row,
    checks.takes_unused_inputs,
    checks.takes_every_float,
    checks.leaves_its_arguments,
    checks.is_repeatable,
    checks.comes_back_from_disk,
)
OWN: dict[type, tuple[Callable[[Any, Side], None], ...]] = {
    WeightMethod: (own_checks.is_close_with_8_bits,),
    Transform: (),
    Clip: (own_checks.narrows_the_range,),
    BlockMethod: (own_checks.names_its_folds,),
}


@dataclass(frozen=True)
class Check:
    """One check of one contract of a method: call it."""

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Raise a CheckError if the method fails it."""
        self.run()

    def __str__(self) -> str:
        return self.name


def method_checks(method: Any, *, better_at: Claim | None = None) -> list[Check]:
    """Return all checks of a method's contracts; arguments and errors as for `check_method`."""
    make_chain(method)  # refuses what is no method, and says what it lacks
    if better_at is not None:
        check_claim(better_at)
    found = []
    for side in sides_of(method):
        for check in (*SHARED, *OWN[side.contract]):
            found.append(Check(f"{side.call}-{check.__name__}", partial(check, method, side)))
        if better_at is not None:
            better = partial(is_better_than_nearest, method, side, better_at)
            found.append(Check(f"{side.call}-is_better_than_nearest", better))
    return found


def check_method(method: Any, *, better_at: Claim | None = None) -> None:
    """Run every check of a method's contracts; takes about a second.

    Parameters
    ----------
    method : WeightMethod, Transform, Clip or BlockMethod
        An object, with settings that suit small layers (12 outputs, 24 inputs, groups of 8).
    better_at : {"weights", "outputs", "rounded inputs"}, optional
        Where its error should be smaller than that of rounding to nearest; see `qlib/testing/gain.py`.

    Raises
    ------
    CheckError
        The first check that fails: what is wrong, where, with which numbers, and what to do.
    QuantError
        The object is no method.

    Examples
    --------
    >>> from qlib.methods import GPTQ
    >>> check_method(GPTQ(), better_at="outputs")
    """
    for check in method_checks(method, better_at=better_at):
        check()
