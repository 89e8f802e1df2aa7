"""A study as a page: one HTML file that opens from disk without a network, and the same tables in Markdown.

Everything is in the file: style, charts (`charts.py`), a few lines of script that sort and filter tables, and
the sound of the recordings that changed most, as far as `MOST_SOUND` allows.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

from qlib.benchmark.cells import FLOAT
from qlib.benchmark.charts import heat_legend, heat_maps, intervals, scatter
from qlib.benchmark.results import Clip, Losses, Record, changed_clips, file_bytes, read_losses, read_results
from qlib.models.disk.folders import make_folder
from qlib.models.files import atomic_file

MOST_SOUND = 6_000_000  # bytes of audio files in a page
TYPES = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
HEADS = (
    *("model", "test", "method", "scheme", "WER %", "95 %", "to float", "95 % paired"),
    *("sub", "del", "ins", "bits per weight", "MB", "MB moved", "10^12 bit operations"),
)


def write_report(study: Path, output: Path | None = None) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` of a study, and return their paths.

    Parameters
    ----------
    study : Path
        Folder of `run_study`.
    output : Path, optional
        Folder of the two files; the study's own if not given.

    Raises
    ------
    DataError
        The folder holds no results.
    """
    records, losses = read_results(study), read_losses(study)
    output = output or study
    make_folder(output)
    found = (output / "report.html", output / "report.md")
    for path, text in zip(found, (html(study, records, losses), markdown(records)), strict=True):
        with atomic_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return found


# --- Markdown


def markdown(records: Sequence[Record]) -> str:
    """Return a table for each model and test set: methods by schemes."""
    lines = ["# Word error rates", "", _conditions(records), ""]
    for (model, test), group in _groups(records):
        plain = [each for each in group if each.method == FLOAT]
        rest = [each for each in group if each.method != FLOAT]
        schemes = list(dict.fromkeys(each.scheme for each in rest))
        float_wer = f", float {plain[0].wer:.2f}" if plain else ""
        lines += [f"## {model}, {test}{float_wer}", "", f"| | {' | '.join(schemes)} |"]
        lines.append(f"|---|{'---|' * len(schemes)}")
        for method in dict.fromkeys(each.method for each in rest):
            cells = {each.scheme: _cell(each) for each in rest if each.method == method}
            lines.append(f"| {method} | {' | '.join(cells.get(scheme, '') for scheme in schemes)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(record: Record) -> str:
    low, high = record.difference_interval
    return f"{record.wer:.2f} ({low:+.1f} to {high:+.1f})"


def _conditions(records: Sequence[Record]) -> str:
    tests = {each.test: (each.clips, each.words) for each in records}
    listed = ", ".join(f"{name}: {clips} clips, {words} words" for name, (clips, words) in tests.items())
    return (
        f"Percent of words wrong, greedy decoding; in brackets the 95 % interval of the difference to float, "
        f"paired over clips. {listed}.{_run(records)}"
    )


def _run(records: Sequence[Record]) -> str:
    """Say what moves the bytes and makes the operations of the columns of cost."""
    runs = dict.fromkeys(each.cost.name for each in records if each.cost is not None)
    return f" Bytes moved and bit operations are those of {' and of '.join(runs)}." if runs else ""


def _groups(records: Iterable[Record]) -> list[tuple[tuple[str, str], list[Record]]]:
    def place(each: Record) -> tuple[str, str]:
        return each.model, each.test

    ordered = sorted(records, key=place)
    return [(key, list(group)) for key, group in groupby(ordered, place)]


# --- HTML


def html(study: Path, records: Sequence[Record], losses: Sequence[Losses] = ()) -> str:
    """Return the page; `losses` are drawn as heat maps."""
    sound = _Sound()
    sections = [f"<p>{escape(_conditions(records))}</p>", _table(records)]
    sections += [_sensitivity(each) for each in losses]
    for (model, test), group in _groups(records):
        rest = [each for each in group if each.method != FLOAT]
        title = f"{model}, {test}"
        clips = [_changes(study, records, each, sound) for each in rest]
        sections.append(
            f"<section><h2>{escape(title)}</h2>{scatter(rest, f'{title}: WER against size')}"
            f"{intervals(rest, f'{title}: difference to float')}"
            f"<h3>Clips that changed</h3>{''.join(clips)}</section>"
        )
    style, script = _file("page.css"), _file("page.js")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Word error rates</title><style>{style}</style></head>"
        f"<body><main><h1>Word error rates</h1>{''.join(sections)}</main><script>{script}</script>"
        "</body></html>\n"
    )


