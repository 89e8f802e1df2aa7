"""Languages: the list of Whisper, names, locales."""

from __future__ import annotations

import pytest

from qlib.asr.languages import LANGUAGES, language_code
from qlib.errors import DataError, ModelError


def test_the_list_is_whispers() -> None:
    theirs = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert {code: name.replace("_", " ") for code, name in LANGUAGES.items()} == theirs.LANGUAGES
    for name, code in theirs.TO_LANGUAGE_CODE.items():
        assert language_code(name.title()) == code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("DE", "de"), (" german ", "de"), ("de-AT", "de"), ("zh_CN", "zh"), ("zh-Hant-TW", "zh"),
        ("yue", "yue"), ("Haitian Creole", "ht"), ("haitian-creole", "ht"),
        ("burmese", "my"), ("nb-NO", "no"),
    ],
)  # fmt: skip
def test_codes_names_and_locales(given: str, code: str) -> None:
    assert language_code(given) == code


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("germna", r"language: unknown language 'germna'\. Did you mean 'german'\?.*Known: af, am"),
        ("xx", r"unknown language 'xx'\."),
        ("", r"unknown language ''"),
        (None, r"language is None, not a language"),
        (["de"], r"language is a list of 1 str"),
    ],
)
def test_what_is_no_language(given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        language_code(given)
    with pytest.raises(ModelError, match=r"x\.csv, line 3"):
        language_code(given, "x.csv, line 3", ModelError)
