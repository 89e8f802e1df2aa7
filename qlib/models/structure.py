"""What a quantizer must know of an architecture: which layers share an input, what may move, how it runs.

A model describes itself twice.

`groups()` lists its linear layers by the tensor that they read:

    LayerGroup(layers=(q_proj, k_proj, v_proj), before=layer_norm)

Layers of one group see the same input, so they share its statistics, and a scale that moves from that
input into the weights must be the same for all of them. `before` is the operation that can absorb the
inverse scale; where there is none, `reason` says why. `stages()` lists the chains of blocks, each block fed
by the one before: an encoder-decoder has two chains, a decoder-only model one.

Nothing else in the library looks inside an architecture. `fold` is the move itself, on plain tensors, so
that gradients flow through it; `apply_fold` writes one into a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.quantized_linear import QuantizedLinear, TiedEmbedding
from qlib.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Self

Source = Literal["hidden", "encoder"]


@dataclass(frozen=True)
class LayerGroup:
    """Linear layers that read the same tensor. All names are full module paths."""

    layers: tuple[str, ...]
    before: str | None  # norm or linear layer that produces the input and can absorb a scale, or None
    reason: str = ""  # why `before` is None
    source: Source = "hidden"  # the stream that is read: this stage's own, or the encoder's output
    # The output of `before` that each input channel comes from, where that is not simply the same number:
    # grouped-query attention reads one value row from several heads, a gated layer scales half of its rows.
    rows: tuple[int, ...] | None = None
    # Whether an offset may move as well. Where a layer has no bias for it, the constant then cancels.
    shift: bool = False

    @property
    def first(self) -> str:
        """The layer that stands for the group: its input is that of all of them."""
        return self.layers[0]

    @property
    def scores(self) -> tuple[str, ...]:
        """The layers whose outputs are queries or keys: every family names them ``q_proj`` and ``k_proj``."""
        return tuple(layer for layer in self.layers if layer.endswith((".q_proj", ".k_proj")))

    def tie(self, scale: Tensor) -> Tensor:
        """Return the nearest scale [inputs] that `before` can absorb: channels from one row share theirs.

        The geometric mean over the channels that come from the same output of `before`.
        """
        if self.rows is None or len(set(self.rows)) == len(self.rows):
            return scale
        rows = torch.tensor(self.rows, device=scale.device)
        total = torch.zeros(int(rows.max()) + 1, dtype=scale.dtype, device=scale.device)
        count = torch.zeros_like(total).index_add(0, rows, torch.ones_like(scale))
        return (total.index_add(0, rows, scale.log()) / count.clamp(min=1)).exp()[rows]


@dataclass(frozen=True)
class TokenLayers:
    """The layers between tokens and blocks, by full module path."""

    embedding: str  # a row for each token
    norm: str  # after the last block
    head: str  # reads what `norm` writes, and gives each token a score


class Stage(Protocol):
    """A chain of blocks in which each block reads what the previous one wrote.

    `batch` is whatever the model's family feeds: its type is between the stage and the function that
    prepares calibration data.
    """

    name: str
    blocks: tuple[str, ...]  # full module paths, in order

    def enter(self, batch: Any) -> Tensor:
        """Return the first block's input, `[batch, time, width]`."""
        ...

    def run(self, block: nn.Module, hidden: Tensor, batch: Any, only: Tensor | None = None) -> Tensor:
        """Return one block's output for its input `hidden`: `[batch, time, width]`.

        With a mask `only`, bool `[batch, time]`, the vectors that it marks: `[n, width]`. A stage need not
        compute the others then. It must not write into `hidden`: a block is run several times on it.
        """
        ...

    def leave(self, hidden: Tensor, batch: Any) -> Any:
        """Return the batch as the next stage needs it, given the last block's output."""
        ...

    def valid(self, batch: Any, source: Source) -> Tensor:
        """Return the mask of the vectors of a stream that count in statistics and errors, `[batch, time]`."""
        ...


