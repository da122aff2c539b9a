"""Placeholders such as ``{{Order Number}}``: their catalogue, their spellings, and the text that replaces them.

The catalogue is ``placeholders.yaml``, whose comments explain each key. A placeholder is a name in double braces on one
line. A placeholder that is not in the catalogue is called unknown. It stays in the text in every mode.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.yaml_file import read_yaml

Speaker = Literal["customer", "agent"]


class PlaceholderMode(StrEnum):
    """How placeholders are shown to a model."""

    KEEP = "keep"
    GENERIC = "generic"
    STRIP = "strip"
    REALISTIC = "realistic"


_PlainText = Annotated[str, Field(pattern=r"^[^{}\n]+$")]


class Placeholder(BaseModel):
    """The catalogue's entry for one placeholder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phrase: _PlainText
    determiner: Literal["customer", "company", "this"] | None = None
    modifier: Literal[""] | _PlainText | None = None
    lead: _PlainText | None = None
    named_by: tuple[_PlainText, ...] = ()
    examples: tuple[_PlainText, ...] = Field(min_length=1)
    drawn_with: str | None = None
    spellings: tuple[_PlainText, ...] = ()


class _CatalogueFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    values: dict[_PlainText, Placeholder]
    labels: dict[_PlainText, tuple[_PlainText, ...]]


class Catalogue(dict[str, Placeholder]):
    """The placeholders by canonical name."""

    def __init__(self, entries: Mapping[str, Placeholder], names: dict[str, str]) -> None:
        super().__init__(entries)
        self._names = names  # by normalised spelling

    def name_of(self, spelling: str) -> str | None:
        """The canonical name for ``spelling``, None if the catalogue does not know it."""
        return spelling if spelling in self else self._names.get(_key(spelling))


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The project's catalogue, read once per process."""
    return load_catalogue(Path(__file__).with_name("placeholders.yaml"))


def load_catalogue(path: Path) -> Catalogue:
    """Reads a catalogue. Raises PipelineError with the file and the entry if an entry is invalid or duplicated."""
    try:
        content = TypeAdapter(_CatalogueFile).validate_python(read_yaml(path))
    except ValidationError as error:
        raise PipelineError(f"{path}: {error}", "Fix the entry that the message names.") from None
    labels = {name: Placeholder(phrase=name, examples=(name,), spellings=also) for name, also in content.labels.items()}
    if duplicates := content.values.keys() & labels.keys():
        raise PipelineError(f"{path}: '{min(duplicates)}' is both a value and a label.", "Keep one of the two.")
    entries = content.values | labels
    names: dict[str, str] = {}
    for name, entry in entries.items():
        for spelling in (name, *entry.spellings):
            if (other := names.get(_key(spelling))) is not None:
                raise PipelineError(
                    f"{path}: '{spelling}' of '{name}' is already a spelling of '{other}'.", "Keep one of the two."
                )
            names[_key(spelling)] = name
        if entry.drawn_with is not None:
            leader = entries.get(entry.drawn_with)
            if leader is None or leader.drawn_with is not None or len(leader.examples) != len(entry.examples):
                raise PipelineError(
                    f"{path}: '{name}' cannot be drawn with '{entry.drawn_with}'.",
                    "Name an entry with the same number of examples that has no drawn_with itself.",
                )
    return Catalogue(entries, names)


def find(text: str) -> list[str]:
    """The names inside ``{{…}}`` as written, in order, with repeats."""
    return _PLACEHOLDER.findall(text)


def canonical(text: str) -> tuple[str, list[str]]:
    """``text`` with known placeholders in their canonical spelling, and the unknown names in it, with repeats."""
    unknown: list[str] = []

    def spell(match: re.Match[str]) -> str:
        name = catalogue().name_of(match[1])
        if name is None:
            unknown.append(match[1])
            return match[0]
        return f"{{{{{name}}}}}"

    return _PLACEHOLDER.sub(spell, text), unknown


