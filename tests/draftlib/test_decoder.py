"""The decoder on miniatures with different tokenizers: the target's own text, whatever is drafted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from drafting_toys import Distribution, every_way, total_variation
from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

import draftlib
import qlib
from draftlib import AcceptanceHead, Confidence, Entropy, FixedLength, NGramCache, Output, SpeculativeDecoder
from draftlib.arguments import Verify
from draftlib.drafting.costs import Costs
from draftlib.drafting.length import Drafted, Length
from draftlib.learning.labels import labels_of
from draftlib.round import Round
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import gumbel
from draftlib.verification.sampling import warp
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.errors import DraftError
from qlib.models import Tokenizer, load_model
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.text_config import TextGeneration
from qlib.models.tiny import randomize, tiny_byte_tokenizer, tiny_llama, tiny_moonshine, tiny_tokenizer

DRAFTER = Path(__file__).parents[2] / "examples" / "models" / "drafter-7m"
PROMPT = "the heat at a"
every_rule = pytest.mark.parametrize("verify", get_args(Verify))
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 3}


def reader_of_pieces() -> Tokenizer:
    """The SentencePiece kind, with its endings marked as special."""
    raw = RawTokenizer.from_str(tiny_byte_tokenizer().to_json())
    raw.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return Tokenizer(raw)


def model_of(tokenizer: Tokenizer, seed: int, positions: int = 96, end: str = "</s>") -> Llama:
    sizes = {**vars(tiny_llama().config), "vocab_size": tokenizer.vocab_size}
    config = LlamaConfig(**{**sizes, "max_position_embeddings": positions})
    model = Llama(config, TextGeneration(eos=(tokenizer.token_id(end),)), tokenizer)
    randomize(model, seed)
    return model.double().eval()


def target_model(positions: int = 96, seed: int = 5) -> Llama:
    return model_of(reader_of_pieces(), seed, positions)


def draft_model(positions: int = 96, seed: int = 1) -> Llama:
    return tiny_llama(seed, max_position_embeddings=positions).double()


TARGET, DRAFT = target_model(), draft_model()


def plain(
    prompt: list[int], count: int, temperature: float = 0.0, seed: int = 0, **warping: Any
) -> list[int]:
    return list(_plain(tuple(prompt), count, temperature, seed, **warping))


@cache
def _plain(prompt: tuple[int, ...], count: int, temperature: float, seed: int, **warping: Any) -> list[int]:
    """The target alone, written out: no cache, the whole text in every pass, the noise by its definition."""
    text = list(prompt)
    while len(text) < len(prompt) + count and text[-1] not in TARGET.generation.eos:
        logits = TARGET(torch.tensor([text]))[0, -1]
        if temperature:
            logprobs = warp(logits, temperature, **warping)
            logits = logprobs + gumbel(seed, len(text), len(logits))
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


def encode(text: str) -> list[int]:
    assert TARGET.tokenizer is not None
    return TARGET.tokenizer.encode(text)


def twin(seed: int = 5) -> SpeculativeDecoder:
    """A drafter that is the target itself: everything is accepted."""
    return SpeculativeDecoder(TARGET, target_model(seed=seed), cache=NGramCache(), length=FixedLength(5))


# --- losslessness


@pytest.mark.parametrize("options", [{}, SAMPLED, {**SAMPLED, "top_k": 20}, {**SAMPLED, "top_p": 0.7}])
def test_the_target_alone_against_a_loop_written_out(options: dict[str, Any]) -> None:
    found = SpeculativeDecoder(TARGET, DRAFT).generate_target_only(PROMPT, max_new_tokens=24, **options)
    assert list(found.tokens) == plain(encode(PROMPT), 24, **options)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "length", [FixedLength(1), FixedLength(6), Confidence(0.01, 6), Entropy(3, 6)], ids=str
)
@pytest.mark.parametrize("new_cache", [lambda: None, NGramCache, lambda: NGramCache(2, "lru", 4)])
def test_text_does_not_depend_on_length_or_cache(
    new_cache: Callable[[], NGramCache | None], length: Any, options: dict[str, Any]
) -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=new_cache(), length=length)
    for prompt in (PROMPT, "a tea"):  # the second finds a filled cache
        found = decoder.generate(prompt, max_new_tokens=16, **options)
        assert list(found.tokens) == plain(encode(prompt), 16, **options)
    assert found.stats.tokens == len(found.tokens)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_text_does_not_depend_on_a_rule_that_learns(threshold: float, options: dict[str, Any]) -> None:
    head = AcceptanceHead(threshold, 6, train_every=1)
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache(), length=head)
    for prompt in (PROMPT, "a tea"):
        found = decoder.generate(prompt, max_new_tokens=16, **options)
        assert list(found.tokens) == plain(encode(prompt), 16, **options)
    assert head.net is not None and bool(head.net.out.bias != 0)


def test_a_rule_that_learns_has_a_label_for_every_piece_of_an_n_gram() -> None:
    """The drafter says " t" and "he" only, and the target " the" as well, so that n-grams are proposed."""
    target, draft = only(target_model(), "\u2581t", "he", "\u2581the"), only(draft_model(), "Ġt", "he")
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), length=AcceptanceHead(1.0, 6))
    assert decoder.cache is not None
    decoder.cache.warm_start(decoder.vocabulary)
    keeps = Keeps()
    decoder.observers.append(keeps)
    found = decoder.generate(PROMPT, max_new_tokens=40, **SAMPLED)
    assert found.tokens == decoder.generate_target_only(PROMPT, max_new_tokens=40, **SAMPLED).tokens
    for each in keeps.rounds:
        labels = labels_of(each)
        assert all(len(set(labels[start:stop])) == 1 for start, stop in each.spans)
        assert labels.count(1.0) == sum(stop - start for start, stop in each.spans[: each.verdict.accepted])
    merged = [stop - start for each in keeps.rounds for start, stop in each.spans[: each.accepted]]
    assert max(merged) == 2


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_other_way_round_and_in_float32(options: dict[str, Any]) -> None:
    target, draft = draft_model().float(), target_model().float()
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache())
    expected = decoder.generate_target_only(PROMPT, max_new_tokens=40, **options)
    found = decoder.generate(PROMPT, max_new_tokens=40, **options)
    assert (found.tokens, found.text) == (expected.tokens, expected.text)


def test_most_of_what_a_twin_drafts_is_accepted() -> None:
    """Not all: the text may be spelled otherwise than the target wrote it. Another model agrees by chance."""
    for options in ({}, SAMPLED):
        found = twin().generate(PROMPT, max_new_tokens=24, **options)
        assert found.stats.tokens_per_target_call > 2
        assert twin(seed=6).generate(PROMPT, max_new_tokens=24, **options).stats.tokens_per_target_call < 1.5


def test_a_warm_cache_brings_hits_and_the_same_text() -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache())
    assert decoder.cache is not None
    decoder.cache.warm_start(decoder.vocabulary)
    found = decoder.generate("the the the the", max_new_tokens=24, temperature=1.5, seed=8)
    assert list(found.tokens) == plain(encode("the the the the"), 24, temperature=1.5, seed=8)


def test_the_cache_fills_with_what_the_target_emits() -> None:
    ngrams = NGramCache()
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=ngrams)
    for seed in range(3):
        out = decoder.generate(PROMPT, max_new_tokens=40, temperature=1.2, seed=seed)
        assert list(out.tokens) == plain(encode(PROMPT), 40, temperature=1.2, seed=seed)
    pieces, letters = decoder.vocabulary.target_bytes, decoder.vocabulary.draft_bytes
    assert len(ngrams) > 0
    for entry in ngrams:
        assert b"".join(letters[each] or b"" for each in entry.draft_tokens) == pieces[entry.target_token]


# --- the other rules


@every_rule
def test_greedy_text_is_the_target_s_with_any_rule(verify: Verify) -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache(), verify=verify)
    assert list(decoder.generate(PROMPT, max_new_tokens=24).tokens) == plain(encode(PROMPT), 24)


@every_rule
def test_the_same_seed_gives_the_same_text(verify: Verify) -> None:
    texts = [
        SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache(), verify=verify)
        .generate(PROMPT, max_new_tokens=24, temperature=0.8, seed=seed)
        .tokens
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("verify", ["path_revealed", "ratio"])
def test_rejection_accepts_what_a_twin_draws(verify: Verify) -> None:
    with_twin = SpeculativeDecoder(TARGET, target_model(), verify=verify)
    stats = with_twin.generate(PROMPT, max_new_tokens=24, **SAMPLED).stats
    assert stats.accepted > 0.9 * stats.proposed > 0  # p = q


@pytest.mark.parametrize("positions", [6, 12])
@pytest.mark.parametrize("verify", ["path_revealed", "point_mass"])
def test_other_rules_with_filled_caches_and_short_memories(verify: Verify, positions: int) -> None:
    ngrams = NGramCache(max_entries=20)
    draft, length = draft_model(positions), Confidence(0.01, 4)
    decoder = SpeculativeDecoder(TARGET, draft, cache=ngrams, length=length, verify=verify)
    ngrams.warm_start(decoder.vocabulary)
    out = decoder.generate(PROMPT, max_new_tokens=40, temperature=1.2, top_p=0.9)
    assert len(out.tokens) == 40 or out.finish == "stop token"
    assert out.stats.drafted > 0 and out.stats.accepted <= out.stats.proposed


def only(model: Llama, *pieces: str) -> Llama:
    """The model, saying nothing but these tokens."""
    assert model.tokenizer is not None
    silence = torch.full((model.config.vocab_size,), -torch.inf, dtype=torch.float64)
    silence[[model.tokenizer.token_id(piece) for piece in pieces]] = 0
    model.logits = lambda hidden: model.lm_head(hidden) + silence  # type: ignore[method-assign]
    return model


def pairs_of(vocabulary: VocabularyMap) -> list[tuple[tuple[int, int], int]]:
    """Every two draft tokens that together are a target token."""
    targets = {piece: token for token, piece in enumerate(vocabulary.target_bytes) if piece}
    pieces = [(token, piece) for token, piece in enumerate(vocabulary.draft_bytes) if piece]
    return [
        ((one, other), targets[first + second])
        for one, first in pieces
        for other, second in pieces
        if first + second in targets
    ]


def distribution_of_two_tokens(
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[SpeculativeDecoder], None] = lambda decoder: None,
) -> tuple[Distribution, Distribution]:
    """Exact distributions of the first two tokens, of a decoder and of its target, over all draws.

    The drafter's " t" and "he" are the target's " the": an n-gram. `change` is done to a decoder that has
    answered already.
    """
    target = only(target_model(), "\u2581t", "he", "\u2581the")
    decoder = SpeculativeDecoder(
        target, only(draft_model(), "Ġt", "he"), cache=NGramCache(), length=FixedLength(2), verify=verify
    )
    assert decoder.cache is not None
    decoder.cache.warm_start(decoder.vocabulary)
    for key, token in pairs_of(decoder.vocabulary):  # never drafted here, but they have nodes in the trie
        decoder.cache.add(key, token)
    decoder.cache.commit()
    assert len(decoder.cache) == 4
    prompt = encode(PROMPT)
    decoder.generate(prompt, max_new_tokens=3, temperature=1.0)
    change(decoder)

    def run(draws: RandomDraws) -> tuple[int, ...]:
        monkeypatch.setattr("draftlib.answer.RandomDraws", lambda seed: draws)
        # With a third token, whose draw is of no interest, the second can still be drafted.
        return decoder.generate(prompt, max_new_tokens=3, temperature=1.0).tokens[:2]

    found: Distribution = defaultdict(float)
    for probability, tokens in every_way(run):
        found[tokens] += probability
    alone: Distribution = {}
    first = target(torch.tensor([prompt]))[0, -1].softmax(-1)
    for one in first.nonzero().flatten().tolist():
        second = target(torch.tensor([[*prompt, one]]))[0, -1].softmax(-1)
        for other in second.nonzero().flatten().tolist():
            alone[one, other] = float(first[one] * second[other])
    return found, alone


@pytest.mark.parametrize("verify", ["path_revealed", "point_mass"])
def test_sampled_text_has_the_distribution_of_the_target(
    verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, alone = distribution_of_two_tokens(verify, monkeypatch)
    assert len(alone) == 9 and min(alone.values()) > 1e-3
    assert total_variation(found, alone) < 1e-12


def of_the(decoder: SpeculativeDecoder) -> NGramCache:
    """A cache of one n-gram, " t" "he", that the decoder has already."""
    assert DRAFT.tokenizer is not None and TARGET.tokenizer is not None
    ngrams = NGramCache()
    ngrams.bind(decoder.vocabulary)
    ngrams.add(
        [DRAFT.tokenizer.token_id(piece) for piece in ("Ġt", "he")], TARGET.tokenizer.token_id("\u2581the")
    )
    ngrams.commit()
    return ngrams


def merge(decoder: SpeculativeDecoder) -> None:
    assert decoder.cache is not None
    before = len(decoder.cache)
    decoder.cache.merge(of_the(decoder))
    assert len(decoder.cache) == before


def exchange(decoder: SpeculativeDecoder) -> None:
    decoder.cache = of_the(decoder)


def do_without(decoder: SpeculativeDecoder) -> None:
    decoder.cache = None


def load_again(decoder: SpeculativeDecoder, folder: Path) -> None:
    assert decoder.cache is not None
    decoder.cache.save(folder)
    decoder.cache = NGramCache.load(folder, decoder.vocabulary)


@pytest.mark.parametrize("verify", ["path_revealed", "point_mass"])
@pytest.mark.parametrize("change", [merge, exchange, do_without, load_again])
def test_the_distribution_holds_whatever_becomes_of_the_cache(
    verify: Verify, change: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A merge that adds nothing numbers the nodes of the trie anew; another cache may be put in its place."""
    folder = {"folder": tmp_path} if change is load_again else {}
    found, alone = distribution_of_two_tokens(verify, monkeypatch, lambda decoder: change(decoder, **folder))
    assert total_variation(found, alone) < 1e-12


