"""What parts of a decoder have learned, in a form that files hold: tensors, and values for JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from qlib.errors import DraftError


class State(NamedTuple):
    """What one part has learned.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By name.
    values : dict of str to Any
        Numbers, strings, lists and dicts of them, with str as keys. A tuple comes back as a list.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, or raise the DraftError of a state that lacks it."""
        if name not in self.tensors:
            raise DraftError(f"The state lacks the tensor {name!r}: it is damaged, or of another release.")
        return self.tensors[name]

    def value(self, name: str, kind: type[Any]) -> Any:
        """Return a value of a kind, or raise the DraftError of a state that lacks it."""
        found = self.values.get(name)
        if type(found) is not kind:
            raise DraftError(
                f"The state lacks {name!r} ({kind.__name__}): it is damaged, or of another release."
            )
        return found
