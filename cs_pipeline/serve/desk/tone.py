"""The tone of an answer: neutral, friendly or strictly professional. Rules set it, not the prompt.

The rules work on single sentences, so they also apply to an answer that is still being generated, from any model:

- neutral: as the model writes.
- friendly: contractions ("we'll"), everyday words ("help" for "assistance"), and a greeting in the first answer.
- strictly professional: no contractions, exclamation marks or emoji, formal words ("pleased" for "thrilled"), and a formal
  salutation in the first answer.

Text in quotes, asterisks or double braces is a label, a button or a value, and never changes. ``bench/tone.py`` measures
the effect on answers.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml


class Tone(StrEnum):
    """The tones that can be requested."""

    NEUTRAL = "neutral"
    FRIENDLY = "friendly"
    PROFESSIONAL = "strictly professional"


def apply_tone(text: str, tone: Tone) -> str:
    """``text`` (one sentence or a few) in ``tone``. Facts, names, labels and line breaks stay as they are."""
    parts = _LABEL.split(text)
    for index in range(0, len(parts), 2):  # the odd parts are labels
        for pattern, words in _RULES[tone]:
            parts[index] = pattern.sub(lambda match, words=words: _capitalize(match.expand(words), match), parts[index])
    result = "".join(parts)
    return result[:1].upper() + result[1:] if text[:1].isupper() else result


def salutation(first: str, tone: Tone, values: Mapping[str, str]) -> str:
    """The salutation before ``first``, the first sentence of the first answer; empty if ``first`` is already a greeting.

    The customer's name comes from ``values``, by canonical name.
    """
    if tone is Tone.NEUTRAL or _GREETS.match(first):
        return ""
    if tone is Tone.FRIENDLY:
        name = values.get("Client First Name") or values.get("Client Name", "")
        return f"Hi {name}! " if name else "Hi! "
    return f"Dear {values.get('Client Name') or 'customer'},\n\n"


def _capitalize(words: str, match: re.Match[str]) -> str:
    """``words``, capitalized like the text that they replace."""
    return words[:1].upper() + words[1:] if match[0][:1].isupper() else words


_LABEL = re.compile(r"(\{\{[^{}]*\}\}|\*\*[^*\n]+\*\*|\"[^\"\n]+\"|“[^”\n]+”|‘[^’\n]+’(?!\w)|(?<!\w)'[^'\n]+'(?!\w))")
_GREETS = re.compile(r"\W*(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day)|greetings|welcome)\b", re.I)
_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))


def _rules(*names: str) -> list[tuple[re.Pattern[str], str]]:
    pairs = (pair for name in names for pair in _FILE[name].items())
    return [(any_of(pattern, _FILE["words"], re.I), words) for pattern, words in pairs]


_RULES = {
    Tone.NEUTRAL: [],
    Tone.FRIENDLY: _rules("plain_words", "contractions"),
    Tone.PROFESSIONAL: _rules("full_forms", "formal_words"),
}
