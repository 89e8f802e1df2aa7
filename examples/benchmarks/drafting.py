"""Drafting beside the target alone and beside transformers: same text, speed, where the time goes.

    python examples/benchmarks/drafting.py lossless PROMPTS.jsonl ... --limit 25 --dtype bfloat16
    python examples/benchmarks/drafting.py speed PROMPTS.jsonl ... --limit 6 --peers

Prompt files are JSON Lines with a field "prompt". `lossless` answers each prompt with the target alone and
by drafting, greedily and at temperature 0.8, by five decoders in turn that differ in draft length, cache
size and eviction; it counts the answers that are token for token the same, and exits with 1 if one is not.
`speed` answers each prompt by every system in turn, greedily; `--peers` adds transformers: plain generation,
and universal assisted generation with the same drafter (the `dev` extra). Tokens a second are over the
whole answer, prompt included.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from common import command_line, parse, quiet_transformers
from tqdm import tqdm

import draftlib
from draftlib.__main__ import read_prompts
from draftlib.command_line import DTYPES
from draftlib.metrics import Stats
from draftlib.prompt_tokens import target_tokens
from qlib.models import load_model
from qlib.models.hub.load import locate
from qlib.models.table import align
from qlib.models.text import TextModel

Answer = Callable[[str], int]  # writes an answer to a prompt and returns its number of tokens
SETTINGS: list[tuple[int, int, Literal["lfu", "lru"]]] = [  # draft tokens, entries of the cache, eviction
    (5, 50_000, "lfu"),
    (3, 200, "lru"),
    (8, 50_000, "lru"),
    (1, 50, "lfu"),
    (20, 1000, "lfu"),
]


def lossless(options: argparse.Namespace, prompts: dict[str, list[str]]) -> bool:
    """Print how many answers are those of the target alone, file by file; return whether all are."""
    target, draft = models(options)
    target.pack(stable=True)
    draft.pack()
    decoders = itertools.cycle(
        draftlib.SpeculativeDecoder(
            target,
            draft,
            cache=draftlib.NGramCache(max_entries=entries, policy=policy),
            length=draftlib.FixedLength(k),
        )
        for k, entries, policy in SETTINGS
    )
    rows = [("prompts", "temperature", "answers", "identical", "tokens", "accepted per round")]
    all_same = True
    for name, temperature in itertools.product(prompts, (0.0, 0.8)):
        total, same = Stats(), 0
        for number, prompt in enumerate(tqdm(prompts[name], desc=f"{name} {temperature}", disable=None)):
            decoder = next(decoders)
            request: draftlib.Options = {
                "max_new_tokens": options.tokens,
                "temperature": temperature,
                "seed": number,
            }
            plain = decoder.generate_target_only(prompt, **request)
            found = decoder.generate(prompt, **request)
            same += plain.tokens == found.tokens
            total += found.stats
        all_same &= same == len(prompts[name])
        count = (str(len(prompts[name])), str(same), str(total.tokens), f"{total.accepted_per_round:.2f}")
        rows.append((name, str(temperature), *count))
        print(" ".join(rows[-1]), flush=True)
    print(f"\n{options.target}, {options.dtype}, {torch.get_num_threads()} threads\n{align(rows)}")
    return all_same


def speed(options: argparse.Namespace, prompts: dict[str, list[str]]) -> bool:
    """Print tokens per second of every system, file by file, and what drafting does with its time."""
    drafting = Drafting(options)
    systems: dict[str, Answer] = {
        "plain": drafting.plain,
        "plain, not stable": drafting.plain_not_stable,
        "drafting": drafting.draft,
    }
    if options.peers:
        systems |= peers(options)
    for answer in systems.values():
        answer("Hello")  # warm up
    rows = [("prompts", *systems, "drafting / plain", "accepted per round", "target", "drafter", "rest")]
    for name, some in prompts.items():
        drafting.total = Stats()
        tokens, seconds = dict.fromkeys(systems, 0), dict.fromkeys(systems, 0.0)
        for prompt in tqdm(some, desc=name, disable=None):
            for system, answer in systems.items():
                started = time.perf_counter()
                tokens[system] += answer(prompt)
                seconds[system] += time.perf_counter() - started
        rates = {system: tokens[system] / seconds[system] for system in systems}
        total, spent = drafting.total, drafting.total.seconds
        shares = [part / spent.decoding for part in (spent.target, spent.draft, spent.overhead)]
        rows.append(
            (
                name,
                *(f"{rate:.1f}" for rate in rates.values()),
                f"{rates['drafting'] / rates['plain']:.2f}",
                f"{total.accepted_per_round:.2f}",
                *(f"{share:.1%}" for share in shares),
            )
        )
        print(" ".join(rows[-1]), flush=True)
    setting = f"{options.dtype}, {options.threads} threads, {options.tokens} tokens, k={options.length}"
    print(f"\n{options.target}, {options.draft}, {setting}, tokens per second\n{align(rows)}")
    return True


class Drafting:
    """One decoder that answers with and without its drafter, and keeps its n-grams from prompt to prompt."""

    def __init__(self, options: argparse.Namespace):
        target, draft = models(options)
        k, threshold = options.length, options.confidence
        length = draftlib.Confidence(threshold, k) if threshold else draftlib.FixedLength(k)
        self.decoder = draftlib.SpeculativeDecoder(target, draft, cache=draftlib.NGramCache(), length=length)
        self.not_stable = target.packed_copy()
        self.tokens = options.tokens
        self.total = Stats()

    def plain(self, prompt: str) -> int:
        """Answer by the target alone."""
        return len(self.decoder.generate_target_only(prompt, max_new_tokens=self.tokens).tokens)

    @torch.inference_mode()
    def plain_not_stable(self, prompt: str) -> int:
        """Answer by the target alone, packed for speed only: what row stability costs."""
        model = self.not_stable
        tokens = torch.tensor([target_tokens(model, prompt, raw=False)])
        cache = model.start(capacity=tokens.shape[1] + self.tokens)
        count, token = 0, -1
        while count < self.tokens and token not in model.generation.eos:
            token = int(model.logits(model.decode(tokens, cache)[0, -1]).argmax())
            tokens = torch.tensor([[token]])
            count += 1
        return count

    def draft(self, prompt: str) -> int:
        """Answer by drafting."""
        found = self.decoder.generate(prompt, max_new_tokens=self.tokens)
        self.total += found.stats
        return len(found.tokens)


def peers(options: argparse.Namespace) -> dict[str, Answer]:
    """Return generation by transformers, plain and with the drafter as universal assistant."""
    quiet_transformers()
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folders = [locate(name) for name in (options.target, options.draft)]
    dtype = DTYPES[options.dtype]
    target, draft = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for folder in folders)
    texts = [PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json") for folder in folders]
    model = load_model(options.target)
    assert isinstance(model, TextModel)

    @torch.inference_mode()
    def generate(prompt: str, **assistant: Any) -> int:
        tokens = torch.tensor([target_tokens(model, prompt, raw=False)])
        settings = {"max_new_tokens": options.tokens, "do_sample": False, **assistant}
        found = target.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        return int(found.shape[1] - tokens.shape[1])

    pair = {"assistant_model": draft, "tokenizer": texts[0], "assistant_tokenizer": texts[1]}
    return {"transformers": generate, "universal assisted": lambda prompt: generate(prompt, **pair)}


def models(options: argparse.Namespace) -> tuple[TextModel, TextModel]:
    """Load target and drafter."""
    names, dtype = (options.target, options.draft), DTYPES[options.dtype]
    target, draft = (load_model(name, dtype=dtype) for name in names)
    assert isinstance(target, TextModel) and isinstance(draft, TextModel)
    return target, draft


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("mode", choices=["lossless", "speed"])
    parser.add_argument("prompts", nargs="+", type=Path)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--draft", default="drafter-7m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--limit", type=int, default=6, help="prompts of each file")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--length", type=int, default=5, help="draft tokens per round, in `speed`")
    parser.add_argument("--confidence", type=float, help="stop a draft below this probability, in `speed`")
    parser.add_argument("--peers", action="store_true", help="transformers as well, in `speed`")
    options = parse(parser)
    prompts = {path.stem: list(read_prompts(path, options.limit)) for path in options.prompts}
    return 0 if {"lossless": lossless, "speed": speed}[options.mode](options, prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
