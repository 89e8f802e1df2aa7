"""A target and its drafter for the lessons that need text with a meaning."""

from __future__ import annotations

from qlib.errors import ModelError
from qlib.models import load_model
from qlib.models.text import TextModel

TARGET = "smollm2-135m-instruct"


def real_pair() -> tuple[TextModel, TextModel]:
    """Return SmolLM2 and `drafter-7m`, or two models of this repository where SmolLM2 was not fetched."""
    try:
        target, draft = load_model(TARGET), load_model("drafter-7m")
        print(f"\ntarget {TARGET}, drafter drafter-7m\n")
    except ModelError:
        target, draft = load_model("drafter-7m"), load_model("drafter-generic-7m")
        print(f"\n{TARGET} is not here (python -m qlib.models fetch {TARGET}).")
        print("Instead: target drafter-7m, drafter drafter-generic-7m, both of 7 million parameters.\n")
    return target, draft
