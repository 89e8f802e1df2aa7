"""Algorithms 3 and 4: who learns after which request, from what, and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from draftlib.learning.acceptance import AcceptanceHead
from draftlib.learning.labels import Examples
from draftlib.learning.schedules import interleaved, joint


class Diary(AcceptanceHead):
    """A head and a drafter that write down what they are asked for. A request is a number."""

    def __init__(self) -> None:
        super().__init__(train_every=0)
        self.lines: list[str] = []
        self.updates = 0

    def update(self, requests: Sequence[int]) -> None:
        self.updates += 1
        self.lines.append(f"drafter {list(requests)}")

    def examples(self, requests: Sequence[int]) -> Examples:
        count = len(requests)
        self.lines.append(f"examples {sorted(requests)} after update {self.updates}")
        return Examples(torch.ones(count, 2), torch.full((count,), 0.5), torch.ones(count))

    def train(self, examples: Examples | None = None) -> float:
        assert examples is not None
        self.lines.append(f"head {len(examples.labels)}")
        return super().train(examples)


def test_joint_updates_the_drafter_and_then_the_head_on_the_same_requests() -> None:
    diary, requests = Diary(), list[int]()
    for request in range(1, 8):
        requests.append(request)
        joint(requests, 3, diary, diary)
    assert diary.lines == [
        *("drafter [1, 2, 3]", "examples [1, 2, 3] after update 1", "head 3"),
        *("drafter [4, 5, 6]", "examples [4, 5, 6] after update 2", "head 3"),
    ]
    assert requests == [7]


def test_interleaved_updates_the_head_on_all_other_requests_from_a_bounded_store() -> None:
    diary, requests, store = Diary(), list[int](), deque[int](maxlen=4)
    generator = torch.Generator().manual_seed(0)
    for request in range(1, 9):
        requests.append(request)
        interleaved(requests, store, 3, 4, diary, diary, generator)
    assert diary.lines == [
        "drafter [1, 2, 3]",  # until then the store is empty
        *("examples [1, 2, 3] after update 1", "head 3") * 2,
        "drafter [4, 5, 6]",
        *("examples [3, 4, 5, 6] after update 2", "head 4") * 2,
    ]
    assert (list(store), requests) == ([3, 4, 5, 6], [7, 8])


def test_a_batch_is_part_of_the_store() -> None:
    diary, store = Diary(), deque(range(50))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        interleaved([1], store, 3, 2, diary, diary, generator)
    first, second = (line for line in diary.lines if line.startswith("examples"))
    assert diary.lines[1::2] == ["head 2", "head 2"]
    assert first != second