def test_that_of_the_paper_s_rule_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found, alone = distribution_of_two_tokens("ratio", monkeypatch)
    assert total_variation(found, alone) > 1e-2


# --- prompts


def test_tokens_are_continued_as_they_stand() -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache())
    assert list(decoder.generate(encode(PROMPT), max_new_tokens=9).tokens) == plain(encode(PROMPT), 9)
    single = encode("e")[:1]
    assert list(decoder.generate(single, max_new_tokens=9).tokens) == plain(single, 9)


def test_chat_markers_stand_around_a_string() -> None:
    decoder = SpeculativeDecoder(DRAFT, target_model())
    assert DRAFT.chat is not None
    chat = decoder.generate(PROMPT, max_new_tokens=9).tokens
    assert chat == decoder.generate(DRAFT.chat.prompt(PROMPT), max_new_tokens=9, raw=True).tokens
    assert chat != decoder.generate(PROMPT, max_new_tokens=9, raw=True).tokens


def test_both_have_chat_markers() -> None:
    decoder = SpeculativeDecoder(DRAFT, draft_model())
    out = decoder.generate("a", max_new_tokens=9)
    assert out.tokens == decoder.generate_target_only("a", max_new_tokens=9).tokens
    assert out.stats.accepted > 0.5 * out.stats.proposed


