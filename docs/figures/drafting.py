"""The pictures of docs/drafting: a round, a real answer, the n-grams, what is accepted, and what it costs."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from chart import BLUE, GREEN, ORANGE, PURPLE, RED, TEXT, Axes, Picture
from tables import table

from draftlib import NGramCache, VocabularyMap
from draftlib.verification.verify import verify_greedy
from draftlib.vocabulary.ngram_trie import NGramTrie
from draftlib.vocabulary.translate import translate

STEPS = Path(__file__).parents[1] / "data" / "drafting_steps.txt"
DRAFT = [b"Snow", b" f", b"la", b"ke", b" is", b" st", b"amps"]
TARGET = [b"Snow", b" flake", b" is", b" stamps", b" f"]
SHOWN = 16  # rounds of the recorded answer
CURVES = {  # rows of the table: name in the picture, colour, kind of line
    "direct map": ("no learning", TEXT, "5 4"),
    "n-gram cache": ("n-gram cache", TEXT, ""),
    "distillation": ("distillation", ORANGE, "5 4"),
    "n-gram cache, distillation": ("both", ORANGE, ""),
    "distillation, source": ("distillation, source", GREEN, "5 4"),
    "n-gram cache, distillation, source": ("both, source", GREEN, ""),
}
LETTER = 8.0  # width of a letter in a box, monospace


def one_round() -> Picture:
    """Draw the round of the page: drafted, translated with an n-gram, verified."""
    pair, cache = VocabularyMap.from_bytes(DRAFT, TARGET), NGramCache()
    cache.bind(pair)
    cache.add((1, 2, 3), 1)
    cache.commit()
    drafted, wanted = [0, 1, 2, 3, 4], [0, 1, 3, 2]  # the target says " stamps" where " is" was drafted
    proposed = translate(drafted, pair, cache)
    logits = torch.nn.functional.one_hot(
        torch.tensor(wanted[: len(proposed.tokens) + 1]), len(TARGET)
    ).float()
    accepted, own = verify_greedy(proposed.tokens, logits)
    picture = Picture(
        "One round: draft tokens are merged, translated, and verified in one pass of the target", 252
    )
    place, spans = 190.0, []
    for token in drafted:
        width = _token(picture, place, 46, DRAFT[token], BLUE)
        spans.append((place, place + width))
        place += width + 10
    ends = []
    for start, stop in zip(proposed.starts, proposed.stops, strict=True):
        ends.append((spans[start][0], spans[stop - 1][1]))
    for i, (token, (left, right)) in enumerate(zip(proposed.tokens, ends, strict=True)):
        merged = proposed.stops[i] - proposed.starts[i] > 1
        colour = RED if i >= accepted else PURPLE if merged else GREEN
        _token(picture, left, 112, TARGET[token], colour, right - left, struck=i >= accepted)
        picture.line([(left + 4, 78), (left + 4, 82), (right - 4, 82), (right - 4, 78)], width=1)
        picture.arrow(((left + right) / 2, 84), ((left + right) / 2, 110))
    for i in range(accepted):
        left, right = ends[i]
        picture.arrow(((left + right) / 2, 144), ((left + right) / 2, 170))
        _token(picture, left, 172, TARGET[proposed.tokens[i]], TEXT, right - left)
    left = ends[accepted][0]
    _token(picture, left, 172, TARGET[own], ORANGE)
    for y, label in (
        (66, "1  the drafter's tokens"),
        (132, "2  proposed to the target"),
        (192, "3  added to the text"),
    ):
        picture.text(12, y, label)
    for i, (colour, label) in enumerate(_MEANINGS):
        picture.legend(12 + 180 * i, 240, [(colour, label)])
    return picture


_MEANINGS = (
    (GREEN, "accepted"),
    (PURPLE, "accepted, merged"),
    (RED, "rejected"),
    (ORANGE, "the target's own token"),
)


def _token(
    picture: Picture, x: float, y: float, piece: bytes, colour: str, width: float = 0, struck: bool = False
) -> float:
    """Draw a token in a box; return its width. A space shows as a dot."""
    text = piece.decode().replace(" ", "·")
    width = width or LETTER * len(text) + 16
    picture.box(x, y, width, 30, colour, outline=True)
    picture.text(
        x + width / 2,
        y + 20,
        text,
        anchor="middle",
        size=13,
        colour=colour,
        style="mono struck" if struck else "mono",
    )
    return width


# --- a real answer

Part = tuple[str, str]  # kind, text


def parse_step(line: str) -> tuple[str, list[Part]]:
    """Return who proposed in a line of `draftlib generate --steps`, "" for the drafter, and its tokens."""
    match = re.fullmatch(r"\s*\d+\s{2}(?:\((\w+)\) )?(.*)", line)
    if match is None:
        raise ValueError(f"{line!r} is no line of `python -m draftlib generate --steps`")
    parts: list[Part] = []
    for part in match[2].split(" "):
        if part.startswith("+"):
            parts.append(("own", part[1:]))
        elif len(part) > 2 and part[0] == part[-1] == "-":
            parts.append(("rejected", part[1:-1].strip("[]")))
        elif len(part) > 2 and part[0] == "[" and part[-1] == "]":
            parts.append(("merged", part[1:-1]))
        elif part:
            parts.append(("accepted", part))
    return match[1] or "", parts


def real_rounds() -> Picture:
    """Draw the first rounds of a recorded answer: docs/data/drafting_steps.txt."""
    command, conditions, *lines = STEPS.read_text(encoding="utf-8").splitlines()
    steps = [parse_step(line) for line in lines[:SHOWN]]
    tokens = sum(kind != "rejected" for _, parts in steps for kind, _ in parts)
    title = f"The first {len(steps)} passes of the target write {tokens} tokens; "
    title += f"alone it would take {tokens} passes"
    height = 100 + 22 * len(steps)
    picture = Picture(title, height)
    picture.text(12, 44, command, style="mono", size=11)
    picture.text(12, 62, conditions, size=11)
    colours = {"accepted": GREEN, "merged": PURPLE, "rejected": RED, "own": ORANGE}
    for i, (source, parts) in enumerate(steps):
        x, y = 44.0, 90 + 22 * i
        picture.text(34, y, str(i + 1), anchor="end", size=11)
        for kind, text in ([("source", f"({source})")] if source else []) + parts:
            picture.text(
                x,
                y,
                text,
                colour=colours.get(kind, TEXT),
                style="mono struck" if kind == "rejected" else "mono",
            )
            x += 7.3 * len(text) + 7
    for i, (colour, label) in enumerate(_MEANINGS):
        picture.legend(12 + 150 * i, height - 6, [(colour, label)])
    return picture


# --- n-grams


def ngram_trie() -> Picture:
    """Draw four n-grams as a tree of draft tokens."""
    words = {(" f", "la"): " fla", (" f", "la", "ke"): " flake", (" f", "la", "sh"): " flash"}
    words[(" st", "amps")] = " stamps"
    pieces = list(dict.fromkeys(piece for key in words for piece in key))
    names, trie = list(words.values()), NGramTrie()
    for number, key in enumerate(words):
        trie.insert([pieces.index(piece) for piece in key], number)
    picture = Picture(
        "The cache is a tree of draft tokens: the longest n-gram that fits is one target token", 236
    )
    rows = iter(range(len(words)))

    def branch(prefix: tuple[int, ...]) -> float:
        """Draw what follows a prefix, and return the height of its middle."""
        after = {token: branch((*prefix, token)) for token in trie.children(prefix)}
        y = sum(after.values()) / len(after) if after else 58.0 + 46 * next(rows)
        x = 30.0 + 150 * len(prefix)
        width = _token(
            picture, x, y - 15, (pieces[prefix[-1]] if prefix else "start").encode(), BLUE if prefix else TEXT
        )
        for end in after.values():
            picture.line([(x + width, y), (x + 146, end)], width=1)
        if (found := trie.get(prefix)) is not None and found.target is not None:
            name = "= " + names[found.target].replace(" ", "·")
            place = (x + width + 10, y + 4) if not after else (x, y - 22)
            picture.text(*place, name, colour=PURPLE, style="mono", size=13)
        return y

    branch(())
    picture.legend(30, 226, [(BLUE, "draft token")])
    picture.legend(180, 226, [(PURPLE, "target token that the draft tokens up to here spell")])
    return picture


# --- what is accepted


def overlap() -> Picture:
    """Draw two distributions over six tokens: what is accepted, and what is drawn after a rejection."""
    p = torch.tensor([0.34, 0.26, 0.16, 0.12, 0.08, 0.04])
    q = torch.tensor([0.20, 0.38, 0.22, 0.04, 0.12, 0.04])
    picture = Picture("What p and q share is accepted; the residual adds exactly what p still lacks", 268)
    axes = Axes(picture, 60, 62, 400, 150, (-0.6, 5.6), (0, 0.4))
    axes.frame(range(6), (0, 0.1, 0.2, 0.3, 0.4), "token", "probability")
    for token, (mine, other) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        (x, low), (_, high) = axes.at(token, min(mine, other)), axes.at(token, mine)
        bottom = axes.top + axes.height
        picture.box(x - 18, low, 36, bottom - low, GREEN)
        if mine > other:
            picture.box(x - 18, high, 36, low - high, ORANGE)
        picture.line([(x - 24, axes.at(token, other)[1]), (x + 24, axes.at(token, other)[1])], TEXT, 2)
    shared = float(torch.minimum(p, q).sum())
    picture.legend(
        490,
        90,
        [
            (GREEN, f"accepted: sum of min(p, q) = {shared:.2f}"),
            (ORANGE, f"residual: max(p - q, 0), {1 - shared:.2f}"),
        ],
        24,
    )
    picture.text(490, 148, "bars together: p, the target")
    picture.line([(490, 168), (514, 168)], TEXT, 2)
    picture.text(520, 172, "q, what was proposed")
    picture.text(490, 206, f"total variation 1 - {shared:.2f} = {1 - shared:.2f}")
    return picture


def gumbel_match(p: torch.Tensor, q: torch.Tensor) -> float:
    """Return how often draws from p and from q with the same Gumbel noise are the same token, [V] each.

    Both are token t if log p_t + g_t and log q_t + g_t beat all others, which has the probability
    1 / sum over s of max(p_s / p_t, q_s / q_t).
    """
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])  # [t, s]
    return float((1 / ratios.sum(1)).sum())


def shared_noise() -> Picture:
    """Draw how often shared noise accepts, for 120 pairs of distributions, over what is possible at most."""
    draw = torch.Generator().manual_seed(0)
    picture = Picture("Shared noise accepts nearly as much as any rule could, and keeps the text itself", 300)
    axes = Axes(picture, 60, 64, 400, 180, (0, 1), (0, 1))
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    axes.frame(ticks, ticks, "1 - TV(p, q): the most that any rule can accept", "share of accepted tokens")
    axes.curve([(0, 0), (1, 1)], TEXT, dots=False, dash="5 4")
    axes.curve([(x / 50, x / 50 / (2 - x / 50)) for x in range(51)], TEXT, dots=False)
    for _ in range(120):
        logits = 2 * torch.randn(20, generator=draw, dtype=torch.float64)
        spread = 4 * torch.rand((), generator=draw, dtype=torch.float64)
        other = logits + spread * torch.randn(20, generator=draw, dtype=torch.float64)
        p, q = logits.softmax(0), other.softmax(0)
        picture.circle(*axes.at(float(torch.minimum(p, q).sum()), gumbel_match(p, q)), ORANGE, 3)
    for y, text in (
        (100, "dashed: 1 - TV"),
        (122, "line: (1 - TV) / (1 + TV)"),
        (144, "dots: pairs of 20 tokens"),
    ):
        picture.text(486, y, text, colour=ORANGE if "dots" in text else TEXT)
    return picture


def best_length() -> Picture:
    """Draw speed-up over the number of draft tokens, for four rates of acceptance."""
    c, r = 0.1, 0.03
    picture = Picture("How far to draft: the better the drafter, the longer the best draft", 300)
    axes = Axes(picture, 60, 64, 480, 176, (0, 12), (0.6, 3.4))
    axes.frame(
        range(0, 13, 2),
        (1, 1.5, 2, 2.5, 3),
        "k, draft tokens per round",
        "tokens in the time of one pass of the target",
    )
    for a, colour in ((0.4, TEXT), (0.6, BLUE), (0.8, GREEN), (0.9, ORANGE)):
        curve = [(k, (1 - a ** (k + 1)) / (1 - a) / (1 + k * (c + r))) for k in range(13)]
        axes.curve(curve, colour, dots=False)
        best = max(curve, key=lambda point: point[1])
        picture.circle(*axes.at(*best), colour, 5)
        picture.text(552, axes.at(12, curve[-1][1])[1] + 4, f"{a:.0%} accepted", colour=colour)
    picture.text(
        60,
        292,
        "A step of the drafter takes 0.1 of a pass, one more row 0.03; a dot marks the best k.",
        size=11,
    )
    return picture


def learning_curve() -> Picture:
    """Draw accepted tokens per round, 20 prompts at a time: the page's own table."""
    head, *rows = table("drafting/learning_results.md", "| prompts |")
    ends = [int(cell.rpartition(" ")[2]) for cell in head[1:-1]]
    picture = Picture("Learning raises what is accepted; a source helps from the first prompt on", 288)
    axes = Axes(picture, 60, 64, 430, 176, (0, 160), (0.6, 1.6))
    axes.frame(ends, (0.6, 0.8, 1, 1.2, 1.4, 1.6), "prompts", "accepted tokens per round, mean of 20 prompts")
    labels = []
    for name, *cells in rows:
        if name in CURVES:
            label, colour, dash = CURVES[name]
            points = [(end - 10, float(cell)) for end, cell in zip(ends, cells, strict=False)]
            axes.curve(points, colour, dash=dash)
            labels.append((axes.at(*points[-1])[1] + 4, colour, label))
    lowest = float("-inf")
    for y, colour, label in sorted(labels):
        lowest = max(y, lowest + 15)  # names must not cover one another
        picture.text(500, lowest, label, colour=colour)
    return picture


def row_cost() -> Picture:
    """Draw milliseconds of a pass over its rows, by layout of the weights: the page's own table."""
    head, *rows = table("drafting/speed.md", "| rows |")
    counts = [int(row[0]) for row in rows]
    columns = [[float(row[i]) for row in rows] for i in range(1, len(head))]
    plain, packed = columns[0], columns[-1]
    six = counts.index(6)
    times = [column[six] / column[0] for column in (packed, plain)]
    title = (
        f"Six rows take {times[0]:.1f} times as long as one with packed weights, else {times[1]:.1f} times"
    )
    picture = Picture(title, 280)
    axes = Axes(picture, 60, 64, 440, 160, (1, 8), (0, 125))
    axes.frame(
        counts, (0, 25, 50, 75, 100, 125), "rows: tokens that one pass verifies", "milliseconds per pass"
    )
    for column, name, colour in zip(columns, head[1:], (TEXT, BLUE, ORANGE), strict=True):
        axes.curve(list(zip(counts, column, strict=True)), colour)
        picture.text(512, axes.at(8, column[-1])[1] + 4, name.replace("`", ""), colour=colour)
    return picture
