"""What callers hand in, checked before any work: first its type, then its value.

What can mean one thing only is accepted (a tensor of token ids, a NumPy number); all else is an error that
names the argument, what it is, and what belongs there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError, describe, did_you_mean
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.text import TextModel

log = logging.getLogger(__name__)
OnText = Callable[[str], None]
Verify = Literal["exact", "path_revealed", "point_mass", "ratio"]


def text_model(model: Any, side: str) -> TextModel:
    """Return a text model with its tokenizer.

    Raises
    ------
    DraftError
        It is something else; the message says what to pass.
    """
    if isinstance(model, TextModel) and model.tokenizer is not None:
        return model
    kind = type(model).__name__
    load = "Load it with qlib.models.load_model from a folder that holds tokenizer.json."
    if isinstance(model, TextModel):
        raise DraftError(f"The {side} model ({kind}) has no tokenizer. {load}")
    if isinstance(model, (str, Path)):
        raise DraftError(
            f"The {side} model is {describe(model)}. Pass the model itself: "
            f"qlib.models.load_model({str(model)!r})."
        )
    if isinstance(getattr(model, "model", None), TextModel):  # what `qlib.quantize` returns
        raise DraftError(f"The {side} model is a {kind}. Pass the model in it: its attribute `model`.")
    raise DraftError(f"The {side} model ({kind}) is no text model with a tokenizer. {load}")


def ngram_cache(cache: Any) -> NGramCache | None:
    """Return a cache, or None for none.

    Raises
    ------
    DraftError
        It is something else; the message says what to pass.
    """
    if cache is None or isinstance(cache, NGramCache):
        return cache
    if isinstance(cache, (str, Path)):
        raise DraftError(
            f"cache is {describe(cache)}. Load what was saved: "
            f"decoder.cache = NGramCache.load({str(cache)!r}, decoder.vocabulary)."
        )
    raise DraftError(
        f"cache is {describe(cache)}, not an n-gram cache. Pass NGramCache(), or None to do without."
    )


def text_sink(on_text: Any) -> OnText | None:
    """Return a function that gets text, or None for none.

    Raises
    ------
    DraftError
        It cannot be called.
    """
    if on_text is None or callable(on_text):
        return on_text  # type: ignore[no-any-return]
    raise DraftError(
        f"on_text is {describe(on_text)}, not a function of one text. Pass one, for example "
        "on_text=lambda text: print(text, end='')."
    )


def as_folder(folder: Any, name: str) -> Path:
    """Return a folder as a path.

    Raises
    ------
    DraftError
        It is no path, or an empty one.
    """
    if not isinstance(folder, (str, Path)) or not str(folder).strip():
        raise DraftError(f"{name} is {describe(folder)}, not a folder. Pass a path such as 'out/state'.")
    return Path(folder)


def check_observers(observers: Any) -> None:
    """Refuse observers that could not take notice of a round.

    Raises
    ------
    DraftError
        One has no method `observe`.
    """
    if not isinstance(observers, Iterable):
        raise DraftError(f"observers is {describe(observers)}. It is a list: [] for none.")
    for each in observers:
        if isinstance(each, type) or not callable(getattr(each, "observe", None)):
            raise DraftError(
                f"observers: {describe(each)} cannot observe. Add an object with the method observe(round)."
            )


# --- rules and pairs


def as_verify(verify: Any) -> Verify:
    """Return the name of a rule; words may be joined by anything.

    Raises
    ------
    DraftError
        There is no such rule.
    """
    known = get_args(Verify)
    name = verify.lower().replace("-", "_").replace(" ", "_") if isinstance(verify, str) else None
    if name not in known:
        raise DraftError(
            f"verify={verify!r} is unknown. Use 'exact' (the target's own text), 'path_revealed' or "
            "'point_mass' (another text from the target's distribution), or 'ratio' (the paper's rule)."
            f"{did_you_mean(name or '', known)}"
        )
    return name  # type: ignore[return-value]


def check_pair(target: TextModel, draft: TextModel | None) -> None:
    """Refuse models that cannot work together; warn of a drafter that costs more than it can save.

    Parameters
    ----------
    target : TextModel
        The target.
    draft : TextModel, optional
        The drafter.

    Raises
    ------
    DraftError
        The models are on different devices, or the target's logits for a token depend on the tokens that are
        verified beside it: because of how it is packed, or of how it rounds the inputs of layers.
    """
    devices = [model.model.embed_tokens.weight.device for model in (target, draft or target)]
    if devices[0] != devices[1]:
        raise DraftError(
            f"The target is on {devices[0]} and the draft model on {devices[1]}. Load both on the same "
            "device: load_model(..., device=...)."
        )
    if target.packed and not target.stable:
        raise DraftError(
            "The target is packed for speed only: a token's logits may differ in the last bits with the "
            "number of tokens verified beside it. Pass it unpacked, or pack it with pack(stable=True)."
        )
    # A drafter may do that: whatever it proposes is verified.
    layers = [layer for layer in target.modules() if isinstance(layer, QuantizedLinear)]
    if mixing := sum(layer.mixes_tokens for layer in layers):
        raise DraftError(
            f"The target rounds the inputs of {mixing} layers by PerTensor(dynamic=True), on one grid for "
            "all tokens of a call: its text would depend on what is drafted. Quantize it with "
            "activation=qlib.PerToken(bits=8), or with qlib.PerTensor(), whose grid is fixed by calibration."
        )
    if draft is not None and _weights(draft) > _weights(target):
        log.warning(
            "The draft model (%s) is larger than the target (%s). Are they swapped? The first one decides "
            "the text.",
            millions(draft),
            millions(target),
        )


def _weights(model: TextModel) -> int:
    """Return about how many weights the layers multiply by, packed or not."""
    config = model.config
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * heads * config.head_dim
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def millions(model: TextModel) -> str:
    """Return the size of a model, its embedding included, in words."""
    count = _weights(model) + model.config.vocab_size * model.config.hidden_size
    return f"{count / 1e6:.3g} million weights"


# --- names


_ELSEWHERE = {  # what other libraries call it
    "stream": "on_text",
    "streamer": "on_text",
    "callback": "on_text",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "do_sample": "temperature",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "eos_token_id": "stop",
}


def known_options(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse the first option that is not known, and name the nearest one.

    Raises
    ------
    DraftError
        An option is unknown.
    """
    for name in given:
        if name in known:
            continue
        same = _ELSEWHERE.get(name, "")
        hint = f" Did you mean {same!r}?" if same in known else did_you_mean(name, known)
        raise DraftError(f"{where} has no option {name!r}.{hint} It has {', '.join(known)}.")
