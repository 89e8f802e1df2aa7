"""Greedy transcription: against a loop without cache or batch, and at its edges."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from speech_fixtures import multilingual_whisper, noise, utterances
from torch import Tensor

from qlib.asr.audio import split_windows
from qlib.asr.greedy import greedy
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.wer import score
from qlib.asr.window_queue import WindowQueue
from qlib.errors import DataError, ModelError
from qlib.models.log_mel import log_mel
from qlib.models.moonshine import Moonshine
from qlib.models.structure import Model
from qlib.models.tiny import tiny_moonshine, tiny_whisper
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper
from qlib.models.whisper_config import WhisperConfig


@pytest.fixture(scope="module")
def model() -> Whisper:
    return tiny_whisper(seed=5)


def slow_greedy(model: Whisper, audio: Tensor) -> list[int]:
    """Feed the whole text again for every token, one recording at a time."""
    generation, prompt = model.generation, model.generation.prompt()
    states, tokens = model.encode(log_mel(audio)[None]), list(prompt)
    while len(tokens) < model.config.max_target_positions:
        cache = model.start(states)
        logits = model.proj_out(model.decode(torch.tensor([tokens]), cache)[0, -1])
        logits[list(generation.suppress)] = -torch.inf
        if len(tokens) == len(prompt):
            logits[list(generation.suppress_first)] = -torch.inf
        if (best := int(logits.argmax())) == generation.end:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


@pytest.fixture(scope="module", params=[42, 49], ids=["last row ends first", "first row ends first"])
def eager(request: pytest.FixtureRequest) -> Whisper:
    """A miniature whose texts end at different times: its end token is often likely."""
    model = tiny_whisper(request.param)
    model.proj_out.weight[model.generation.end] *= 3
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_the_slow_loop_for_every_batch_size(eager: Whisper, batch_size: int) -> None:
    audios = [noise(seconds, i) for i, seconds in enumerate((0.5, 1, 2, 4))]
    expected = [slow_greedy(eager, audio) for audio in audios]
    assert len({len(tokens) for tokens in expected}) > 2, "the texts must end at different times"
    found = transcribe(eager, audios, batch_size=batch_size)
    assert [list(transcript.tokens) for transcript in found] == expected
    assert [transcript.seconds for transcript in found] == [0.5, 1, 2, 4]
    assert eager.tokenizer is not None
    assert [str(each) for each in found] == [eager.tokenizer.decode(tokens).strip() for tokens in expected]


def test_suppressed_tokens_never_appear(model: Whisper) -> None:
    first = transcribe(model, [noise(1)])[0].tokens[0]
    banned = replace(model.generation, suppress_first=(first,))
    other = transcribe(with_generation(model, banned), [noise(1)])[0].tokens
    assert other[0] != first
    banned = replace(model.generation, suppress=tuple(set(other)))
    assert not set(other) & set(transcribe(with_generation(model, banned), [noise(1)])[0].tokens)


def with_generation(model: Whisper, generation: object) -> Whisper:
    changed = tiny_whisper(seed=5)
    changed.load_state_dict(model.state_dict())
    changed.generation = generation  # type: ignore[assignment]
    return changed


def test_any_of_several_ends_ends_a_text(model: Whisper) -> None:
    tokens = transcribe(model, [noise(1)])[0].tokens
    end = next(token for token in tokens[3:] if token not in tokens[:3])
    for generation in (
        replace(model.generation, other_ends=(end,)),
        replace(model.generation, end=end, other_ends=(model.generation.end,)),
    ):
        found = transcribe(with_generation(model, generation), [noise(1)])[0].tokens
        assert found == tokens[: tokens.index(end)]


def test_an_encoder_of_another_length_is_refused_before_any_work() -> None:
    with pytest.raises(ModelError, match=r"has 20 positions .* reads 0\.4 s.* 1500"):
        transcribe(tiny_whisper(frames=20), [noise(1)])


def test_text_ends_when_the_positions_are_used_up(model: Whisper) -> None:
    forever = with_generation(model, replace(model.generation, suppress=(model.generation.end,)))
    tokens = transcribe(forever, [noise(1), noise(2)])[1].tokens
    assert len(tokens) == model.config.max_target_positions - 2


def test_long_audio_is_the_windows_one_after_another(model: Whisper) -> None:
    long = noise(70)
    parts = split_windows(long)
    assert len(parts) >= 3
    whole, *pieces = transcribe(model, [long, *parts], batch_size=4)
    assert whole.tokens == tuple(token for piece in pieces for token in piece.tokens)
    assert whole.text == " ".join(piece.text for piece in pieces)
    assert whole.seconds == 70


def test_silence_and_nothing_do_not_crash(model: Whisper) -> None:
    nothing, silence = transcribe(model, [torch.zeros(0), torch.zeros(SAMPLE_RATE)])
    assert (nothing.text, nothing.tokens, nothing.seconds) == ("", (), 0.0)
    assert isinstance(silence.text, str)
    assert transcribe(model, []) == []


def test_more_recordings_than_one_sorting_holds(model: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    audios = [noise(0.2 * (i % 3 + 1), i) for i in range(7)]
    expected = transcribe(model, audios, batch_size=2)
    monkeypatch.setattr("qlib.asr.window_queue.SECONDS_TOGETHER", 0)
    monkeypatch.setattr("qlib.asr.window_queue.CHUNK_SECONDS", 0.5)  # room for one second
    assert transcribe(model, audios, batch_size=2) == expected


def test_memory_is_bounded_by_seconds_not_by_recordings(
    model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than the bound, a block and a window of sound wait, whatever the recordings are."""
    monkeypatch.setattr("qlib.asr.window_queue.SECONDS_TOGETHER", 4)
    monkeypatch.setattr("qlib.asr.window_queue.CHUNK_SECONDS", 1)
    monkeypatch.setattr(Whisper, "window_seconds", 1.0)
    monkeypatch.setattr("qlib.asr.audio_file.BLOCK_SECONDS", 2)
    soundfile.write(tmp_path / "long.wav", noise(30).numpy(), SAMPLE_RATE)
    recordings = [tmp_path / "long.wav", *(noise(0.5, i) for i in range(20)), tmp_path / "long.wav"]
    held, decode = [], WindowQueue.decode
    monkeypatch.setattr(
        WindowQueue,
        "decode",
        lambda queue: held.append(sum(len(w.samples) for w in queue._waiting)) or decode(queue),
    )
    found = transcribe(model, recordings, batch_size=4)
    assert 4 * SAMPLE_RATE <= max(held) <= 5 * SAMPLE_RATE and len(held) >= 70 / 5
    assert [each.seconds for each in found] == [30, *[0.5] * 20, 30]
    assert found[0].tokens == found[-1].tokens and len(found[0].tokens) > 62, "of several windows"


