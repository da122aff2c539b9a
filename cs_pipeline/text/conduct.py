"""What an answer does instead of answering: it redirects, asks back, refuses or hands over to a person.

The rules look at the answer's sentences alone, not at the question; ``conduct.yaml`` holds their patterns. Measured on
answers labelled by hand that were not used to write the rules (``cs_pipeline_tests/text/conduct.yaml``; rules and labels
are by the same author, so these counts are an upper bound), before any adjustment: they found 12 of 12 that redirect, 11 of
12 that ask back, 12 of 12 that refuse and 10 of 12 that hand over, and took one of 20 others for a refusal. Of Bitext's
2,414 real validation and test answers they classify 0.2 % as redirecting, 2.5 % as asking back, 0.1 % as refusing and
2.6 % as handing over; the last include two thirds of the answers to customers who ask for a person.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml

_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
_CONDITIONAL, _REDIRECTS, _LISTED_MATTERS, _OFFERS, _ASKS_BACK, _REFUSES, _HANDS_OVER = (
    any_of(_RULES[key], _RULES["words"])
    for key in ("conditional", "redirects", "listed_matters", "offers", "asks_back", "refuses", "hands_over")
)
_MIN_LISTED = 3


@dataclass(frozen=True)
class Conduct:
    """What one answer does. An answer may do several of these; an ordinary answer does none."""

    redirects: bool
    """Says what the support desk is for, or that the request is out of scope."""
    asks_back: bool
    """Says that the request is not understood, or asks what the customer wants."""
    refuses: bool
    """Says no."""
    hands_over: bool
    """Says that a person takes over. Naming a hotline is not handing over."""


def conduct(answer: str) -> Conduct:
    """What ``answer`` does, judged by its words."""
    return Conduct(
        redirects=any(map(_redirects, _sentences(answer))),
        asks_back=bool(_ASKS_BACK.search(answer)),
        refuses=bool(_REFUSES.search(answer)),
        hands_over=bool(_HANDS_OVER.search(answer)),
    )


def refused_part(answer: str) -> str:
    """The sentences of ``answer`` that refuse. An instruction that is only quoted in them was not followed."""
    return " ".join(sentence for sentence in _sentences(answer) if _REFUSES.search(sentence))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|\n+", text)


def _redirects(sentence: str) -> bool:
    if _CONDITIONAL.match(sentence):
        return False
    matters = {match.lower().rstrip("s") for match in _LISTED_MATTERS.findall(sentence)}
    lists = len(matters) >= _MIN_LISTED and re.search(r"\b(?:and|or)\b", sentence) and _OFFERS.search(sentence)
    return bool(lists or _REDIRECTS.search(sentence))
