r"""Our Whisper beside transformers and CTranslate2, on the same clips: tokens, speed, memory.

    python examples/benchmarks/whisper_engines.py parity MANIFEST... --model whisper-tiny.en
    python examples/benchmarks/whisper_engines.py speed  MANIFEST... --clips 24 --batch 8
    python examples/benchmarks/whisper_engines.py memory MANIFEST... --clips 24 --batch 8

All get the same features, greedy decoding and the same batch size. `speed` runs them in turn in one process
and compares medians; `memory` runs each in a process of its own and reports how far the peak rises above the
loaded model. Needs the `dev` extra.

CTranslate2, the engine of faster-whisper, is no dependency: install it into a folder of its own and lend it,
with the checkpoint in its own format, to this run. `--against ctranslate2-int8` rounds its weights to 8 bits.

    pip install --target DIR --no-deps ctranslate2 pyyaml
    PYTHONPATH=DIR python examples/benchmarks/whisper_engines.py speed MANIFEST --against ctranslate2 \
        --ctranslate2 FOLDER-WITH-model.bin
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import command_line, parse, quiet_transformers, recordings
from tqdm import tqdm

import qlib
from qlib.asr.wer import score
from qlib.models.hub import registry
from qlib.models.log_mel import log_mel_batch
from qlib.models.table import align

Transcribe = Callable[[list[qlib.Utterance]], list[list[int]]]


def ours(options: argparse.Namespace) -> Transcribe:
    model = qlib.load_model(options.model)

    def run(clips: list[qlib.Utterance]) -> list[list[int]]:
        found = qlib.transcribe(model, clips, batch_size=options.batch, language="en")
        return [list(each.tokens) for each in found]

    return run


def transformers(options: argparse.Namespace) -> Transcribe:
    quiet_transformers()
    from transformers import WhisperForConditionalGeneration

    folder = registry.path(options.model)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    language = {} if options.model.endswith(".en") else {"language": "en", "task": "transcribe"}
    end = model.generation_config.eos_token_id

    @torch.inference_mode()
    def run(clips: list[qlib.Utterance]) -> list[list[int]]:
        texts = []
        for features in batches(clips, options.batch):
            rows = model.generate(features, **language).tolist()
            texts += [[token for token in row if token < end] for row in rows]
        return texts

    return run


def ctranslate2(options: argparse.Namespace, compute_type: str = "float32") -> Transcribe:
    import ctranslate2 as engine

    model = engine.models.Whisper(
        str(options.ctranslate2), compute_type=compute_type, intra_threads=options.threads
    )
    tokens = ["<|startoftranscript|>", "<|notimestamps|>"]
    if not options.model.endswith(".en"):
        tokens[1:1] = ["<|en|>", "<|transcribe|>"]

    def run(clips: list[qlib.Utterance]) -> list[list[int]]:
        texts = []
        for features in batches(clips, options.batch):
            view = engine.StorageView.from_array(features.numpy())
            found = model.generate(view, [tokens] * len(features), beam_size=1)
            texts += [each.sequences_ids[0] for each in found]
        return texts

    return run


ENGINES: dict[str, Callable[[argparse.Namespace], Transcribe]] = {
    "ours": ours,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
    "ctranslate2-int8": lambda options: ctranslate2(options, "int8"),
}


def batches(clips: list[qlib.Utterance], size: int) -> Iterator[torch.Tensor]:
    """Yield the features of so many clips at a time, [size, mels, frames]."""
    for i in range(0, len(clips), size):
        yield log_mel_batch([clip.read() for clip in clips[i : i + size]])


def parity(options: argparse.Namespace) -> None:
    """Compare token by token and score both, source by source."""
    other = options.against[0]
    model, mine, theirs = qlib.load_model(options.model), ours(options), ENGINES[other](options)
    rows = [("source", "clips", "same tokens", "WER ours", f"WER {other}")]
    different = []
    for manifest in options.manifests:
        clips, name = qlib.read_manifest(manifest)[: options.clips], Path(manifest).parent.name
        found: tuple[list[list[int]], list[list[int]]] = ([], [])
        for i in tqdm(range(0, len(clips), options.batch), desc=name, disable=None):
            for tokens, run in zip(found, (mine, theirs), strict=True):
                tokens += run(clips[i : i + options.batch])
        same = [x == y for x, y in zip(*found, strict=True)]
        texts = [[model.tokenizer.decode(tokens) for tokens in side] for side in found]
        different += [(c.id, *t) for c, s, *t in zip(clips, same, *texts, strict=True) if not s]
        wers = [score([clip.text or "" for clip in clips], side).wer for side in texts]
        rows.append((name, str(len(clips)), str(sum(same)), *(f"{wer:.2f}" for wer in wers)))
        print(" ".join(rows[-1]), flush=True)
    print("\n" + align(rows))
    for name, x, y in different:
        print(f"\n{name}\n  ours  {x}\n  {other}  {y}")


def speed(options: argparse.Namespace) -> None:
    """Run all of them in turn and compare medians."""
    clips = recordings(options.manifests)[: options.clips]
    runs = {name: ENGINES[name](options) for name in ("ours", *options.against)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    tokens = {name: run(clips) for name, run in runs.items()}  # warms up, too
    for _ in tqdm(range(options.repeats), disable=None):
        for name, run in runs.items():
            started = time.perf_counter()
            run(clips)
            seconds[name].append(time.perf_counter() - started)
    rows = [("", "median s", "fastest", "slowest", "of ours", "median of the pairs", "same tokens")]
    for name, values in seconds.items():
        ratios = [each / mine for mine, each in zip(seconds["ours"], values, strict=True)]
        same = sum(a == b for a, b in zip(tokens["ours"], tokens[name], strict=True))
        middle = statistics.median(values)
        times = f"{middle:.2f}", f"{min(values):.2f}", f"{max(values):.2f}"
        shares = f"{middle / statistics.median(seconds['ours']):.2f}", f"{statistics.median(ratios):.2f}"
        rows.append((name, *times, *shares, f"{same} of {len(clips)}"))
    setting = f"batches of {options.batch}, {options.threads} threads, {options.repeats} runs of each in turn"
    print(f"{options.model}, {len(clips)} clips, {setting}\n{align(rows)}")


def memory(options: argparse.Namespace) -> None:
    """Run each in a process of its own."""
    for name in ("ours", *options.against):
        command = [sys.executable, __file__, "peak", "--side", name, *sys.argv[2:]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(name.ljust(16), done.stdout.strip())


def peak(options: argparse.Namespace) -> None:
    """Print this process's memory after loading and its peak while transcribing (Linux)."""
    clips = recordings(options.manifests)[: options.clips]
    run = ENGINES[options.side](options)
    run(clips[:1])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    loaded = status("VmRSS")
    run(clips)
    highest = status("VmHWM")
    print(f"loaded {loaded:.0f} MB, peak {highest:.0f} MB, above loaded {highest - loaded:.0f} MB")


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) / 1024


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("mode", choices=["parity", "speed", "memory", "peak"])
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--model", default="whisper-tiny.en", choices=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clips", type=int, default=50, help="of each manifest (parity), or of all")
    parser.add_argument("--repeats", type=int, default=5)
    others = [name for name in ENGINES if name != "ours"]
    parser.add_argument("--against", nargs="+", choices=others, default=["transformers"])
    parser.add_argument("--ctranslate2", type=Path, metavar="DIR", help="folder of its model.bin")
    parser.add_argument("--side", choices=list(ENGINES), help=argparse.SUPPRESS)
    options = parse(parser)
    if any(name.startswith("ctranslate2") for name in options.against) and options.ctranslate2 is None:
        parser.error("--against ctranslate2 needs --ctranslate2, the folder of its model.bin")
    {"parity": parity, "speed": speed, "memory": memory, "peak": peak}[options.mode](options)


if __name__ == "__main__":
    main()
