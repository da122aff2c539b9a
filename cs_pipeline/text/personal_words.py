"""What ``personal.py`` decides by: the words of ``personal.yaml``, and the patterns made of them.

No pattern matches the NUL that stands where something was found already, and none takes more than linear time.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from cs_pipeline.core.yaml_file import read_yaml


def normal(words: str) -> str:
    """``words`` as they stand in the file: lower case, single spaces, straight apostrophes."""
    return " ".join(words.lower().replace("’", "'").split())


def _any(words: Iterable[str]) -> str:
    """A pattern of any of ``words``, the longest first."""
    ordered = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\ ", r"[ \t]+").replace("'", "['’]") for word in ordered)


_FILE = read_yaml(Path(__file__).with_name("personal.yaml"))

MEANING: dict[str, str] = {word: name for name, words in _FILE["numbers"].items() for word in words}
"""What a number is, by the word that announces it: a placeholder, or "Phone"."""
DESK_ADDRESSES = frozenset(_FILE["desk_addresses"])
OWN_NAMES = frozenset(_FILE["own_names"])
NOT_NAMES = frozenset(word.lower() for key in ("not_names", "closings", "greetings", "titles") for word in _FILE[key])
NAME_WORDS = frozenset(_FILE["name_words"])

# Braces with a digit or an @ in them are not trusted to be a placeholder.
PLACEHOLDER = re.compile(r"\{\{[^{}\n@\d]*\}\}")

# Links. What follows a placeholder inside a link is read as one of its own.
LINK = re.compile(
    r"(?:https?://|\bwww\.)[^\s<>\"'\0]+|(?<![\w@.-])(?:[\w-]{1,63}\.){1,8}[a-zA-Z]{2,24}/[^\s<>\"'\0]+"
    r"|(?<=\0)[/?&#][^\s<>\"'\0]+",
    re.I,
)
TOKEN = re.compile(
    r"[?#&][^=]*=|@|%40"
    r"|/[\w.~%+-]*\d{6}"
    r"|/[A-Za-z\d+~]*(?:\d[A-Za-z+~]|[A-Za-z+~]\d)[A-Za-z\d+~]*(?<=[A-Za-z\d+~]{16})"
    r"|/[\da-fA-F]{8}-(?:[\da-fA-F]{4}-){3}[\da-fA-F]{12}"
    r"|/(?:[\w~-]*?[A-Za-z]\d){3}"
)

# Numbers.
DIGIT = re.compile(r"\d")
DIGITS = {count: re.compile(rf"\d(?:[^\d\0]{{0,3}}\d){{{count - 1}}}") for count in (3, 5, 13)}
_CUT = r"([ .-]?)"
CARD = (
    rf"(?<![\w.-])(?:[2-6]\d{{3}}{_CUT}\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{3}})?|3\d{{3}}{_CUT}\d{{6}}\2\d{{4,5}}|[2-6]\d{{12,18}})"
    r"(?!\w|[.-]\d)"
)
"""Groups of 4-4-4-4, 4-4-4-4-3, 4-6-5 and 4-6-4 digits, and 13 to 19 digits without groups."""
CARD_JOINTS = [("-", ""), (" ", ""), (".", "")]
IBAN = re.compile(r"(?<![A-Za-z\d])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z\d]){11,30}(?![A-Za-z\d])")
IP = re.compile(r"\d\.\d{1,3}\.\d|:[\dA-Fa-f]{0,4}:")
VERSION = re.compile(rf"(?<!\w)(?:{_any(_FILE['versions'])})(?:[ \t]*(?:is|number|:))?[ \t]*\Z", re.I)
_CODE = r"[^\W_]+(?:[-/_.][^\W_]+)*"
ANNOUNCED = re.compile(
    rf"(?<!\w)(?P<what>{_any(word for word, name in MEANING.items() if name != 'Phone')})"
    rf"(?P<label>(?:[ \t]*(?:(?:{_any(_FILE['number_labels'])})\b\.?|[#:]))+)?"
    rf"(?:[ \t]+(?:is|was|ist)\b)?[ \t]*[:=#(-]?[ \t]*(?P<value>(?=[^\s\0]{{0,20}}\d){_CODE}(?: \d{{3,}})*)",
    re.I,
)
NUMBER = re.compile(
    # A code of letters and digits.
    rf"(?<!\w)(?<!\w[-/_.])(?=[^\s\0]{{0,40}}[^\W\d_])(?=(?:[^\s\d\0]{{0,12}}\d){{6}}){_CODE}(?!\w)"
    # Digits with the joints of phone numbers.
    r"|(?<!\w)(?<!\w[-/.])(?:\+|\(\d{1,5}\)[ .-]{0,2})?\d(?:(?: ?[-‑–/] ?| ?\(|\)[ -]?|[. ])?\d){4,}(?!\w)"
)
DATE_OR_AMOUNT = re.compile(
    r"(?<!\d)(?<!\d[./-])(?:(?:19|20)\d\d([./-])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?:T[\d:.]+)?"
    r"|(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)?\d\d)(?!\d|[./-]\d)"
    r"|[$€£¥₹][ ]?\d[\d.,]*|(?<![\d.,])\d[\d.,]*[ ]?(?:[$€£¥₹%]"
    r"|(?:eur|usd|gbp|inr|aud|cad|chf|dollars?|euros?|pounds?|rupees)\b)",
    re.I,
)
CUE = re.compile(rf"(?<!\w)(?:{_any(MEANING)})(?!\w)", re.I)
SENTENCE_END = re.compile(r"(?<!\btel)(?<!\bno)(?<!\bnr)(?<!\bph)(?<!\bmob)(?<!\bref)[.!?;]\s|\n", re.I)

# Whose an address or a number is, by what stands right before it.
_REACHED = r"e-?mail|mail|address|inbox|mailbox|phone|telephone|mobile|cell|number|line|contact|details"
DESK_IS_MEANT = re.compile(
    rf"\byour(?: [\w-]+){{0,3}} (?:{_REACHED}|hotline|helpline|desk|team|support|website|page)\b[^.!?\n]{{0,15}}\Z"
    r"|\b(?:called|phoned|rang|dial(?:l?ed)?|(?:wrote|written) to|e-?mailed|contacted)(?: you)?(?: (?:at|on|under))? \W*\Z"
    r"|\byou (?:at|on|under) \W*\Z",
    re.I,
)
CUSTOMER_IS_MEANT = re.compile(
    rf"\byour(?: [\w-]+){{0,3}} (?:{_REACHED})\b[^.!?\n]{{0,15}}\Z|\byou (?:back )?(?:at|on|under|via) \W*\Z"
    r"|\b(?:sent|mailed|forwarded|delivered|texted)\b[^.!?\n]{0,25}\bto \W*\Z|\b(?:on file|registered)\b[^.!?\n]{0,20}\Z",
    re.I,
)

# Lines of a postal address.
_STREETS = _FILE["streets"]
_PLACE = r"[A-ZÀ-ÖØ-Þ][\w'’-]{0,30}"
_CAPITAL = rf"{_PLACE}\.?"
_NUMBER = r"(?<![\w#$€£.,/-])\d{1,5}[A-Za-z]?(?:[-/]\d{1,4})?"
_PARTICLE = r"(?:de|du|des|del|della|dei|di|da|do|dos|la|le|les|las|los|el)\b|(?:d|l)['’]"
_STATES = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY]"
    "|NSW|VIC|QLD|SA|TAS|ACT|NT"
)
ADDRESSES = [
    (re.compile(rare), re.compile(pattern))
    for rare, pattern in (
        (r"\d", rf"{_NUMBER},?[ \t]+(?:(?:{_CAPITAL}|\d{{1,3}}(?:st|nd|rd|th))[ \t]+){{1,4}}"
                rf"(?:{_any(_STREETS['english'])})\b(?:\.(?=,|[ \t]+[a-z\d#]))?"
                r"(?:,?[ \t]+(?:(?i:apt|apartment|suite|ste|unit|flat|floor)\b\.?[ \t]*#?|#)[ \t]*\w{1,6}\b)?"),
        (r"\d", rf"{_NUMBER}[ \t]+(?:[a-z'’-]{{3,20}}[ \t]+){{1,2}}(?:street|avenue|road|lane|boulevard)\b"),
        (r"[a-z.][ \t]\d", r"(?<!\w)(?:[A-ZÄÖÜ]\w{0,20}[ \t-])?[A-ZÄÖÜ][\wß-]{0,30}?"
                           rf"(?:{_any(_STREETS['german'])})[ \t]+\d{{1,4}}[ \t]?[a-zA-Z]?\b"),
        (r"\d", rf"{_NUMBER}(?:[ \t]?(?:bis|ter))?,?[ \t]+(?i:{_any(_STREETS['french'])})"
                rf"(?:(?:[ \t]+|(?<=['’]))(?:{_PARTICLE}|{_PLACE})){{1,6}}"),
        (r"\d", rf"(?<!\w)(?:{_any(_STREETS['southern'])})[ \t]+(?:(?:{_PARTICLE}|{_CAPITAL})[ \t]+){{0,5}}{_CAPITAL},?"
                r"[ \t]+(?:n[.º°]{0,2}[ \t]*)?\d{1,4}\b"),
        (r"[A-Z]{2}[ \t]+\d{4}", rf"(?:{_CAPITAL}[ \t]){{0,2}}{_CAPITAL},?[ \t]+(?:{_STATES})[ \t]+"
                                  r"\d{4,5}(?:-\d{4})?\b"),
        (r"\d[A-Z]{2}\b", rf"(?:{_CAPITAL},?[ \t]+)?\b[A-Z]{{1,2}}\d[A-Z\d]?[ \t]\d[A-Z]{{2}}\b"),
        (r"\d{5}[ \t]", r"(?:(?<=\0)|(?<=\0 )|(?<=, )|(?<=\n)|\A)(?:[A-Z]{1,2}-)?\d{5}[ \t]+"
                        rf"[A-ZÀ-ÖØ-Þ][\w'’-]{{2,30}}(?:[ \t]{_PLACE})?"),
        (r"\d", r"(?<!\w)(?i:zip(?:[ -]?code)?|post(?:al)?[ -]?code|plz)(?:[ \t]+(?:is|ist))?[ \t:]+"
                r"[A-Z\d][A-Z\d -]{2,8}\b(?<=\d|[A-Z])"),
        (r"\d", r"(?<!\w)(?i:p\.?[ ]?o\.?[ ]?box|postfach|apartado|bo[iî]te postale)[ \t]+\d[\d ]{0,7}\b"),
    )
]  # fmt: skip
"""Patterns, each with one that is quicker and finds something wherever it does."""

# Names, by what announces them.
WORD = re.compile(r"[^\W\d_]{1,30}(?:['’-][^\W\d_]{1,30}){0,3}")
_NAME = rf"(?P<name>{WORD.pattern}(?:[ \t]+(?:{WORD.pattern}|[^\W\d_]\.(?=[ \t]))){{0,2}})"
_TITLE = rf"(?:(?P<title>{_any(_FILE['titles'])})\b\.?[ \t]+)?"
_NAME_LINES = ["name", "full name", "first name", "last name"]
_THIS_IS = ["this is", "i am", "i'm", "it's"]

NAMES = [
    (
        [frozenset(phrase.lower().split()) for phrase in announcing],
        re.compile(before.format(rf"(?P<said>(?i:{_any(announcing)}))") + _TITLE + _NAME + after, re.M),
        whose,
    )
    for whose, announcing, before, after in (
        ("own", _FILE["closings"], r"(?<!\w){}[ \t]*[,.!–-]*[ \t]*\n\s*", r"[ \t]*[,.]?[ \t]*$"),
        ("own", _FILE["closings"], r"(?<!\w){},?[ \t]+", r"[.!]?\s*\Z"),
        ("own", _FILE["own_names"], r"(?<!\w){}[ \t]*:?[ \t]+", ""),
        ("own", _THIS_IS, r"(?<!\w){}[ \t]+", r"(?=,|[ \t]+(?:from|here|speaking|calling|writing|with|again)\b)"),
        ("own", _NAME_LINES, r"^[ \t]*{}[ \t]*:[ \t]*", ""),
        ("addressed", _FILE["greetings"], r"(?<!\w){}(?:[ \t]+(?:there|again))?,?[ \t]+", ""),
        ("addressed", _FILE["titles"], r"(?<!\w)(?={}\b)", ""),
        ("other", _FILE["others_names"], r"(?<!\w){}(?:[ \t]+(?:is|was|called|named))?,?[ \t]+", ""),
    )
]
"""The words of each phrase that announces a name, the pattern of phrase and name, and whose name it is: the speaker's own,
that of who is addressed, or another's."""

_PUNCTUATION = str.maketrans({"’": "'"} | dict.fromkeys(",.:;!?()–\n", " "))


def said(text: str) -> frozenset[str]:
    """The words of ``text`` in lower case, each once."""
    return frozenset(text.lower().translate(_PUNCTUATION).split())
