"""What a run of a model costs: bytes of weights, activations and cached keys, and bit operations.

A recognizer reads a recording window by window. The encoder, and the keys and values of cross-attention, run
once a window. The decoder runs once for each written token: the first pass reads the whole prompt, every
other one the token before. Weights are read anew in every pass, which is why decoders dominate.

The formulas are in `qlib/analysis/cost_formulas.py`, what a layer holds in `qlib/analysis/held_weights.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from qlib.analysis.cost_formulas import (
    Amount,
    AttentionSize,
    Window,
    attention_amount,
    convolution_amount,
    lookup_amount,
    product_amount,
    self_attention_amount,
)
from qlib.analysis.cost_result import AUDIO, TOKEN, Cost, Part
from qlib.analysis.held_weights import HeldWeight, dtype_bits, held_weights, size_of
from qlib.arguments import as_model
from qlib.errors import QuantError, real_number, whole_number
from qlib.models.gemma3 import Gemma3, Gemma3Layer
from qlib.models.speech import SpeechModel
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.models.text_config import SLIDING
from qlib.models.waveform import SAMPLE_RATE

ENCODER = "model.encoder."  # before the names of an encoder's modules, in every speech model
PARTS = (
    *("encoder convolutions", "encoder self-attention", "encoder self-attention products"),
    *("encoder feed-forward", "encoder norms", "decoder self-attention", "decoder self-attention products"),
    *("decoder cross-attention", "decoder cross-attention products", "decoder feed-forward"),
    *("decoder norms", "positions", "embedding", "head"),
)


# --- the layers of a model


def _part(weight: HeldWeight) -> str:
    """Return the row of the table in which a weight counts."""
    name, side = weight.name, "encoder" if weight.name.startswith(ENCODER) else "decoder"
    if len(weight.shape) == 1:
        return f"{side} norms"
    if len(weight.shape) == 3:
        return f"{side} convolutions"
    for module, part in (("encoder_attn", "cross-attention"), ("self_attn", "self-attention")):
        if f".{module}." in name:
            return f"{side} {part}"
    if ".layers." in name:
        return f"{side} feed-forward"
    return {"embed_tokens": "embedding", "embed_positions": "positions"}.get(name.split(".")[-1], "head")


def _weight_amounts(
    model: Model, weights: Sequence[HeldWeight], window: Window, width: int
) -> Iterable[tuple[HeldWeight, str, str, Amount]]:
    """Yield each weight, when it is used, its part, and its cost in one window."""
    reads_states = {layer for group in model.groups() if group.source == "encoder" for layer in group.layers}
    length = window.samples
    for weight in weights:
        part = _part(weight)
        once = weight.name.startswith(ENCODER) or weight.name in reads_states
        rows, passes = (window.states, 1) if once else (window.read, window.written)
        if len(weight.shape) == 3:
            before, length = length, _positions_after(model.get_submodule(weight.name), length)
            amount = convolution_amount(weight, before, length)
        elif len(weight.shape) == 1:
            amount = Amount(weight_bytes=passes * weight.bits / 8)
        elif part in ("embedding", "positions"):
            amount = lookup_amount(weight, rows, width)
        else:  # the head reads the last position of each pass
            amount = product_amount(weight, window.written if part == "head" else rows, passes)
        yield weight, AUDIO if once else TOKEN, part, amount


def _positions_after(convolution: nn.Module, positions: int) -> int:
    """Return how many positions a convolution makes."""
    assert isinstance(convolution, nn.Conv1d) and not isinstance(convolution.padding, str)
    span = positions + 2 * convolution.padding[0] - convolution.kernel_size[0]
    return span // convolution.stride[0] + 1


def _attentions(model: Model, weights: Iterable[HeldWeight]) -> list[AttentionSize]:
    """Return the sizes of every attention: every family calls its layers ``q_proj`` and ``k_proj``."""
    found, outputs = [], {weight.name: weight.outputs for weight in weights}
    for name in (name for name in outputs if name.endswith(".q_proj")):
        attention = name.removesuffix(".q_proj")
        side = "encoder" if name.startswith(ENCODER) else "decoder"
        kind = "cross" if attention.endswith("encoder_attn") else "self"
        layer = model.get_submodule(attention.rpartition(".")[0])
        seen = None
        if isinstance(model, Gemma3) and isinstance(layer, Gemma3Layer) and layer.kind == SLIDING:
            seen = model.config.sliding_window
        part = f"{side} {kind}-attention products"
        found.append(AttentionSize(part, outputs[name], outputs[f"{attention}.k_proj"], seen))
    return found


def _attention_amounts(
    sizes: Iterable[AttentionSize], window: Window, width: int
) -> Iterable[tuple[str, str, Amount]]:
    """Yield when an attention runs, its part, and the cost of its products in one window."""
    states, read = window.states, window.read
    for size in sizes:
        if size.part.startswith("encoder"):  # its keys and values are no cache
            amount = attention_amount(size, states * states, states, states, width)
            amount = Amount(0, amount.activation_bytes + amount.cache_bytes, 0, amount.bit_operations)
            yield AUDIO, size.part, amount
        elif "cross" in size.part:
            amount = attention_amount(size, read * states, read, window.written * states, width)
            yield TOKEN, size.part, amount
        else:
            yield TOKEN, size.part, self_attention_amount(size, window, width)


# --- the whole run


def cost(
    model: Model,
    audio_seconds: float | None = None,
    tokens: int = 40,
    *,
    prompt_tokens: int | None = None,
    float_bits: int | None = None,
) -> Cost:
    """Return what a model costs: bytes moved and bit operations by kind of layer, and its size on disk.

    Parameters
    ----------
    model : Model
        A recognizer or text model, float or quantized, not packed.
    audio_seconds : float, optional
        Length of the recording, 10 by default; not for a text model. It is cut into windows of equal length
        of at most 30 s, which Whisper fills up to 30 s, and Moonshine reads as long as they are.
    tokens : int
        Tokens written, the end of the text included; the windows share them.
    prompt_tokens : int, optional
        Tokens in front of each text. By default those that a recognizer puts there, and 1 for a text model.
    float_bits : int, optional
        Bits of what stays in float, 16, 32 or 64; by default those of the model's dtype. Checkpoints are
        loaded as float32 and stored in 16 bits, so 16 says what a run in float16 costs.

    Returns
    -------
    Cost
        Sums of the whole run; `per_second`, `per_token` and its table divide them.

    Raises
    ------
    QuantError
        No such model, numbers that are too small, audio for a text model, fewer tokens than windows, more
        tokens than the decoder has positions.
    ModelError
        The model is packed.
    """
    model = as_model(model, "cost")
    model.require_unpacked("counted")
    windows = _windows(model, audio_seconds, tokens, prompt_tokens)
    width = _width(model, float_bits)
    weights = held_weights(model, width)
    attentions = _attentions(model, weights)
    sums: dict[tuple[str, str], Amount] = {}
    for window in windows:
        found = [(when, part, a) for _, when, part, a in _weight_amounts(model, weights, window, width)]
        for when, part, amount in [*found, *_attention_amounts(attentions, window, width)]:
            sums[when, part] = sums.get((when, part), Amount()) + amount
    order = sorted(sums, key=lambda each: (each[0], PARTS.index(each[1])))
    fullest = windows[0]  # none has more tokens
    remembered = sum(
        2 * size.keys * (fullest.states if "cross" in size.part else fullest.read) * width // 8
        for size in attentions
        if size.part.startswith("decoder")
    )
    return Cost(
        family=model.family,
        audio_seconds=_seconds(model, audio_seconds),
        windows=len(windows),
        prompt_tokens=fullest.prompt,
        tokens=sum(window.written for window in windows),
        float_bits=width,
        parts=tuple(Part(part, when, sums[when, part]) for when, part in order),
        cache_size=remembered,
        size=size_of(model),
    )


def multiplications(model: Model, audio_seconds: float | None = None, tokens: int = 40) -> dict[str, int]:
    """Return N I O of every weight in a run, by name of its module; arguments and errors as for `cost`."""
    weights, sums, width = held_weights(model), Counter[str](), dtype_bits(model)
    for window in _windows(model, audio_seconds, tokens, None):
        for weight, _, _, amount in _weight_amounts(model, weights, window, width):
            if weight.bit_operations:
                rows = round(amount.bit_operations) // weight.bit_operations
                sums[weight.name] += rows * weight.outputs * weight.inputs
    return dict(sums)


def _width(model: Model, float_bits: int | None) -> int:
    """Return the bits of a float number: those asked for, or those of the model's dtype."""
    if float_bits is None:
        return dtype_bits(model)
    if float_bits not in (16, 32, 64):
        raise QuantError(f"float_bits={float_bits!r} in cost is none of 16, 32 and 64. Use float_bits=16.")
    return float_bits


