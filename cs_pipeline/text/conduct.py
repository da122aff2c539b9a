"""Recognises answers that redirect, ask back, refuse, or hand over to a person.

The rules use only the answer, not the question. Their patterns are in ``conduct.yaml``. They were tested on hand-labelled
answers (``cs_pipeline_tests/text/conduct.yaml``) that were not used to write them. On the first test they found 12 of 12
answers that redirect, 11 of 12 that ask back, 12 of 12 that refuse and 10 of 12 that hand over. They mistook one of 20
others for a refusal. This accuracy is an upper bound, because one person wrote both rules and labels. Of Bitext's 2,414
real validation and test answers, they classify 0.2 % as redirecting, 2.5 % as asking back, 0.1 % as refusing and 2.6 % as
handing over. The last group includes two thirds of the answers to customers who ask for a person.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml

_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
_CONDITIONAL, _REDIRECTS, _LISTED_TOPICS, _OFFERS, _ASKS_BACK, _REFUSES, _HANDS_OVER = (
    any_of(_RULES[key], _RULES["words"])
    for key in ("conditional", "redirects", "listed_topics", "offers", "asks_back", "refuses", "hands_over")
)
_MIN_LISTED_TOPICS = 3


@dataclass(frozen=True)
class Conduct:
    """What one answer does. Several fields may be true. For an ordinary answer, all are false."""

    redirects: bool
    """Says what the support desk can help with, or that the request is out of scope."""
    asks_back: bool
    """Says that the request is not understood, or asks what the customer wants."""
    refuses: bool
    """Says no."""
    hands_over: bool
    """Says that a person takes over. Naming a hotline is not handing over."""


def conduct(answer: str) -> Conduct:
    """Classifies ``answer`` by its words."""
    return Conduct(
        redirects=any(map(_redirects, _sentences(answer))),
        asks_back=bool(_ASKS_BACK.search(answer)),
        refuses=bool(_REFUSES.search(answer)),
        hands_over=bool(_HANDS_OVER.search(answer)),
    )


def refused_part(answer: str) -> str:
    """The sentences of ``answer`` that refuse. If an instruction is quoted only in these, it was not followed."""
    return " ".join(sentence for sentence in _sentences(answer) if _REFUSES.search(sentence))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|\n+", text)


def _redirects(sentence: str) -> bool:
    if _CONDITIONAL.match(sentence):
        return False
    topics = {re.sub(r"ies$", "y", match.lower()).rstrip("s") for match in _LISTED_TOPICS.findall(sentence)}
    lists_topics = len(topics) >= _MIN_LISTED_TOPICS and re.search(r"\b(?:and|or)\b", sentence)
    return bool((lists_topics and _OFFERS.search(sentence)) or _REDIRECTS.search(sentence))
