"""Post-training quantization of speech recognizers, from scratch in PyTorch.

    import qlib
    model = qlib.load_model("whisper-tiny.en")
    result = qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(bits=4, group=64), calib=utterances)
    print(result, qlib.evaluate_wer(result.model, test_utterances))

Quantization is *fake*: integer codes and scales are real, and decoded before each layer is used. Accuracy
and sizes are those of the integers; speed is not.
"""

from qlib.activation import PerTensor, PerToken
from qlib.activation_state import exceeded
from qlib.asr.datasets import Utterance, read_librispeech, read_manifest
from qlib.asr.subtitles import write_transcript
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.transcript import Segment, Transcript
from qlib.asr.wer import Comparison, WerResult, compare
from qlib.checkpoint import load_quantized, save_quantized
from qlib.errors import (
    DataError,
    FetchError,
    FileError,
    MissingExtraError,
    ModelError,
    QlibError,
    QuantError,
)
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.methods import AWQ, GPTQ, HQQ, METHODS, QUIK, RTN, OmniQuant, SmoothQuant, SpQR
from qlib.models.hub.load import load_model
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
    "Comparison",
    "DataError",
    "FakeQuantLinear",
    "FetchError",
    "FileError",
    "Grid",
    "LayerReport",
    "MissingExtraError",
    "ModelError",
    "OmniQuant",
    "PerTensor",
    "PerToken",
    "QlibError",
    "QuantError",
    "QuantReport",
    "QuantizedWeight",
    "Result",
    "Segment",
    "SmoothQuant",
    "SpQR",
    "Transcript",
    "Utterance",
    "WerResult",
    "compare",
    "evaluate_wer",
    "exceeded",
    "layers",
    "load_model",
    "load_quantized",
    "quantize",
    "read_librispeech",
    "read_manifest",
    "save_quantized",
    "transcribe",
    "write_transcript",
]
