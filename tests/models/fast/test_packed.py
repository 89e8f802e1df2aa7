"""Packed products against F.linear, which of them is taken, rows that do not depend on one another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import qlib
from qlib.errors import ModelError
from qlib.models.fast import packed, products, row_stability, row_stable_attention
from qlib.models.fast.packed import PackedLinear, SideBySide, pack_linears
from qlib.models.fast.products import half_product, plain_product, reordered_product
from qlib.models.fast.row_stability import STABLE_ROWS, measure_row_stable_counts
from qlib.models.fast.row_stable_attention import measure_stable_attention
from qlib.models.layers import AttentionShape
from qlib.models.moonshine import Moonshine
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.text import TextModel
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper
from qlib.models.whisper import Whisper

EXACT = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_probes() -> Iterator[None]:
    """What a test makes the probes find must not outlive it."""
    yield
    probes = products._half_operators, products._can_reorder, row_stability.measure_row_stable_counts
    for probe in probes:
        probe.cache_clear()


def short(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights that float16 and bfloat16 both hold."""
    random = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    return (32 * random).round().to(dtype) / 64


def wide(rows: int, columns: int) -> Tensor:
    """Weights that float16 does not hold."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


class NoOperators:
    """A torch without the private operators."""

    def __getattr__(self, name: str) -> None:
        raise AttributeError(name)


def without_operators(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(products.torch, "ops", NoOperators())
    patch.delattr(products.torch, "fbgemm_pack_gemm_matrix_fp16", raising=False)
    for probe in (products._half_operators, products._can_reorder):
        probe.cache_clear()


class TestProducts:
    @pytest.mark.parametrize("dtype", EXACT)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("rows", [1, 2, 8, 33])
    @pytest.mark.parametrize("make", [half_product, reordered_product, plain_product])
    def test_equal_the_ordinary_product(
        self, make: products.Pack, rows: int, bias: bool, dtype: torch.dtype
    ) -> None:
        weight, x = short(100, 48, dtype), torch.randn(rows, 48).to(dtype)
        offset = torch.randn(100).to(dtype) if bias else None
        product = make(weight, offset)
        if product is None:
            pytest.skip("this processor or torch has no such operator")
        result, expected = product(x), linear(x.double(), weight.double())
        expected += 0 if offset is None else offset.double()
        assert result.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("dtype", EXACT)
    def test_by_the_newer_operators_too(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "_older_half", products._newer_half)
        product = half_product(short(100, 48, dtype), torch.ones(100, dtype=dtype))
        if product is None:
            pytest.skip("this processor or torch has no such operator")
        x = torch.randn(5, 48).to(dtype)
        torch.testing.assert_close(product(x), linear(x, short(100, 48, dtype)) + 1, rtol=1e-2, atol=1e-2)

    def test_weights_that_float16_does_not_hold_stay_whole(self) -> None:
        weight = short(8, 16)
        weight[3, 5] += 2.0**-20
        assert half_product(weight, None) is None
        assert PackedLinear(weight).kind != "half"
        weight[3, 5] = 1e6  # beyond its range
        assert half_product(weight, None) is None

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_other_dtypes_take_the_ordinary_product(self, dtype: torch.dtype) -> None:
        weight, x = short(10, 4).to(dtype), torch.randn(3, 4).to(dtype)
        layer = PackedLinear(weight)
        assert layer.kind == "plain" or dtype == torch.float16  # some processors have float16 arithmetic
        torch.testing.assert_close(layer(x), linear(x, weight))

    def test_without_the_operators_it_is_ordinary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weight, x = short(10, 4), torch.randn(3, 4)
        with monkeypatch.context() as patch:
            without_operators(patch)
            layer = PackedLinear(weight, torch.ones(10), stable=True)
            assert layer.kind == "plain"
            torch.testing.assert_close(layer(x), linear(x, weight) + 1)

    def test_operators_with_other_results_are_not_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = (lambda weight, bias: weight, lambda x, weight: x @ weight.T)  # forgets the bias
        monkeypatch.setattr(products, "_older_half", lambda: wrong)
        monkeypatch.setattr(products, "_newer_half", lambda: wrong)
        products._half_operators.cache_clear()
        assert half_product(short(10, 4), None) is None

    @pytest.mark.parametrize("stable", [False, True])
    @pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), (5, 1, 4), (20, 4)])
    def test_inputs_of_any_shape(self, shape: tuple[int, ...], stable: bool) -> None:
        weight, x = short(10, 4), torch.randn(shape)
        torch.testing.assert_close(PackedLinear(weight, stable=stable)(x), linear(x, weight))

    def test_shows_what_it_is(self) -> None:
        layer = PackedLinear(short(10, 4))
        assert layer.kind in ("half", "reordered", "plain")
        assert repr(layer) == f"PackedLinear(4, 10, {layer.kind})"


class TestPackLinears:
    def test_layers_of_one_input_become_one(self) -> None:
        layers = [nn.Linear(12, 5), nn.Linear(12, 7, bias=False)]
        one, x = pack_linears(layers), torch.randn(2, 3, 12)
        assert isinstance(one, PackedLinear)
        torch.testing.assert_close(one(x), torch.cat([layer(x) for layer in layers], -1))

    def test_a_layer_that_rounds_its_input_stays(self) -> None:
        class Rounded(nn.Linear, QuantizedLinear):  # type: ignore[misc]
            activation = torch.round

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.round())

        layers, x = [nn.Linear(12, 5), Rounded(12, 7)], torch.randn(3, 12)
        both = pack_linears(layers)
        assert isinstance(both, SideBySide)
        assert torch.equal(both(x), torch.cat([layers[0](x), layers[1](x)], -1))
        assert pack_linears(layers[1:]) is layers[1]


class TestRowStableCounts:
    def test_fills_up_to_numbers_at_which_rows_agree(self) -> None:
        """A kernel that treats odd numbers of rows in another way."""

        def pack(weight: Tensor, bias: Tensor | None) -> products.Product:
            other = weight.clone()
            other[0, 0] += 1
            return lambda x: x @ (other if len(x) % 2 else weight).T

        assert measure_row_stable_counts(pack, (6, 4), torch.float64, torch.device("cpu"), 1) == (
            0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16,
        )  # fmt: skip

    def test_a_kernel_that_sees_the_place_of_a_row_runs_all_rows(self) -> None:
        def pack(weight: Tensor, bias: Tensor | None) -> products.Product:
            return lambda x: x @ weight.T + 1e-3 * torch.arange(len(x))[:, None]

        table = measure_row_stable_counts(pack, (6, 4), torch.float32, torch.device("cpu"), 1)
        assert set(table[1:]) == {STABLE_ROWS}

    @pytest.mark.parametrize("dtype", EXACT)
    def test_another_order_of_the_sum_is_seen(self, dtype: torch.dtype) -> None:
        """In bfloat16 as well, where it hardly ever changes the result on ordinary numbers."""

        def pack(weight: Tensor, bias: Tensor | None) -> products.Product:
            wide = weight.float()

            def product(x: Tensor) -> Tensor:
                if len(x) != 1:
                    return (x.float() @ wide.T).to(x.dtype)
                halves = x.float().split(31, 1), wide.split(31, 1)
                return sum(a @ b.T for a, b in zip(*halves, strict=True)).to(x.dtype)  # type: ignore[union-attr]

            return product

        table = measure_row_stable_counts(pack, (64, 62), dtype, torch.device("cpu"), 1)
        assert table[1] > 1

    @pytest.mark.parametrize("dtype", EXACT)
    @pytest.mark.parametrize("weight", [short(96, 64), wide(96, 64), wide(33, 160)])
    def test_rows_of_a_stable_layer_do_not_depend_on_one_another(
        self, weight: Tensor, dtype: torch.dtype
    ) -> None:
        layer = PackedLinear(weight.to(dtype), torch.randn(len(weight)).to(dtype), stable=True)
        x = torch.randn(1, STABLE_ROWS, weight.shape[1]).to(dtype)
        whole = layer(x)
        assert whole.shape == (1, STABLE_ROWS, len(weight))
        for start in range(STABLE_ROWS):
            for stop in range(start + 1, STABLE_ROWS + 1):
                assert torch.equal(layer(x[:, start:stop]), whole[:, start:stop])


LONG: dict[str, Any] = {"max_position_embeddings": 300}
MODELS: dict[str, Callable[[], TextModel]] = {
    "llama": lambda: tiny_llama(seed=3, **LONG),
    "qwen3 untied": lambda: tiny_llama(seed=3, model_type="qwen3", tie_word_embeddings=False, **LONG),
    "biases": lambda: tiny_llama(seed=3, attention_bias=True, mlp_bias=True, **LONG),
    "gemma3": lambda: tiny_gemma3(seed=3, **LONG),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> TextModel:
    return MODELS[request.param]().eval()


class TestStableAttention:
    SHAPE = AttentionShape(width=32, heads=2, kv_heads=1, head_dim=16, scale=0.25)

    def test_lengths_and_numbers_at_which_nothing_changes(self) -> None:
        stable = measure_stable_attention(
            self.SHAPE, torch.float32, torch.device("cpu"), torch.get_num_threads()
        )
        assert all(found >= asked for asked, found in enumerate(stable.tokens))
        assert (stable.tokens[0], stable.tokens[-1]) == (0, STABLE_ROWS)
        assert (stable.blocks[0], stable.blocks[-1]) == (0, 8)
        assert stable.length(1) == 64 * stable.blocks[1]
        assert stable.length(512) == 512
        assert stable.length(512 + 65) == 512 + 64 * stable.blocks[2]

    def test_a_kernel_that_sees_the_length_reads_long_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def attend(queries: Tensor, keys: Tensor, *rest: Any) -> Tensor:
            return queries.flatten(2) + keys.shape[2] % 512

        monkeypatch.setattr(row_stable_attention, "attend", attend)
        stable = measure_stable_attention.__wrapped__(self.SHAPE, torch.float32, torch.device("cpu"), 1)
        assert stable.blocks == (0, *[8] * 8)


class TestModels:
    @torch.inference_mode()
    def test_logits_are_those_of_the_unpacked_model(self, model: TextModel) -> None:
        tokens = torch.randint(0, 250, (2, 30), generator=torch.Generator().manual_seed(0))
        expected = model(tokens)
        found = model.pack()(tokens)
        assert model.packed
        assert (found - expected).abs().max() < 1e-4
        assert not any(type(module) is nn.Linear for module in model.modules())

    @torch.inference_mode()
    @pytest.mark.parametrize("dtype", EXACT)
    @pytest.mark.parametrize("length", [56, 182, 250])  # blocks of keys end among the new ones
    def test_a_token_is_computed_alike_whatever_stands_beside_it(
        self, model: TextModel, dtype: torch.dtype, length: int
    ) -> None:
        model = model.to(dtype).pack(stable=True)
        assert model.stable
        tokens = torch.randint(0, 250, (1, length + STABLE_ROWS), generator=torch.Generator().manual_seed(0))
        prompt, new = tokens[:, :length], tokens[:, length:]
        cache = model.start(capacity=length + STABLE_ROWS)
        model.decode(prompt, cache)
        whole = model.logits(model.decode(new, cache))
        for start in range(0, STABLE_ROWS, 3):
            for stop in (start + 1, start + 2, start + 5, start + 7, STABLE_ROWS):
                cache.truncate(length)
                if start:
                    model.decode(new[:, :start], cache)
                found = model.logits(model.decode(new[:, start:stop], cache))
                assert torch.equal(found, whole[:, start:stop]), (start, stop)

    @torch.inference_mode()
    def test_the_number_of_threads_may_change_after_packing(
        self, model: TextModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kernels that treat odd numbers of rows in another way, on two threads only."""

        def pack(weight: Tensor, bias: Tensor | None) -> products.Product:
            def product(x: Tensor) -> Tensor:
                odd = torch.get_num_threads() == 2 and x.numel() // x.shape[-1] % 2
                return linear(x, weight, bias) * (1.01 if odd else 1)

            return product

        for name in ("half_product", "reordered_product", "plain_product"):
            monkeypatch.setattr(packed, name, pack)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            model = model.pack(stable=True)
            tokens = torch.arange(3, 40)[None]
            for threads in (1, 2, 1, 2):
                torch.set_num_threads(threads)
                cache = model.start(capacity=60)
                model.decode(tokens[:, :30], cache)
                whole = model.logits(model.decode(tokens[:, 30:], cache))
                for place in range(7):
                    cache.truncate(30 + place)
                    alone = model.logits(model.decode(tokens[:, 30 + place, None], cache))
                    assert torch.equal(alone[0, 0], whole[0, place]), (threads, place)
        finally:
            torch.set_num_threads(before)

    @torch.inference_mode()
    def test_bfloat16_is_computed_in_float32_where_the_processor_has_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The result is that of the same weights in float32, to its precision."""
        monkeypatch.setattr(products, "_can_reorder", lambda dtype: dtype == torch.float32)
        narrow = tiny_llama(seed=3).bfloat16().eval()
        expected = copy.deepcopy(narrow).float()(tokens := torch.arange(3, 20)[None])
        for pack in (half_product, reordered_product, plain_product):
            found = pack(short(10, 4, torch.bfloat16), None)
            assert found is not None and found(torch.ones(2, 4)).dtype == torch.float32
            assert found(torch.ones(2, 4).bfloat16()).dtype == torch.bfloat16
        logits = narrow.pack()(tokens)
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()

    @torch.inference_mode()
    def test_rounded_inputs_keep_bfloat16(self) -> None:
        model = tiny_llama(seed=3).bfloat16().eval()
        result = qlib.quantize(model, weight=qlib.Grid(4), activation=qlib.PerToken(8), progress=False)
        assert isinstance(result.model, TextModel)
        assert result.model.pack()(torch.arange(3, 20)[None]).dtype == torch.bfloat16

    @torch.inference_mode()
    def test_unstable_packing_reads_the_keys_there_are(self) -> None:
        model, other = tiny_llama(seed=3).eval(), tiny_llama(seed=3).pack().eval()
        tokens = torch.randint(0, 250, (1, 20))
        cache = other.start(capacity=30)
        hidden = [other.decode(part, cache) for part in tokens.split(7, 1)]
        assert (other.logits(torch.cat(hidden, 1)) - model(tokens)).abs().max() < 1e-4

    def test_what_a_packed_model_cannot_do_is_refused(self, model: TextModel, tmp_path: Path) -> None:
        model.pack()
        with pytest.raises(ModelError, match=r"cannot be packed once more\. Load it again"):
            model.pack()
        with pytest.raises(ModelError, match=r"cannot be quantized\. Load it again"):
            qlib.quantize(model, weight=qlib.Grid(4))
        with pytest.raises(ModelError, match=r"cannot be saved\. Load it again"):
            qlib.save_quantized(model, tmp_path / "out")


def test_a_window_is_computed_alike_from_any_first_key() -> None:
    """A sliding layer reads only keys within reach, and those from a multiple of 512 on."""
    model = tiny_gemma3(seed=3, max_position_embeddings=1200).eval().pack(stable=True)
    tokens = torch.randint(0, 250, (1, 1040), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = model.start(capacity=1100)
        model.decode(tokens[:, :1016], cache)
        whole = model.logits(model.decode(tokens[:, 1016:1032], cache))
        for place, token in enumerate(tokens[0, 1016:1032]):
            cache.truncate(1016 + place)
            alone = model.logits(model.decode(token.view(1, 1), cache))
            assert torch.equal(alone[0, 0], whole[0, place])


@pytest.mark.parametrize("make", [tiny_whisper, tiny_moonshine])
def test_a_packed_decoder_writes_the_same(make: Callable[..., Whisper | Moonshine]) -> None:
    model, other = make(seed=1).eval(), make(seed=1).eval()
    features = torch.randn(2, 80, 3000) if isinstance(model, Whisper) else torch.randn(2, 8000)
    tokens = torch.randint(0, 250, (2, 9))
    with torch.inference_mode():
        expected, found = model(features, tokens), other.pack()(features, tokens)
    assert (found - expected).abs().max() < 1e-4
    decoder = other.model.decoder
    plain = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    assert plain == [f"layers.{i}.encoder_attn.{name}_proj" for i in range(2) for name in "kv"]
    with pytest.raises(ModelError, match="packed once more"):
        other.pack()


def test_a_packed_decoder_keeps_its_quantized_layers() -> None:
    model = qlib.quantize(tiny_whisper(seed=1), weight=qlib.Grid(4), activation=qlib.PerToken(8)).model.eval()
    features, tokens = torch.randn(1, 80, 3000), torch.randint(0, 250, (1, 9))
    with torch.inference_mode():
        expected = model(features, tokens)
        assert (model.pack()(features, tokens) - expected).abs().max() < 1e-4
