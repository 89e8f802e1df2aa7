"""How many tokens a round drafts, by a small network that learns which draft tokens are accepted.

Papers    OmniDraft (arXiv 2507.02659, Equations 5 to 7: the rule; Algorithms 3 and 4: `schedules.py`);
          SpecDec++ (arXiv 2405.19715: the network, the weighted loss, the weights 6 and 1).
Problem   A drafter is sure of tokens that the target does not write, and unsure of others that it does. Only
          finished rounds tell which.
Rule      P_i = sigmoid(f(x_i)) estimates P(draft token i is accepted | all before it are). Stop after token i
          when 1 - P_1 ... P_i > gamma. The newest token is kept (see `drafting/propose.py`).
          f: three blocks x + SiLU(W x + b), each with its own weights, then one linear layer.
          x_i: the drafter's last hidden state from which token i was predicted, scaled to a mean square of 1,
          and the log-odds of the drafter's own probability of the token.
Loss      Binary cross-entropy, a rejection weighs 6 times as much as an acceptance. In training half of the
          hidden state is dropped at random: of some hundred rounds it could otherwise be learned by heart.
Labels    Of draft tokens, also where several of them are one target token: `labels.py`.
Why       The paper's input is the embedding of token i, that of SpecDec++ the hidden state *at* token i.
          The latter is known only after one more step of the drafter, which is what the rule is to save. The
          state that predicted the token says nothing of which token was taken; the log-odds do.
          All weights begin at 0 but the one that hands the log-odds on: P_i is then the drafter's own
          probability, and an untrained head is the rule `Confidence(1 - gamma)`.
Measured  SmolLM2-135M, greedy, 64 tokens, on the second half of the rounds of 128 prompts (`drafter-7m`) and
          of 96 (a drafter that never read the target's texts). Area under the curve, that is how often an
          accepted token is ranked above a rejected one: the drafter's own probability 0.79 and 0.80; the
          head 0.82 and 0.84; one that drops nothing 0.79 and 0.82. Speed-up by the counts of these rounds,
          with a draft token at 0.11 of a pass of the target: best fixed length 1.80 and 1.31, best
          `Confidence` 1.98 and 1.41, the head 1.94 and 1.41: it ranks better and is not yet faster. The
          weight 6 makes P_i smaller than it is, so that gamma = 0.3 stops too early (1.64 and 1.31);
          therefore 0.9 is the default. On 16 other prompts the head had 1.99 after 32 prompts, and 2.02
          untrained.
Shapes    n: draft tokens, width: of the drafter's hidden state.
Left out  Training over several epochs, and mixing random tokens into the drafts (SpecDec++): both need texts
          beforehand. Here all examples come from rounds in use.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftlib.drafting.length import Drafted, Length, as_length
from draftlib.learning.labels import Examples, examples_of, weighted_bce
from draftlib.state import State
from qlib.errors import DraftError, list_names, real_number, whole_number

if TYPE_CHECKING:
    from draftlib.round import Round

log = logging.getLogger(__name__)
_BLOCKS = 3
_KEPT_ROUNDS = 1024  # at most 10 MB at width 320 and eight tokens per round
_BATCH_ROUNDS = 32


# --- the network


class AcceptanceNet(nn.Module):
    """From what is known of a draft token to the log-odds of its acceptance: f of the rule above.

    Parameters
    ----------
    width : int
        Of the drafter's hidden states.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        # On "meta" a new layer draws no random numbers; on the CPU it would change those of the user.
        blocks = [nn.Linear(width + 1, width + 1, device="meta") for _ in range(_BLOCKS)]
        self.blocks, self.out = nn.ModuleList(blocks), nn.Linear(width + 1, 1, device="meta")
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.ones_(self.out.weight[:, -1:])

    def forward(self, hidden: Tensor, confidences: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return the log-odds of acceptance, [n].

        Parameters
        ----------
        hidden : Tensor
            [n, width].
        confidences : Tensor
            [n].
        factors : Tensor, optional
            [n, width]; the scaled hidden states are multiplied by it: 0 drops a number.
        """
        state = F.rms_norm(hidden, (self.width,))
        state = state if factors is None else state * factors
        x = torch.cat([state, torch.logit(confidences, eps=1e-4).unsqueeze(-1)], dim=-1)
        for block in self.blocks:
            x = x + F.silu(block(x))
        logits: Tensor = self.out(x).squeeze(-1)
        return logits


def likely_rejected(logits: Tensor, threshold: float) -> bool:
    """Return whether one of n tokens is rejected with a probability above the threshold.

    >>> even = torch.zeros(2)  # P = 0.5 each
    >>> likely_rejected(even, 0.7), likely_rejected(even, 0.8)
    (True, False)
    """
    return 1 - float(logits.sigmoid().prod()) > threshold


# --- the rule


@dataclass(eq=False)
class AcceptanceHead(Length):
    """Stop when the draft is likely to contain a token that the target rejects; learns from every round.

    The network is made at the first round, as wide as the drafter's hidden state, and is for this drafter and
    this target. It is on the CPU.

    Attributes
    ----------
    threshold : float
        Stop when the probability of a rejection is above it: the paper's gamma, there 0.3 and 0.7.
    max_tokens : int
        Most tokens of a round.
    learning_rate : float
        Of AdamW.
    reject_weight : float
        How much a rejected token weighs in the loss; an accepted one weighs 1.
    train_every : int
        After so many rounds one step on 32 random rounds of the last 1,024, which takes 2 ms at width 320. 0:
        `learn` only remembers rounds, and somebody else calls `train`.
    seed : int
        Of the choice of rounds, and of what is dropped.

    Raises
    ------
    DraftError
        A setting is out of its range.

    >>> head, sure = AcceptanceHead(threshold=0.3), Drafted(0, Tensor(), 0.9, torch.ones(4))
    >>> [head.stop([sure] * n) for n in (1, 3, 4)]  # untrained: 0.9 ** 4 = 0.66
    [False, False, True]
    """

    threshold: float = 0.9
    max_tokens: int = 8
    learning_rate: float = 1e-3
    reject_weight: float = 6.0
    train_every: int = 4
    seed: int = 0
    net: AcceptanceNet | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        as_length(self)
        self.train_every = whole_number(self.train_every, f"{name}: train_every", DraftError, 0)
        self.seed = whole_number(self.seed, f"{name}: seed", DraftError, 0)
        for setting in ("threshold", "learning_rate", "reject_weight"):
            number = real_number(getattr(self, setting), f"{name}: {setting}", DraftError)
            setattr(self, setting, float(number))
        if not 0 <= self.threshold <= 1:
            raise DraftError(
                f"{name}(threshold={self.threshold}): a probability is between 0 (stop after one token) and "
                "1 (never stop early). Values from 0.3 to 0.95 are usual."
            )
        for setting in ("learning_rate", "reject_weight"):
            if not 0 < getattr(self, setting) < float("inf"):
                raise DraftError(
                    f"{name}({setting}={getattr(self, setting)}): it must be a positive number. The default "
                    f"is {getattr(AcceptanceHead, setting)}."
                )
        self._forget()

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return whether 1 - P_1 ... P_i is above the threshold."""
        if not drafted:
            return False
        hidden = torch.stack([each.hidden for each in drafted]).to("cpu", torch.float32)
        net = self._net_of_width(hidden.shape[-1])
        with torch.no_grad():
            logits = net(hidden, torch.tensor([each.confidence for each in drafted]))
        return likely_rejected(logits, self.threshold)

    def learn(self, round: Round) -> None:
        """Remember what became of a round's draft tokens; after every `train_every` rounds, train."""
        examples = examples_of(round)
        if examples is None:
            return
        if not bool(examples.hidden.isfinite().all()):  # once remembered, it would spoil many steps
            log.warning(
                "AcceptanceHead: the drafter's hidden states are not finite: nothing is learned from them"
            )
            return
        self._net_of_width(examples.hidden.shape[-1])
        self._kept.append(examples)
        self._rounds += 1
        if self.train_every and self._rounds % self.train_every == 0:
            self.train()

    def train(self, examples: Examples | None = None) -> float:
        """Make one step of AdamW on some examples, by default on random rounds of those remembered.

        Returns
        -------
        float
            The loss before the step. If it is not finite there is no step, and a warning in the log.

        Raises
        ------
        DraftError
            There are no examples, or they are from a drafter of another width.
        """
        examples = examples or self._random_rounds()
        with torch.inference_mode(False), torch.enable_grad():
            net = self._net_of_width(examples.hidden.shape[-1])
            # Clones, for these may have been made in inference mode.
            hidden, confidences, labels = (each.clone() for each in examples)
            factors = 2.0 * torch.randint(2, hidden.shape, generator=self._generator)
            loss = weighted_bce(net(hidden, confidences, factors), labels, self.reject_weight)
            if not bool(loss.isfinite()):
                log.warning("AcceptanceHead: the loss is %s: this step is left out", loss.item())
                return loss.item()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        return loss.item()

    def refresh(self, rounds: Iterable[Examples]) -> None:
        """Forget the remembered rounds, and remember these: the same ones, as a changed drafter sees them."""
        self._kept.clear()
        self._kept.extend(rounds)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was learned and is remembered, by name; nothing before the first round."""
        if self.net is None:
            return {}
        state = {f"net.{name}": value.clone() for name, value in self.net.state_dict().items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"adamw.{number}.{name}": value.clone() for name, value in moments.items()}
        nothing = Examples(torch.empty(0, self.net.width), torch.empty(0), torch.empty(0))
        state |= {f"kept.{name}": value for name, value in _join([nothing, *self._kept])._asdict().items()}
        state["kept.lengths"] = torch.tensor([len(each.labels) for each in self._kept], dtype=torch.int64)
        return state | {"rounds": torch.tensor(self._rounds), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned: this head goes on as that one would. The settings stay.

        Raises
        ------
        DraftError
            A name is missing or unknown, a shape is wrong, or this head has learned from a drafter of another
            width. The head is as it was then.
        """
        if not state:
            self._forget()
            return
        with torch.inference_mode(False):
            net = _net_of_state(state)
            self._net_of_width(net.width)
            self.net, self._optimizer = net, self._optimizer_of(net)
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": _moments(state), "param_groups": groups})
        lengths = state["kept.lengths"].tolist()
        parts = (torch.split(state[f"kept.{name}"].clone(), lengths) for name in Examples._fields)
        self.refresh(Examples(*each) for each in zip(*parts, strict=True))
        self._rounds = int(state["rounds"])
        self._generator.set_state(state["generator"])

    def state(self) -> State:
        """Return what the folder of a decoder keeps: that of `state_dict`."""
        return State(self.state_dict(), {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave. Raises DraftError as `load_state_dict` does."""
        self.load_state_dict(state.tensors)

    def _forget(self) -> None:
        self.net = None
        self._generator = torch.Generator().manual_seed(self.seed)
        self._kept: deque[Examples] = deque(maxlen=_KEPT_ROUNDS)
        self._rounds = 0

    def _random_rounds(self) -> Examples:
        if not self._kept:
            raise DraftError("AcceptanceHead: no round is remembered yet. Wait for one, or pass examples.")
        order = torch.randperm(len(self._kept), generator=self._generator)[:_BATCH_ROUNDS]
        return _join(self._kept[i] for i in order.tolist())

    def _net_of_width(self, width: int) -> AcceptanceNet:
        if self.net is None:
            with torch.inference_mode(False):  # else its weights could never be trained
                self.net = AcceptanceNet(width)
                self._optimizer = self._optimizer_of(self.net)
        if self.net.width != width:
            raise DraftError(
                f"this AcceptanceHead has learned from hidden states of width {self.net.width}, here it gets "
                f"width {width}. Make a new head for another drafter."
            )
        return self.net

    def _optimizer_of(self, net: AcceptanceNet) -> torch.optim.AdamW:
        return torch.optim.AdamW(net.parameters(), lr=self.learning_rate)


def _join(rounds: Iterable[Examples]) -> Examples:
    return Examples(*(torch.cat(parts) for parts in zip(*rounds, strict=True)))


# --- reading a state


def _net_of_state(state: Mapping[str, Tensor]) -> AcceptanceNet:
    """Return the network of a state whose names and shapes are right."""
    last = state.get("net.out.weight", torch.empty(1, 1))
    net = AcceptanceNet(last.shape[-1] - 1)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    needed = {*weights, *(f"kept.{name}" for name in Examples._fields), "kept.lengths", "rounds", "generator"}
    faults = {name: "is missing" for name in needed - state.keys()}
    faults |= {n: "is unknown" for n in state.keys() - needed if not n.startswith("adamw.")}
    if not faults:
        shapes = {name: (list(state[name].shape), list(value.shape)) for name, value in weights.items()}
        faults = {
            n: f"has the shape {found}, not {right}" for n, (found, right) in shapes.items() if found != right
        }
    if faults:
        told = list_names(f"{name} {fault}" for name, fault in sorted(faults.items()))
        raise DraftError(
            f"this is no state of an AcceptanceHead: {told}. Pass what its state_dict() returned."
        )
    net.load_state_dict({name.removeprefix("net."): state[name] for name in weights})
    return net


def _moments(state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return AdamW's running means by the number of the parameter and their name."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("adamw."):
            _, number, part = name.split(".")
            moments.setdefault(int(number), {})[part] = value.clone()
    return moments
