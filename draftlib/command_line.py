"""What `python -m draftlib` takes: its options, and the decoder, length and settings that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from draftlib import state_folder
from draftlib.arguments import Verify, as_verify
from draftlib.decoder import SpeculativeDecoder
from draftlib.drafting.cost_aware import CostAware
from draftlib.drafting.guess import Source
from draftlib.drafting.length import Confidence, Entropy, FixedLength, Length
from draftlib.drafting.sources import as_sources
from draftlib.learning.acceptance import AcceptanceHead
from draftlib.learning.online import RANK, OnlineAdapter
from draftlib.settings import DEFAULTS, Options
from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError, did_you_mean
from qlib.models import load_model
from qlib.models.text import TextModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS: dict[str, type[Length]] = {
    "cost": CostAware,
    "confidence": Confidence,
    "entropy": Entropy,
    "head": AcceptanceHead,
}


def make_decoder(options: argparse.Namespace) -> SpeculativeDecoder:
    """Return the decoder that the options ask for; errors in them come before the models are read."""
    length, verify, sources = _length(options), as_verify(options.verify), _sources(options)
    known = None if options.state is None else state_folder.look(options.state)
    learn = options.learn if options.learn is not None else _learns(options)
    adapter = _adapter(options, learn, known or {})
    target = _text_model(options.target, options)
    draft = None if options.draft == "none" else _text_model(options.draft, options)
    decoder = SpeculativeDecoder(
        target,
        draft,
        cache=None if draft is None else NGramCache(),
        length=length,
        sources=sources,
        verify=verify,
        adapter=adapter,
        state=None if known is None else options.state,
    )
    if adapter is not None:
        adapter.frozen = not learn
    if options.cache is not None and options.cache.exists():
        decoder.cache = NGramCache.load(options.cache, decoder.vocabulary)
    return decoder


def _length(options: argparse.Namespace) -> Length | None:
    """Return how many tokens a round drafts; None leaves it to the decoder."""
    rule, confidence = options.length, options.confidence
    if rule is None and confidence is None:
        return None
    if rule is None or rule.lstrip("-").isdecimal():
        most = {} if rule is None else {"max_tokens": int(rule)}
        return FixedLength(**most) if confidence is None else Confidence(confidence, **most)
    if rule not in LENGTHS:
        raise DraftError(
            f"--length {rule}: there is no such rule. Pass a number of draft tokens, or one of "
            f"{', '.join(LENGTHS)}.{did_you_mean(rule, LENGTHS)}"
        )
    if confidence is not None and rule != "confidence":
        raise DraftError(f"--length {rule} and --confidence are two rules. Pass one of them.")
    return LENGTHS[rule]() if confidence is None else Confidence(confidence)


def _sources(options: argparse.Namespace) -> tuple[Source, ...] | None:
    """Return who guesses; None leaves it to the decoder."""
    if options.source is None:
        return None
    names = [name for name in options.source if name != "none"]
    if names and len(names) < len(options.source):
        raise DraftError(f"--source none stands beside {', '.join(names)}. Leave one out.")
    return as_sources(names)


def _learns(options: argparse.Namespace) -> bool:
    """Return whether the drafter learns where nothing is said: in a conversation."""
    return bool(options.command == "chat" and options.draft != "none")


def _adapter(
    options: argparse.Namespace, learn: bool, known: dict[str, dict[str, Any]]
) -> OnlineAdapter | None:
    """Return what teaches the drafter, or holds what it learned in the state; None where nothing learns."""
    if options.draft == "none":
        asked = {"--learn": learn, "--lora-rank": options.lora_rank, "--cache": options.cache}
        if given := [name for name, value in asked.items() if value]:
            raise DraftError(
                f"{given[0]} is for a draft model, and --draft none is none. Leave one of them out."
            )
        return None
    learned = known.get("adapter")
    if options.lora_rank is not None and not learn and learned is None:
        raise DraftError("--lora-rank says how the drafter learns. Pass --learn too.")
    if not learn and learned is None:
        return None
    if options.lora_rank is not None:
        rank = options.lora_rank or None  # 0: all weights
    else:  # an adapter that was saved goes on as it is
        rank = RANK if learned is None else learned.get("lora_rank")
    return OnlineAdapter(lora_rank=rank)


def _text_model(name: str, options: argparse.Namespace) -> TextModel:
    if (Path(name) / "manifest.json").is_file():
        raise DraftError(
            f"{name} is a quantized checkpoint, and this command loads float models. In Python: "
            f"draftlib.SpeculativeDecoder(qlib.load_quantized({name!r}), qlib.load_model({options.draft!r}))."
        )
    model = load_model(name, dtype=DTYPES[options.dtype], device=options.device)
    if not isinstance(model, TextModel):
        raise DraftError(
            f"{name} is a {type(model).__name__}, which does not continue text. Choose a text model."
        )
    return model


def answer_options(options: argparse.Namespace) -> Options:
    """Return the options of an answer: tokens, temperature, seed and endings."""
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop,
        "raw": options.raw,
    }


# --- the parser


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m draftlib", description="Lossless speculative decoding.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("generate", help="answer a prompt")
    one.add_argument("prompt")
    one.add_argument("--steps", action="store_true", help="show every round: accepted, [merged], rejected")
    one.add_argument("--compare", action="store_true", help="answer by the target alone first, and compare")
    many = commands.add_parser("bench", help="compare with the target alone on many prompts")
    many.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSON lines with 'prompt'")
    many.add_argument("--limit", type=int, default=10, help="use at most so many prompts (10)")
    chat = commands.add_parser("chat", help="talk with the target; the drafter learns from its answers")
    for command in (one, many, chat):
        _models(command)
        _drafting(command)
        _answers(command)
    return parser


def _models(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--target", default="smollm2-135m-instruct", help="name or folder (%(default)s)")
    add("--draft", default="drafter-7m", help="name or folder (%(default)s), or none")
    add("--dtype", choices=DTYPES, default="float32", help="of both models (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the CPU")


def _drafting(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--cache", type=Path, metavar="FOLDER", help="n-grams to start with; saved at the end")
    switch = argparse.BooleanOptionalAction
    add("--learn", action=switch, help="let the drafter learn (the default in `chat`)")
    add(
        "--lora-rank", type=int, metavar="R", help=f"rank of what the drafter learns ({RANK}); 0: all weights"
    )
    add("--state", type=Path, metavar="FOLDER", help="what was learned; written back at the end")
    add("--source", action="append", metavar="NAME", help="who guesses: suffix, answers, recycle, tail, none")
    rules = f"draft tokens per round: a number, {', '.join(LENGTHS)} (cost, and the source suffix)"
    add("--length", metavar="RULE", help=rules)
    belief = "end a draft whose probability falls below X (0.4); --length N is then the maximum"
    add("--confidence", type=float, metavar="X", help=belief)
    rules = ", ".join(get_args(Verify))
    add("--verify", default="exact", metavar="RULE", help=f"for sampled tokens: {rules} (exact)")


def _answers(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    most = "tokens of an answer (%(default)s)"
    add("--max-new-tokens", type=int, default=DEFAULTS["max_new_tokens"], metavar="N", help=most)
    add("--temperature", type=float, default=DEFAULTS["temperature"], help="0 is greedy (%(default)s)")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable tokens only")
    add("--top-p", type=float, metavar="P", help="draw from the fewest tokens of probability P together")
    add("--seed", type=int, default=DEFAULTS["seed"], help="of the draws (%(default)s)")
    add("--stop", nargs="*", default=(), metavar="TEXT", help="texts that end the answer")
    add("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    add("--json", action="store_true", help="JSON lines instead of text")
