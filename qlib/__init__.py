"""Post-training quantization of speech recognizers and language models, from scratch in PyTorch.

    import qlib
    model = qlib.load_model("whisper-tiny.en")
    result = qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(bits=4, group=64), calib=utterances)
    print(result, qlib.evaluate_wer(result.model, test_utterances))

Quantization is *fake*: integer codes and scales are real, and decoded before each layer is used. Accuracy
and sizes are those of the integers; speed is not.
"""

from qlib.activation import PerTensor, PerToken
from qlib.activation_state import exceeded
from qlib.analysis.allocate import Plan, allocate
from qlib.analysis.cost import cost
from qlib.analysis.cost_result import Cost
from qlib.analysis.explain import explain
from qlib.analysis.explanation import Explanation
from qlib.analysis.sensitivity import Sensitivity, sensitivity
from qlib.asr.comparison import Comparison, compare
from qlib.asr.corpora import read_corpus
from qlib.asr.datasets import read_librispeech, read_manifest
from qlib.asr.invented import InventedText, invented_text
from qlib.asr.rare_words import RareWords, rare_words
from qlib.asr.sounds import sounds_without_speech
from qlib.asr.subtitles import write_transcript
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.transcript import Segment, Transcript
from qlib.asr.utterance import Utterance
from qlib.asr.wer import WerResult
from qlib.checkpoint import load_quantized, save_quantized
from qlib.errors import (
    CheckError,
    DataError,
    FetchError,
    FileError,
    MissingExtraError,
    ModelError,
    QlibError,
    QuantError,
)
from qlib.grid import Grid
from qlib.likelihood import Perplexity, PerplexityRatio, perplexity, perplexity_ratio
from qlib.linear import FakeQuantEmbedding, FakeQuantLinear
from qlib.methods import AWQ, GPTQ, HQQ, METHODS, QUIK, RTN, OmniQuant, SmoothQuant, SpQR
from qlib.methods.hessian import statistics
from qlib.models.hub.load import load_model
from qlib.one_matrix import QuantizedMatrix, quantize_matrix
from qlib.overview import layers
from qlib.pipeline import Result, quantize
from qlib.quantized_weight import QuantizedWeight
from qlib.report import LayerReport, QuantReport

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "METHODS",
    "QUIK",
    "RTN",
    "CheckError",
    "Comparison",
    "Cost",
    "DataError",
    "Explanation",
    "FakeQuantEmbedding",
    "FakeQuantLinear",
    "FetchError",
    "FileError",
    "Grid",
    "InventedText",
    "LayerReport",
    "MissingExtraError",
    "ModelError",
    "OmniQuant",
    "PerTensor",
    "PerToken",
    "Perplexity",
    "PerplexityRatio",
    "Plan",
    "QlibError",
    "QuantError",
    "QuantReport",
    "QuantizedMatrix",
    "QuantizedWeight",
    "RareWords",
    "Result",
    "Segment",
    "Sensitivity",
    "SmoothQuant",
    "SpQR",
    "Transcript",
    "Utterance",
    "WerResult",
    "allocate",
    "compare",
    "cost",
    "evaluate_wer",
    "exceeded",
    "explain",
    "invented_text",
    "layers",
    "load_model",
    "load_quantized",
    "perplexity",
    "perplexity_ratio",
    "quantize",
    "quantize_matrix",
    "rare_words",
    "read_corpus",
    "read_librispeech",
    "read_manifest",
    "save_quantized",
    "sensitivity",
    "sounds_without_speech",
    "statistics",
    "transcribe",
    "write_transcript",
]
