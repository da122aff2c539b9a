"""Decides which messages this desk answers. All others get a fixed reply instead of a model's answer.

The rules look at words. In the first test, on messages that were not used to write the rules
(``cs_pipeline_tests/serve/desk/messages.yaml``), they stopped 9 of 12 off-topic questions, 5 of 7 questions about other
customers, 7 of 8 prompt injections and all 5 messages without content. Of 22 messages that should be answered they stopped
one ("is the game in stock"); a router that knows the shop's subjects lets it through. Of 4,000 Bitext questions they
stopped none. The author of the rules wrote the messages, so these figures are an upper bound.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.text.poison import CONTROL_TOKEN, PROMPT_INJECTION, text_reasons


class OutOfScope(StrEnum):
    """Why a message is not for this desk. The value is the reply, without the company's topics."""

    NO_CONTENT = "How can I help you? I can answer questions about {topics}."
    """There is nothing to answer: a greeting, a punctuation mark, a random key."""
    CLOSING = "You are welcome. Is there anything else that I can help you with?"
    """The customer says thanks or goodbye."""
    PROMPT_INJECTION = "I can only help with questions about {topics}. What can I do for you?"
    """The message gives instructions to a language model, or contains a control token."""
    OTHER_CUSTOMER = (
        "I can only share a customer's details with that customer, so I cannot help with that. If it is about your own "
        "order or account, please tell me what you need."
    )
    """The message asks for another person's data."""
    OFF_TOPIC = (
        "I am afraid that is outside what I can help with: I answer questions about {topics}. Is there one of these that "
        "I can help you with?"
    )
    """The question is about something else."""

    def reply(self, topics: Sequence[str]) -> str:
        """The reply of a desk that answers questions about ``topics``, which are not empty."""
        *others, last = topics
        return self.value.format(topics=f"{', '.join(others)} and {last}" if others else last)


def out_of_scope(text: str, raw: str, *, opening: bool) -> OutOfScope | None:
    """Why ``text`` is not for this desk, judged by its words alone, or None.

    ``raw`` is the text before cleaning, which removes hidden characters. ``opening`` is true for the first message of a
    conversation; later a bare "ok" or "the second one" can be an answer.
    """
    if {CONTROL_TOKEN, PROMPT_INJECTION} & set(text_reasons(raw)) or _PROMPT_INJECTION.search(text):
        return OutOfScope.PROMPT_INJECTION
    if _OTHER_CUSTOMER.search(text):
        return OutOfScope.OTHER_CUSTOMER
    if opening:
        return OutOfScope.NO_CONTENT if _NO_CONTENT.fullmatch(text) else None
    return OutOfScope.CLOSING if _CLOSING.fullmatch(text) else None


def is_off_topic(text: str, intent: str | None) -> bool:
    """Whether the words of ``text`` are about something else.

    False if the router is sure of the ``intent``: then the question is for this desk, whatever its words are. A shop may
    sell games.
    """
    return intent is None and bool(_OFF_TOPIC.search(text)) and not _OWN_TOPIC.search(text)


_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_PROMPT_INJECTION = any_of(_FILE["prompt_injection"], _FILE["words"])  # in addition to what text/poison.py finds
_OTHER_CUSTOMER, _OWN_TOPIC, _NO_CONTENT, _CLOSING, _OFF_TOPIC = (
    any_of(_FILE[key], _FILE["words"], re.I)
    for key in ("other_customer", "own_topic", "no_content", "closing", "off_topic")
)
