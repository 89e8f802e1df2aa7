"""Greedy decoding: the most probable token, again and again, for all windows of a batch at once.

A text that has ended leaves the batch at once, so the others get faster.

B windows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qlib.asr.timestamps import apply_timestamp_rules
from qlib.models.fast.products import reordered_product
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.speech import SpeechModel
from qlib.models.speech_layers import SpeechCache

Head = Callable[[Tensor], Tensor]


def decoding_head(model: SpeechModel) -> Head:
    """Return the output head, hidden states [B, D] to logits [B, V], laid out for many steps.

    Every step runs through it. The layout takes no time to make, so any call profits.
    """
    head = model.proj_out
    if isinstance(head, nn.Linear) or (isinstance(head, QuantizedLinear) and head.activation is None):
        return reordered_product(head.weight, None) or head
    return head


def greedy(
    model: SpeechModel,
    head: Head,
    cache: SpeechCache,
    prompt: Sequence[int] | Sequence[Sequence[int]],
    limits: Sequence[int],
    no_timestamps: int | None = None,
) -> list[list[int]]:
    """Decode by always taking the most probable token.

    Parameters
    ----------
    model : SpeechModel
        Whose decoder writes.
    head : callable
        Hidden states [B, D] to logits [B, V]: `model.proj_out`, or `decoding_head`.
    cache : SpeechCache
        New, over the encoder states of B windows; used up.
    prompt : sequence of int
        What every text begins with; or one such sequence for each row, all equally long.
    limits : sequence of int
        The most new tokens of each row, 1 or more.
    no_timestamps : int, optional
        Id of ``<|notimestamps|>``, for texts with timestamps: see `qlib.asr.timestamps`.

    Returns
    -------
    list of list of int
        The new tokens of each row, without the end token; a row ends there or at its limit.
    """
    generation, device = model.generation, model.model.decoder.embed_tokens.weight.device
    suppressed = torch.tensor(generation.suppress, dtype=torch.long, device=device)
    suppressed_first = torch.tensor(generation.suppress_first, dtype=torch.long, device=device)
    texts: list[list[int]] = [[] for _ in limits]
    text_of_row = list(range(len(texts)))  # texts that have not ended
    tokens = torch.tensor(prompt, device=device).expand(len(texts), -1)
    prompt_length = tokens.shape[1]
    while text_of_row:
        logits = head(model.decode(tokens, cache)[:, -1])
        logits.index_fill_(1, suppressed, -torch.inf)
        if cache.length == prompt_length:
            logits.index_fill_(1, suppressed_first, -torch.inf)
        if no_timestamps is not None:
            written = [texts[text] for text in text_of_row]
            apply_timestamp_rules(logits, written, min(generation.ends), no_timestamps)
        chosen = logits.argmax(-1).tolist()
        for row in reversed(range(len(text_of_row))):
            text = text_of_row[row]
            ended = chosen[row] in generation.ends
            if not ended:
                texts[text].append(chosen[row])
            if ended or len(texts[text]) == limits[text]:
                cache.drop(row)  # the last row moves here, in the cache and in both lists
                text_of_row[row], chosen[row] = text_of_row[-1], chosen[-1]
                text_of_row.pop()
                chosen.pop()
        tokens = torch.tensor(chosen, device=device)[:, None]
    return texts