def _sensitivity(found: Losses) -> str:
    title = f"{found.model}: which layers hurt"
    maps, legend = heat_maps(found, title), escape(heat_legend(found))
    return f"<section><h2>{escape(title)}</h2>{maps}<p>{legend}</p></section>"


def _file(name: str) -> str:
    """Return a file that lies beside this one."""
    return (resources.files("qlib.benchmark") / name).read_text(encoding="utf-8")


def _table(records: Sequence[Record]) -> str:
    heads = "".join(f'<th><button type="button">{escape(name)}</button></th>' for name in HEADS)
    rows = "".join(_row(each) for each in records)
    return (
        '<label>Filter <input type="search" id="filter" placeholder="gptq W4A16"></label>'
        f'<div class="wide"><table id="results"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(each: Record) -> str:
    def pair(values: tuple[float, float], sign: str = "") -> str:
        return f"{values[0]:{sign}.2f} to {values[1]:{sign}.2f}"

    is_float = each.method == FLOAT
    cells = [
        each.model,
        each.test,
        each.method,
        "" if is_float else each.scheme,
        f"{each.wer:.2f}",
        pair(each.interval),
        "" if is_float else f"{each.difference:+.2f}",
        "" if is_float else pair(each.difference_interval, "+"),
        *(str(count) for count in (each.substitutions, each.deletions, each.insertions)),
        "" if each.bits_per_weight is None else f"{each.bits_per_weight:.2f}",
        "" if (size := file_bytes(each)) is None else f"{size / 1e6:.1f}",
        "" if each.cost is None else f"{each.cost.bytes_moved / 1e6:.0f}",
        "" if each.cost is None else f"{each.cost.bit_operations / 1e12:.2f}",
    ]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _changes(study: Path, records: Sequence[Record], record: Record, sound: _Sound) -> str:
    clips = changed_clips(study, records, record)
    if not clips:
        return ""
    items = "".join(_clip(each, sound) for each in clips)
    return f"<details><summary>{escape(record.name)}: {len(clips)} clips</summary>{items}</details>"


def _clip(clip: Clip, sound: _Sound) -> str:
    more = f"{abs(clip.more)} {'more' if clip.more > 0 else 'fewer'} wrong than in float"
    return (
        f'<div class="clip"><p><b>{escape(clip.id)}</b>, {more} {sound.of(clip.audio)}</p><dl>'
        f"<dt>said</dt><dd>{escape(clip.said)}</dd>"
        f"<dt>float</dt><dd>{marked(clip.said, clip.before)}</dd>"
        f"<dt>quantized</dt><dd>{marked(clip.said, clip.after)}</dd></dl></div>"
    )


def marked(said: str, written: str) -> str:
    """Return a text as HTML in which words that were not said, or are missing, are marked.

    >>> marked("the cat sat", "The hat sat.")
    'The <del>cat</del> <ins>hat</ins> sat.'
    """
    words = [text.split() for text in (said, written)]
    plain = [[_bare(word) for word in side] for side in words]
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escape(" ".join(words[1][c:d])))
            continue
        parts += [f"<del>{escape(' '.join(words[0][a:b]))}</del>"] if b > a else []
        parts += [f"<ins>{escape(' '.join(words[1][c:d]))}</ins>"] if d > c else []
    return " ".join(parts)


def _bare(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


class _Sound:
    """Audio files as parts of the page, each once, until there are too many bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def of(self, path: str) -> str:
        """Return an audio element; nothing for a file that is not there, of another kind, or one too many."""
        file = Path(path)
        kind = TYPES.get(file.suffix.lower())
        if kind is None or not file.is_file() or self.bytes + file.stat().st_size > MOST_SOUND:
            return ""
        content = file.read_bytes()
        self.bytes += len(content)
        data = base64.b64encode(content).decode()
        return f'<audio controls preload="none" src="data:{kind};base64,{data}"></audio>'
