"""Model layer shared by both packages: load a checkpoint, run it, know its structure.

    from qlib.models import load_model
    model = load_model("whisper-tiny.en")

It imports nothing of the library but the errors.
"""

from qlib.models.hub import registry
from qlib.models.hub.load import load_model
from qlib.models.hub.registry import fetch
from qlib.models.tokenizer import Tokenizer

__all__ = ["Tokenizer", "fetch", "load_model", "registry"]
