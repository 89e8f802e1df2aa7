"""Perplexity of a text model: how improbable it finds texts that it has not written.

    PPL = exp(mean of -log p(token | tokens before it))       over all tokens of all texts that are predicted

A token that the model gives probability 1/38 on average (geometric mean) makes a perplexity of 38. Two of
them can be compared only if tokenizer, texts and `context` are the same: it is a figure per token.

1. Each text is read by itself, with what the tokenizer puts in front of it (the start token of Llama and
   Gemma, nothing for Qwen and SmolLM2). The very first token of a text has nothing before it: it is not
   predicted. What a tokenizer puts behind a text does not belong to it.
2. A text longer than `context` is cut into windows of that many tokens. A window begins with the last token
   of the one before it, so that each token is predicted once; its first tokens see little of the text.
3. All negative log-likelihoods are added in float64, in nats.

Interval: bootstrap over texts, as of a word error rate (`qlib/asr/bootstrap.py`): tokens of one text are not
independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlib.asr.bootstrap import percentile_interval, resampled_rates
from qlib.errors import DataError, ModelError, describe, true_or_false, whole_number
from qlib.models.progress import progress_bar
from qlib.models.text import TextModel
from qlib.models.tokenizer import need_tokenizer

CONTEXT = 2048  # tokens of a window, if the model has so many positions
ROWS = 256  # rows of logits at once: a row of 49,152 float32 takes 0.2 MB


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of one model on one list of texts."""

    value: float  # exp(nll)
    interval: tuple[float, float]  # 95 %, bootstrap over texts, of `value`; of a single text it has no width
    nll: float  # mean negative log-likelihood of a token, in nats
    tokens: int  # that were predicted
    texts: int
    context: int  # tokens of the longest window
    text_nll: tuple[float, ...] = field(repr=False)  # of each text: summed over its tokens, in nats
    text_tokens: tuple[int, ...] = field(repr=False)  # of each text: tokens that were predicted

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"perplexity {self.value:.2f} [{low:.2f}, {high:.2f}], {self.nll:.4f} nats per token, "
            f"{self.tokens} tokens of {self.texts} texts, context {self.context}"
        )


@dataclass(frozen=True)
class PerplexityRatio:
    """How many times as large the perplexity of one model is as that of another, on the same texts."""

    value: float
    interval: tuple[float, float]  # 95 %, texts drawn for both; if it contains 1, no difference was shown

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4g} times the perplexity [{low:.4g}, {high:.4g}]"


def perplexity_ratio(
    before: Perplexity, after: Perplexity, *, seed: int = 0, resamples: int = 1000
) -> PerplexityRatio:
    """Return the perplexity of `after` over that of `before`, paired over texts.

    Texts that are hard are hard for both models. So the same texts are drawn for both, and the interval is
    much narrower than those of the two perplexities.

    Parameters
    ----------
    before, after : Perplexity
        Of two models with one tokenizer, on the same texts in the same order.
    seed, resamples : int
        Of the bootstrap.

    Raises
    ------
    DataError
        They are no perplexities, or not of the same numbers of tokens in each text, or of windows of
        different lengths.
    """
    for each in (before, after):
        if not isinstance(each, Perplexity):
            raise DataError(f"perplexity_ratio: {describe(each)} is no Perplexity. Pass two of perplexity().")
    if before.text_tokens != after.text_tokens or before.context != after.context:
        raise DataError(
            f"perplexity_ratio: {before.tokens} tokens of {before.texts} texts, context {before.context}, "
            f"and {after.tokens} of {after.texts}, context {after.context}. Measure both models on the same "
            "texts, with the same tokenizer and context."
        )
    resamples = whole_number(resamples, "resamples", DataError, 1)
    more = np.array(after.text_nll) - np.array(before.text_nll)  # nats of each text
    drawn = resampled_rates(more, np.array(before.text_tokens), resamples, seed, per=1.0)
    low, high = percentile_interval(np.exp(drawn))
    return PerplexityRatio(math.exp(after.nll - before.nll), (low, high))


