"""The texts that an answer was written from, as people read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.serve.desk.filling import filled
from cs_pipeline.text.placeholders import PlaceholderMode, apply

NEAR = {"answer": 0.4, "passage": 0.2}
"""Similarity from which on a found text is about the question.

Of 1,207 Bitext test questions the nearest known one was at 0.51 or more (one in a hundred below 0.62), while half of 30
questions for another desk stayed below 0.30 and nine in ten below 0.42. Beside 270 answers of a help centre's size, taken as
passages, 94 in 100 of 300 test questions were at 0.2 or more, and none of those 30 above it.
"""


@dataclass(frozen=True)
class CitedSource:
    """A text that is about the question; placeholders in its ``title`` and ``text`` are filled or put in words.

    ``kind`` is "answer" for one that was given before, whose ``title`` is the question that it was given to, and "passage"
    for one of an article, whose ``title`` and ``address`` are the article's. ``similarity`` is above 0 and at most 1.
    """

    kind: Literal["answer", "passage"]
    title: str
    address: str | None
    text: str
    similarity: float


def is_near(found: Sequence[RetrievedText]) -> tuple[RetrievedText, ...]:
    """Those of ``found`` that are about the question, in their order."""
    return tuple(one for one in found if one.similarity >= NEAR[one.kind])


def sources_of(found: Sequence[RetrievedText], values: Mapping[str, str]) -> tuple[CitedSource, ...]:
    """Those of ``found`` that are about the question. ``values`` are the company's, by canonical name."""
    return tuple(
        CitedSource(one.kind, _title(one, values), one.address, filled(one.text, values), one.similarity)
        for one in is_near(found)
    )


def _title(one: RetrievedText, values: Mapping[str, str]) -> str:
    """A known question is a customer's: no value of the company stood in it."""
    if one.kind == "answer":
        return apply(one.title, PlaceholderMode.GENERIC, "customer", "")
    return filled(one.title, values)
