"""Memory and speed over hours of audio: recordings go through `qlib.evaluate_wer` again and again.

    python examples/benchmarks/long_audio.py --model whisper-tiny.en --test TEST.jsonl --hours 2

A generator is read recording by recording, and only its texts are kept, so that memory must not grow with
the hours. Half an hour of sound, 115 MB, is read and then decoded together: the lines come after each of
these turns, and from the first one on resident memory and its peak must stand still. Linux.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import command_line, parse, recordings

import qlib
from qlib.models.waveform import SAMPLE_RATE

HEADS = ("minutes", "seconds", "resident MB", "peak MB", "x real time")
TURN = 30.0  # minutes of audio that are decoded together: until then memory grows as it should


@dataclass(frozen=True)
class Sample:
    """What was measured when so much audio had been read."""

    minutes: float  # of audio
    seconds: float  # since the start
    resident: float  # MB
    peak: float  # MB, so far

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line."""
        speed = 60 * self.minutes / self.seconds
        cells = (f"{each:,.0f}" for each in (self.seconds, self.resident, self.peak))
        return (f"{self.minutes:.1f}", *cells, f"{speed:.1f}")


def sample(minutes: float, started: float) -> Sample:
    """Measure this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024
    seconds = time.perf_counter() - started
    return Sample(minutes, seconds, pages * resource.getpagesize() / 1e6, peak)


def show(cells: Sequence[str]) -> None:
    """Print a line of the table at once."""
    print("  ".join(f"{cell:>{len(head)}}" for cell, head in zip(cells, HEADS, strict=True)), flush=True)


def again_and_again(
    speech: Sequence[qlib.Utterance], options: argparse.Namespace, found: list[Sample]
) -> Iterator[qlib.Utterance]:
    """Yield recordings for so many hours of audio, and append a sample every few minutes of it."""
    lengths = [len(each.read()) / SAMPLE_RATE for each in speech]
    started, heard, turn, due = time.perf_counter(), 0.0, 0, options.every
    while True:
        for each, length in zip(speech, lengths, strict=True):
            if heard / 60 >= due:
                found.append(sample(heard / 60, started))
                show(found[-1].row())
                due += options.every
            if heard >= 3600 * options.hours:
                return
            yield replace(each, id=f"{each.id} {turn}")
            heard += length
        turn += 1


def summary(found: Sequence[Sample], first: float = TURN) -> str:
    """Return the spread of memory after the first minutes, and how much the peak still grew there."""
    later = [each for each in found if each.minutes >= first] or list(found)
    resident = [each.resident for each in later]
    spread = max(resident) - min(resident)
    return (
        f"from minute {later[0].minutes:.0f} on: resident {min(resident):,.0f} to {max(resident):,.0f} MB "
        f"(spread {spread:,.0f} MB), peak grew by {later[-1].peak - later[0].peak:,.0f} MB"
    )


def main() -> None:
    """Transcribe and score for so many hours of audio, and print a line every few minutes of it."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="whisper-tiny.en", help="name or folder (%(default)s)")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="manifests")
    parser.add_argument("--hours", type=float, default=2.0, help="of audio (%(default)s)")
    parser.add_argument("--every", type=float, default=TURN, help="minutes of audio a line (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="(%(default)s)")
    options = parse(parser)
    speech, found = recordings(options.test), list[Sample]()
    model = qlib.load_model(options.model)
    show(HEADS)
    started = time.perf_counter()
    heard = again_and_again(speech, options, found)
    result = qlib.evaluate_wer(model, heard, batch_size=options.batch_size, progress=False)
    seconds = time.perf_counter() - started
    found.append(sample(60 * options.hours, started))
    print(summary(found))
    print(f"{3600 * options.hours / seconds:.1f} times as fast as speech; {result}")


if __name__ == "__main__":
    main()
