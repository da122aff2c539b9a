"""Fills the placeholders of an answer. A placeholder without a value is replaced by words, so no customer sees one."""

import re
from collections.abc import Mapping

from cs_pipeline.text.placeholders import PlaceholderMode, apply, canonical, fill, find, repair

MAX_VALUE_CHARACTERS = 200
"""Maximum length of a value. Longer values are cut: no number, name or address is that long."""


def canonical_values(values: Mapping[str, str]) -> dict[str, str]:
    """``values`` by canonical name, as plain text on one line without braces. Empty ones are left out."""
    cleaned = {name: " ".join(re.sub(r"[{}]", "", v).split())[:MAX_VALUE_CHARACTERS] for name, v in values.items()}
    return {canonical(f"{{{{{name}}}}}")[0].strip("{}"): value for name, value in cleaned.items() if value}


def fill_placeholders(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders filled from ``values`` (from ``canonical_values``), or replaced by words.

    "Your order {{Order Number}} has left" becomes "Your order has left" if the number is unknown, "Hi {{Client Name}},"
    becomes "Hi,", and "your {{Order Number}}" becomes "your order number A-1" if it is known. A placeholder that is not in
    the catalogue becomes its name in lower case. Stray double braces are removed.
    """
    if "{" not in text and "}" not in text:
        return text
    known = _BARE_NUMBER.sub(lambda match: _with_noun(match, values), _balanced(text))
    text = _NAMED_GREETING.sub(lambda match: _without_name(match["greeting"]), fill(known, values))
    return re.sub(r"\{\{(.*?)\}\}", lambda match: match[1].lower(), apply(text, PlaceholderMode.GENERIC, "agent", ""))


def missing_placeholders(text: str, values: Mapping[str, str]) -> list[str]:
    """The canonical names of the placeholders in ``text`` without a value, each once, in order."""
    names = find(canonical(_balanced(text))[0])
    return [name for name in dict.fromkeys(names) if name not in values]


_NAMED_GREETING = re.compile(
    r"\b(?P<greeting>hi|hello|hey|dear|good (?:day|morning|afternoon|evening)|thank you|thanks|welcome)"
    r"(?:,? \{\{(?:Client (?:First |Last )?Name|Person Name|Salutation)\}\})+",
    re.I,
)

_BARE_NUMBER = re.compile(r"\b(?P<before>the|your|this|that) \{\{(?P<name>[^{}]+ (?:Number|ID|Code))\}\}", re.I)
"""A number directly after its article. It needs a noun: "your A-1" is not English."""


def _with_noun(match: re.Match[str], values: Mapping[str, str]) -> str:
    name = match["name"]
    noun = name.lower().removesuffix(" id") + (" ID" if name.endswith(" ID") else "")
    return f"{match['before']} {noun} {{{{{name}}}}}" if name in values else match[0]


def _without_name(greeting: str) -> str:
    return f"{greeting} customer" if greeting.lower() == "dear" else greeting


def _balanced(text: str) -> str:
    """``text`` with canonical placeholders. Double braces that cannot be repaired are removed."""
    fixed = repair(text)
    return canonical(re.sub(r"\{{2,}|\}{2,}", "", text) if fixed is None else fixed)[0]