def test_several_prompts_share_the_cache() -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache())
    prompts = [PROMPT, "a tea", PROMPT]
    found = list(decoder.generate_many(prompts, max_new_tokens=12, **SAMPLED))
    assert [list(each.tokens) for each in found] == [plain(encode(each), 12, **SAMPLED) for each in prompts]
    total = sum((each.stats for each in found), draftlib.Stats())
    assert (total.responses, total.tokens) == (3, sum(len(each.tokens) for each in found))


def test_the_context_ends_the_answer() -> None:
    decoder = SpeculativeDecoder(target_model(positions=24), DRAFT)
    out = decoder.generate(PROMPT, max_new_tokens=100)
    assert len(out.tokens) == 24 - len(encode(PROMPT)) + 1
    assert out.finish == "length"
    full = decoder.generate(encode("h" * 24)[:24], max_new_tokens=100)
    assert (len(full.tokens), full.stats.drafted) == (1, 0)


@pytest.mark.parametrize("positions", [6, 12, 20])
def test_a_drafter_with_a_short_memory(positions: int) -> None:
    decoder = SpeculativeDecoder(TARGET, draft_model(positions), cache=NGramCache(), length=FixedLength(4))
    out = decoder.generate(PROMPT, max_new_tokens=40)
    assert list(out.tokens) == plain(encode(PROMPT), 40)
    assert out.stats.drafted > 40


