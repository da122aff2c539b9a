"""Plain transcripts: one turn a line, as ``speaker<tab>text<tab>conversation``, the same with ``|``, or as
``[conversation] Speaker: text``.
"""

import re

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports.records import (
    Record,
    Turn,
    UnusableError,
    Where,
    make_record,
    name_of,
    role_of,
    speaker_placeholder,
)

_BRACKETS = re.compile(r"\s*\[([^\]]+)\]\s*([^:]{1,80}?)\s*:(.*)", re.DOTALL)
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(\s*[ap]m)?", re.IGNORECASE)


def is_head(line: str) -> bool:
    """Whether ``line`` names the columns and is no turn."""
    fields = _fields(line)
    return fields is not None and fields[0].casefold() == "speaker"


def record_of_line(where: Where, line: str, company: Company) -> Record:
    """The record of a line. Raises UnusableError for what is no turn."""
    fields = _fields(line)
    if fields is None:
        raise UnusableError("is no turn of a conversation")
    speaker, text, conversation = fields
    if not speaker:
        raise UnusableError("has no speaker")
    if not conversation:
        raise UnusableError("has no conversation id")
    # Chat logs have the time there, and a conversation for every minute would be none.
    if _TIME.fullmatch(conversation):
        raise UnusableError("has a time where its conversation id should be")
    role = role_of(speaker, company)
    name = name_of(speaker, company)
    subject = name if role == "customer" and name is not None and "@" in name else None
    return make_record(where, conversation, [Turn(role, text)], subject, [(speaker_placeholder(speaker, role), name)])


def _fields(line: str) -> tuple[str, str, str] | None:
    """Speaker, text and conversation id."""
    for separator in "\t|":
        if line.count(separator) >= 2:
            speaker, rest = line.split(separator, 1)
            text, conversation = rest.rsplit(separator, 1)
            return speaker.strip(), text.strip(), conversation.strip()
    found = _BRACKETS.fullmatch(line)
    return None if found is None else (found[2].strip(), found[3].strip(), found[1].strip())
