"""What methods check alike: types of settings, statistics that belong to a layer, a Hessian that is one.

Every function refuses what does not fit with a `QuantError`; some return what they were given as plain Python
numbers, or in the dtype of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from qlib.errors import QuantError, describe, real_number, settle, true_or_false, whole_number
from qlib.grid import Grid, check_tensor, check_weight, check_weight_on
from qlib.methods.contracts import LayerStats, Needs
from qlib.quantized_weight import QuantizedWeight

# Below so many tokens for each input a result carries a note. The number is a rule of thumb, not measured on
# speech: of 4 tokens for each of many independent inputs, the eigenvalues of H come out between (1 - 1/2)^2
# and (1 + 1/2)^2 of the true ones (Marchenko and Pastur); of fewer tokens, further apart.
TOKENS_PER_INPUT = 4


# --- settings


def check_types(
    settings: Any, reals: Sequence[str] = (), wholes: Sequence[str] = (), flags: Sequence[str] = ()
) -> None:
    """Refuse settings of another type, with the default as the remedy; NumPy's numbers become plain ones.

    A setting whose default is None may be None.
    """
    kind, defaults = type(settings).__name__, {each.name: each.default for each in fields(settings)}
    for names, take in ((reals, real_number), (wholes, _whole), (flags, true_or_false)):
        for name in names:
            value, remedy = getattr(settings, name), f"Use {name}={defaults[name]!r}."
            if value is not None or defaults[name] is not None:
                settle(settings, **{name: take(value, f"{name} in {kind}", QuantError, remedy)})


def _whole(value: object, name: str, error: type[QuantError], remedy: str) -> int:
    return whole_number(value, name, error, -(1 << 63), remedy=remedy)


def check_whole(value: int, name: str, method: str, default: int | None) -> int:
    """Return a whole number of any size; the remedy names the default."""
    return _whole(value, f"{name} in {method}", QuantError, f"Use {name}={default}.")


def check_damping(damping: float, method: str, default: float = 0.01) -> float:
    """Return damping, a number >= 0; the remedy names the default of the function or class called."""
    remedy = f"Use damping={default}."
    damping = real_number(damping, f"damping in {method}", QuantError, remedy)
    if not 0 <= damping < float("inf"):
        raise QuantError(f"damping={damping} in {method} is not a number >= 0. {remedy}")
    return damping


def check_act_order(act_order: bool, method: str, static_groups: bool = True) -> bool:
    """Return whether columns with a large H_jj come first; of a word, say which switches it stands for.

    Parameters
    ----------
    act_order : bool
        What the user gave.
    method : str
        Its name in the message.
    static_groups : bool
        Whether this method has that switch as well.
    """
    if not isinstance(act_order, str):
        return true_or_false(act_order, f"act_order in {method}", QuantError, "Use act_order=True or False.")
    words = {"off": "act_order=False", "dynamic": "act_order=True"}
    if static_groups:
        words["static"] = "act_order=True, static_groups=True"
        words["off-static"] = "act_order=False, static_groups=True"
    switches = "act_order and static_groups are each" if static_groups else "act_order is"
    raise QuantError(
        f"act_order={act_order!r} in {method}: {switches} True or False. "
        f"Use {words.get(act_order, 'act_order=True or act_order=False')}."
    )


# --- statistics


def check_layer_stats(stats: LayerStats, weight: Tensor, needs: Needs, method: str) -> tuple[Tensor, ...]:
    """Return what a method needs of the statistics, if they are those of the layer with this weight.

    Whether the numbers themselves are usable is for the method's function to check, which may be called
    without any statistics.

    Parameters
    ----------
    stats : LayerStats
        What calibration collected, or what the user filled in.
    weight : Tensor
        [outputs, inputs], the weight of the layer.
    needs : Needs
        HESSIAN, RANGE, MAGNITUDE, or several of them.
    method : str
        Its name in the message.

    Returns
    -------
    tuple of Tensor
        Those needed, in this order: the Hessian [inputs, inputs], max |x| [inputs], mean |x| [inputs].

    Raises
    ------
    QuantError
        No `LayerStats`, no weight, something needed that was not collected, or the shape of another layer.

    Examples
    --------
    >>> (H,) = check_layer_stats(LayerStats(9, torch.eye(4)), torch.ones(2, 4), Needs.HESSIAN, "GPTQ")
    """
    check_stats(stats, method)
    check_weight(weight)
    columns = weight.shape[1]
    known = [
        (Needs.HESSIAN, "a Hessian", stats.hessian, (columns, columns)),
        (Needs.RANGE, "the range of the inputs", stats.absmax, (columns,)),
        (Needs.MAGNITUDE, "mean |x|", stats.magnitude, (columns,)),
    ]
    known = [each for each in known if each[0] in needs]
    if missing := [name for _, name, values, _ in known if values is None]:
        wanted = " | ".join(f"Needs.{need.name}" for need, *_ in known)
        raise QuantError(
            f"{method} got statistics without {' and '.join(missing)}. Calibrate with needs={wanted}."
        )
    for _, name, values, shape in known:
        if values is not None and values.shape != shape:
            raise QuantError(
                f"{method} got statistics of another layer: {name} of shape {tuple(values.shape)} for "
                f"{columns} inputs. Pass those of this layer's inputs."
            )
    return tuple(values for _, _, values, _ in known if values is not None)


def check_stats(stats: object, method: str) -> None:
    """Refuse statistics that are no `LayerStats`."""
    if not isinstance(stats, LayerStats):
        raise QuantError(
            f"{method} got {describe(stats)} for statistics. Pass LayerStats(tokens=..., hessian=...), or "
            "what calibration collects; the order is weight, stats, grid."
        )


def check_absmax(absmax: Tensor, columns: int) -> None:
    """Refuse a largest |x| of each input that has another shape, or NaN or infinity."""
    check_tensor(absmax, "absmax", "Pass the largest |x| of each input: inputs.abs().amax(0).")
    if absmax.shape != (columns,):
        raise QuantError(
            f"absmax of shape {tuple(absmax.shape)} for {columns} inputs. Pass the largest |x| of each input."
        )
    if not absmax.isfinite().all():
        raise QuantError(
            f"{int((~absmax.isfinite()).sum())} of {columns} inputs reached NaN or infinity. "
            "Look for a bad calibration sample, or for a model that overflows in its dtype."
        )


def with_token_note(result: QuantizedWeight, tokens: int) -> QuantizedWeight:
    """Return a result that says so if there were too few tokens to trust its Hessian."""
    inputs = result.codes.shape[1]
    if tokens < inputs:
        means = f"the Hessian has rank {tokens} at most, and damping decides the rest"
    elif tokens < TOKENS_PER_INPUT * inputs:
        enough = TOKENS_PER_INPUT * inputs
        means = f"so few leave much to chance. Calibrate on {enough} or more, or raise damping"
    else:
        return result
    return replace(result, notes=(f"{tokens} tokens for {inputs} inputs: {means}", *result.notes))


# --- weights and Hessians


def check_layer(weight: Tensor, hessian: Tensor | LayerStats, grid: Grid) -> Tensor:
    """Return the Hessian of a weight [outputs, inputs] as float64, beside the weight and without gradients.

    In place of a Hessian it takes statistics that hold one.

    Raises
    ------
    QuantError
        The weight is not a matrix of finite numbers, a group is larger than it, or the Hessian is not
        [inputs, inputs] or holds NaN or infinity.
    """
    check_weight_on(weight, grid)
    if isinstance(hessian, LayerStats):
        (hessian,) = check_layer_stats(hessian, weight, Needs.HESSIAN, "the method")
    check_hessian(hessian, weight.shape[1])
    return hessian.detach().to(weight.device, torch.float64)


def check_weights(weights: object, method: str) -> None:
    """Refuse what is no list of weights."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or isinstance(weights, str):
        hint = "[weight]" if isinstance(weights, Tensor) else "a list of tensors"
        raise QuantError(
            f"{method} got {describe(weights)}, not a list of weights. Pass {hint}: all weights that read "
            "this input share one scale."
        )
    if not weights:
        raise QuantError(f"{method} got no weight to scale. Pass the weights that read this input.")
    for weight in weights:
        check_weight(weight)


