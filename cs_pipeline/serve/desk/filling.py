"""Placeholders of an answer filled with what is known; what is not known is put in words, and never shown raw."""

import re
from collections.abc import Mapping

from cs_pipeline.text.placeholders import PlaceholderMode, apply, canonical, fill, find, repair

MOST_CHARACTERS = 200
"""Of a value; what is longer is no number, name or address."""


def named(values: Mapping[str, str]) -> dict[str, str]:
    """``values`` by canonical name, as plain text on one line without braces; empty ones are left out."""
    plain = {name: " ".join(re.sub(r"[{}]", "", value).split())[:MOST_CHARACTERS] for name, value in values.items()}
    return {canonical(f"{{{{{name}}}}}")[0].strip("{}"): value for name, value in plain.items() if value}


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders filled from ``values``, which ``named`` has made plain, and the others put in words.

    "Your order {{Order Number}} has left" becomes "Your order has left" where the number is not known, "Hi {{Client Name}},"
    becomes "Hi,", and "your {{Order Number}}" becomes "your order number A-1" where it is. What the catalogue lacks becomes
    its name in lower case, and braces of no placeholder go.
    """
    if "{" not in text and "}" not in text:
        return text
    known = _BARE.sub(lambda match: _with_its_noun(match, values), _balanced(text))
    text = _GREETING.sub(lambda match: _without_a_name(match["greeting"]), fill(known, values))
    return re.sub(r"\{\{(.*?)\}\}", lambda match: match[1].lower(), apply(text, PlaceholderMode.GENERIC, "agent", ""))


def unfilled(text: str, values: Mapping[str, str]) -> list[str]:
    """The canonical names of the placeholders in ``text`` that have no value, each once, in their order."""
    names = find(canonical(_balanced(text))[0])
    return [name for name in dict.fromkeys(names) if name not in values]


_GREETING = re.compile(
    r"\b(?P<greeting>hi|hello|hey|dear|good (?:day|morning|afternoon|evening)|thank you|thanks|welcome)"
    r"(?:,? \{\{(?:Client (?:First |Last )?Name|Person Name|Salutation)\}\})+",
    re.I,
)

_BARE = re.compile(r"\b(?P<before>the|your|this|that) \{\{(?P<name>[^{}]+ (?:Number|ID|Code))\}\}", re.I)
"""A number that stands where its noun would: alone behind an article it would be no English."""


def _with_its_noun(match: re.Match[str], values: Mapping[str, str]) -> str:
    name = match["name"]
    noun = name.lower().removesuffix(" id") + (" ID" if name.endswith(" ID") else "")
    return f"{match['before']} {noun} {{{{{name}}}}}" if name in values else match[0]


def _without_a_name(greeting: str) -> str:
    return f"{greeting} customer" if greeting.lower() == "dear" else greeting


def _balanced(text: str) -> str:
    """``text`` in which every double brace belongs to a placeholder that is known or not; what is past fixing goes."""
    fixed = repair(text)
    return canonical(re.sub(r"\{{2,}|\}{2,}", "", text) if fixed is None else fixed)[0]