# --- endings


def ending(target: Llama, token: int) -> Llama:
    """The target, ending at one of the tokens that it likes to say."""
    model = model_of(reader_of_pieces(), 5)
    model.generation = replace(model.generation, eos=(*target.generation.eos, token))
    return model


def test_an_ending_inside_a_draft() -> None:
    written = plain(encode(PROMPT), 24)
    last = next(i for i in range(2, 24) if written[i] not in written[:i])
    decoder = SpeculativeDecoder(ending(TARGET, written[last]), target_model(), cache=NGramCache())
    out = decoder.generate(PROMPT, max_new_tokens=24)
    assert (list(out.tokens), out.finish) == (written[: last + 1], "stop token")
    assert out.stats.tokens == len(out.tokens)
    rounds = list(decoder.steps(PROMPT, max_new_tokens=24))
    assert sum((step.tokens for step in rounds), ()) == out.tokens
    assert all(step.accepted <= len(step.tokens) for step in rounds)
    assert out.text == decoder.generate_target_only(PROMPT, max_new_tokens=24).text


def test_the_drafter_s_ending_is_the_target_s() -> None:
    """A drafter that wants to end proposes the target's ending, and nothing behind it."""
    draft = draft_model()
    end = draft.generation.eos[0]
    draft.lm_head.weight = torch.nn.Parameter(draft.lm_head.weight.clone(), requires_grad=False)
    draft.model.norm.weight.data.zero_()  # all logits are equal ...
    draft.logits = lambda hidden: torch.eye(draft.config.vocab_size)[end].expand(*hidden.shape[:-1], -1)  # type: ignore[method-assign]
    decoder = SpeculativeDecoder(TARGET, draft, cache=NGramCache())
    step = next(decoder.steps(PROMPT, max_new_tokens=20))
    assert (step.drafted, step.proposed) == ((end,), TARGET.generation.eos)
    out = decoder.generate(PROMPT, max_new_tokens=20)
    assert list(out.tokens) == plain(encode(PROMPT), 20)