def select(vectors: Tensor, only: Tensor | None) -> Tensor:
    """Return the vectors that a mask marks, `[n, width]`; without a mask, all as they are.

    Parameters
    ----------
    vectors : Tensor
        ``[batch, time, width]``: a stream, or only its marked vectors, ``[1, n, width]``, where `Stage.run`
        has not computed the others.
    only : Tensor or None
        bool ``[batch, time]``.
    """
    if only is None:
        return vectors
    return vectors[only] if vectors.shape[:2] == only.shape else vectors.flatten(0, 1)


class Model(nn.Module):
    """What every family offers to quantizers and checkpoints."""

    family: ClassVar[str]
    tied: Mapping[str, str]  # parameters that are another one: {"proj_out.weight": "...embed_tokens.weight"}
    token_layers: TokenLayers
    packed: bool = False  # laid out for inference by `pack`

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """The matrices with a row for each token, by the layer that holds them, and all names of each.

        A tied one is held by the head and has two names.
        """
        embedding, head = self.token_layers.embedding, self.token_layers.head
        return {head: (head, embedding)} if self.tied else {head: (head,), embedding: (embedding,)}

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but a tied head, by the input that it reads, in order of use."""
        raise NotImplementedError

    def stages(self) -> Sequence[Stage]:
        """Return the chains of blocks, in order."""
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """Return the logits ``[..., V]`` of what the last stage's last block writes, ``[..., D]``."""
        raise NotImplementedError

    def replace(self, name: str, layer: nn.Module) -> None:
        """Put a layer in the place of the module of that name, in this model.

        An embedding that is tied to it reads its rows from the new layer.
        """
        self.put(name, layer)
        if (other := self.tied.get(f"{name}.weight")) is not None:
            self.put(other.removesuffix(".weight"), TiedEmbedding(layer))

    def tie(self) -> None:
        """Make tied parameters the same tensor again, after new ones were put in place."""
        for name, other in self.tied.items():
            if not isinstance(self.get_submodule(name.rpartition(".")[0]), QuantizedLinear):
                self.put(name, self.get_parameter(other))

    def put(self, path: str, value: nn.Module | nn.Parameter) -> None:
        """Put a module or a parameter in the place of the one of that path, and do nothing else."""
        parent, _, child = path.rpartition(".")
        setattr(self.get_submodule(parent), child, value)

    def untie(self, where: str) -> None:
        """Give tied parameters tensors of their own, before a checkpoint `where` they differ is read.

        Raises
        ------
        ModelError
            The family always ties them.
        """
        tied, other = next(iter(self.tied.items()))
        raise ModelError(
            f"{where}: {tied} and {other} are two different tensors, and a {type(self).__name__} here has "
            "one for both. Remove the first from the file if it is a leftover; else this checkpoint cannot "
            "be used."
        )

    def computed(self) -> dict[str, Tensor]:
        """Return the parameters that published checkpoints took from a formula, by name, as those hold them.

        A quantized checkpoint need not store them where they are as the formula says.
        """
        return {}

    def recomputed(self) -> tuple[str, ...]:
        """Return the names of the parameters that are, in their own dtype, just as `computed` gives them."""
        state = self.state_dict()
        return tuple(
            name
            for name, value in self.computed().items()
            if torch.equal(state[name].cpu(), value.to(state[name].dtype))
        )

    def save_description(self, folder: Path) -> None:
        """Write all of a checkpoint but the weights: configurations and tokenizer."""
        raise NotImplementedError

    def pack(self) -> Self:
        """Lay the weights that decoding reads out for inference, in place, and return the model.

        See `qlib.models.fast.packed`. A packed model can run; to quantize, save, train or move it, load it
        again.

        Raises
        ------
        ModelError
            The model is packed already.
        """
        raise NotImplementedError

    def require_unpacked(self, what: str) -> None:
        """Raise ModelError if the model is packed; `what` cannot be done to it then."""
        if self.packed:
            raise ModelError(f"The model is packed for inference and cannot be {what}. Load it again.")


