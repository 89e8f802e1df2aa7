"""Train a small drafter of your own from any text: its tokenizer and its weights, in one folder.

    python examples/train_drafter.py notes.txt answers.jsonl --out out/my-drafter --device cuda
    python -m draftlib generate "What is gravity?" --draft out/my-drafter

A drafter guesses what a target model says next, so the best text is what that target wrote. The defaults make
a model like `drafter-7m`, and take a GPU. On a processor begin with something like `--layers 2 --width 128
--heads 2 --feed-forward 352 --context 256 --batch 8 --steps 1000`.

1. Files become documents: a .jsonl has one a line, a .txt one, or several with <|endoftext|> between them.
2. A byte-level BPE is trained on them, with every digit a token of its own.
3. The documents, shuffled, are one stream of tokens. Its last hundredth is held out.
4. Each epoch takes all blocks of the stream once. Which ones make a batch depends on seed and step alone.
5. AdamW, cosine schedule after a warm-up, clipped gradients; half precision (autocast) on a GPU.

OUT/training holds what a killed run needs: the same command again goes on from the last checkpoint, on the
same processor with as many threads to the same weights, bit for bit. It may be deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm

from qlib.errors import DataError, DraftError, QlibError
from qlib.models import Tokenizer
from qlib.models.disk.folders import mend
from qlib.models.files import atomic_file, read_json, write_json
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.text_config import TextGeneration
from qlib.models.tiny import FILES, write_folder

END = "<|endoftext|>"
CHAT = ("<|im_start|>", "<|im_end|>")  # special tokens where the text has them
HELD_OUT_BLOCKS = 256  # at most: enough for two digits of the loss


@dataclass(frozen=True)
class Settings:
    """What the weights depend on, besides the text."""

    vocabulary: int = 8192
    layers: int = 4
    width: int = 320  # of the residual stream
    heads: int = 5
    feed_forward: int = 864
    context: int = 1024  # tokens of a block, and positions of the model
    batch: int = 64  # blocks a step
    steps: int = 18000
    warmup: int = 300
    learning_rate: float = 1e-3  # at its highest; it falls to a tenth
    every: int = 500  # steps between checkpoints; each also measures the loss on held-out text
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (not value and name not in ("seed", "warmup")):
                raise DraftError(f"--{name.replace('_', '-')} {value}: a number above 0 is needed.")


def read_documents(path: Path, key: str) -> Iterator[str]:
    """Yield the documents of one file; `key` is the field of a .jsonl that holds the text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable file of UTF-8 text: {error}.") from error
    if path.suffix != ".jsonl":
        yield from (part for part in text.split(END) if part.strip())
        return
    for number, line in enumerate(text.split("\n"), 1):
        document = None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            document = json.loads(line)[key] if line.strip() else ""
        if not isinstance(document, str):
            raise DataError(
                f"{path}:{number}: no JSON object with a text in {key!r}: {line[:60]}. "
                "--field names the field that holds the text."
            )
        if document.strip():
            yield document.encode(errors="replace").decode()  # JSON may hold half a character


def train_tokenizer(documents: Sequence[str], size: int) -> Tokenizer:
    """Return a byte-level BPE with `size` tokens, or as many as the text gives."""
    raw = tokenizers.Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    raw.decoder = decoders.ByteLevel()
    chat = any(all(marker in each for marker in CHAT) for each in documents)
    alphabet, specials = sorted(pre_tokenizers.ByteLevel.alphabet()), [END, *CHAT] if chat else [END]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(documents, trainer)
    return Tokenizer(raw)


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """Return all documents as one stream of tokens, int32 [N], with an ending after each."""
    stream, end = array("i"), tokenizer.token_id(END)
    for document in tqdm(documents, "tokens", unit=" documents"):
        lines = document.splitlines(keepends=True)  # a long book in one piece would take much memory
        for start in range(0, len(lines), 1000):
            stream.extend(tokenizer.encode("".join(lines[start : start + 1000])))
        stream.append(end)
    return np.array(stream, dtype=np.int32)


def prepare(documents: list[str], settings: Settings, folder: Path) -> tuple[Tokenizer, Tensor]:
    """Return tokenizer and stream: those in the run's folder, or new ones."""
    path = folder / "tokens.npy"
    if not path.is_file():
        random.Random(settings.seed).shuffle(documents)
        tokenizer = train_tokenizer(documents, settings.vocabulary)
        stream, least = encode(tokenizer, documents), 3 * settings.context + 1
        if len(stream) < least:
            raise DataError(
                f"The text is too short: it has {len(stream):,} tokens, and blocks of {settings.context} "
                f"take at least {least:,}, some of them held out. Pass more text, or a smaller --context."
            )
        with atomic_file(folder / "tokenizer.json") as fresh:
            fresh.write_text(tokenizer.to_json(), encoding="utf-8")
        with atomic_file(path) as fresh:
            np.save(fresh, stream)
    return Tokenizer.from_folder(folder), torch.from_numpy(np.load(path))


