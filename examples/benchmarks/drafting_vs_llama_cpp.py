"""llama.cpp beside our target alone and our drafting: tokens per second on the same prompts and weights.

llama.cpp is no dependency: its Python package is compiled into a folder of its own (a C++ compiler; 5 to 15
minutes), which is lent to this run:

    pip install --target DIR --no-deps --no-binary llama-cpp-python llama-cpp-python diskcache
    PYTHONPATH=DIR python examples/benchmarks/drafting_vs_llama_cpp.py PROMPTS.jsonl ... --gguf MODEL.gguf

Prompt files are JSON Lines with a field "prompt". llama.cpp gets our checkpoint as a GGUF file, written here
(extra `gguf`): matrices in float16, which changes no value of them, norm weights in float32, no vocabulary,
since it gets token ids. `--gguf` adds files with the same vocabulary, such as the one in 4 bits that the
checkpoint was made of.

Every system answers each prompt in turn, greedily, up to the same ending tokens. Tokens a second are over the
whole answer, prompt included; no system keeps keys and values from one prompt to the next. llama.cpp rounds
inputs of products to float16, and keys and values too, so some of its answers leave ours after a while: the
table says how many are equal as a whole and how many begin alike. If less than half begin alike, the two do
not run the same model, and the script exits with 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from common import command_line, parse
from torch import Tensor
from tqdm import tqdm

import draftlib
from draftlib.__main__ import read_prompts
from draftlib.prompt_tokens import target_tokens
from qlib.errors import require_extra
from qlib.models import load_model
from qlib.models.llama import Llama
from qlib.models.table import align
from qlib.models.text import TextModel

TARGET, DRAFT = "smollm2-135m-instruct", "drafter-7m"
PEER, ALONE, DRAFTED = "llama.cpp", "alone", "drafted"
FIRST = 8  # tokens by which answers are said to begin alike
Answer = Callable[[str], list[int]]  # the tokens of the answer to a prompt


# --- our checkpoint as llama.cpp reads it


def write_gguf(model: Llama, path: Path) -> None:
    """Write a Llama without rotary scaling, biases and norms of queries as a GGUF file without vocabulary."""
    gguf = require_extra("gguf", "gguf", "Writing a GGUF file")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name in model.tied:
            continue
        module = name.split(".")[-2]
        found = permute(weight, heads[module]) if module in heads else weight
        kind = np.float16 if found.ndim == 2 else np.float32  # llama.cpp wants vectors in float32
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), found.numpy().astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weight: Tensor, heads: int) -> Tensor:
    """Interleave the halves of each head's rows, `[H D, in]`: llama.cpp rotates neighbouring rows.

    >>> permute(torch.tensor([[0], [1], [2], [3]]), heads=1).flatten().tolist()
    [0, 2, 1, 3]
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


# --- the systems


def llama_answers(path: Path, model: TextModel, positions: int, options: argparse.Namespace) -> Answer:
    """Return plain decoding of a GGUF file by llama.cpp."""
    from llama_cpp import Llama as Peer

    settings = {"n_ctx": positions, "n_threads": options.threads, "n_threads_batch": options.threads}
    peer = Peer(str(path), flash_attn=True, verbose=False, **settings)

    def answer(prompt: str) -> list[int]:
        peer.reset()  # else it goes on from the keys that the prompts have in common
        tokens: list[int] = []
        for token in peer.generate(target_tokens(model, prompt, raw=False), temp=0.0):
            tokens.append(token)
            if len(tokens) == options.tokens or token in model.generation.eos:
                break
        return tokens

    return answer


def our_answers(target: TextModel, tokens: int) -> dict[str, Answer]:
    """Return the target alone, packed row-stable, and drafting, whose n-grams stay from prompt to prompt."""
    draft = load_model(DRAFT, dtype=torch.float32)
    assert isinstance(draft, TextModel)
    length = draftlib.Confidence(0.4, 8)
    decoder = draftlib.SpeculativeDecoder(target, draft, cache=draftlib.NGramCache(), length=length)
    return {
        ALONE: lambda prompt: list(decoder.generate_target_only(prompt, max_new_tokens=tokens).tokens),
        DRAFTED: lambda prompt: list(decoder.generate(prompt, max_new_tokens=tokens).tokens),
    }


# --- the comparison


def compare(systems: dict[str, Answer], prompts: Sequence[str], name: str) -> tuple[list[str], int]:
    """Answer the prompts of a file; return a row of the table, and how many answers begin alike."""
    tokens, seconds = dict.fromkeys(systems, 0), dict.fromkeys(systems, 0.0)
    alike = equal = lossless = 0
    for prompt in tqdm(prompts, desc=name, disable=None):
        found: dict[str, list[int]] = {}
        for system, answer in systems.items():
            started = time.perf_counter()
            found[system] = answer(prompt)
            seconds[system] += time.perf_counter() - started
            tokens[system] += len(found[system])
        alike += found[PEER][:FIRST] == found[ALONE][:FIRST]
        equal += found[PEER] == found[ALONE]
        lossless += found[DRAFTED] == found[ALONE]
    rates = {system: tokens[system] / seconds[system] for system in systems}
    row = [name, *(f"{rate:.1f}" for rate in rates.values())]
    row += [f"{rates[system] / rates[PEER]:.2f}" for system in (ALONE, DRAFTED)]
    return [*row, *(f"{count}/{len(prompts)}" for count in (alike, equal, lossless))], alike


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("prompts", nargs="+", type=Path)
    parser.add_argument("--gguf", nargs="*", type=Path, default=[], help="more files for llama.cpp")
    parser.add_argument("--limit", type=int, default=6, help="prompts of each file")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    options = parse(parser)
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama_cpp cannot be imported: build it as the first lines of this script say")
    files = {path.stem: list(read_prompts(path, options.limit)) for path in options.prompts}
    target = load_model(TARGET, dtype=torch.float32)
    assert isinstance(target, Llama)
    longest = max(len(target_tokens(target, each, raw=False)) for some in files.values() for each in some)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float16.gguf")
        write_gguf(target, path)
        systems = {
            name: llama_answers(file, target, longest + options.tokens, options)
            for name, file in {PEER: path, **{each.name: each for each in options.gguf}}.items()
        }
        systems |= our_answers(target, options.tokens)
        for answer in systems.values():
            answer("Hello")  # warm up
        ratios = [f"{system} / {PEER}" for system in (ALONE, DRAFTED)]
        rows = [["prompts", *systems, *ratios, f"first {FIRST} equal", "all equal", "drafted = alone"]]
        total = 0
        for name, prompts in files.items():
            row, alike = compare(systems, prompts, name)
            rows.append(row)
            total += alike
    print(f"{TARGET}, {DRAFT}, {options.threads} threads, {options.tokens} tokens, tokens per second")
    print(align(rows))
    return 0 if 2 * total >= sum(map(len, files.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
