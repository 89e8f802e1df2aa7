"""What a decoder has learned, on disk: each part goes on as if nothing had happened, or is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from learners import answer, decoder, learner, weights

NAMES = ["code", "buffer", "parts", "a name with spaces, and ümlauts"]


def test_an_adapter_may_have_any_name(tmp_path: Path) -> None:
    """Also one that the saved state uses for something else."""
    adapter = learner()
    one = decoder(adapter)
    for name in NAMES:
        adapter.switch(name)
    answer(one)
    one.save(tmp_path / "state")
    again = learner()
    decoder(again, state=tmp_path / "state")
    assert again.names == adapter.names == tuple(sorted(["default", *NAMES])) and again.name == NAMES[-1]
    assert all(torch.equal(a, b) for a, b in zip(weights(adapter), weights(again), strict=True))