@torch.inference_mode()
def perplexity(
    model: TextModel,
    texts: Iterable[str],
    *,
    context: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    progress: bool = True,
) -> Perplexity:
    """Return the perplexity of texts, and its interval.

    Parameters
    ----------
    model : TextModel
        A Llama, Mistral, Qwen or Gemma, float, quantized or packed.
    texts : iterable of str
        At least two tokens each. Keep them apart from calibration data.
    context : int, optional
        Tokens of a window, 2 or more; 2048 if not given, or the model's positions where these are fewer.
    seed, resamples : int
        Of the bootstrap.
    progress : bool
        Show a progress bar over the texts.

    Raises
    ------
    ModelError
        The model is no text model, or has no tokenizer.
    DataError
        No texts, a single string in place of a list, an entry that is no text or shorter than two tokens (the
        message counts from 1), a context that the model has no positions for, or a text whose likelihood is
        not finite.
    """
    listed = _checked_texts(model, texts)
    length = _checked_context(model, context)
    rows = [_tokens(model, text, number, len(listed)) for number, text in enumerate(listed, 1)]
    true_or_false(progress, "progress", DataError)
    resamples = whole_number(resamples, "resamples", DataError, 1)
    sums = []
    for number, tokens in enumerate(progress_bar(rows, show=progress, desc="perplexity", unit="text"), 1):
        total = sum(_negative_log_likelihood(model, window) for window in windows(tokens, length))
        if not math.isfinite(total):
            raise DataError(
                f"text {number} of {len(listed)}: the model gives it a likelihood of {math.exp(-total)}. "
                "Check the model's weights, or whether a layer was quantized too coarsely."
            )
        sums.append(total)
    counts = [len(tokens) - 1 for tokens in rows]
    drawn = resampled_rates(np.array(sums), np.array(counts), resamples, seed, per=1.0)
    low, high = percentile_interval(np.exp(drawn))
    nll = math.fsum(sums) / sum(counts)
    longest = min(length, max(map(len, rows)))
    return Perplexity(
        math.exp(nll), (low, high), nll, sum(counts), len(rows), longest, tuple(sums), tuple(counts)
    )


def windows(tokens: list[int], length: int) -> Iterator[list[int]]:
    """Yield windows of at most `length` tokens, each from the last token of the one before it.

    >>> list(windows([1, 2, 3, 4, 5, 6], 3))
    [[1, 2, 3], [3, 4, 5], [5, 6]]
    """
    for start in range(0, len(tokens) - 1, length - 1):
        yield tokens[start : start + length]


def _negative_log_likelihood(model: TextModel, window: list[int]) -> float:
    """Return the sum of -log p of all tokens of a window but the first, in nats."""
    row = torch.tensor([window], device=model.model.embed_tokens.weight.device)
    hidden: Tensor = model.decode(row)[0, :-1]
    total = 0.0
    for first in range(0, len(hidden), ROWS):
        logits = model.logits(hidden[None, first : first + ROWS])[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total += float(
            cross_entropy(logits, row[0, 1:][first : first + ROWS], reduction="none").double().sum()
        )
    return total


def _checked_texts(model: object, texts: object) -> list[object]:
    """Return the texts as a list, once model and list are of the right kind."""
    if not isinstance(model, TextModel):
        kind = describe(model) if isinstance(model, str | None) else f"A {type(model).__name__}"
        remedy = (
            "Load a text model, for example qlib.load_model('smollm2-135m-instruct'). "
            "For a recognizer use qlib.evaluate_wer."
        )
        if isinstance(getattr(model, "model", None), TextModel):
            remedy = "Pass its .model."
        elif isinstance(model, str):
            remedy = f"Load it first: qlib.load_model({model!r})."
        raise ModelError(f"{kind[0].upper()}{kind[1:]} has no perplexity of texts. {remedy}")
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise DataError(
            f"perplexity: texts is {describe(texts)}, not a list of texts. Use [text] for one text."
        )
    listed = list(texts)
    if not listed:
        raise DataError("perplexity: there are no texts. Pass at least one; 100 give a steady figure.")
    return listed


def _checked_context(model: TextModel, context: object) -> int:
    """Return the tokens of a window."""
    positions = model.config.max_position_embeddings
    if context is None:
        return min(CONTEXT, positions)
    remedy = f"The model has {positions} positions; leave it out for up to {CONTEXT}."
    return whole_number(context, "context", DataError, 2, positions, remedy)


def _tokens(model: TextModel, text: object, number: int, count: int) -> list[int]:
    """Return the tokens of a text, the start token in front included."""
    if not isinstance(text, str):
        raise DataError(f"perplexity: text {number} of {count} is {describe(text)}, not a str.")
    tokenizer = need_tokenizer(model.tokenizer)
    tokens = tokenizer.encode(text, special=True)
    tokens = tokens[: len(tokens) - len(tokenizer.end)]
    if len(tokens) < 2:
        raise DataError(
            f"perplexity: text {number} of {count} has {len(tokens)} tokens, its start token included. "
            "Two are needed, for the first is not predicted. Leave it out, or join it to another."
        )
    return tokens
