"""Our Whisper beside that of transformers, on the same clips: tokens, speed, memory.

    python examples/benchmarks/whisper_vs_transformers.py parity MANIFEST... --model whisper-tiny.en
    python examples/benchmarks/whisper_vs_transformers.py speed  MANIFEST... --clips 50 --batch 8
    python examples/benchmarks/whisper_vs_transformers.py memory MANIFEST... --clips 50 --batch 8

Both get the same features, float32, greedy decoding and the same batch size. `speed` alternates the two in
one process and compares medians; `memory` runs each in a process of its own and reports how far the peak
rises above the loaded model. Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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


def ours(name: str, batch_size: int) -> Transcribe:
    model = qlib.load_model(name)

    def run(clips: list[qlib.Utterance]) -> list[list[int]]:
        found = qlib.transcribe(model, clips, batch_size=batch_size, language="en")
        return [list(each.tokens) for each in found]

    return run


def theirs(name: str, batch_size: int) -> Transcribe:
    quiet_transformers()
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(registry.path(name), dtype=torch.float32).eval()
    english_only = name.endswith(".en")
    options = {} if english_only else {"language": "en", "task": "transcribe"}
    end = model.generation_config.eos_token_id

    @torch.inference_mode()
    def run(clips: list[qlib.Utterance]) -> list[list[int]]:
        texts = []
        for i in range(0, len(clips), batch_size):
            features = log_mel_batch([clip.read() for clip in clips[i : i + batch_size]])
            rows = model.generate(features, **options).tolist()
            texts += [[token for token in row if token < end] for row in rows]
        return texts

    return run


def parity(options: argparse.Namespace) -> None:
    """Compare token by token and score both, source by source."""
    model, a, b = (
        qlib.load_model(options.model),
        *(make(options.model, options.batch) for make in (ours, theirs)),
    )
    rows = [("source", "clips", "same tokens", "WER ours", "WER transformers")]
    different = []
    for manifest in options.manifests:
        clips = qlib.read_manifest(manifest)
        mine: list[list[int]] = []
        other: list[list[int]] = []
        for i in tqdm(range(0, len(clips), options.batch), desc=Path(manifest).parent.name, disable=None):
            mine += a(clips[i : i + options.batch])
            other += b(clips[i : i + options.batch])
        same = [x == y for x, y in zip(mine, other, strict=True)]
        texts = [[model.tokenizer.decode(tokens) for tokens in found] for found in (mine, other)]
        different += [(c.id, *t) for c, s, *t in zip(clips, same, *texts, strict=True) if not s]
        wers = [score([clip.text or "" for clip in clips], found).wer for found in texts]
        counts = (str(len(clips)), str(sum(same)), *(f"{wer:.2f}" for wer in wers))
        rows.append((Path(manifest).parent.name, *counts))
        print(" ".join(rows[-1]), flush=True)
    print("\n" + align(rows))
    for name, x, y in different:
        print(f"\n{name}\n  ours          {x}\n  transformers  {y}")


def speed(options: argparse.Namespace) -> None:
    """Alternate the two and compare medians."""
    clips = recordings(options.manifests)[: options.clips]
    runs = {make.__name__: make(options.model, options.batch) for make in (ours, theirs)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(clips[: options.batch])  # warm up
    for _ in tqdm(range(options.repeats), disable=None):
        for name, run in runs.items():
            started = time.perf_counter()
            run(clips)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    setting = f"batches of {options.batch}, {torch.get_num_threads()} threads, float32"
    print(f"{options.model}, {len(clips)} clips, {setting}")
    for name, values in seconds.items():
        print(
            f"{name:7}  median {medians[name]:6.2f} s   all " + " ".join(f"{value:.2f}" for value in values)
        )
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    ratio = medians["theirs"] / medians["ours"]
    print(f"theirs / ours: of the medians {ratio:.2f}, median of the pairs {statistics.median(ratios):.2f}")


def memory(options: argparse.Namespace) -> None:
    """Run each in a process of its own."""
    for name in ("ours", "theirs"):
        command = [sys.executable, __file__, "peak", "--side", name, *sys.argv[2:]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(name.ljust(8), done.stdout.strip())


def peak(options: argparse.Namespace) -> None:
    """Print this process's memory after loading and its peak while transcribing (Linux)."""
    clips = recordings(options.manifests)[: options.clips]
    run = (ours if options.side == "ours" else theirs)(options.model, options.batch)
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
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parse(parser)
    {"parity": parity, "speed": speed, "memory": memory, "peak": peak}[options.mode](options)


if __name__ == "__main__":
    main()