def check_learnable(weights: Mapping[str, Tensor], grid: Grid) -> None:
    """Refuse weights of 16 bits, in which small steps would be rounded away, and a group too large."""
    for name, weight in weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise QuantError(f"{name} is {weight.dtype}, too short to learn in. Use model.float().")
        grid.check(weight.shape[1], name)


def check_hessian(hessian: Tensor, columns: int) -> None:
    """Refuse a Hessian of another shape, with NaN or infinity, or not symmetric."""
    check_tensor(hessian, "the Hessian", "Pass hessian(inputs) of this layer's inputs.")
    if hessian.shape != (columns, columns):
        raise QuantError(
            f"a Hessian of shape {tuple(hessian.shape)} for {columns} inputs. Pass the sum of x x^T "
            "over the inputs of this very layer, as hessian(inputs) returns it."
        )
    if not hessian.sum().isfinite():  # one bad number spoils the sum
        bad = int((~hessian.isfinite()).sum())
        raise QuantError(
            f"{bad} of {hessian.numel()} entries of the Hessian are NaN or infinite. "
            "Look for a bad calibration sample, or for a model that overflows in its dtype."
        )
    check_symmetric_hessian(hessian)


def check_symmetric_hessian(hessian: Tensor) -> None:
    """Refuse a square matrix that is no sum of x x^T, such as as many inputs as there are features."""
    H = hessian.detach()
    if float((H - H.T).abs().max()) > 1e-3 * float(H.abs().max()):
        raise QuantError(
            f"a matrix {list(hessian.shape)} that is not symmetric is no Hessian. Are these the inputs "
            "themselves? Pass their sum of x x^T: hessian(inputs), or inputs.T @ inputs."
        )
