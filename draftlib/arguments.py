"""What callers hand in, checked before any work: first its type, then its value.

What can mean one thing only is accepted (a tensor of token ids, a NumPy number); all else is an error that
names the argument, what it is, and what belongs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError, describe, did_you_mean
from qlib.models.text import TextModel

OnText = Callable[[str], None]


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
