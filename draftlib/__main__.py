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
from typing import Any

import torch

from draftlib.command_line import answer_options, make_decoder, make_parser
from draftlib.decoder import SpeculativeDecoder
from draftlib.metrics import Stats
from draftlib.output import Output
from draftlib.step import Step
from draftlib.writer import piece_of
from qlib.errors import DraftError, QlibError

GREEN, CYAN, RED, BOLD, RESET = "\x1b[32m", "\x1b[36m", "\x1b[9;31m", "\x1b[1m", "\x1b[0m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 2 after an error on stderr, in one line."""
    options = make_parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        decoder = make_decoder(options)
        try:
            if options.command == "generate":
                generate(decoder, options)
            else:
                bench(decoder, options)
        finally:  # also after Ctrl-C and a bad line: what was learned until then is kept
            if decoder.cache is not None and options.cache is not None:
                decoder.cache.save(options.cache)
            if options.state is not None:
                decoder.save(options.state)
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
    plain = (
        decoder.generate_target_only(options.prompt, **answer_options(options)) if options.compare else None
    )
    if options.json or options.steps:
        for step in decoder.steps(options.prompt, **answer_options(options)):
            print(json.dumps(step_record(step)) if options.json else colour(step, sys.stdout.isatty()))
        return

    def show(text: str) -> None:
        print(text, end="", flush=True)

    out = decoder.generate(options.prompt, on_text=show, **answer_options(options))
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
        plain = decoder.generate_target_only(prompt, **answer_options(options))
        found = decoder.generate(prompt, **answer_options(options))
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


if __name__ == "__main__":
    sys.exit(main())
