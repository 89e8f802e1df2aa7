"""What `python -m draftlib` takes: its options, and the decoder, length and settings that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from draftlib.arguments import Verify, as_verify
from draftlib.decoder import SpeculativeDecoder
from draftlib.drafting.length import Confidence, FixedLength, Length
from draftlib.drafting.sources import as_sources
from draftlib.learning.online import OnlineAdapter
from draftlib.settings import DEFAULTS, Options
from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError
from qlib.models import load_model
from qlib.models.text import TextModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_decoder(options: argparse.Namespace) -> SpeculativeDecoder:
    """Return the decoder that the options ask for; errors in them come before the models are read."""
    length, verify = _length(options), as_verify(options.verify)  # errors before the models are read
    sources = None if options.source is None else as_sources([s for s in options.source if s != "none"])
    known = options.state is not None and options.state.exists()
    adapter = OnlineAdapter() if options.learn or known else None
    target = _text_model(options.target, options)
    draft = None if options.draft == "none" else _text_model(options.draft, options)
    decoder = SpeculativeDecoder(
        target,
        draft,
        cache=None if draft is None else NGramCache(),
        length=length,
        sources=sources,
        verify=verify,
        adapter=None if draft is None else adapter,
        state=options.state if known else None,
    )
    if adapter is not None:
        adapter.frozen = not options.learn
    if options.cache is not None and options.cache.exists():
        decoder.cache = NGramCache.load(options.cache, decoder.vocabulary)
    return decoder


def _length(options: argparse.Namespace) -> Length | None:
    """Return how many tokens a round drafts; None leaves it to the decoder."""
    if options.length is None and options.confidence is None:
        return None
    most = {} if options.length is None else {"max_tokens": options.length}
    return FixedLength(**most) if options.confidence is None else Confidence(options.confidence, **most)


def _text_model(name: str, options: argparse.Namespace) -> TextModel:
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
    many.add_argument("--limit", type=int, default=10, help="most prompts (10)")
    for command in (one, many):
        _common(command)
    return parser


def _common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--target", default="smollm2-135m-instruct", help="name or folder (%(default)s)")
    add("--draft", default="drafter-7m", help="name or folder (%(default)s), or none")
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    add("--threads", type=int, metavar="N", help="of the processor")
    add("--cache", type=Path, metavar="FOLDER", help="n-grams to begin with; written back at the end")
    add("--learn", action="store_true", help="let the drafter learn from the target")
    add("--state", type=Path, metavar="FOLDER", help="what was learned; written back at the end")
    add("--source", action="append", metavar="NAME", help="who guesses: suffix, answers, recycle, tail, none")
    add(
        "--length",
        type=int,
        metavar="N",
        help="draft tokens a round (by cost); with --confidence the most (8)",
    )
    add(
        "--confidence",
        type=float,
        metavar="X",
        help="end a draft that the drafter believes in less; 0.4 did best",
    )
    rules = ", ".join(get_args(Verify))
    add(
        "--verify",
        default="exact",
        metavar="RULE",
        help=f"for sampled tokens: {rules} (exact)",
    )
    add("--max-new-tokens", type=int, default=DEFAULTS["max_new_tokens"], metavar="N")
    add("--temperature", type=float, default=DEFAULTS["temperature"])
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--seed", type=int, default=DEFAULTS["seed"])
    add("--stop", nargs="*", default=(), metavar="TEXT", help="texts that end the answer")
    add("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    add("--json", action="store_true", help="JSON lines instead of text")