def test_no_n_gram_crosses_an_ending() -> None:
    ngrams = NGramCache()
    SpeculativeDecoder(TARGET, DRAFT, cache=ngrams)
    assert DRAFT.tokenizer is not None
    end = DRAFT.tokenizer.token_id("<|im_end|>")
    with pytest.raises(DraftError, match="must not change text"):
        ngrams.add((ord("a") - 33, end), 5)


def test_stop_strings_and_tokens() -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache())
    whole = decoder.generate(PROMPT, max_new_tokens=30, **SAMPLED)
    stop = whole.text[8:11]
    out = decoder.generate(PROMPT, max_new_tokens=30, stop=["not there", stop], **SAMPLED)
    assert (out.text, out.finish) == (whole.text[: whole.text.index(stop)], "stop string")
    assert out.tokens == whole.tokens[: len(out.tokens)]
    same = decoder.generate_target_only(PROMPT, max_new_tokens=30, stop=stop, **SAMPLED)
    assert (same.tokens, same.text) == (out.tokens, out.text)
    token = whole.tokens[6]
    ended = decoder.generate(PROMPT, max_new_tokens=30, stop=token, **SAMPLED)
    assert ended.tokens == whole.tokens[: whole.tokens.index(token) + 1]
    assert ended.finish == "stop token" and whole.text.startswith(ended.text)


def test_streaming_hands_the_text_on_in_pieces() -> None:
    decoder = SpeculativeDecoder(DRAFT, target_model(), cache=NGramCache())
    for stop in ((), "e", ["\ufffd"]):
        pieces: list[str] = []
        out: Output = decoder.generate(
            PROMPT, max_new_tokens=30, temperature=1.0, stop=stop, raw=True, on_text=pieces.append
        )
        assert "".join(pieces) == out.text
        assert all(pieces) and (len(pieces) > 3 or out.finish == "stop string")
    assert DRAFT.tokenizer is not None
    free = decoder.generate(PROMPT, max_new_tokens=30, temperature=1.0, raw=True)
    assert free.text == DRAFT.tokenizer.decode(free.tokens)


# --- rounds


def test_steps_say_what_happened() -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT, cache=NGramCache(), length=FixedLength(3))
    out = decoder.generate(PROMPT, max_new_tokens=20)
    steps = list(decoder.steps(PROMPT, max_new_tokens=20))
    assert sum((step.tokens for step in steps), ()) == out.tokens
    position = len(encode(PROMPT))
    for number, step in enumerate(steps, 1):
        assert (step.number, step.position) == (number, position)
        assert step.proposed[: step.accepted] == step.tokens[: step.accepted]
        assert len(step.drafted) <= 3 and len(step.spans) == len(step.proposed)
        position += len(step.tokens)
    assert str(steps[0]).startswith("round 1: ") and " -> " in str(steps[0])


def test_nothing_is_drafted_for_the_last_token() -> None:
    *_, last = SpeculativeDecoder(TARGET, DRAFT).steps(PROMPT, max_new_tokens=1)
    assert (last.drafted, last.proposed, len(last.tokens)) == ((), (), 1)


def test_a_prompt_that_the_drafter_cannot_read() -> None:
    """Only special tokens that it lacks: no draft in the first round, the same text."""
    start = [encode("<s>")[0]]
    decoder = SpeculativeDecoder(TARGET, DRAFT)
    assert list(decoder.generate(start, max_new_tokens=12).tokens) == plain(start, 12)
    assert next(decoder.steps(start, max_new_tokens=12)).drafted == ()


# --- observers, rules that learn, drafters that change


class Keeps(Length):
    """Keeps all rounds, as an observer and as a rule for the length of drafts."""

    max_tokens = 3

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        return False

    def learn(self, round: Round) -> None:
        self.rounds.append(round)

    def observe(self, round: Round) -> None:
        self.rounds.append(round)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_an_observer_sees_all_of_a_round(options: dict[str, Any]) -> None:
    """Everything is computed again from the models: what a learner would be taught is true."""
    decoder, keeps = twin(), Keeps()
    decoder.observers.append(keeps)
    draft = target_model()
    steps = list(decoder.steps(PROMPT, max_new_tokens=20, **options))
    assert len(keeps.rounds) == len(steps) and sum(step.accepted for step in steps) > 5
    text = tuple(encode(PROMPT))
    for seen, step in zip(keeps.rounds, steps, strict=True):
        assert seen.context == text and (seen.number, seen.position) == (step.number, len(text))
        assert (seen.tokens, seen.proposed, seen.spans) == (step.tokens, step.proposed, step.spans)
        assert (seen.accepted, len(seen.learned), seen.seconds) == (step.accepted, step.learned, step.seconds)
        rows = TARGET(torch.tensor([[*text, *seen.proposed]]))[0, len(text) - 1 :]
        assert torch.allclose(seen.rows, rows, atol=1e-9)
        if seen.draft is not None:
            assert seen.draft.tokens == step.drafted
            whole = torch.tensor([[*seen.draft_context, *seen.draft.tokens[:-1]]])
            hidden = draft.decode(whole)[0, len(seen.draft_context) - 1 :]
            assert torch.allclose(torch.stack(seen.draft.hidden), hidden, atol=1e-9)
            logprobs = warp(draft.logits(hidden), options.get("temperature", 0.0))
            assert torch.allclose(seen.draft.logprobs.exp(), logprobs.exp(), atol=1e-9)
        text = (*text, *seen.tokens)
    decoder.generate_target_only(PROMPT, max_new_tokens=5)
    assert len(keeps.rounds) == len(steps)


