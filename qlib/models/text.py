"""What decoder-only text models share: settings, cached decoding, the head, one stage of blocks.

    tokens [B, T] -> embed -> layers (each sees the cached keys and values before it) -> norm -> hidden
    hidden [B, T, D] -> lm_head, often tied to the embedding -> logits [B, T, V]

A family adds its configuration, its layer, and what a scale may be folded into.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.chat import Chat
from qlib.models.fast.packed import (
    STABLE_ROWS,
    PackedLinear,
    arithmetic_dtype,
    cast,
    pack_linears,
    safe_for_all,
)
from qlib.models.fast.packed_layer import PackedLayer, PackedNorm
from qlib.models.layers import (
    Attention,
    Reach,
    RMSNorm,
    Stable,
    attention_dtype,
    embedding,
    stable_attention,
)
from qlib.models.structure import LayerGroup, Model, Source, Stage, select, write_description
from qlib.models.text_config import TextConfig, TextGeneration
from qlib.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class TextBatch:
    """Texts to calibrate with, padded behind their ends."""

    tokens: Tensor  # int [B, T]
    mask: Tensor  # bool [B, T]: tokens that count in statistics
    where: str = "a batch of texts"  # for messages


class TextCore(nn.Module):
    """Embedding, layers and final norm, so that tensor names match the checkpoints'."""

    def __init__(self, config: TextConfig, layers: Sequence[nn.Module], norm: RMSNorm):
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm: Any = norm  # RMSNorm, or PackedNorm