@lru_cache(maxsize=2)
def epoch(number: int, blocks: int, context: int, seed: int) -> list[int]:
    """Return where the blocks of an epoch begin: another offset and another order each time."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    offset = torch.randint(context, (1,), generator=generator)
    return (offset + context * torch.randperm(blocks, generator=generator)).tolist()


def batch(stream: Tensor, step: int, settings: Settings) -> Tensor:
    """Return the batch of a step, int64 [batch, context + 1]; neighbouring blocks share a token."""
    context, rows = settings.context, []
    blocks = (len(stream) - context) // context  # as many as fit after every offset
    for number in range(step * settings.batch, (step + 1) * settings.batch):
        start = epoch(number // blocks, blocks, context, settings.seed)[number % blocks]
        rows.append(stream[start : start + context + 1])
    return torch.stack(rows).long()


def new_model(settings: Settings, tokenizer: Tokenizer) -> Llama:
    """Return a Llama with first weights."""
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": settings.width,
        "intermediate_size": settings.feed_forward,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    ending = tokenizer.token_id(CHAT[1] if tokenizer.has_special(*CHAT) else END)
    generation = TextGeneration(bos=tokenizer.token_id(END), eos=(ending,))
    model = Llama(LlamaConfig.from_dict(sizes), generation, tokenizer)
    generator = torch.Generator().manual_seed(settings.seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            # Every layer adds to the residual stream twice; its size should not grow with their number.
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, 0, 0.02 / math.sqrt(2 * settings.layers if adds else 1), generator)
    return model


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def loss_of(model: Llama, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of a token given those before it, in nats; tokens [B, T + 1]."""
    device = model.lm_head.weight.device
    tokens = tokens.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Llama, stream: Tensor, settings: Settings) -> float:
    starts = range(0, len(stream) - settings.context, settings.context)[:HELD_OUT_BLOCKS]
    blocks = torch.stack([stream[start : start + settings.context + 1] for start in starts]).long()
    return sum(float(loss_of(model, part)) * len(part) for part in blocks.split(settings.batch)) / len(blocks)


def train(model: Llama, stream: Tensor, settings: Settings, checkpoint: Path) -> float:
    """Train to the end, from the checkpoint if there is one; return the loss on held-out text."""
    held = max(len(stream) // 100, settings.context + 1)
    stream, held_out = stream[:-held], stream[-held:]
    weights, device = list(model.parameters()), model.lm_head.weight.device
    groups = [
        {"params": [each for each in weights if each.dim() == dim], "weight_decay": decay}
        for dim, decay in ((2, 0.1), (1, 0.0))  # matrices; norms
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    step, loss = 0, math.nan
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, loss = saved["step"], saved["loss"]
    with tqdm(total=settings.steps, initial=step, desc="training", unit=" steps") as bar:
        while step < settings.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            found = loss_of(model, batch(stream, step, settings))
            found.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            if step % settings.every == 0 or step == settings.steps:
                loss = held_out_loss(model, held_out, settings)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with atomic_file(checkpoint) as fresh:  # a run killed here keeps the older one whole
                    torch.save({**state, "step": step, "loss": loss}, fresh)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{found.item():.3f}", held_out=f"{loss:.3f}")
    return loss


def open_run(out: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of a new run, or of the same run begun before."""
    mend(out, lambda _: FILES)  # a run killed while it wrote the drafter left the training aside
    note = out / "training" / "run.json"
    if note.is_file():
        other = read_json(note)
        changes = [
            f"{name} {other.get(name)} -> {new}" for name, new in identity.items() if other.get(name) != new
        ]
        if changes:
            raise DraftError(
                f"{out} holds another run ({', '.join(changes)}). Go on with its settings and texts, or "
                "choose another --out."
            )
    elif out.exists() and not (out.is_dir() and all(path.name == "training" for path in out.iterdir())):
        raise DraftError(f"{out} exists and holds no run of this script. Choose another --out.")
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, identity)
    return note.parent


def run(options: argparse.Namespace) -> None:
    """Train one drafter."""
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    try:
        device = torch.zeros(1, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        raise DraftError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    documents = [document for path in options.texts for document in read_documents(path, options.field)]
    if not documents:
        raise DataError(f"There is no text in {', '.join(map(str, options.texts))}.")
    texts = hashlib.sha256()
    for document in documents:
        texts.update(document.encode() + b"\0")
    folder = open_run(options.out, {**asdict(settings), "texts": texts.hexdigest()[:16]})
    tokenizer, stream = prepare(documents, settings, folder)
    model = new_model(settings, tokenizer).to(device)
    size = sum(each.numel() for each in model.parameters())
    print(f"{size:,} parameters, {tokenizer.vocab_size:,} entries, {len(stream):,} tokens of text")
    loss = train(model, stream, settings, folder / "checkpoint.pt")
    write_folder(model.half().cpu(), options.out)
    uniform = math.log(tokenizer.vocab_size)
    print(f"{loss:.3f} nats per token on held-out text (a uniform guess: {uniform:.3f}), in {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after an error on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("texts", type=Path, nargs="+", help=".txt or .jsonl files, UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="folder of the drafter")
    parser.add_argument("--field", default="text", help="of a .jsonl: where the text is (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")
    for each in fields(Settings):
        flag, kind = "--" + each.name.replace("_", "-"), type(each.default)
        parser.add_argument(flag, type=kind, default=each.default, help="(%(default)s)")
    try:
        run(parser.parse_args(arguments))
    except QlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