@pytest.mark.parametrize(("verify", "most_probable"), [("point_mass", True), ("path_revealed", False)])
def test_for_point_mass_the_drafter_takes_its_most_probable_tokens(
    verify: Verify, most_probable: bool
) -> None:
    decoder, keeps = SpeculativeDecoder(TARGET, DRAFT, verify=verify), Keeps()
    decoder.observers.append(keeps)
    decoder.generate(PROMPT, max_new_tokens=20, **SAMPLED)
    drafts = [seen.draft for seen in keeps.rounds if seen.draft is not None]
    assert all(list(each.tokens) == each.logprobs.argmax(-1).tolist() for each in drafts) == most_probable


def test_a_length_learns_from_every_round() -> None:
    rule = Keeps()
    decoder = SpeculativeDecoder(TARGET, DRAFT, length=rule)
    steps = list(decoder.steps(PROMPT, max_new_tokens=12))
    assert [seen.number for seen in rule.rounds] == [step.number for step in steps]
    decoder.generate_target_only(PROMPT, max_new_tokens=5)
    assert len(rule.rounds) == len(steps)

    class Simple(Length):
        max_tokens = 2

        def stop(self, drafted: Sequence[Drafted]) -> bool:
            return drafted[-1].confidence < 1

    decoder.length = Simple()  # without a `learn` of its own
    first, *_ = decoder.steps(PROMPT, max_new_tokens=12)
    assert len(first.drafted) == 1


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_drafter_that_changes_between_rounds(options: dict[str, Any]) -> None:
    """A twin of the target that forgets everything: the text stays, and what is accepted does not."""
    draft = target_model()
    decoder = SpeculativeDecoder(TARGET, draft, cache=NGramCache(), length=FixedLength(5))
    assert decoder.trainable_draft is draft and decoder.draft is not None and decoder.draft.packed
    tokens, accepted, keeps = [], [], Keeps()
    decoder.observers.append(keeps)
    for number, step in enumerate(decoder.steps(PROMPT, max_new_tokens=40, **options)):
        tokens += step.tokens
        accepted.append(step.accepted)
        if number == 3:
            packed = decoder.draft
            randomize(draft.float(), 9)
            draft.double()
            decoder.repack_draft()
            assert decoder.draft is not packed and decoder.trainable_draft is draft
    assert tokens == plain(encode(PROMPT), 40, **options)
    assert sum(accepted[:4]) / 4 > 2 * sum(accepted[4:]) / len(accepted[4:])
    for seen in keeps.rounds[4:-1]:  # nothing is left of the keys and values of the old weights
        assert seen.draft is not None
        whole = torch.tensor([[*seen.draft_context, *seen.draft.tokens[:-1]]])
        hidden = draft.decode(whole)[0, len(seen.draft_context) - 1 :]
        assert torch.allclose(torch.stack(seen.draft.hidden), hidden, atol=1e-9)
    again = SpeculativeDecoder(TARGET, draft).generate(PROMPT, max_new_tokens=40, **options)
    assert list(again.tokens) == tokens


def test_a_packed_drafter_cannot_be_trained() -> None:
    decoder = SpeculativeDecoder(TARGET, draft_model().pack())
    assert decoder.trainable_draft is None
    with pytest.raises(DraftError, match="given packed"):
        decoder.repack_draft()


# --- refusals


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ("e" * 97, {}, "98 tokens and the target 96 positions"),
        ([0, 10**6, -1], {}, "1000000, -1 are not in the target's vocabulary"),
        ("a", {"temperature": -0.1}, "temperature=-0.1"),
        ("a", {"top_k": 0}, "top_k=0"),
        ("a", {"top_p": 0.0, "temperature": 1.0}, "top_p=0.0"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens=0"),
        ("a", {"stop": ["x", ""]}, "empty string"),
    ],
)
def test_refused_requests(prompt: Any, options: dict[str, Any], words: str) -> None:
    decoder = SpeculativeDecoder(TARGET, DRAFT)
    for call in (decoder.generate, decoder.steps, decoder.generate_target_only):
        with pytest.raises(DraftError, match=words):
            call(prompt, **options)


