"""Command line: `python -m draftlib generate|bench`.

python -m draftlib generate "What is gravity?" --steps
python -m draftlib generate "What is gravity?" --compare --confidence 0.4
python -m draftlib bench --prompts prompts.jsonl --limit 10 --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from draftlib.arguments import Verify, as_verify
from draftlib.decoder import SpeculativeDecoder
from draftlib.drafting.length import Confidence, FixedLength, Length
from draftlib.metrics import Stats
from draftlib.output import Output
from draftlib.settings import DEFAULTS, Options
from draftlib.step import Step
from draftlib.vocabulary.ngram_cache import NGramCache
from draftlib.writer import piece_of
from qlib.errors import DraftError, QlibError
from qlib.models import load_model
from qlib.models.text import TextModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GREEN, CYAN, RED, BOLD, RESET = "\x1b[32m", "\x1b[36m", "\x1b[9;31m", "\x1b[1m", "\x1b[0m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 2 after an error on stderr, in one line."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        decoder = _decoder(options)
        if options.command == "generate":
            generate(decoder, options)
        else:
            bench(decoder, options)
        if decoder.cache is not None and options.cache is not None:
            decoder.cache.save(options.cache)
    except QlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


# --- generate


def generate(decoder: SpeculativeDecoder, options: argparse.Namespace) -> None:
    """Write an answer: as it comes, round by round, or as JSON lines; compare it with the target's alone."""
    plain = decoder.generate_target_only(options.prompt, **_request(options)) if options.compare else None
    if options.json or options.steps:
        for step in decoder.steps(options.prompt, **_request(options)):
            print(json.dumps(step_record(step)) if options.json else colour(step, sys.stdout.isatty()))
        return

    def show(text: str) -> None:
        print(text, end="", flush=True)

    out = decoder.generate(options.prompt, on_text=show, **_request(options))
    print()
    print(out.stats, file=sys.stderr)
    if plain is not None:
        same = "the same text" if plain.tokens == out.tokens else "ANOTHER TEXT"
        print(f"the target alone: {plain.stats.tokens_per_second:.1f} tokens/s, {same}", file=sys.stderr)


def colour(step: Step, colours: bool) -> str:
    """Return one round as a line: accepted tokens, [merged] ones, rejected ones, and the target's own.

    Without colours, rejected tokens stand between -dashes- and the target's own behind a plus sign.
    """
    pieces = step.vocabulary.target_bytes
    parts = []
    for i, token in enumerate(step.proposed):
        text = _show(piece_of(pieces, token), token)
        text = f"[{text}]" if step.merged(i) else text
        if i < step.accepted:
            parts.append(f"{CYAN if step.merged(i) else GREEN}{text}{RESET}" if colours else text)
        else:
            parts.append(f"{RED}{text}{RESET}" if colours else f"-{text}-")
    for token in step.tokens[step.accepted :]:
        text = _show(piece_of(pieces, token), token)
        parts.append(f"{BOLD}{text}{RESET}" if colours else f"+{text}")
    return f"{step.number:4d}  {' '.join(parts)}"


def _show(piece: bytes, token: int) -> str:
    return piece.decode(errors="replace").replace("\n", "\\n").replace(" ", "·") if piece else f"<{token}>"


def step_record(step: Step) -> dict[str, Any]:
    """Return one round as a JSON object."""
    pieces = step.vocabulary.target_bytes
    names = ("number", "position", "drafted", "proposed", "spans", "accepted", "tokens", "learned")
    text = b"".join(piece_of(pieces, token) for token in step.tokens).decode(errors="replace")
    return {name: getattr(step, name) for name in names} | {"text": text, "seconds": asdict(step.seconds)}


# --- bench


