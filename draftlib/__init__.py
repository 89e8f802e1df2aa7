"""OmniDraft: one small drafter speeds up target models, across vocabularies, without changing its output.

import draftlib
from qlib.models import load_model
decoder = draftlib.SpeculativeDecoder(
    load_model("smollm2-135m-instruct"), load_model("drafter-7m"), cache=draftlib.NGramCache()
)
print(decoder.generate("What is gravity?", max_new_tokens=64).text)
"""

from draftlib.decoder import SpeculativeDecoder
from draftlib.drafting.cost_aware import CostAware
from draftlib.drafting.guess import Guess, Source
from draftlib.drafting.length import Confidence, Drafted, Entropy, FixedLength, Length
from draftlib.learning.acceptance import AcceptanceHead
from draftlib.learning.head_training import HeadTraining
from draftlib.learning.online import OnlineAdapter
from draftlib.metrics import Stats
from draftlib.output import Output
from draftlib.seconds import Seconds
from draftlib.settings import Options
from draftlib.step import Step
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError, FileError, ModelError, QlibError

__all__ = [
    "AcceptanceHead",
    "Confidence",
    "CostAware",
    "DraftError",
    "Drafted",
    "Entropy",
    "FileError",
    "FixedLength",
    "Guess",
    "HeadTraining",
    "Length",
    "ModelError",
    "NGramCache",
    "OnlineAdapter",
    "Options",
    "Output",
    "QlibError",
    "Seconds",
    "Source",
    "SpeculativeDecoder",
    "Stats",
    "Step",
    "VocabularyMap",
]