def write_description(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Tokenizer | None
) -> None:
    """Write the files of a checkpoint that every family has besides its weights."""
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


def fold(
    parameters: Mapping[str, Tensor], group: LayerGroup, scale: Tensor, shift: Tensor | None = None
) -> dict[str, Tensor]:
    """Move a scale and an offset from a group's input into its weights: y = W x = (W s) ((x - z) / s) + W z.

        before:  gain or rows /= s,  bias = (bias - z) / s        layers:  W columns *= s,  bias += W z

    Parameters
    ----------
    parameters : mapping
        Tensors by full name, at least those of `group.before` and `group.layers`. Left as they are.
    group : LayerGroup
        Must have a `before`.
    scale : Tensor
        s, [inputs], > 0; equal for channels that come from the same row of `before`.
    shift : Tensor, optional
        z, [inputs]; only where `group.shift`.

    Returns
    -------
    dict
        The tensors that change, new. A layer without a bias gets none: where `group.shift` holds, what it
        would add cancels.

    Raises
    ------
    ModelError
        No operation can absorb the scale, an offset that may not move, or a scale of the wrong kind.
    """
    if group.before is None:
        raise ModelError(f"No scale can move out of the input of {group.layers[0]}: {group.reason}.")
    if shift is not None and not group.shift:
        raise ModelError(
            f"No offset can move out of the input of {group.layers[0]}: the model's output would change."
        )
    weight, bias = f"{group.before}.weight", f"{group.before}.bias"
    per_row, offset = _by_row(group, parameters[weight], scale), None
    changed = {weight: parameters[weight] / (per_row if parameters[weight].dim() == 1 else per_row[:, None])}
    if shift is not None:
        offset = (
            shift if group.rows is None else torch.zeros_like(per_row).index_put(_rows(group, shift), shift)
        )
    if bias in parameters:
        moved = parameters[bias] if offset is None else parameters[bias] - offset
        changed[bias] = moved / per_row
    for layer in group.layers:
        old = parameters[f"{layer}.weight"]
        changed[f"{layer}.weight"] = old * scale
        if shift is not None and f"{layer}.bias" in parameters:
            changed[f"{layer}.bias"] = parameters[f"{layer}.bias"] + old @ shift
    return changed


def apply_fold(model: Model, changed: Mapping[str, Tensor]) -> None:
    """Write folded tensors into a model, in place.

    Raises
    ------
    ModelError
        A parameter is tied to another one, which would change with it.
    """
    tied = {*model.tied, *model.tied.values()}
    for name, value in changed.items():
        if name in tied:
            raise ModelError(f"{name} is shared with the token embedding and must stay as it is.")
        with torch.no_grad():
            model.get_parameter(name).copy_(value)


def _rows(group: LayerGroup, like: Tensor) -> tuple[Tensor]:
    return (torch.tensor(group.rows, device=like.device),)


def _by_row(group: LayerGroup, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the scale of each output of `before`, 1 where no channel comes from it; check the scale."""
    columns = len(weight) if group.rows is None else len(group.rows)
    if scale.shape != (columns,) or not bool((scale > 0).all() and scale.isfinite().all()):
        raise ModelError(
            f"A scale for the input of {group.layers[0]} must be [{columns}] finite numbers > 0, not "
            f"{list(scale.shape)} from {scale.min():.3g} to {scale.max():.3g}."
        )
    if group.rows is None:
        return scale
    per_row = torch.ones(len(weight), dtype=scale.dtype, device=scale.device)
    per_row = per_row.index_put(_rows(group, scale), scale)
    if not torch.equal(per_row[_rows(group, scale)], scale):
        raise ModelError(
            f"Channels of {group.layers[0]} that come from one row of {group.before} have different scales. "
            "Tie them first: group.tie(scale)."
        )
    return per_row