def bench(decoder: SpeculativeDecoder, options: argparse.Namespace) -> None:
    """Answer prompts with the target alone and with drafting, in turn, and compare."""
    total, same, number = Stats(), 0, 0
    for number, prompt in enumerate(read_prompts(options.prompts, options.limit), 1):
        plain = decoder.generate_target_only(prompt, **_request(options))
        found = decoder.generate(prompt, **_request(options))
        total += found.stats
        same += plain.tokens == found.tokens
        row = bench_record(number, plain, found)
        print(json.dumps(row) if options.json else bench_line(row), flush=True)
    if not number:
        raise DraftError(
            f"{options.prompts} holds no prompts. One JSON object a line, with a field 'prompt'."
        )
    if options.json:
        print(json.dumps({"identical": same, "prompts": number, "total": stats_record(total)}))
    else:
        print(f"\n{same} of {number} answers are token for token those of the target alone\n{total}")


def read_prompts(path: Path, limit: int) -> Iterator[str]:
    """Yield the field `prompt` of each line of a JSON Lines file.

    Raises
    ------
    DraftError
        The file is missing, or a line is no JSON object with a prompt.
    """
    if not path.is_file():
        raise DraftError(
            f"{path} does not exist. Pass a file with one JSON object a line: {{'prompt': ...}}."
        )
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    for number, line in enumerate(lines, 1):
        if number > limit:
            return
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise DraftError(
                f"{path}, prompt {number}: no JSON object with a field 'prompt': {line[:60]}"
            ) from error
        yield prompt


def bench_record(number: int, plain: Output, found: Output) -> dict[str, Any]:
    """Return one comparison as a JSON object."""
    record = {"prompt": number, "identical": plain.tokens == found.tokens}
    return {**record, "plain_tokens_per_second": plain.stats.tokens_per_second, **stats_record(found.stats)}


def stats_record(stats: Stats) -> dict[str, Any]:
    """Return statistics as a JSON object, with all derived figures."""
    derived = [name for name, value in vars(Stats).items() if isinstance(value, property)]
    return asdict(stats) | {name: getattr(stats, name) for name in derived}


def bench_line(row: Mapping[str, Any]) -> str:
    """Return one comparison as a line of a table."""
    return (
        f"{row['prompt']:4d}  {row['tokens']:4d} tokens  {row['tokens_per_target_call']:5.2f} a target call  "
        f"{row['plain_tokens_per_second']:7.1f} -> {row['tokens_per_second']:7.1f} tokens/s  "
        f"{'same text' if row['identical'] else 'OTHER TEXT'}"
    )


# --- options


def _decoder(options: argparse.Namespace) -> SpeculativeDecoder:
    length, verify = _length(options), as_verify(options.verify)  # errors before the models are read
    target, draft = (_text_model(name, options) for name in (options.target, options.draft))
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), length=length, verify=verify)
    if options.cache is not None and options.cache.exists():
        decoder.cache = NGramCache.load(options.cache, decoder.vocabulary)
    return decoder


def _length(options: argparse.Namespace) -> Length:
    """Return how many tokens a round drafts."""
    most = {} if options.length is None else {"max_tokens": options.length}
    return FixedLength(**most) if options.confidence is None else Confidence(options.confidence, **most)


def _text_model(name: str, options: argparse.Namespace) -> TextModel:
    model = load_model(name, dtype=DTYPES[options.dtype], device=options.device)
    if not isinstance(model, TextModel):
        raise DraftError(
            f"{name} is a {type(model).__name__}, which does not continue text. Choose a text model."
        )
    return model


def _request(options: argparse.Namespace) -> Options:
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop,
        "raw": options.raw,
    }


def _parser() -> argparse.ArgumentParser:
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
    add("--draft", default="drafter-7m", help="name or folder (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    add("--threads", type=int, metavar="N", help="of the processor")
    add("--cache", type=Path, metavar="FOLDER", help="n-grams to begin with; written back at the end")
    add("--length", type=int, metavar="N", help="draft tokens a round (5); with --confidence the most (8)")
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


if __name__ == "__main__":
    sys.exit(main())
