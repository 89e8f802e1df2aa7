"""The cost model against counts by hand, real runs and the bytes of checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from storage_cases import results
from torch import nn

import qlib
from qlib.analysis.cost_formulas import AttentionSize, Window, self_attention_amount
from qlib.analysis.held_weights import held_weights, size_of
from qlib.errors import ModelError, QuantError
from qlib.models.structure import Model
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper

FAMILIES = {
    "whisper": tiny_whisper, "moonshine": tiny_moonshine, "llama": tiny_llama, "gemma3": tiny_gemma3,
}  # fmt: skip
TEXTS = ["the heart of the matter", "at a heath there was a hat"]
WEIGHTS = "model.safetensors"
STORED = functools.cache(results)


# --- by hand


def test_a_whisper_of_one_block_in_float() -> None:
    """Width 16, feed-forward 64, 50 states (1 s), 8 mels, prompt 2, 3 tokens written: 4 are read."""
    found = qlib.cost(tiny_whisper(layers=1, frames=50, mels=8), audio_seconds=1, tokens=3)
    d, f, s, read, passes, vocabulary = 16, 64, 50, 4, 3, 262
    operation, number = 32 * 32, 4  # bits of two float32 numbers, bytes of one

    # encoder: two convolutions of kernel 3; 100 frames become 100 and then 50 positions
    stem = found.sum_of("audio", "encoder convolutions")
    assert stem.bit_operations == (100 * d * 8 * 3 + 50 * d * d * 3) * operation
    assert stem.weight_bytes == (d * 8 * 3 + d + d * d * 3 + d) * number
    assert stem.activation_bytes == (100 * 8 + 100 * d + 100 * d + 50 * d) * number
    # q, k, v, out: [16, 16], k without a bias
    own = found.sum_of("audio", "encoder self-attention")
    products = found.sum_of("audio", "encoder self-attention products")
    assert own.bit_operations - products.bit_operations == 4 * s * d * d * operation
    assert own.weight_bytes == (4 * d * d + 3 * d) * number
    assert products.bit_operations == (s * s * d + s * s * d) * operation
    assert products.activation_bytes == 4 * s * d * number  # queries, keys, values, mixtures
    mlp = found.sum_of("audio", "encoder feed-forward")
    assert mlp.bit_operations == (s * d * f + s * f * d) * operation
    assert mlp.activation_bytes == (s * (d + f) + s * (f + d)) * number

    # decoder: weights once for each of 3 passes, 4 tokens through them
    own = found.sum_of("token", "decoder self-attention")
    products = found.sum_of("token", "decoder self-attention products")
    assert own.weight_bytes == passes * (4 * d * d + 3 * d) * number
    assert products.bit_operations == 2 * (1 + 2 + 3 + 4) * d * operation
    assert products.cache_bytes == 2 * (2 + 3 + 4) * d * number  # keys and values of 2, 3 and 4 tokens
    # cross-attention: keys and values of 50 states once, queries and output for each token
    once, each = found.sum_of("audio", "decoder cross"), found.sum_of("token", "decoder cross")
    assert once.bit_operations == 2 * s * d * d * operation
    assert once.weight_bytes == (2 * d * d + d) * number
    assert each.bit_operations == (2 * read * d * d + 2 * read * s * d) * operation
    assert each.weight_bytes == passes * (2 * d * d + 2 * d) * number
    assert each.cache_bytes == passes * 2 * s * d * number
    # the head reads one vector a pass; a token is one row of the table and one of the positions
    head = found.sum_of("token", "head")
    assert head.bit_operations == passes * d * vocabulary * operation
    assert head.weight_bytes == passes * d * vocabulary * number
    assert found.sum_of("token", "embedding").weight_bytes == read * d * number
    assert found.sum_of("token", "positions").weight_bytes == read * d * number
    assert found.cache_size == 2 * d * (read + s) * number


def test_a_moonshine_decoder_block_at_4_bits() -> None:
    """Width 16, feed-forward 64 (gated: 128 out), groups of 8, inputs of 8 bits; 1 s is 40 states."""
    model = tiny_moonshine(layers=1)
    quantized = qlib.quantize(
        model, weight=qlib.Grid(4, 8), activation=qlib.PerToken(8), progress=False
    ).model
    found = qlib.cost(quantized, audio_seconds=1, tokens=5)
    samples = 16_000
    for kernel, stride in ((127, 64), (7, 3), (3, 2)):
        samples = (samples - kernel) // stride + 1
    d, f, s, read, passes = 16, 64, samples, 5, 5  # prompt 1, all but the last of 5 written: 5 read
    group = 32 + 4 + 8 * 4  # bits of a group of 8: scale, zero point, codes
    square = 2 * d * group / 8  # bytes of a weight [16, 16]: two groups a row

    own = found.sum_of("token", "decoder self-attention")
    products = found.sum_of("token", "decoder self-attention products")
    assert own.weight_bytes == passes * 4 * square
    assert own.bit_operations - products.bit_operations == read * 4 * d * d * 4 * 8
    assert own.activation_bytes - products.activation_bytes == read * 4 * (d + d) * 8 / 8
    mlp = found.sum_of("token", "decoder feed-forward")
    assert mlp.bit_operations == read * (d * 2 * f + f * d) * 4 * 8
    codes = (2 * f * (d // 8) + d * (f // 8)) * group / 8
    assert mlp.weight_bytes == passes * (codes + (2 * f + d) * 4)  # biases are float32
    assert found.sum_of("audio", "decoder cross").bit_operations == s * 2 * d * d * 4 * 8
    assert found.sum_of("audio", "decoder cross").weight_bytes == 2 * square
    # attention itself stays in float
    assert products.bit_operations == 2 * (1 + 2 + 3 + 4 + 5) * d * 32 * 32


def test_kept_columns_and_outliers_count_at_their_own_width() -> None:
    grid, act = qlib.Grid(4, None, True), qlib.PerToken(8)
    quik, spqr = (
        qlib.quantize(tiny_llama(), [method], weight=g, activation=act, calib=TEXTS, progress=False).model
        for method, g in ((qlib.QUIK(columns=2), grid), (qlib.SpQR(second_group=4), qlib.Grid(3, 8)))
    )
    held = {weight.name: weight for weight in held_weights(quik)}["model.layers.0.mlp.up_proj"]
    assert held.bit_operations == 32 * 14 * 4 * 8 + 32 * 2 * 16 * 32  # float16 weights, float32 inputs
    assert held.activation_bits == (14 + 32) * 8 + 2 * 32
    layer = spqr.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, qlib.FakeQuantLinear) and layer.quantized.outliers is not None
    outliers = len(layer.quantized.outliers)
    held = {weight.name: weight for weight in held_weights(spqr)}["model.layers.0.mlp.up_proj"]
    assert outliers > 0
    assert held.bit_operations == (32 * 16 - outliers) * 3 * 8 + outliers * 16 * 8
    assert held.bits == layer.quantized.bits(layer.grid)


def test_grouped_queries_share_keys() -> None:
    """4 heads of 4 channels read 2 key heads."""
    found = qlib.cost(tiny_llama(layers=1), tokens=2, prompt_tokens=3)
    products = found.sum_of("token", "decoder self-attention products")
    assert products.bit_operations == 2 * (1 + 2 + 3 + 4) * 16 * 32 * 32
    assert products.cache_bytes == 2 * (3 + 4) * 8 * 4
    assert found.cache_size == 2 * 4 * 8 * 4


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 8))
def test_a_window_hides_what_lies_before_it(prompt: int, written: int, span: int) -> None:
    """Against a loop over queries and keys."""
    window = Window(0, 0, prompt, written)
    found = self_attention_amount(AttentionSize("", 1, 1, span), window, 1)
    read = prompt + written - 1
    pairs = sum(0 <= query - key < span for query in range(read) for key in range(read))
    assert found.bit_operations == 2 * pairs
    last = [prompt, *(min(prompt + later, span) for later in range(1, written))]
    assert found.cache_bytes == 2 * sum(last) / 8


def test_gemma_has_windows_in_half_of_its_layers() -> None:
    model = tiny_gemma3(layers=2, window=3)
    found = qlib.cost(model, tokens=1, prompt_tokens=5)
    products = found.sum_of("token", "decoder self-attention products")
    assert products.bit_operations == 2 * ((1 + 2 + 3 + 3 + 3) + (1 + 2 + 3 + 4 + 5)) * 32 * 32 * 32


# --- real runs


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_rows_and_passes_are_those_of_a_run(family: str) -> None:
    """Hooks on a real forward pass count the vectors that each layer reads."""
    model: Any = FAMILIES[family]()
    written, seconds, prompt = 4, 2.0, model.generation.prompt()
    rows: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            product = torch.tensor(module.weight[0].numel() * output.numel())  # N I O
            rows[name] = rows.get(name, 0) + int(product)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.register_forward_hook(watch(name))
    waveform = torch.randn(round(seconds * 16_000))
    cache = model.start(*model.encode_speech([waveform])[:1])
    tokens = torch.tensor([prompt])
    for _ in range(written):
        tokens = model.proj_out(model.decode(tokens, cache)[:, -1:]).argmax(-1)
    found = qlib.cost(model, seconds, written)
    products = sum(part.amount.bit_operations for part in found.parts if "products" in part.name)
    assert found.total.bit_operations - products == sum(rows.values()) * 32 * 32


# --- the file


def data_bytes(folder: Path) -> int:
    """Return the bytes of all tensors: the file without the length of its header and the header."""
    content = (folder / WEIGHTS).read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("case", ["rtn whisper", "hqq moonshine", "spqr llama", "quik llama", "gptq gemma3"])
def test_the_predicted_file_is_the_one_that_save_writes(case: str, tmp_path: Path) -> None:
    result = STORED(0)[case]
    folder = result.save(tmp_path / "saved")
    for model in (result.model, qlib.load_quantized(folder)):
        size = size_of(model)
        assert size.file_bytes == data_bytes(folder)
        average = size.quantized_bits / size.quantized_weights
        assert average == pytest.approx(result.report.bits_per_weight, rel=1e-12)


def test_dynamic_groups_of_gptq_are_counted(tmp_path: Path) -> None:
    method = qlib.GPTQ(act_order=True, static_groups=False)
    result = qlib.quantize(tiny_llama(), [method], weight=qlib.Grid(3, 6), calib=TEXTS, progress=False)
    assert any(name.endswith(".index") for name in load_file(result.save(tmp_path / "s") / WEIGHTS))
    assert size_of(result.model).file_bytes == data_bytes(result.save(tmp_path / "saved"))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_float_model(family: str) -> None:
    model = FAMILIES[family]()
    parameters = sum(each.numel() for each in model.parameters())
    assert size_of(model).parameters == parameters
    quantized = qlib.quantize(model, weight=qlib.Grid(4, 8), progress=False).model
    assert size_of(quantized).parameters == parameters
    assert qlib.cost(model, tokens=2).bits_per_weight is None


class _Table(nn.Module):
    """A quantized embedding whose codes a head shares: two modules, one weight."""

    def __init__(self, linear: nn.Linear, grid: qlib.Grid) -> None:
        super().__init__()
        self.grid, self.activation = grid, None
        self.quantized = qlib.RTN().quantize_layer(linear.weight.detach(), None, grid)  # type: ignore[arg-type]
        self.register_buffer("codes", self.quantized.codes)


def test_a_shared_quantized_table_counts_by_what_it_holds() -> None:
    model, grid = tiny_whisper(layers=1), qlib.Grid(4, 8)
    before = qlib.cost(model, tokens=5)
    table = _Table(model.proj_out, grid)  # type: ignore[arg-type]
    model.replace("proj_out", table)
    model.replace("model.decoder.embed_tokens", _Shadow(table))
    found = qlib.cost(model, tokens=5)
    bits = table.quantized.bits(grid)
    vocabulary = 262
    assert found.size.quantized_bits == bits
    assert found.size.parameters == before.size.parameters
    assert found.size.file_bytes == before.size.file_bytes - vocabulary * 16 * 4 + bits // 8
    assert found.sum_of("token", "head").weight_bytes == 5 * bits / 8
    assert found.sum_of("token", "head").bit_operations == 5 * vocabulary * 16 * 4 * 32
    assert found.sum_of("token", "embedding").weight_bytes == 6 * bits / vocabulary / 8


class _Shadow(nn.Module):
    """The same codes under another name."""

    def __init__(self, table: _Table) -> None:
        super().__init__()
        self.grid, self.quantized = table.grid, table.quantized
        self.register_buffer("codes", table.codes)
        self.register_buffer("weight", torch.zeros(262, 16), persistent=False)


# --- relations


def test_half_the_width_halves_bytes_and_quarters_operations() -> None:
    whole, half = (
        qlib.cost(tiny_moonshine().to(dtype), tokens=7) for dtype in (torch.float32, torch.float16)
    )
    assert (whole.float_bits, half.float_bits) == (32, 16)
    assert half.total.bytes_moved == whole.total.bytes_moved / 2
    assert half.total.bit_operations == whole.total.bit_operations / 4
    assert half.cache_size == whole.cache_size / 2
    assert qlib.cost(tiny_moonshine(), tokens=7, float_bits=16).parts == half.parts
    with pytest.raises(qlib.QuantError, match="float_bits=8 in cost is none of 16, 32 and 64"):
        qlib.cost(tiny_moonshine(), float_bits=8)


def test_floats_count_as_16_bits_where_that_is_asked() -> None:
    grid, inputs = qlib.Grid(4, 8), {"*": qlib.PerToken(8), "fc2": None}
    found = [
        qlib.cost(
            qlib.quantize(tiny_moonshine().to(dtype), weight=grid, activation=inputs, progress=False).model,
            float_bits=bits,
        )
        for dtype, bits in ((torch.float32, 16), (torch.float16, None), (torch.float32, None))
    ]
    assert found[0].parts == found[1].parts and found[0].cache_size == found[1].cache_size
    assert found[0].float_bits == 16
    assert found[0].total.bytes_moved < found[2].total.bytes_moved
    assert found[0].size == found[2].size  # of the file that this model makes


def test_whisper_reads_30_s_whatever_the_recording_and_moonshine_as_long_as_it_is() -> None:
    whisper, moonshine = tiny_whisper(), tiny_moonshine()
    short, long, two = (qlib.cost(whisper, seconds, 10) for seconds in (1, 30, 31))
    assert short.parts == long.parts and (long.windows, two.windows) == (1, 2)
    assert two.sum_of("audio").bit_operations == 2 * long.sum_of("audio").bit_operations
    assert (
        qlib.cost(moonshine, 5).sum_of("audio").bit_operations
        < 0.5 * qlib.cost(moonshine, 10).sum_of("audio").bit_operations * 1.01
    )


def test_a_window_more_reads_the_prompt_once_more() -> None:
    found = qlib.cost(tiny_moonshine(), 45, 9)  # 5 and 4 tokens
    assert (found.windows, found.tokens) == (2, 9)
    assert found.sum_of("token", "embedding").weight_bytes == (5 + 4) * 16 * 4
    longest = qlib.cost(tiny_moonshine(), 22.5, 5)
    assert found.cache_size == longest.cache_size  # windows are forgotten one by one


def test_shares_add_up() -> None:
    found = qlib.cost(tiny_whisper(), 10, 8)
    assert found.per_second is not None
    again = found.per_second.bytes_moved * 10 + found.per_token.bytes_moved * 8
    assert again == pytest.approx(found.total.bytes_moved)
    assert qlib.cost(tiny_llama(), tokens=8).per_second is None


def test_the_table_says_what_was_counted() -> None:
    result = qlib.quantize(tiny_whisper(), weight=qlib.Grid(4, 8), progress=False)
    found = qlib.cost(result.model, audio_seconds=10, tokens=40)
    assert found.bits_per_weight == pytest.approx(result.report.bits_per_weight, rel=1e-12)
    assert found.bits_per_parameter == 8 * found.size.file_bytes / found.size.parameters
    text = str(found)
    for word in ("whisper: 10 s of audio in 1 window", "40 tokens", "32 bits", "decoder cross-attention",
                 "10^9 bit operations", "bits per quantized weight", "bits per parameter"):  # fmt: skip
        assert word in text


# --- errors


def packed() -> Model:
    return tiny_llama().pack()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: qlib.cost("whisper-tiny.en"), r"cost got the str.*qlib\.load_model"),  # type: ignore[arg-type]
        (lambda: qlib.cost(tiny_llama(), audio_seconds=3), r"audio_seconds=3 for a text model"),
        (lambda: qlib.cost(tiny_whisper(), audio_seconds=0), r"audio_seconds=0 is no length"),
        (lambda: qlib.cost(tiny_whisper(), float("nan")), r"audio_seconds=nan"),
        (lambda: qlib.cost(tiny_whisper(), tokens=0), r"tokens=0 is not 1 or more"),
        (lambda: qlib.cost(tiny_whisper(), tokens=64), r"2 \+ 64 tokens.*64 positions"),
        (lambda: qlib.cost(tiny_whisper(), 100, 3), r"tokens=3 are fewer than the 4 windows"),
        (lambda: qlib.cost(tiny_llama(), prompt_tokens=0), r"prompt_tokens=0"),
    ],
)
def test_what_cannot_be_counted_is_refused(call: Any, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        call()


def test_a_packed_model_is_refused() -> None:
    with pytest.raises(ModelError, match="packed for inference and cannot be counted"):
        qlib.cost(packed())


def test_an_unknown_rounding_of_inputs_is_refused() -> None:
    model = qlib.quantize(tiny_llama(), weight=qlib.Grid(4, 8), progress=False).model
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    layer.activation = nn.Tanh()
    with pytest.raises(QuantError, match=r"model\.layers\.0\.mlp\.up_proj rounds its input by a Tanh"):
        qlib.cost(model)