def is_balanced(text: str) -> bool:
    """Whether all ``{{`` and ``}}`` belong to complete placeholders, and no known name is in single braces.

    Other single braces are plain text.
    """
    if "{" not in text and "}" not in text:
        return True
    rest = _COMPLETE.sub("", text)
    return "{{" not in rest and "}}" not in rest and not any(map(catalogue().name_of, _SINGLE.findall(rest)))


def repair(text: str) -> str | None:
    """``text`` with its broken placeholders repaired; None if one cannot be repaired. Balanced text is not changed.

    These can be repaired:

    - a name with too few or too many braces, or with spaces inside them: ``{Order Number}}``, ``{{ Order Number }}``;
    - a known name in single braces;
    - a known name after ``{{`` that is never closed;
    - a label around a placeholder, which loses its outer braces: ``{{Switch to {{Account Type}}}}``.
    """
    if is_balanced(text):
        return text
    fixed = _BROKEN.sub(_fix, text)
    return fixed if is_balanced(fixed) else None


def apply(text: str, mode: PlaceholderMode, speaker: Speaker, row_id: str) -> str:
    """``text`` with its placeholders shown in ``mode``. They must be balanced. Unknown placeholders stay in every mode.

    - keep: canonical spelling.
    - generic: the phrase, with the possessive that fits the speaker ("my order number" in a question, "your order
      number" in an answer), unless there is a determiner or a quote before it. If the words before it already name the
      value ("order number {{Order Number}}", "our website at {{Website URL}}"), the placeholder is removed instead.
    - strip: removed. Also removed are quotes around it, placeholders joined to it by "or", "and" or a comma, and a
      preposition or article that would be left without a noun. Spaces and punctuation are corrected.
    - realistic: an example value. For the same ``row_id``, it is the same in the question and the answer.
    """
    text, _ = canonical(text)
    match mode:
        case PlaceholderMode.KEEP:
            return text
        case PlaceholderMode.REALISTIC:
            return _PLACEHOLDER.sub(lambda match: _example(match[1], row_id) or match[0], text)
        case PlaceholderMode.GENERIC:
            return _generic(text, speaker)
        case PlaceholderMode.STRIP:
            return _stripped(text)


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders replaced by ``values``. Placeholders without a value stay.

    The names may have any spelling. A value is plain text: braces in it are not interpreted.
    """
    by_name = {catalogue().name_of(name) or name: value for name, value in values.items()}
    return _PLACEHOLDER.sub(lambda match: by_name.get(catalogue().name_of(match[1]) or match[1], match[0]), text)


def without_placeholders(text: str) -> str:
    """``text`` with a space in place of each placeholder."""
    return _PLACEHOLDER.sub(" ", text)


def _key(spelling: str) -> str:
    """A key that is equal for spellings that differ only in case, separators, CamelCase or a plural s."""
    words = re.split(r"[\s_-]+|(?<=[a-z])(?=[A-Z])", spelling.strip())
    return "".join(re.sub(r"(?<=[^su])s$", "", word.lower()) for word in words)


# A name: on one line, without braces, without a space at either end.
_NAME = r"[^{}\s](?:[^{}\n]*[^{}\s])?"
_PLACEHOLDER = re.compile(rf"\{{\{{[^\S\n]*({_NAME})[^\S\n]*\}}\}}")
_COMPLETE = re.compile(rf"(?<!\{{)\{{\{{{_NAME}\}}\}}(?!\}})")
_SINGLE = re.compile(rf"(?<!\{{)\{{[^\S\n]*({_NAME})[^\S\n]*\}}(?!\}})")

# The characters that a label may have. Braces around other text, such as JSON or code, are not repaired.
_LABEL = r"[\w &/'’.-]*"
_BROKEN = re.compile(
    rf"(?<!\{{)\{{\{{[^\S\n]*(?P<complete>{_NAME})[^\S\n]*\}}\}}(?!\}})"
    rf"|\{{\{{(?P<label>{_LABEL}\{{\{{{_LABEL}\}}\}}{_LABEL})\}}\}}"
    rf"|(?P<open>\{{+)[^\S\n]*(?P<name>[^\W\d]{_LABEL})(?P<close>\}}+)"
    r"|\{\{(?P<unclosed>[^{}\n]+)(?=[{\n]|\Z)"
)


def _fix(match: re.Match[str]) -> str:
    if match["complete"]:
        return f"{{{{{match['complete']}}}}}"
    if match["label"]:
        return _BROKEN.sub(_fix, match["label"]).strip()
    if match["name"]:
        name = match["name"].rstrip()
        broken = max(len(match["open"]), len(match["close"])) > 1 or catalogue().name_of(name)
        return f"{{{{{name}}}}}" if broken else match[0]
    rest = match["unclosed"].lstrip()
    ends = [found.end() for found in re.finditer(r"\w\b", rest)]
    known = next((rest[:end] for end in reversed(ends) if catalogue().name_of(rest[:end])), None)
    return match[0] if known is None else f"{{{{{known}}}}}{rest[len(known) :]}"


def _example(name: str, row_id: str) -> str | None:
    entry = catalogue().get(name)
    if entry is None:
        return None
    number = int.from_bytes(hashlib.sha256(f"{row_id}\0{entry.drawn_with or name}".encode()).digest())
    number, choice = divmod(number, len(entry.examples))

    def digit(_: re.Match[str]) -> str:
        nonlocal number
        number, value = divmod(number, 10)
        return str(value)

    return re.sub("#", digit, entry.examples[choice])


# The English grammar that the modes generic and strip need: words before and after a noun phrase.
_PREPOSITION = "about|at|bearing|by|during|for|from|in|of|on|through|to|under|via|with|within"
_DETERMINER = r"an?|the|this|that|my|your|our|their|his|her|its|any|each|every|\w+['’]s"
_LABELLED = "labell?ed|called|titled|named|that (?:says|reads|mentions)|including|such as|like"
_NO_NOUN = (
    f"{_PREPOSITION}|after|and|are|as|because|before|but|can|could|has|have|help|how|i|i['’]m|if|is|it|once|or|please"
    "|should|so|that|until|using|was|were|what|when|where|which|while|who|will|without|would|you"
)
_NOUN_FOLLOWS = re.compile(rf" *[#$]?(?:\{{\{{|(?!(?:{_NO_NOUN})\b)\w)", re.I)
_DETERMINED = re.compile(rf"(?:(?<!\w)(?:{_DETERMINER}) +(?:(?!(?:{_PREPOSITION})\b)\w+ +)?|[\"'“‘*])\Z", re.I)
# Words that must not be left at the end without a noun: "sign into your {{…}}" becomes "sign in".
_DANGLING = re.compile(
    rf"(?:(?:(?<!\w)(?:(?:(?:or|and) )?(?:{_PREPOSITION}|{_LABELLED})|or|and)|(?<=\bin)to)(?: (?:{_DETERMINER})){{0,2}}"
    rf"|(?<!\w)(?:{_DETERMINER})(?: (?:{_DETERMINER}))?)(?: number)? *\Z",
    re.I,
)
_OR_PREPOSITION = re.compile(rf" *,? *(?:or|and)(?= (?:{_PREPOSITION})\b)", re.I)
_LINE_START = re.compile(r"(?:\A|\n)[ \t]*(?:\d+[.)]|[-*•])?[ \t*]*\Z")
_SENTENCE_START = re.compile(rf"{_LINE_START.pattern}|(?<!Mr)(?<!Ms)(?<!Mrs)[.!?]\s+\Z")
_QUOTED = re.compile(
    rf"(?P<open>\*\*|[\"'“‘(\[])(?P<inside>\{{\{{({_NAME})\}}\}})(?P<stop>[.,]?)(?P<close>\*\*|[\"'”’)\]])"
)
_QUOTES = {("**", "**"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("(", ")"), ("[", "]")}
_JOINED = re.compile(rf"(?: *,? *\b(?:or|and) +| *, *| *)(?:(?:{_DETERMINER}) +)?{_PLACEHOLDER.pattern}", re.I)
_POSSESSIVES: dict[Speaker, dict[str | None, str]] = {
    "customer": {"customer": "my", "company": "your", "this": "this"},
    "agent": {"customer": "your", "company": "our", "this": "this"},
}
_NEAR = 80  # number of characters before a placeholder that are searched; none of these patterns can match more


def _generic(text: str, speaker: Speaker) -> str:
    output, rest = "", text
    while match := _PLACEHOLDER.search(rest):
        output, rest = output + rest[: match.start()], rest[match.end() :]
        entry = catalogue().get(match[1])
        if entry is None:
            output += match[0]
            continue
        output, words = output.rstrip("#$"), entry.phrase
        if entry.modifier is not None and _NOUN_FOLLOWS.match(rest):
            words = entry.modifier
        elif not _DETERMINED.search(output[-_NEAR:]):
            words = f"{_POSSESSIVES[speaker].get(entry.determiner, '')} {words}".lstrip()
            if entry.lead:
                output = re.sub(r"(?:at|between|from|within) \Z", "", output)
                words = words if output.endswith(f"{entry.lead} ") else f"{entry.lead} {words}"
        if not words or _already_named(match[1]).search(output[-_NEAR:]):
            output, rest = _cut(output, rest)
        elif _SENTENCE_START.search(output[-_NEAR:]):
            output += words[0].upper() + words[1:]
        else:
            output += words
    return output + rest


def _stripped(text: str) -> str:
    output, rest = "", _QUOTED.sub(_unquoted, text)
    while match := _PLACEHOLDER.search(rest):
        output, rest = output + rest[: match.start()], rest[match.end() :]
        if match[1] not in catalogue():
            output += match[0]
            continue
        while (joined := _JOINED.match(rest)) and joined[1] in catalogue():
            rest = rest[joined.end() :]
        output, rest = _cut(output, rest)
    return output + rest


def _unquoted(match: re.Match[str]) -> str:
    paired = (match["open"], match["close"]) in _QUOTES
    return f"{match['inside']}{match['stop']}" if paired and match[3] in catalogue() else match[0]


@lru_cache
def _already_named(name: str) -> re.Pattern[str]:
    """A pattern of text that ends with one of the placeholder's ``named_by`` words. Without any, it never matches."""
    words = "|".join(map(re.escape, catalogue()[name].named_by))
    return re.compile(rf"\b(?:{words})s?(?: (?:at|of|on))?[ :#,]*\Z" if words else r"(?!)", re.I)


def _cut(before: str, after: str) -> tuple[str, str]:
    """The text before and after a removed placeholder, with dangling words, articles, spaces and punctuation corrected."""
    before, after = before.rstrip("#$"), re.sub(r"^['’]s\b", "", after)
    if not _NOUN_FOLLOWS.match(after):
        near = _DANGLING.sub("", before[-_NEAR:])
        if len(near) < len(before[-_NEAR:]):
            after = _OR_PREPOSITION.sub("", after, count=1)
        before = before[:-_NEAR] + near
    if _LINE_START.search(before[-_NEAR:]):
        return before, after.lstrip(" ,;:")
    if re.match(r" *(?:[.,;:!?)\]]|\n|\Z)|[\"'”’]", after):
        return before.rstrip(" ,;:"), after.lstrip(" ")
    if re.search(r"\s\Z|(?<!\w)[\"'“‘(\[*]\Z", before):
        after = after.removeprefix(" ")
    if re.search(r"\ba \Z", before, re.I) and re.match("[aeiou]", after, re.I):
        before = f"{before[:-1]}n "
    return before, after
