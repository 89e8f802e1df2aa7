"""Learning while drafting: what each part of it gains, on prompts that were not learned from.

    python examples/benchmarks/learning.py methods gsm8k.jsonl --draft drafter-generic-7m --out runs
    python examples/benchmarks/learning.py lengths gsm8k.jsonl mbpp.jsonl --out runs
    python examples/benchmarks/learning.py shift gsm8k.jsonl mbpp.jsonl --learn 60 --tokens 80 --out runs
    python examples/benchmarks/learning.py long --out runs

Prompt files are JSON Lines with a field "prompt"; the first `--learn` prompts are learned from, the last
`--test` never. Each setting learns in one pass, in an order drawn by its seed, and is saved as a state; then
nothing is learned any more, and each test prompt is answered by the target alone and by drafting, in turn.
Results are one JSON object a line in RUNS/MODE.jsonl; what is there already is not measured again, so that a
run that was stopped goes on. At the end come a table and, with the `plots` extra, RUNS/MODE.svg.

    methods     direct map, n-gram cache, distillation (LoRA), both, the paper's loss, all weights, a source
    lengths     fixed lengths, confidence, entropy, trained head (alone, joint, interleaved), cost-aware
    sources     one by one and together, with and without a drafter
    cache       its effect with 3 and 4 draft tokens, and with 80 and 160 entries
    quantized   a target of 4-bit weights (GPTQ) with the drafter, and a drafter of 8-bit weights
    shift       the first file, then the second, then the first again, while learning goes on
    targets     the same file with the float target, one of 3-bit weights (GPTQ), and the float one again
    long        one answer of 1,000 tokens, with and without learning
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import command_line, parse
from tqdm import tqdm

import draftlib
import qlib
from draftlib.__main__ import read_prompts
from draftlib.command_line import DTYPES
from draftlib.metrics import Stats
from qlib.models import load_model
from qlib.models.table import align
from qlib.models.text import TextModel

Settings = dict[str, Any]  # keyword arguments of a decoder
STORY = "Write a long story about a lighthouse keeper and his three children, with many details."


def adapter(**settings: Any) -> Callable[[], draftlib.OnlineAdapter]:
    """Return a function that makes a new adapter of these settings: it serves one decoder only."""
    return lambda: draftlib.OnlineAdapter(**settings)


def with_head(schedule: Any) -> Settings:
    """Return the settings that train drafter and acceptance head together."""
    return {
        "length": lambda: draftlib.AcceptanceHead(train_every=0),
        "adapter": lambda: draftlib.HeadTraining(draftlib.OnlineAdapter(update_every=None), schedule),
    }


def cache(**settings: Any) -> Callable[[], draftlib.NGramCache]:
    """Return a function that makes a new n-gram cache."""
    return lambda: draftlib.NGramCache(**settings)


FOUR: Settings = {"length": 4, "sources": ()}
BOTH: Settings = {"cache": cache(), "adapter": adapter()}
METHODS: dict[str, Settings] = {
    "direct map": FOUR,
    "cache": {**FOUR, "cache": cache()},
    "distillation": {**FOUR, "adapter": adapter()},
    "cache, distillation": {**FOUR, **BOTH},
    "cache, the paper's loss": {**FOUR, "cache": cache(), "adapter": adapter(loss="hybrid")},
    "cache, all weights": {**FOUR, "cache": cache(), "adapter": adapter(lora_rank=None)},
    "distillation, source": {**FOUR, "sources": ("suffix",), "adapter": adapter()},
    "cache, distillation, source": {**FOUR, "sources": ("suffix",), **BOTH},
    "all": BOTH,
}
LENGTHS: dict[str, Settings] = {
    **{f"fixed {k}": {"length": k, "sources": (), "cache": cache()} for k in range(1, 9)},
    "confidence": {"length": draftlib.Confidence, "sources": (), "cache": cache()},
    "entropy": {"length": draftlib.Entropy, "sources": (), "cache": cache()},
    "head": {"length": draftlib.AcceptanceHead, "sources": (), "cache": cache()},
    "head, learning": {"length": draftlib.AcceptanceHead, "sources": (), **BOTH},
    "head, joint": {"sources": (), "cache": cache(), **with_head("joint")},
    "head, interleaved": {"sources": (), "cache": cache(), **with_head("interleaved")},
    "cost-aware": {"sources": (), "cache": cache()},
    "cost-aware, learning": {"sources": (), **BOTH},
}
ONE_BY_ONE = ("suffix", "answers", "recycle", "tail")
SOURCES: dict[str, Settings] = {
    **{f"drafter, {each}": {"sources": (each,), "cache": cache()} for each in ONE_BY_ONE},
    "drafter, none": {"sources": (), "cache": cache()},
    "drafter, all": {"sources": ONE_BY_ONE, "cache": cache()},
    **{f"{each} alone": {"draft": None, "sources": (each,)} for each in ONE_BY_ONE[:3]},
    "all three alone": {"draft": None},
}
CACHE: dict[str, Settings] = {
    **{
        f"{name}, k = {k}": {**settings, "length": k, "sources": ()}
        for k in (3, 4)
        for name, settings in (("direct map", {}), ("cache", {"cache": cache()}), ("both", BOTH))
    },
    **{
        f"{policy}, {entries} entries": {**FOUR, "cache": cache(max_entries=entries, policy=policy)}
        for policy in ("lfu", "lru")
        for entries in (80, 160)  # of about 320 that `drafter-generic-7m` and 80 prompts of GSM8K give
    },
}
QUANTIZED: dict[str, Settings] = {
    "float target and drafter": {**FOUR, "cache": cache()},
    "target GPTQ w4": {**FOUR, "cache": cache(), "target": ("gptq", 4)},
    "target GPTQ w4, drafter RTN w8": {**FOUR, "cache": cache(), "target": ("gptq", 4), "draft": ("rtn", 8)},
}
MODES = {
    "methods": METHODS,
    "lengths": LENGTHS,
    "sources": SOURCES,
    "cache": CACHE,
    "quantized": QUANTIZED,
}


# --- one setting


def make(settings: Settings, options: argparse.Namespace, state: Path | None = None) -> Any:
    """Return a decoder; what is a function or a class in its settings is called."""
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    models = [
        text_model(settings.pop(side, "float"), getattr(options, side), options)
        for side in ("target", "draft")
    ]
    return draftlib.SpeculativeDecoder(*models, **settings, state=state)


def text_model(kind: Any, name: str, options: argparse.Namespace) -> TextModel | None:
    """Return a model as it is, or quantized by (method, bits); None for none."""
    if kind is None:
        return None
    model = load_model(name, dtype=DTYPES[options.dtype])
    if kind != "float":
        method, bits = kind
        grid = qlib.Grid(bits=bits, group=64, symmetric=False)
        calib = list(read_prompts(options.prompts[0], 32)) if method == "gptq" else None
        rounding = {"gptq": qlib.GPTQ, "rtn": qlib.RTN}[method]()
        model = qlib.quantize(model, [rounding], weight=grid, calib=calib).model
    assert isinstance(model, TextModel)
    options.megabytes[name] = qlib.cost(model).size.file_bytes / 1e6
    return model


def learn(name: str, settings: Settings, prompts: list[str], seed: int, options: argparse.Namespace) -> Path:
    """Learn from prompts in one pass and return the folder of the state; one that is there is taken."""
    words = "".join(c if c.isalnum() else "-" for c in f"{options.task}-{options.draft}-{name}-{seed}")
    folder: Path = options.out / "states" / words
    if folder.exists():
        return folder
    decoder, order, total = make(settings, options), list(prompts), Stats()
    random.Random(seed).shuffle(order)
    curve = []
    for prompt in tqdm(order, desc=f"{options.task}, {name}: learning", disable=None):
        found = decoder.generate(prompt, max_new_tokens=options.tokens).stats
        total += found
        curve.append((found.accepted, found.rounds))
    record = {"kind": "learning", "curve": curve, **_record(total)}
    if (online := learner(decoder)) is not None:
        record |= {"updates": online.updates, "undone": online.undone, "megabytes": megabytes(online)}
    write(options, {"task": options.task, "setting": name, "draft": options.draft, "seed": seed, **record})
    decoder.save(folder)
    return folder


def learner(decoder: draftlib.SpeculativeDecoder) -> draftlib.OnlineAdapter | None:
    """Return what teaches a decoder's drafter."""
    adapter = decoder.adapter
    adapter = adapter.adapter if isinstance(adapter, draftlib.HeadTraining) else adapter
    assert adapter is None or isinstance(adapter, draftlib.OnlineAdapter)
    return adapter


