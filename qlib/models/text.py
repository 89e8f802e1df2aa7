"""What decoder-only text models share: cached decoding, the head, packing.

    tokens [B, T] -> embed -> layers (each sees the cached keys and values before it) -> norm -> hidden
    hidden [B, T, D] -> lm_head, often tied to the embedding -> logits [B, T, V]

A family adds its configuration, its layer and its structure (`text_structure.py`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.chat import Chat
from qlib.models.fast.packed import PackedLinear, pack_linears
from qlib.models.fast.packed_layer import PackedLayer, PackedNorm
from qlib.models.fast.products import arithmetic_dtype, to_dtype
from qlib.models.fast.row_stability import STABLE_ROWS, StableSizes
from qlib.models.fast.row_stable_attention import measure_stable_network
from qlib.models.layers import Attention, AttentionInputs, GatedMLP, RMSNorm, attention_dtype, embedding
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.structure import Model, TokenLayers, write_description
from qlib.models.text_config import TextConfig, TextGeneration
from qlib.models.text_structure import TextStage
from qlib.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Self


class TextLayer(nn.Module):
    """A family's layer: attention and gated MLP."""

    self_attn: Attention
    mlp: GatedMLP

    def pack(self, stable: bool) -> PackedLayer:
        """Return this layer for inference."""
        raise NotImplementedError


class TextCore(nn.Module):
    """Embedding, layers and final norm, so that tensor names match the checkpoints'."""

    def __init__(self, config: TextConfig, layers: Sequence[nn.Module], norm: RMSNorm):
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm: RMSNorm | PackedNorm = norm


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

    token_layers = TokenLayers("model.embed_tokens", "model.norm", "lm_head")

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
        self._stable: StableSizes | None = None
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
        """How a conversation is written for the model; None without template and role markers."""
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

    def attention_inputs(
        self, start: int, new: int, hidden: Tensor, stable: StableSizes | None = None
    ) -> Mapping[str, AttentionInputs]:
        """Return, by kind of layer, what attention needs for `new` tokens after `start` others."""
        raise NotImplementedError

    def pack(self, *, stable: bool = False) -> Self:
        """Lay all linear layers out for inference, in place; see `Model.pack`.

        Parameters
        ----------
        stable : bool
            Let `decode` with a cache and `logits` give each of up to 16 tokens the same bits, however many
            are computed together: verifying a draft then sees exactly what plain decoding sees. It makes a
            single token 14 to 29 % slower. After `torch.set_num_threads` the next call measures again for
            which numbers of tokens that is so; texts begun before it may go on in other bits.

        Notes
        -----
        In bfloat16 on a CPU without arithmetic for it, hidden states and logits are float32 from here on:
        rounding them to bfloat16 after every layer would take time and add errors. A model with a layer that
        rounds its input keeps bfloat16, because that layer stays as it is.
        """
        self.require_unpacked("packed once more")
        core = self.model
        for i, layer in enumerate(core.layers):
            assert isinstance(layer, TextLayer)
            core.layers[i] = layer.pack(stable)
        assert isinstance(core.norm, RMSNorm)
        core.norm = PackedNorm(core.norm)
        self.lm_head = pack_linears([self.lm_head], stable=stable)
        self.packed = True
        if not any(isinstance(each, (nn.Linear, QuantizedLinear)) for each in self.modules()):
            self._activations = arithmetic_dtype(self.model.embed_tokens.weight)
        if stable:
            self._measure_stable(torch.get_num_threads())
        return self

    @property
    def stable(self) -> bool:
        """Whether a token's bits do not depend on what is computed beside it; see `pack`."""
        return self._stable is not None

    def _measure_stable(self, threads: int) -> None:
        """Measure with how many tokens and keys all products and attentions of this model are row-stable."""
        self._stable = measure_stable_network(self.model, self.model.embed_tokens.weight, threads)
        self._threads = threads
        if isinstance(
            self.lm_head, PackedLinear
        ):  # runs on other rows than the layers: only those to choose from
            self.lm_head.measure_counts(threads)

    def packed_copy(self, *, stable: bool = False) -> Self:
        """Return a packed copy that shares tokenizer and embedding with this model; see `pack`."""
        self.require_unpacked("packed once more")
        shared = [*self.parameters(), *self.buffers(), self.tokenizer]
        return copy.deepcopy(self, {id(each): each for each in shared}).pack(stable=stable)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, D], the first layer's input."""
        return call(self.model.embed_tokens, tokens)

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
            New tokens; the first one follows those in the cache.
        cache : KVCache, optional
            From `start`; keys and values of the new tokens are added to it.
            Without one the text begins here, and gradients flow.

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
            self._measure_stable(torch.get_num_threads())  # kernels divide the work in another way
        stable = self._stable if cache is not None and new <= STABLE_ROWS else None
        padding = 0 if stable is None else stable.tokens[new] - new
        # The tokens after the new ones make their number row-stable. Their results are thrown away.
        hidden = self.embed(F.pad(tokens, (0, padding)) if padding else tokens)
        if self._activations is not None:
            hidden = to_dtype(hidden, self._activations)
        inputs = self.attention_inputs(start, new, hidden, stable)
        for i, layer in enumerate(self.model.layers):
            hidden = layer(hidden, inputs, cache, i)
        if cache is not None:
            cache.advance(new)
        return call(self.model.norm, hidden[:, :new] if padding else hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of final hidden states [..., D]."""
        return call(self.lm_head, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], each position seeing those before it."""
        return self.logits(self.decode(tokens))

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the final norm and the head to what the last layer writes."""
        return self.logits(call(self.model.norm, hidden))

    def stages(self) -> tuple[TextStage]:
        """Return the one chain of blocks."""
        return (TextStage(self),)
