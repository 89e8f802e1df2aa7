"""Languages of speech: codes, English names, and how a text of each is scored.

Whisper's list: 100 languages, with the code that its prompt has (``<|de|>``). People write them as codes
("de"), names ("German") or locales ("de-DE", "pt_BR"); `language_code` understands all three.
"""

from __future__ import annotations

from qlib.errors import DataError, QlibError, describe, did_you_mean

_LIST = """
en:english zh:chinese de:german es:spanish ru:russian ko:korean fr:french ja:japanese pt:portuguese
tr:turkish pl:polish ca:catalan nl:dutch ar:arabic sv:swedish it:italian id:indonesian hi:hindi
fi:finnish vi:vietnamese he:hebrew uk:ukrainian el:greek ms:malay cs:czech ro:romanian da:danish
hu:hungarian ta:tamil no:norwegian th:thai ur:urdu hr:croatian bg:bulgarian lt:lithuanian la:latin
mi:maori ml:malayalam cy:welsh sk:slovak te:telugu fa:persian lv:latvian bn:bengali sr:serbian
az:azerbaijani sl:slovenian kn:kannada et:estonian mk:macedonian br:breton eu:basque is:icelandic
hy:armenian ne:nepali mn:mongolian bs:bosnian kk:kazakh sq:albanian sw:swahili gl:galician mr:marathi
pa:punjabi si:sinhala km:khmer sn:shona yo:yoruba so:somali af:afrikaans oc:occitan ka:georgian
be:belarusian tg:tajik sd:sindhi gu:gujarati am:amharic yi:yiddish lo:lao uz:uzbek fo:faroese
ht:haitian_creole ps:pashto tk:turkmen nn:nynorsk mt:maltese sa:sanskrit lb:luxembourgish my:myanmar
bo:tibetan tl:tagalog mg:malagasy as:assamese tt:tatar haw:hawaiian ln:lingala ha:hausa ba:bashkir
jw:javanese su:sundanese yue:cantonese
"""
LANGUAGES = {code: name for code, _, name in (entry.partition(":") for entry in _LIST.split())}
OTHER_NAMES = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "pushto": "ps", "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si",
    "castilian": "es", "mandarin": "zh", "farsi": "fa", "jv": "jw", "nb": "no", "iw": "he",
}  # fmt: skip
CODES = {**{name: code for code, name in LANGUAGES.items()}, **OTHER_NAMES, **{c: c for c in LANGUAGES}}

# Written without spaces between words, so a rate of words says nothing: Whisper's paper, appendix C, and
# Cantonese, which came later.
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def language_code(language: object, name: str = "language", error: type[QlibError] = DataError) -> str:
    """Return the code of a language given as a code, an English name or a locale.

    Parameters
    ----------
    language : object
        For example ``"de"``, ``"German"`` or ``"de-DE"``.
    name : str
        What it is called in the message: an argument, or a place in a list.
    error : type of QlibError
        What to raise.

    >>> language_code("German"), language_code("pt_BR"), language_code("YUE")
    ('de', 'pt', 'yue')
    """
    remedy = 'Use a code such as "de", or an English name such as "german".'
    if not isinstance(language, str):
        raise error(f"{name} is {describe(language)}, not a language. {remedy}")
    word = "_".join(language.lower().replace("-", " ").replace("_", " ").split())
    for candidate in (word, word.partition("_")[0]):
        if candidate in CODES:
            return CODES[candidate]
    raise error(
        f"{name}: unknown language {language!r}.{did_you_mean(word, CODES)} {remedy} "
        f"Known: {', '.join(sorted(LANGUAGES))}."
    )