def test_refused_pairs_and_settings() -> None:
    with pytest.raises(DraftError, match="verify='loose' is unknown"):
        SpeculativeDecoder(TARGET, DRAFT, verify="loose")  # type: ignore[arg-type]
    with pytest.raises(DraftError, match="at least 1 token"):
        SpeculativeDecoder(TARGET, DRAFT, length=FixedLength(0))
    with pytest.raises(DraftError, match="do not fit"):
        SpeculativeDecoder(TARGET, draft_model(5), length=FixedLength(5))
    with pytest.raises(DraftError, match=r"draft model \(Moonshine\) is no text model"):
        SpeculativeDecoder(TARGET, tiny_moonshine())  # type: ignore[arg-type]
    mute = tiny_llama()
    mute.tokenizer = None
    with pytest.raises(DraftError, match=r"target model .* tokenizer"):
        SpeculativeDecoder(mute, DRAFT)
    with pytest.raises(DraftError, match="on cpu and the draft model on meta"):
        SpeculativeDecoder(TARGET, tiny_llama().to("meta"))
    silent = tiny_llama()
    silent.tokenizer = tiny_tokenizer(("<|nothing|>",))
    with pytest.raises(DraftError, match="no special token that ends a text"):
        SpeculativeDecoder(TARGET, silent)


def test_a_length_of_one_s_own_is_checked() -> None:
    class Never(Length):
        max_tokens = 0

        def stop(self, confidences: Any) -> bool:
            return True

    with pytest.raises(DraftError, match="max_tokens=0"):
        SpeculativeDecoder(TARGET, DRAFT, length=Never())


def test_a_target_whose_rows_depend_on_one_another_is_refused() -> None:
    with pytest.raises(DraftError, match=r"packed for speed only.* pack\(stable=True\)"):
        SpeculativeDecoder(target_model().pack(), DRAFT)
    assert SpeculativeDecoder(target_model().pack(stable=True), DRAFT).target.stable
    assert SpeculativeDecoder(TARGET, DRAFT).target.stable


@pytest.mark.parametrize("method", [qlib.RTN(), qlib.QUIK(columns=2)], ids=["rtn", "quik"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_target_with_one_grid_for_all_tokens_of_a_call_is_refused(method: Any, packed: bool) -> None:
    """The grid is fitted to the tokens that are verified together, so the text depended on the drafts."""

    def rounded(activation: Any) -> Any:
        model = tiny_llama(max_position_embeddings=96)
        calib = ["the heat at a", "a heat"]
        result = qlib.quantize(
            model, method, weight=qlib.Grid(8), calib=calib, activation=activation, progress=False
        )
        return result.model.packed_copy(stable=True) if packed else result.model

    dynamic = rounded(qlib.PerTensor(dynamic=True))
    with pytest.raises(
        DraftError, match=r"inputs of 14 layers by PerTensor\(dynamic=True\).*PerToken\(bits=8\)"
    ):
        SpeculativeDecoder(dynamic, DRAFT)
    for activation in (qlib.PerTensor(), qlib.PerToken()):
        SpeculativeDecoder(rounded(activation), DRAFT)
    if not packed:
        assert (
            SpeculativeDecoder(TARGET, dynamic.double()).draft is not None
        )  # a drafter may propose anything


def test_a_cache_of_another_pair_is_refused() -> None:
    ngrams = NGramCache()
    SpeculativeDecoder(TARGET, DRAFT, cache=ngrams)
    SpeculativeDecoder(TARGET, draft_model(seed=9), cache=ngrams)  # same tokenizers
    with pytest.raises(DraftError, match="another pair of vocabularies"):
        SpeculativeDecoder(DRAFT, TARGET, cache=ngrams)


def test_models_with_more_or_fewer_outputs_than_tokens() -> None:
    assert DRAFT.tokenizer is not None
    wide = tiny_llama(1, vocab_size=DRAFT.tokenizer.vocab_size + 7, max_position_embeddings=96).double()
    wide.lm_head.weight.data[-7:] *= 3  # and likes them
    for pair in ((TARGET, wide), (wide, TARGET)):
        decoder = SpeculativeDecoder(*pair, cache=NGramCache())
        for options in ({}, SAMPLED):
            expected = decoder.generate_target_only("a", max_new_tokens=20, raw=True, **options)
            assert decoder.generate("a", max_new_tokens=20, raw=True, **options).tokens == expected.tokens


# --- sources


ALL_SOURCES = ("suffix", "answers", "recycle", "tail")


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", [True, False], ids=["drafter", "alone"])
@pytest.mark.parametrize("sources", [(), *((each,) for each in ALL_SOURCES), ALL_SOURCES], ids=str)
def test_sources_leave_the_text_as_it_is(
    sources: tuple[str, ...], drafter: bool, options: dict[str, Any]
) -> None:
    draft = draft_model() if drafter else None
    decoder = SpeculativeDecoder(TARGET, draft, cache=NGramCache(), sources=sources)
    for _ in range(2):  # the second time earlier answers are known
        out = decoder.generate(PROMPT, max_new_tokens=40, **options)
        assert list(out.tokens) == plain(encode(PROMPT), 40, **options)


def test_a_text_said_again_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    # A pass takes a second, and no time of this machine counts.
    monkeypatch.setattr(Costs, "_rows", lambda self, rows: 1 + 0.03 * rows)
    decoder = SpeculativeDecoder(TARGET, sources=("answers",))
    first = decoder.generate(PROMPT, max_new_tokens=60)
    again = decoder.generate(PROMPT, max_new_tokens=60)
    assert again.tokens == first.tokens
    assert again.stats.rounds < 0.5 * first.stats.rounds
    assert again.stats.sources["answers"].accepted > 30 and again.stats.drafted == 0


def test_who_may_guess_can_change_within_an_answer() -> None:
    decoder = SpeculativeDecoder(TARGET, draft_model(), cache=NGramCache())
    tokens: list[int] = []
    for number, step in enumerate(decoder.steps(PROMPT, max_new_tokens=40)):
        tokens += step.tokens
        decoder.sources = ALL_SOURCES[: number % 5]
    assert tokens == plain(encode(PROMPT), 40)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("suffix", "sources is"),
        (("sufix",), "Did you mean"),
        (("tail", "tail"), "is taken"),
        ((3,), "no source"),
    ],
)
def test_sources_that_are_none(sources: Any, words: str) -> None:
    with pytest.raises(DraftError, match=words):
        SpeculativeDecoder(TARGET, sources=sources)