class TextModel(Model):
    """A decoder-only model with its tokenizer, token ids and chat template.

    Parameters
    ----------
    config : TextConfig
        Sizes.
    core : TextCore
        The network without the head.
    generation : TextGeneration
        Token ids by role.
    tokenizer : Tokenizer, optional
        Text to tokens.
    chat_template : str, optional
        The checkpoint's template, kept when the model is saved.

    Attributes
    ----------
    template_file : str
        Where the template comes from, for messages.
    """

    def __init__(
        self,
        config: TextConfig,
        core: TextCore,
        generation: TextGeneration,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
    ):
        super().__init__()
        self.generation = generation
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.template_file = "the chat template"
        self.config = config
        self.model = core
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
        self._stable: Stable | None = None
        self._threads = 0  # for which `_stable` was found
        self._activations: torch.dtype | None = None  # of hidden states, where it is not the weights'
        self.tie()

    def untie(self, where: str) -> None:
        """Give the head a weight of its own, in the configuration as well."""
        self.tied = {}
        self.config = replace(self.config, tie_word_embeddings=False)
        self.lm_head.weight = nn.Parameter(self.model.embed_tokens.weight.detach().clone())

    @property
    def chat(self) -> Chat | None:
        """How the model wants to be talked to; None where it has neither a template nor role markers."""
        return Chat.find(self.tokenizer, self.chat_template, self.template_file)

    def save_description(self, folder: Path) -> None:
        """Write all of a checkpoint but the weights: configurations, tokenizer, chat template."""
        ids = self.generation.to_dict()
        write_description(folder, {**self.config.to_dict(), **ids}, ids, self.tokenizer)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        if self.tokenizer is not None:
            # The class says that tokenizer.json counts as it stands; a chat template needs the names.
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.tokenizer.named}
            content = json.dumps(settings, indent=1, ensure_ascii=False)
            (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")

    def reach(
        self, start: int, new: int, hidden: Tensor, stable: Stable | None = None
    ) -> Mapping[str, Reach]:
        """Return, by kind of layer, where `new` tokens behind `start` others stand and what they see."""
        raise NotImplementedError

    def pack(self, *, stable: bool = False) -> Self:
        """Lay all linear layers out for inference, in place; see `Model.pack`.

        Parameters
        ----------
        stable : bool
            Let `decode` with a cache and `logits` give each of up to 16 tokens the same bits, however many
            are computed together: verifying a draft then sees exactly what plain decoding sees. It makes a
            single token 15 to 30 % slower. After `torch.set_num_threads` the next call measures again for
            which numbers of tokens that is so; texts begun before it may go on in other bits.

        Notes
        -----
        In bfloat16 on a CPU without arithmetic for it, hidden states and logits are float32 from here on: to
        round them at every layer would take time and make them worse. (Not where a layer that rounds its
        input stays as it is.)
        """
        self.require_unpacked("packed once more")
        core = self.model
        for i, layer in enumerate(core.layers):
            core.layers[i] = layer.pack(stable)  # type: ignore[operator]
        core.norm = PackedNorm(core.norm)
        self.lm_head = pack_linears([self.lm_head], stable=stable)
        self.packed = True
        if all(isinstance(each, PackedLinear) or not hasattr(each, "in_features") for each in self.modules()):
            self._activations = arithmetic_dtype(self.model.embed_tokens.weight)
        if stable:
            self._find_stable(torch.get_num_threads())
        return self

    @property
    def stable(self) -> bool:
        """Whether a token's bits do not depend on what is computed beside it; see `pack`."""
        return self._stable is not None

    def _find_stable(self, threads: int) -> None:
        """Measure with how many tokens and keys all products and attentions of this model are row-stable."""
        modules, weight = list(self.modules()), self.model.embed_tokens.weight
        shapes = {module.shape for module in modules if isinstance(module, PackedLayer)}
        around = attention_dtype(weight), weight.device, threads
        with torch.inference_mode():
            found = [stable_attention(shape, *around) for shape in shapes]
        linears = [module for module in modules if isinstance(module, PackedLinear)]
        for module in linears:
            module.find_rows(threads)
        products = [module.rows for module in linears if module is not self.lm_head]
        self._threads = threads
        self._stable = Stable(
            safe_for_all([*(each.tokens for each in found), *products]),
            safe_for_all([each.blocks for each in found]),
        )

    def packed_copy(self, *, stable: bool = False) -> Self:
        """Return a packed copy that shares tokenizer and embedding with this model; see `pack`."""
        self.require_unpacked("packed once more")
        shared = [*self.parameters(), *self.buffers(), self.tokenizer]
        return copy.deepcopy(self, {id(each): each for each in shared}).pack(stable=stable)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, D], the first layer's input."""
        return self.model.embed_tokens(tokens)  # type: ignore[no-any-return]

    def start(self, rows: int = 1, capacity: int | None = None) -> KVCache:
        """Return the empty cache of `rows` texts of equal length.

        `capacity` is the number of tokens that it can hold, by default all of the model's positions.
        """
        config, weight = self.config, self.model.embed_tokens.weight
        capacity = config.max_position_embeddings if capacity is None else capacity
        like = weight.new_empty(0, dtype=attention_dtype(weight))
        return KVCache(
            config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim, like
        )

    def decode(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states [B, T, D] of tokens [B, T].

        Parameters
        ----------
        tokens : Tensor
            New tokens; the first stands behind those in the cache.
        cache : KVCache, optional
            From `start`; takes the new tokens up. Without one the text begins here, and gradients flow.

        Raises
        ------
        ModelError
            More tokens than the cache or the model has positions for.
        """
        start, new = 0 if cache is None else cache.length, tokens.shape[1]
        if start + new > self.config.max_position_embeddings:
            raise ModelError(
                f"{start + new} tokens are more than the model's {self.config.max_position_embeddings} "
                "positions. Shorten the prompt, or ask for fewer new tokens."
            )
        if self._stable is not None and self._threads != torch.get_num_threads():
            self._find_stable(torch.get_num_threads())  # kernels share the work out in another way
        stable = self._stable if cache is not None and new <= STABLE_ROWS else None
        fill = 0 if stable is None else stable.tokens[new] - new
        # Tokens that fill up are computed and thrown away.
        hidden = self.embed(F.pad(tokens, (0, fill)) if fill else tokens)
        if self._activations is not None:
            hidden = cast(hidden, self._activations)
        reach = self.reach(start, new, hidden, stable)
        for i, layer in enumerate(self.model.layers):
            hidden = layer(hidden, reach, cache, i)
        if cache is not None:
            cache.advance(new)
        return self.model.norm(hidden[:, :new] if fill else hidden)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of final hidden states [..., D]."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], each position seeing those before it."""
        return self.logits(self.decode(tokens))

    def stages(self) -> tuple[TextStage]:
        """Return the one chain of blocks."""
        return (TextStage(self),)


class TextStage(Stage):
    """The layers as a chain of blocks, fed with `TextBatch`."""

    name = "decoder"

    def __init__(self, model: TextModel):
        self.model = model
        self.blocks = tuple(f"model.layers.{i}" for i in range(len(model.model.layers)))

    def enter(self, batch: TextBatch) -> Tensor:
        """Token embeddings."""
        return self.model.embed(batch.tokens)

    def run(self, block: nn.Module, hidden: Tensor, batch: TextBatch, only: Tensor | None = None) -> Tensor:
        """One layer. Padding stands behind the text, where the causal mask hides it."""
        return select(block(hidden, self.model.reach(0, hidden.shape[1], hidden)), only)

    def leave(self, hidden: Tensor, batch: TextBatch) -> TextBatch:
        """Nothing follows."""
        return batch

    def valid(self, batch: TextBatch, source: Source) -> Tensor:
        """Return the tokens that count."""
        return batch.mask


def decoder_groups(
    model: TextModel, attention_norm: str | None, mlp_norm: str | None, reason: str = ""
) -> list[LayerGroup]:
    """Return every linear layer of a text model but a tied head, by the input that it reads.

    Parameters
    ----------
    model : TextModel
        Its layers have `self_attn` and `mlp`.
    attention_norm, mlp_norm : str or None
        Names, within a layer, of the norms in front of the two parts, where they can absorb a scale.
    reason : str
        Why they cannot, where they cannot. It then holds for the final norm as well.
    """
    groups = []
    for i, layer in enumerate(model.model.layers):
        name, attention = f"model.layers.{i}", layer.self_attn
        assert isinstance(attention, Attention)
        own, mlp = f"{name}.self_attn", f"{name}.mlp"
        groups += [
            _behind_norm((f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj"), name, attention_norm, reason),
            LayerGroup((f"{own}.o_proj",), f"{own}.v_proj", rows=attention.value_rows()),
            _behind_norm((f"{mlp}.gate_proj", f"{mlp}.up_proj"), name, mlp_norm, reason),
            # silu(gate) up: linear in up only.
            LayerGroup((f"{mlp}.down_proj",), f"{mlp}.up_proj"),
        ]
    if not model.tied:
        groups.append(_behind_norm(("lm_head",), "model", None if reason else "norm", reason))
    return groups


def _behind_norm(layers: tuple[str, ...], parent: str, norm: str | None, reason: str) -> LayerGroup:
    return LayerGroup(layers, norm and f"{parent}.{norm}", reason)
