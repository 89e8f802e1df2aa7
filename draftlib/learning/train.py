"""One step of learning: examples in a batch, the loss, and the change of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from draftlib.learning.buffer import Example
from draftlib.learning.distill import TopK, Written, hybrid_loss
from draftlib.learning.spelled import Soft, acceptance_loss, forward_kl
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.models.fast.products import arithmetic_dtype
from qlib.models.text import TextModel

Loss = Literal["acceptance", "forward_kl", "hybrid"]
Weight = float | Literal["probability"]
LONGEST_GRADIENT = 1.0  # the gradient is scaled down to this length: one odd text must not undo the rest


class Teacher:
    """Computes the loss of a drafter on examples.

    Parameters
    ----------
    loss : {"acceptance", "forward_kl", "hybrid"}
        The first two compare in the drafter's vocabulary (`spelled.py`), the last is the paper's
        (`distill.py`).
    ngram_weight : float or "probability"
        lambda of "hybrid".
    vocabulary : VocabularyMap
        The pair.
    vocab_size : int
        V, outputs of the target.
    """

    def __init__(self, loss: Loss, ngram_weight: Weight, vocabulary: VocabularyMap, vocab_size: int):
        self.loss, self.ngram_weight = loss, ngram_weight
        self._vocabulary, self._vocab_size = vocabulary, vocab_size

    def __call__(self, model: TextModel, examples: Sequence[Example]) -> Tensor:
        """Return the mean loss over all positions, a scalar with its gradient."""
        texts = nn.utils.rnn.pad_sequence([each.tokens for each in examples], batch_first=True)
        weight = model.model.embed_tokens.weight
        # Products in bfloat16 take half the time where the processor has them, and sums stay in float32.
        half = arithmetic_dtype(weight[:1].bfloat16()) == torch.bfloat16
        with torch.autocast(
            weight.device.type, torch.bfloat16, enabled=half and weight.dtype == torch.float32
        ):
            # What follows a text in the batch changes nothing before it: attention looks back only.
            states = model.decode(texts.to(weight.device))
            hidden = torch.cat([states[i, each.positions - 1] for i, each in enumerate(examples)])
            logits = model.logits(hidden)
        if self.loss == "hybrid":
            return self._hybrid(logits, examples)
        soft = Soft(
            torch.cat([each.soft_tokens for each in examples]).to(logits.device),
            torch.cat([each.soft_probabilities for each in examples]).to(logits.device),
        )
        return (acceptance_loss if self.loss == "acceptance" else forward_kl)(logits, soft).mean()

    def _hybrid(self, logits: Tensor, examples: Sequence[Example]) -> Tensor:
        device = logits.device
        direct = torch.full((logits.shape[1],), -1)
        known = self._vocabulary.direct[: len(direct)]
        direct[: len(known)] = known.masked_fill(known >= self._vocab_size, -1)
        tokens = torch.cat([each.tokens[each.positions] for each in examples])
        owners, left = (torch.cat([getattr(e, name) for e in examples]) for name in ("owners", "left"))
        return hybrid_loss(
            logits,
            Written(*(part.to(device) for part in (tokens, owners, left))),
            TopK(*(torch.cat(parts).to(device) for parts in zip(*(e.rows for e in examples), strict=True))),
            direct.to(device),
            self._vocab_size,
            ngram_weight=self.ngram_weight,
        )


def train_step(loss: Tensor, weights: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> bool:
    """Change the weights against the gradient of a loss; return False, with nothing changed, if it is NaN."""
    weights = list(weights)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(weights, LONGEST_GRADIENT)
    if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss)):
        optimizer.zero_grad()
        return False
    optimizer.step()
    return True
