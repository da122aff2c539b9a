"""The mood of a customer's message, judged by its words. Agents see it next to a ticket. Angry customers are handed over.

A swear word alone does not count as anger: 5 % of Bitext's questions contain one and only ask where the parcel is. In the
first test, on 70 labelled messages that were not used to write the rules (``cs_pipeline_tests/serve/desk/messages.yaml``, by
the same author), the rules were right about all 70. The mood of 8 of them is not neutral.
"""

import re
from enum import StrEnum
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml


class Mood(StrEnum):
    """The mood that a message expresses."""

    ANGRY = "angry"
    WORRIED = "worried"
    NEUTRAL = "neutral"
    PLEASED = "pleased"


def mood(text: str) -> Mood:
    """The mood of ``text``. Anger takes precedence over worry, and worry over pleasure."""
    if _ANGRY.search(text) or (len(_SHOUTED_WORD.findall(text)) >= _MIN_SHOUTED_WORDS and text.upper() == text):
        return Mood.ANGRY
    if _WORRIED.search(text):
        return Mood.WORRIED
    return Mood.PLEASED if _PLEASED.search(text) else Mood.NEUTRAL


_MIN_SHOUTED_WORDS = 5
"""A message in capitals counts as shouting from this number of words with four letters or more."""
_SHOUTED_WORD = re.compile(r"\b[A-Z]{4,}\b")

_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_ANGRY, _WORRIED, _PLEASED = (any_of(_FILE[key], _FILE["words"]) for key in ("angry", "worried", "pleased"))
