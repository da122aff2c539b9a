"""What the retrieval index gives for a question, as the prompt and the page have it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Found:
    """One text that the index gave for a question.

    ``id`` is the row_id of a known answer or the passage_id; ``title`` the known question, or the article's title;
    ``address`` where the article is read and ``version`` its sha256, both None for answers. ``similarity`` is above 0 and
    at most 1. ``intent`` is what the known question was about, None for passages.
    """

    kind: Literal["answer", "passage"]
    id: str
    text: str
    title: str
    address: str | None
    version: str | None
    similarity: float
    intent: str | None = None