def megabytes(online: draftlib.OnlineAdapter) -> dict[str, float]:
    """Return what learning holds: weights with AdamW's moments, and the buffer."""
    sizes = {name: each.nbytes / 1e6 for name, each in online.state().tensors.items()}
    buffer = sum(size for name, size in sizes.items() if name.startswith("buffer/"))
    return {"weights and moments": sum(sizes.values()) - buffer, "buffer": buffer}


def measure(
    name: str, settings: Settings, state: Path, prompts: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Answer prompts by the target alone and by drafting, in turn, and return the comparison."""
    decoder = make(settings, options, state)
    if (online := learner(decoder)) is not None:
        online.frozen = True
    decoder.generate_target_only("Hello", max_new_tokens=16)  # warm up
    decoder.generate("Hello", max_new_tokens=16)
    total, alone, same, ratios = Stats(), Stats(), 0, []
    times = [0.0, 0.0]
    for prompt in tqdm(prompts, desc=f"{options.task}, {name}", disable=None):
        started = time.perf_counter()
        plain = decoder.generate_target_only(prompt, max_new_tokens=options.tokens)
        middle = time.perf_counter()
        found = decoder.generate(prompt, max_new_tokens=options.tokens)
        times[0] += middle - started
        times[1] += time.perf_counter() - middle
        total, alone = total + found.stats, alone + plain.stats
        same += plain.tokens == found.tokens
        if len(plain.tokens) >= 64:
            ratios.append(plain.stats.seconds.decoding / found.stats.seconds.decoding)
    return {
        "kind": "test",
        "prompts": len(prompts),
        "identical": same,
        "speedup": total.tokens_per_second / alone.tokens_per_second,
        "with_prompt": times[0] / times[1],
        "alone": alone.tokens_per_second,
        "slowest": min(ratios, default=None),
        "megabytes": options.megabytes,
        **_record(total),
    }


def _record(total: Stats) -> dict[str, Any]:
    return {
        "tokens": total.tokens,
        "accepted_per_round": total.accepted_per_round,
        "acceptance_length": total.acceptance_length,
        "drafted_per_round": total.drafted / max(total.rounds, 1),
        "hits_per_response": total.hits_per_response,
        "tokens_per_second": total.tokens_per_second,
        "learning_share": total.seconds.learn / max(total.seconds.decoding, 1e-9),
        "sources": {
            name: [each.rounds, each.proposed, each.accepted] for name, each in total.sources.items()
        },
    }


# --- modes


def compare(options: argparse.Namespace, settings: Mapping[str, Settings]) -> list[tuple[str, ...]]:
    """Learn with and measure every setting on every file; return the rows of the table."""
    rows = [
        (
            "prompts", "setting", "accepted per round", "acceptance length", "speed-up", "slowest",
            "identical", "MB of files",
        )
    ]  # fmt: skip
    for path in options.prompts:
        options.task = path.stem
        prompts = list(read_prompts(path, 10**9))
        first = prompts[: min(options.learn, len(prompts) - options.test)]
        for name, setting in settings.items():
            if options.only and name not in options.only:
                continue
            for seed in range(options.seeds):
                key = {
                    "task": path.stem,
                    "setting": name,
                    "draft": options.draft,
                    "seed": seed,
                    "kind": "test",
                }
                if not any(key.items() <= each.items() for each in read(options)):
                    state = learn(name, setting, first, seed, options)
                    write(options, key | measure(name, setting, state, prompts[-options.test :], options))
            rows.append(_row(options, path.stem, name))
    return rows


def _row(options: argparse.Namespace, task: str, name: str) -> tuple[str, ...]:
    key = {"task": task, "setting": name, "draft": options.draft, "kind": "test"}
    found = [each for each in read(options) if key.items() <= each.items()]

    def mean(field: str) -> str:
        values = [each[field] for each in found if each[field] is not None]
        return f"{sum(values) / len(values):.2f}" if values else "-"

    same = f"{sum(each['identical'] for each in found)} of {sum(each['prompts'] for each in found)}"
    fields = ("accepted_per_round", "acceptance_length", "speedup", "slowest")
    sizes = " + ".join(f"{each:.1f}" for each in found[-1]["megabytes"].values()) if found else "-"
    return (task, name, *(mean(field) for field in fields), same, sizes)


def shift(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Answer the first file, the second, and the first again, learning, with and without cache."""
    tasks = [list(read_prompts(path, options.learn)) for path in options.prompts[:2]]
    return parts(options, [({}, tasks[0]), ({}, tasks[1]), ({}, tasks[0])])


def targets(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Answer a file by one target, by another, and by the first again, while one drafter learns."""
    prompts = list(read_prompts(options.prompts[0], options.learn))
    return parts(options, [({}, prompts), ({"target": ("gptq", 3)}, prompts), ({}, prompts)])


def parts(options: argparse.Namespace, plan: Sequence[tuple[Settings, list[str]]]) -> list[tuple[str, ...]]:
    """Learn in several parts, with and without cache; return how acceptance falls and recovers."""
    rows = [
        ("setting", "part", "accepted per round: first 20", "last 20", "requests until 90 % of the last 20")
    ]
    for name, setting in (("cache", BOTH), ("no cache", {"adapter": adapter()})):
        state = None
        for part, (changed, prompts) in enumerate(plan, 1):
            decoder = make({**setting, **FOUR, **changed}, options, state)
            curve = [
                decoder.generate(prompt, max_new_tokens=options.tokens).stats.accepted_per_round
                for prompt in tqdm(prompts, desc=f"{name}, part {part}", disable=None)
            ]
            state = options.out / "states" / f"{options.mode}-{name}-{part}"
            decoder.save(state)
            write(options, {"setting": name, "part": part, "curve": curve})
            last = sum(curve[-20:]) / 20
            recovered = next(
                (i for i in range(len(curve) - 10) if sum(curve[i : i + 10]) / 10 >= 0.9 * last), len(curve)
            )
            rows.append((name, str(part), f"{sum(curve[:20]) / 20:.2f}", f"{last:.2f}", str(recovered)))
    return rows


def long(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Write one long answer with and without learning; return the tokens per round of its quarters."""
    rows = [("setting", "tokens per round in the four quarters", "seconds", "of them learning")]
    settings: dict[str, Settings] = {
        "no learning": {**FOUR, "cache": cache()},
        "learning": {**FOUR, **BOTH},
        "no learning, sources": {"cache": cache()},
        "learning, sources": BOTH,
    }
    for name, setting in settings.items():
        steps = list(make(setting, options).steps(STORY, max_new_tokens=1000))
        count, quarters = 0, [[0, 0] for _ in range(4)]
        whole = sum(len(step.tokens) for step in steps)
        for step in steps:
            quarter = quarters[min(3, 4 * count // whole)]
            quarter[0] += step.accepted
            quarter[1] += 1
            count += len(step.tokens)
        lengths = [1 + accepted / max(rounds, 1) for accepted, rounds in quarters]
        seconds = Stats.of(steps).seconds
        write(options, {"setting": name, "tokens": whole, "quarters": lengths})
        shown = "  ".join(f"{each:.2f}" for each in lengths)
        rows.append((name, shown, f"{seconds.decoding:.1f}", f"{seconds.learn:.1f}"))
    return rows


# --- results


def read(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what was measured before."""
    path = options.out / f"{options.mode}.jsonl"
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return [json.loads(line) for line in lines]


def write(options: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Add one result to the file of this mode."""
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{options.mode}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def plot(options: argparse.Namespace) -> None:
    """Draw accepted tokens per round over the prompts learned from; nothing without the `plots` extra."""
    curves = [each for each in read(options) if "curve" in each]
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for each in curves:
        points = [a / max(n, 1) for a, n in each["curve"]] if "task" in each else each["curve"]
        windows = [points[max(0, i - 15) : i + 1] for i in range(len(points))]
        smooth = [sum(window) / len(window) for window in windows]
        label = f"{each.get('task', '')} {each['setting']} {each.get('part', '')}".strip()
        axes.plot(range(1, len(smooth) + 1), smooth, label=label)
    axes.set_xlabel("prompts")
    axes.set_ylabel("accepted tokens per round, mean of 16 prompts")
    if curves:
        axes.legend(fontsize="x-small")
        figure.savefig(options.out / f"{options.mode}.svg")


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("mode", choices=[*MODES, "shift", "targets", "long"])
    parser.add_argument("prompts", nargs="*", type=Path)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--draft", default="drafter-7m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--learn", type=int, default=160, help="most prompts to learn from")
    parser.add_argument("--test", type=int, default=40, help="prompts at the end of a file to measure on")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--seeds", type=int, default=1, help="orders of the prompts")
    parser.add_argument("--only", nargs="*", help="names of settings")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and states")
    options = parse(parser)
    options.megabytes = {}  # of each model's file, by name: what `text_model` loads
    others = {"shift": shift, "targets": targets, "long": long}
    mode = options.mode
    rows = others[mode](options) if mode in others else compare(options, MODES[mode])
    models = f"{options.target}, {options.draft}, {options.dtype}"
    print(f"\n{models}, {torch.get_num_threads()} threads\n{align(rows)}")
    plot(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