def test_a_long_file_is_heard_as_the_same_waveform(model: Whisper, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", noise(130).numpy(), SAMPLE_RATE, subtype="FLOAT")
    file, waveform = transcribe(model, [tmp_path / "long.wav", noise(130)])
    assert file == waveform


def test_digital_silence_needs_no_model(model: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = noise(40)
    loud = transcribe(model, [speech])[0]
    quiet = torch.cat([torch.zeros(60 * SAMPLE_RATE), speech])
    windows = [bool(window.any()) for window in split_windows(quiet)]
    assert windows == [False, True, True, True] or windows == [False, False, True, True]
    assert transcribe(model, [quiet])[0].tokens[-62:] == loud.tokens[-62:]
    monkeypatch.setattr(model, "encode", None)  # nothing may be heard
    for value in (0.0, 0.25, -1 / 32768):
        (silence,) = transcribe(model, [torch.full((70 * SAMPLE_RATE,), value)])
        assert (silence.text, silence.tokens, silence.seconds) == ("", (), 70)


def test_each_utterance_is_prompted_in_its_own_language(tmp_path: Path) -> None:
    model, listed = multilingual_whisper(), utterances(tmp_path)
    languages = ["English", "de", "German", "en-US"]
    spoken = [replace(each, language=name) for each, name in zip(listed, languages, strict=True)]
    english, german = (transcribe(model, listed, language=name) for name in ("en", "german"))
    assert english[1] != german[1]
    assert transcribe(model, spoken) == [english[0], german[1], german[2], english[3]], "in one batch"
    assert transcribe(model, spoken, language="en") == english
    unknown = [replace(spoken[0], language=""), *spoken[1:]]  # taken for English, whatever it sounds like
    result = evaluate_wer(model, unknown)
    assert result.normalizer.startswith("whisper-english") and "and whisper-basic" in result.normalizer
    texts = [each.text for each in (english[0], german[1], german[2], english[3])]
    assert result == score([each.text or "" for each in listed], texts, languages=["en", "de", "de", "en"])
    assert result.ids == ("noise0", "noise1", "noise2", "noise3")
    assert evaluate_wer(model, spoken, language="en").normalizer == result.normalizer.partition(" and ")[0]


def test_a_language_of_the_list_that_the_model_lacks_is_named(model: Whisper, tmp_path: Path) -> None:
    first, second, *_ = utterances(tmp_path)
    with pytest.raises(ModelError, match=r"line 2: This checkpoint only transcribes English; language='de'"):
        transcribe(model, [first, replace(second, language="German")])
    with pytest.raises(DataError, match=r"line 2: unknown language 'germn'\. Did you mean 'german'"):
        evaluate_wer(model, [first, replace(second, language="germn")])
    with pytest.raises(ModelError, match=r"line 1: Unknown language 'fr'\. Known: de, en"):
        transcribe(multilingual_whisper(), [replace(first, language="french")])


def test_a_whisper_that_hears_less_than_30_s() -> None:
    model = tiny_whisper(seed=5, frames=100)  # 2 s
    audio = noise(5)
    windows = split_windows(audio, seconds=2)
    whole, *parts = transcribe(model, [audio, *windows])
    assert len(parts) >= 3
    assert whole.tokens == tuple(token for part in parts for token in part.tokens)
    with pytest.raises(ModelError, match=r"8 positions and reads 0\.16 s at once"):
        transcribe(tiny_whisper(frames=8), [audio])


def test_the_bar_counts_recordings(model: Whisper, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = [noise(70), torch.zeros(100), noise(1)]
    transcribe(model, recordings)
    assert "3/3" in capsys.readouterr().err, "shown if nothing else is said"
    transcribe(model, recordings, progress=False)
    assert capsys.readouterr().err == ""


def test_paths_and_utterances_are_read(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    assert transcribe(model, listed) == transcribe(model, [each.audio for each in listed])
    assert transcribe(model, [str(listed[0].audio)])[0].tokens == transcribe(model, listed)[0].tokens


def test_state_is_left_as_it_was(model: Whisper) -> None:
    before = torch.get_rng_state()
    transcribe(model, [noise(1)])
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_takes_any_head(model: Whisper) -> None:
    cache, prompt = model.start(model.encode(log_mel(noise(1))[None])), model.generation.prompt()
    expected = list(transcribe(model, [noise(1)])[0].tokens)
    assert greedy(model, model.proj_out, cache, prompt, [62]) == [expected]


def slow_moonshine(model: Moonshine, audio: Tensor) -> list[int]:
    """Encode one recording alone, and feed the whole text again for every token."""
    states, tokens = model.encode(audio[None]), [1]
    while len(tokens) - 1 < len(audio) / SAMPLE_RATE * 6.5:
        logits = model.proj_out(model.decode(torch.tensor([tokens]), model.start(states))[0, -1])
        if (best := int(logits.argmax())) == 2:
            break
        tokens.append(best)
    return tokens[1:]


@pytest.fixture(scope="module", params=[15, 35])
def moonshine(request: pytest.FixtureRequest) -> Moonshine:
    """A miniature whose texts end at different times: by its end token, or by the length of the audio."""
    model = tiny_moonshine(request.param)
    model.proj_out.weight[model.generation.end] *= 5
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_moonshine_equals_the_slow_loop_for_every_batch_size(moonshine: Moonshine, batch_size: int) -> None:
    audios = [noise(seconds, i) for i, seconds in enumerate((0.5, 1, 2, 4, 0.9))]
    expected = [slow_moonshine(moonshine, audio) for audio in audios]
    limits = [math.ceil(6.5 * seconds) for seconds in (0.5, 1, 2, 4, 0.9)]
    lengths = [len(tokens) for tokens in expected]
    ended = [length < limit for length, limit in zip(lengths, limits, strict=True)]
    assert any(ended) and not all(ended) and len(set(lengths)) > 2, "the texts must end at different times"
    found = transcribe(moonshine, audios, batch_size=batch_size)
    assert [list(transcript.tokens) for transcript in found] == expected


def test_moonshine_stops_where_no_speech_could_go_on() -> None:
    model = tiny_moonshine()
    model.model.decoder.norm.weight.zero_()  # all logits are equal: the same token for ever
    second, blip, long = transcribe(model, [noise(16_001 / SAMPLE_RATE), noise(40 / SAMPLE_RATE), noise(20)])
    assert (len(second.tokens), len(blip.tokens)) == (7, 1)
    assert len(long.tokens) == model.config.max_position_embeddings - 1, "130 are more than its positions"


def test_moonshine_knows_one_language(moonshine: Moonshine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="language='de'"):
        transcribe(moonshine, [noise(1)], language="de")
    listed = utterances(tmp_path)
    heard = [transcript.text for transcript in transcribe(moonshine, listed)]
    assert evaluate_wer(moonshine, listed, batch_size=3) == score([each.text or "" for each in listed], heard)


def test_wer_of_a_model(model: Whisper, tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    heard = [transcript.text for transcript in transcribe(model, listed)]
    result = evaluate_wer(model, listed, batch_size=3)
    assert result == score([each.text or "" for each in listed], heard)
    assert result.words == 11 and result.wer > 50
    assert "|dec:greedy|" in result.signature


def test_errors_name_the_cause(model: Whisper, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="put the single one into a list"):
        transcribe(model, noise(1))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size=0"):
        transcribe(model, [noise(1)], batch_size=0)
    with pytest.raises(ModelError, match="only transcribes English"):
        transcribe(model, [noise(1)], language="de")
    listed = utterances(tmp_path)
    listed[2].audio.unlink()
    with pytest.raises(DataError, match=r"list\.jsonl, line 3.*noise2\.wav"):
        transcribe(model, listed)
    with pytest.raises(DataError, match=r"line 1"):
        evaluate_wer(model, [replace(listed[0], text=None)])
    bare = Whisper(WhisperConfig.from_dict(model.config.to_dict()), model.generation)
    with pytest.raises(ModelError, match="no tokenizer"):
        transcribe(bare, [noise(1)])
    with pytest.raises(ModelError, match=r"A Model does not transcribe speech\. Load a Whisper or Moonshine"):
        transcribe(Model(), [noise(1)])