def _seconds(model: Model, audio_seconds: object) -> float | None:
    """Return the length of the recording, checked; None for a text model."""
    if isinstance(model, TextModel):
        if audio_seconds is not None:
            raise QuantError(
                f"audio_seconds={audio_seconds} for a text model, which reads no audio. Leave it out."
            )
        return None
    seconds = real_number(10.0 if audio_seconds is None else audio_seconds, "audio_seconds", QuantError)
    if not 0 < seconds < math.inf:
        raise QuantError(f"audio_seconds={seconds:g} is no length of a recording. Pass one above 0.")
    return seconds


def _windows(model: Model, audio_seconds: object, tokens: object, prompt_tokens: object) -> list[Window]:
    """Return the windows of a run, those with the most tokens first."""
    written = whole_number(tokens, "tokens", QuantError, 1)
    seconds, count, samples, states = _seconds(model, audio_seconds), 1, 0, 0
    if isinstance(model, SpeechModel):
        assert seconds is not None
        count = math.ceil(seconds / model.window_seconds)
        silence = torch.zeros(round(seconds * SAMPLE_RATE / count))
        samples, states = model.encoder_input([silence])[0].shape[-1], len(model.counted_frames(len(silence)))
        prompt, positions = len(model.generation.prompt()), model.positions
    elif isinstance(model, TextModel):
        prompt, positions = 1, model.config.max_position_embeddings
    else:
        raise QuantError(f"cost knows recognizers and text models, and a {type(model).__name__} is neither.")
    if prompt_tokens is not None:
        prompt = whole_number(prompt_tokens, "prompt_tokens", QuantError, 1)
    if written < count:
        raise QuantError(
            f"tokens={written} are fewer than the {count} windows of {seconds:g} s, and each ends with a "
            f"token of its own. Pass {count} or more."
        )
    each, rest = divmod(written, count)
    if prompt + each + bool(rest) > positions:
        raise QuantError(
            f"{prompt} + {each + bool(rest)} tokens are more than the decoder's {positions} positions. Pass "
            "fewer tokens, or a shorter prompt."
        )
    return [Window(samples, states, prompt, each + (number < rest)) for number in range(count)]
