"""A packed layer against the plain one: every family, in float64, alone and after a cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qlib.models.fast.packed_layer import PackedLayer, PackedNorm
from qlib.models.fast.products import to_dtype
from qlib.models.gemma3 import Gemma3RMSNorm
from qlib.models.layers import RMSNorm
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_gemma3, tiny_llama

MODELS: dict[str, Callable[[], TextModel]] = {
    "llama": tiny_llama,
    "biases": lambda: tiny_llama(attention_bias=True, mlp_bias=True),
    "qwen3": lambda: tiny_llama(model_type="qwen3"),
    "one query head for each key head": lambda: tiny_llama(num_key_value_heads=4, num_attention_heads=4),
    "gemma3": tiny_gemma3,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def with_random_norms(model: TextModel) -> TextModel:
    """Norms that all differ, so that none can be mistaken for another."""
    source = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=source)
    return model.double().eval()


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> TextModel:
    return with_random_norms(MODELS[request.param]())


class TestPackedNorm:
    @pytest.mark.parametrize("kind", [RMSNorm, Gemma3RMSNorm])
    @pytest.mark.parametrize("size", [1.0, 1e-3])  # beside the second one eps is large
    def test_is_the_plain_norm(self, kind: type[RMSNorm], size: float) -> None:
        norm, x = kind(24, eps=1e-5).double(), size * torch.randn(2, 3, 24, dtype=torch.float64)
        norm.weight.data.normal_()
        torch.testing.assert_close(PackedNorm(norm)(x), norm(x), rtol=1e-12, atol=1e-15)

    def test_half_precision_is_normed_in_float32(self) -> None:
        norm, x = RMSNorm(24, eps=1e-5).bfloat16(), torch.randn(3, 24).bfloat16()
        norm.weight.data.normal_()
        exact = PackedNorm(RMSNorm(24, eps=1e-5))(x.double())
        found = PackedNorm(norm)(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact * norm.weight.double(), rtol=2**-8, atol=0)

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        norm, x = PackedNorm(RMSNorm(100, eps=1e-5)), torch.randn(33, 100)
        whole = norm(x)
        for count in (1, 2, 7, 16):
            assert torch.equal(norm(x[:count]), whole[:count])


class TestPackedLayer:
    @torch.inference_mode()
    def test_is_the_plain_layer(self, model: TextModel) -> None:
        hidden = torch.randn(2, 9, model.config.hidden_size, dtype=torch.float64)
        inputs = model.attention_inputs(0, 9, hidden)
        for layer in model.model.layers:
            expected, found = layer(hidden, inputs), layer.pack(stable=False)(hidden, inputs)  # type: ignore[operator]
            assert (found - expected).abs().max() < 1e-12

    @torch.inference_mode()
    def test_is_the_plain_model_behind_a_cache(self, model: TextModel) -> None:
        """Of several texts, some tokens at a time, some taken back."""
        packed, tokens = model.packed_copy(), torch.randint(0, 250, (2, 30))
        expected, cache = model.decode(tokens), packed.start(rows=2, capacity=40)
        packed.decode(tokens[:, :12], cache)
        cache.truncate(10)
        found = [packed.decode(part, cache) for part in tokens[:, 10:].split([1, 1, 5, 13], 1)]
        assert (torch.cat(found, 1) - expected[:, 10:]).abs().max() < 1e-9

    def test_shows_its_products(self, model: TextModel) -> None:
        shown = str(model.pack())
        assert all(name in shown for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
        assert isinstance(model.model.layers[0], PackedLayer) and isinstance(model.model.norm, PackedNorm)
        assert not any(isinstance(module, nn.Linear) for module in model.model.modules())


def test_to_dtype_gives_the_tensor_itself_where_nothing_is_to_do() -> None:
    x = torch.ones(2)
    assert to_dtype(x, torch.float32) is x
    assert to_dtype(x, torch.float64).dtype == torch.float64
