"""Command line: `python -m draftlib generate|chat|bench`.

python -m draftlib generate "What is gravity?" --steps
python -m draftlib generate "What is gravity?" --compare --confidence 0.4
python -m draftlib chat --state learned
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
from qlib.errors import DraftError, QlibError, whole_number

GREEN, CYAN, RED, BOLD, RESET = "\x1b[32m", "\x1b[36m", "\x1b[9;31m", "\x1b[1m", "\x1b[0m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 1 after an error on stderr. Wrong usage exits with 2."""
    options = make_parser().parse_args(arguments)
    try:
        if options.threads is not None:
            torch.set_num_threads(whole_number(options.threads, "--threads", DraftError, 1))
        if options.command == "bench":
            whole_number(options.limit, "--limit", DraftError, 1)
        if options.command == "generate" and options.compare and (options.steps or options.json):
            raise DraftError("--compare is of a whole answer, --steps and --json show rounds. Leave one out.")
        decoder = make_decoder(options)
        try:
            commands = {"generate": generate, "chat": chat, "bench": bench}
            commands[options.command](decoder, options)
        finally:  # also after Ctrl-C and a bad line: what was learned until then is kept
            if decoder.cache is not None and options.cache is not None:
                decoder.cache.save(options.cache)
            if options.state is not None:
                decoder.save(options.state)
    except QlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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

    Without colours, rejected tokens stand between -dashes- and the target's own after a plus sign. The name
    of a source comes first, where one proposed.
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
    source = f"({step.source}) " if step.source not in ("draft", "") else ""
    return f"{step.number:4d}  {source}{' '.join(parts)}"


def _show(piece: bytes, token: int) -> str:
    return piece.decode(errors="replace").replace("\n", "\\n").replace(" ", "·") if piece else f"<{token}>"


def step_record(step: Step) -> dict[str, Any]:
    """Return one round as a JSON object."""
    pieces = step.vocabulary.target_bytes
    names = ("number", "position", "source", "drafted", "proposed", "spans", "accepted", "tokens", "learned")
    text = b"".join(piece_of(pieces, token) for token in step.tokens).decode(errors="replace")
    return {name: getattr(step, name) for name in names} | {"text": text, "seconds": asdict(step.seconds)}


# --- chat


PROMPT = "> "
SHOWN = 8  # answers whose acceptance is shown
HELP = "Type a message. /new begins another conversation, /quit or Ctrl-D ends."


def chat(decoder: SpeculativeDecoder, options: argparse.Namespace) -> None:
    """Answer standard input line by line; each answer has read all lines and answers before it.

    Needs no clock to show what was learned: how many drafted tokens are accepted per round becomes larger.

    Parameters
    ----------
    decoder : SpeculativeDecoder
        Who answers.
    options : argparse.Namespace
        Those of the command line: settings of the answers, and `json` for one JSON object an answer.
    """
    conversation: list[dict[str, str]] = []
    history: list[float] = []
    _say(HELP, options)
    _ask(options)
    for line in map(str.strip, sys.stdin):
        if line == "/quit":
            break
        if line == "/new":
            conversation.clear()
            _say("A new conversation.", options)
        elif line.startswith("/"):
            _say(f"There is no command {line.split()[0]}. {HELP}", options)
        elif line:
            conversation.append({"role": "user", "content": line})
            try:
                found = _answer(decoder, conversation, options)
            except DraftError as error:  # a conversation that has become too long ends, the chat goes on
                conversation.pop()
                _say(f"error: {error} /new begins another conversation.", options)
            else:
                conversation.append({"role": "assistant", "content": found.text})
                history.append(found.stats.accepted_per_round)
                _report(decoder, found, history, options)
        _ask(options)


def _answer(
    decoder: SpeculativeDecoder, conversation: list[dict[str, str]], options: argparse.Namespace
) -> Output:
    def show(text: str) -> None:
        print(text, end="", flush=True)

    sink = None if options.json else show
    prompt = conversation[-1]["content"] if options.raw else conversation
    return decoder.generate(prompt, on_text=sink, **answer_options(options))


def _report(
    decoder: SpeculativeDecoder, found: Output, history: list[float], options: argparse.Namespace
) -> None:
    """Say how drafting went, in this answer and in those before it."""
    stats = found.stats
    if options.json:
        print(json.dumps({"text": found.text, **stats.record()}), flush=True)
        return
    accepted = " ".join([*(f"{each:.1f}" for each in history[-SHOWN:-1]), f"[{history[-1]:.1f}]"])
    lines = [f"{stats.tokens} tokens in {stats.rounds} passes of the target; accepted per round: {accepted}"]
    lines += [str(each) for each in (decoder.cache, decoder.adapter) if each is not None]
    print("".join(f"\n  {line}" for line in lines), flush=True)


def _say(text: str, options: argparse.Namespace) -> None:
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def _ask(options: argparse.Namespace) -> None:
    if not options.json and sys.stdin.isatty():
        print(PROMPT, end="", flush=True)


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
        print(json.dumps({"identical": same, "prompts": number, "total": total.record()}))
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
    return {**record, "plain_tokens_per_second": plain.stats.tokens_per_second, **found.stats.record()}


def bench_line(row: Mapping[str, Any]) -> str:
    """Return one comparison as a line of a table."""
    return (
        f"{row['prompt']:4d}  {row['tokens']:4d} tokens  {row['tokens_per_target_call']:5.2f} a target call  "
        f"{row['plain_tokens_per_second']:7.1f} -> {row['tokens_per_second']:7.1f} tokens/s  "
        f"{'same text' if row['identical'] else 'OTHER TEXT'}"
    )


if __name__ == "__main__":
    sys.exit(main())
