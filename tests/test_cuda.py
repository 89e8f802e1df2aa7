"""On a CUDA device everything runs where the tensors are, and gives what the CPU gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import utterances

import qlib
from draftlib import NGramCache, SpeculativeDecoder
from qlib.asr.datasets import Utterance
from qlib.models import load_model
from qlib.models.structure import Model
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper, write_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
GRID = qlib.Grid(bits=4, group=8)
CHAINS: list[list[Any]] = [
    [qlib.RTN()],
    [qlib.HQQ()],
    [qlib.GPTQ()],
    [qlib.GPTQ(act_order=True, fit="mse")],
    [qlib.SmoothQuant()],
    [qlib.AWQ(clip=True)],
    [qlib.OmniQuant(epochs=2)],
    [qlib.SpQR()],
    [qlib.QUIK()],
    [qlib.SmoothQuant(), qlib.AWQ(), qlib.GPTQ()],
]


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return utterances(tmp_path_factory.mktemp("speech"))


def recognizer(family: str, device: str) -> Model:
    model: Model = tiny_whisper(seed=4) if family == "whisper" else tiny_moonshine(seed=4)
    return model.double().to(device).eval()


def devices(model: Model) -> set[str]:
    return {each.device.type for each in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " + ".join(each.name for each in chain))
@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_the_codes_of_the_cpu(family: str, chain: list[Any], calib: list[Utterance]) -> None:
    """In float64 the order of summation decides next to no code."""
    here, there = (
        qlib.quantize(recognizer(family, device), chain, weight=GRID, calib=calib, progress=False)
        for device in ("cpu", DEVICE)
    )
    assert devices(there.model) == {DEVICE}
    twins = zip(here.model.modules(), there.model.modules(), strict=True)
    layers = [(a, b) for a, b in twins if isinstance(a, qlib.FakeQuantLinear)]
    same = [(a.codes == b.codes.cpu()).double().mean().item() for a, b in layers]  # type: ignore[union-attr]
    assert layers and sum(same) / len(same) > 0.999
    heard = [
        qlib.transcribe(result.model, [each.read() for each in calib], batch_size=2)
        for result in (here, there)
    ]
    assert [each.tokens for each in heard[0]] == [each.tokens for each in heard[1]]


@pytest.mark.parametrize(
    "activation", [qlib.PerToken(8), qlib.PerTensor(8), qlib.PerTensor(8, dynamic=True)], ids=str
)
def test_rounded_inputs_and_a_checkpoint(activation: Any, calib: list[Utterance], tmp_path: Path) -> None:
    model = tiny_whisper(seed=4).to(DEVICE)
    result = qlib.quantize(
        model, [qlib.QUIK()], weight=GRID, activation=activation, calib=calib, progress=False
    )
    loaded = qlib.load_quantized(result.save(tmp_path / "saved"), device=DEVICE)
    assert devices(loaded) == {DEVICE}
    audio = [calib[0].read()]
    assert qlib.transcribe(loaded, audio) == qlib.transcribe(result.model, audio)


def test_a_killed_run_goes_on(calib: list[Utterance], tmp_path: Path) -> None:
    def run() -> qlib.Result:
        model = tiny_whisper(seed=4).to(DEVICE)
        return qlib.quantize(
            model, [qlib.GPTQ()], weight=GRID, calib=calib, work=tmp_path / "work", progress=False
        )

    first = run()
    last = sorted((tmp_path / "work").glob("*.safetensors"))[-1]
    last.unlink()
    again = run()
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_text_model(tmp_path: Path) -> None:
    model = load_model(write_folder(tiny_llama(), tmp_path / "llama"), device=DEVICE)
    result = qlib.quantize(
        model,
        [qlib.AWQ(), qlib.GPTQ()],
        weight=GRID,
        calib=["the cat sat", "a heath at the heart"],
        progress=False,
    )
    assert devices(result.model) == {DEVICE}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("verify", ["exact", "path_revealed", "point_mass", "ratio"])
def test_drafting_writes_what_the_cpu_writes(verify: Any, options: dict[str, Any]) -> None:
    """`ratio` too: its distribution is another, its noise is the same."""

    def write(device: str) -> list[str]:
        target = tiny_llama(5, max_position_embeddings=96).double().to(device)
        draft = tiny_llama(1, max_position_embeddings=96).double().to(device)
        decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), verify=verify)
        texts = [
            decoder.generate(prompt, max_new_tokens=24, **options).text
            for prompt in ("the heat at a", "a tea")
        ]
        alone = decoder.generate_target_only("a tea", max_new_tokens=24, **options).text
        assert verify != "exact" or texts[1] == alone
        return texts

    assert write("cpu") == write(DEVICE)


@pytest.mark.parametrize("new", [tiny_llama, tiny_gemma3], ids=["llama", "gemma3"])
def test_packing_changes_nothing(new: Any) -> None:
    model = new(2).double().to(DEVICE)
    packed = new(2).double().to(DEVICE).pack()
    tokens = torch.arange(12, device=DEVICE)[None] % 7
    with torch.no_grad():
        torch.testing.assert_close(packed(tokens), model(tokens), rtol=0, atol=1e-12)
