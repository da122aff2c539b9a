"""Raw rows made regular: whitespace, Unicode, braces, placeholder names. What cannot be is set aside with its reason."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.text.placeholders import canonical, repair

INSTRUCTION_CHARACTERS = (3, 2_000)
RESPONSE_CHARACTERS = (10, 8_000)
"""Shortest and longest text that is kept. Bitext's questions have 6 to 92 characters, its answers 57 to 2,472."""

_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters but tab and line feed, and marks of the byte order or of invisible joints.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe]")


@dataclass(frozen=True)
class Cleaned:
    """``rows`` that are kept, those ``set_aside``, and how often each placeholder that the catalogue lacks was met."""

    rows: pa.Table
    set_aside: pa.Table
    unknown_placeholders: Counter[str]


@dataclass(frozen=True)
class Regular:
    """A question and its answer as regular text, and the names of placeholders that the catalogue lacks.

    ``reason`` says why they cannot be used, None if they can.
    """

    question: str
    answer: str
    unknown: list[str]
    reason: str | None


def clean(table: pa.Table) -> Cleaned:
    """``table`` of CONVERSATION rows with regular text; every row is either kept or set aside."""
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    unknown: Counter[str] = Counter()
    reasons = []
    texts: dict[str, list[str]] = {name: [] for name in ("instruction", "response", "category", "intent")}
    for row in zip(*(table.column(name).to_pylist() for name in texts), strict=True):
        question, answer, raw_category, raw_intent = (text or "" for text in row)
        category, intent = regular_line(raw_category), regular_line(raw_intent)
        pair = regular_pair(question, answer)
        reason = pair.reason if category and intent else "no category or no intent"
        if reason is None:
            unknown.update(pair.unknown)
        reasons.append(reason)
        for name, text in zip(texts, (pair.question, pair.answer, category, intent), strict=True):
            texts[name].append(text)
    frame = frame.assign(**texts, reason=pd.Series(reasons, index=frame.index, dtype=pd.ArrowDtype(pa.string())))
    kept = frame["reason"].isna()
    # What is set aside keeps its raw text: it is there to be looked at.
    aside = table.to_pandas(types_mapper=pd.ArrowDtype).assign(reason=frame["reason"])[~kept]
    return Cleaned(to_table(frame[kept], CONVERSATION), to_table(aside, SET_ASIDE), unknown)


def regular_pair(question: str, answer: str) -> Regular:
    """The question on one line, the answer with its lines, placeholders fixed and in their canonical spelling."""
    question, answer = regular_line(question), regular_text(answer)
    fixed = repair(question), repair(answer)
    names: list[str] = []
    if fixed[0] is not None and fixed[1] is not None:
        question, in_question = canonical(fixed[0])
        answer, in_answer = canonical(fixed[1])
        names = [*in_question, *in_answer]
    return Regular(question, answer, names, _reason(question, answer, broken=None in fixed))


def regular_text(text: str) -> str:
    """``text`` in Unicode NFC, without invisible characters; line breaks kept, at most one empty line in a row."""
    # What is invisible may stand between a letter and its accent, so it goes first.
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text)))
    # [^\S\n]: any kind of space, the no-break ones included, but not the line break.
    lines = [re.sub(r"[^\S\n]+", " ", line).rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def regular_line(text: str) -> str:
    """As ``regular_text``, on one line."""
    return " ".join(regular_text(text).split())


def to_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """``frame`` as an Arrow table of ``schema``."""
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False).replace_schema_metadata(None)


def _reason(question: str, answer: str, *, broken: bool) -> str | None:
    for what, text, (least, most) in (
        ("question", question, INSTRUCTION_CHARACTERS),
        ("answer", answer, RESPONSE_CHARACTERS),
    ):
        if not text:
            return f"empty {what}"
        if len(text) < least:
            return f"{what} shorter than {least} characters"
        if len(text) > most:
            return f"{what} longer than {most} characters"
    return "braces that cannot be repaired" if broken else None