def test_without_a_drafter_there_is_none_to_replace() -> None:
    decoder = SpeculativeDecoder(TARGET)
    assert decoder.draft is None and "drafted for" not in repr(decoder)
    with pytest.raises(DraftError, match="without a drafter"):
        decoder.replace_draft(draft_model())
    with pytest.raises(DraftError, match="another vocabulary"):
        SpeculativeDecoder(TARGET, draft_model()).replace_draft(target_model())


# --- real weights


@pytest.mark.weights
def test_real_models_write_the_same_text(checkpoint: Callable[[str], Path]) -> None:
    target = load_model(checkpoint("smollm2-135m-instruct"), dtype=torch.float32)
    draft = load_model(DRAFTER, dtype=torch.float32)
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), length=4)  # type: ignore[arg-type]
    total = draftlib.Stats()
    for prompt in ("What is gravity?", "Tom has 3 apples and buys 4 more. How many?", "Write a haiku."):
        for options in ({}, SAMPLED):
            expected = decoder.generate_target_only(prompt, max_new_tokens=24, **options)
            found = decoder.generate(prompt, max_new_tokens=24, **options)
            assert (found.tokens, found.text) == (expected.tokens, expected.text)
            total += found.stats
    assert total.tokens_per_target_call > 1.3


@pytest.mark.weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_models_write_the_same_text_while_the_drafter_learns(
    checkpoint: Callable[[str], Path], dtype: torch.dtype
) -> None:
    """The drafter that has read nothing of its target learns, and the text stays."""
    target = load_model(checkpoint("smollm2-135m-instruct"), dtype=dtype)
    draft = load_model(DRAFTER.with_name("drafter-generic-7m"), dtype=dtype)
    adapter = draftlib.OnlineAdapter(update_every=3, share=math.inf)
    decoder = SpeculativeDecoder(
        target,  # type: ignore[arg-type]
        draft,  # type: ignore[arg-type]
        cache=NGramCache(max_entries=20),
        adapter=adapter,
        sources=ALL_SOURCES,
    )
    for number in range(3):
        for prompt in ("Tom has 3 apples and buys 4 more. How many?", "What is 12 times 4? Explain."):
            for options in ({}, {"temperature": 0.8, "seed": number}):
                expected = decoder.generate_target_only(prompt, max_new_tokens=48, **options)
                found = decoder.generate(prompt, max_new_tokens=48, **options)
                assert (found.tokens, found.text) == (expected.tokens, expected.text)
    assert adapter.kept and adapter.dropped == 0  # a changed drafter wrote some of the texts
