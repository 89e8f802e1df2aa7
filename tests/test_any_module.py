"""The function of docs/any_module.md with models that are not the plain chain of layers of that page."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qlib

PAGE = Path(__file__).parents[1] / "docs" / "any_module.md"
GRID = qlib.Grid(4, 8)


@pytest.fixture(scope="module")
def quantize_module() -> Any:
    names: dict[str, Any] = {}
    exec(PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    fast = torch.backends.mha.get_fastpath_enabled()
    yield names["quantize_module"]
    torch.backends.mha.set_fastpath_enabled(fast)


def rows(count: int = 60, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(4)
    return build()


class Residual(nn.Module):
    """Adds in place or not, to its own input too."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.a, self.b, self.in_place = nn.Linear(16, 16), nn.Linear(16, 16), in_place

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            if self.in_place:
                x += 5 * layer(x)
            else:
                x = x + 5 * layer(x)
        return x


class Tied(nn.Module):
    """A language model whose head has the embedding's weight, with a layer that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.unused, self.head = nn.Linear(16, 3), nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(tokens)))


def test_a_model_may_write_in_place(quantize_module: Any) -> None:
    batches = list(rows().split(20))
    before = [batch.clone() for batch in batches]
    models = seeded(lambda: Residual(in_place=True)), seeded(lambda: Residual(in_place=False))
    found, expected = (quantize_module(model, batches, qlib.GPTQ(), GRID) for model in models)
    assert all(map(torch.equal, batches, before))
    for name in ("a", "b"):
        assert torch.equal(getattr(found, name).codes, getattr(expected, name).codes)


def test_a_model_in_train_mode_and_a_generator(quantize_module: Any) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))

    trained, ready = seeded(build).train(), seeded(build).eval()
    averages = trained[1].running_mean.clone()
    found = quantize_module(trained, (batch for batch in rows().split(20)), qlib.GPTQ(), GRID)
    expected = quantize_module(ready, rows().split(20), qlib.GPTQ(), GRID)
    assert torch.equal(found[1].running_mean, averages)
    assert torch.equal(found(rows(seed=1)), expected(rows(seed=1)))


@pytest.mark.parametrize("method", [qlib.RTN(), qlib.GPTQ()], ids=["rtn", "gptq"])
def test_inputs_of_an_encoder_layer_are_rounded(quantize_module: Any, method: Any) -> None:
    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()

    inputs = rows(24).view(2, 12, 16)
    outputs = [
        quantize_module(seeded(build), [inputs], method, GRID, activation)(inputs).detach()
        for activation in (None, qlib.PerToken(2))
    ]
    assert (outputs[1] - outputs[0]).norm() > 0.01 * outputs[0].norm()
    with torch.no_grad():
        model = quantize_module(seeded(build), [inputs], method, GRID, qlib.PerToken(2))
        torch.testing.assert_close(model(inputs), outputs[1])


def test_a_shared_weight_stays_shared_and_a_layer_without_inputs_is_named(quantize_module: Any) -> None:
    tokens = [torch.arange(20).view(2, 10)]
    with pytest.raises(ValueError, match=r"No batch reaches unused\. .*skip=\['unused'\]"):
        quantize_module(Tied(), tokens, qlib.GPTQ(), GRID)
    model = quantize_module(Tied(), tokens, qlib.GPTQ(), GRID, skip=["unused"])
    assert model.head.weight is model.embed.weight
    assert type(model.unused) is nn.Linear
    assert isinstance(model.inner, qlib.FakeQuantLinear)


@pytest.mark.parametrize(
    "method",
    [qlib.RTN(), qlib.HQQ(), qlib.GPTQ(), qlib.SpQR(), qlib.QUIK(columns=4)],
    ids=lambda method: method.name,
)
def test_on_disk(quantize_module: Any, method: Any) -> None:
    """The whole model with any method; a state dict in a model that was calibrated on other data."""

    def of(inputs: Tensor) -> nn.Module:
        model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)))
        return quantize_module(model, [inputs], method, GRID, qlib.PerToken(4))

    source, other = of(rows() * torch.arange(16)), of(rows() * torch.arange(16).flip(0))
    file = io.BytesIO()
    torch.save(source, file)
    file.seek(0)
    expected = source(rows(seed=1))
    assert torch.equal(torch.load(file, weights_only=False)(rows(seed=1)), expected)
    if not isinstance(method, qlib.SpQR):
        other.load_state_dict(source.state_dict())
        assert torch.equal(other(rows(seed=1)), expected)
