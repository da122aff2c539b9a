"""Normalises the whitespace, Unicode, braces and placeholder names of raw rows. Sets aside rows that cannot be repaired."""

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
"""Minimum and maximum length of a text that is kept. Bitext's questions have 6 to 92 characters, its answers 57 to 2,472."""

_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters (but not tab and line feed), byte order marks, zero-width spaces and word joiners.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe]")


@dataclass(frozen=True)
class Cleaned:
    """The ``rows`` kept, the rows ``set_aside`` with reasons, and a count of each placeholder outside the catalogue."""

    rows: pa.Table
    set_aside: pa.Table
    unknown_placeholders: Counter[str]


@dataclass(frozen=True)
class NormalizedPair:
    """A normalised question and its answer. ``unknown`` has the names of its placeholders that are not in the catalogue.

    ``reason`` says why the pair cannot be used; it is None if the pair can be used.
    """

    question: str
    answer: str
    unknown: list[str]
    reason: str | None


def clean(table: pa.Table) -> Cleaned:
    """Normalises the texts of a ``table`` of CONVERSATION rows. Every row is either kept or set aside."""
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    unknown: Counter[str] = Counter()
    reasons = []
    texts: dict[str, list[str]] = {name: [] for name in ("instruction", "response", "category", "intent")}
    for row in zip(*(table.column(name).to_pylist() for name in texts), strict=True):
        question, answer, raw_category, raw_intent = (text or "" for text in row)
        category, intent = normalize_line(raw_category), normalize_line(raw_intent)
        pair = normalize_pair(question, answer)
        reason = pair.reason if category and intent else "no category or no intent"
        if reason is None:
            unknown.update(pair.unknown)
        reasons.append(reason)
        for name, text in zip(texts, (pair.question, pair.answer, category, intent), strict=True):
            texts[name].append(text)
    frame = frame.assign(**texts, reason=pd.Series(reasons, index=frame.index, dtype=pd.ArrowDtype(pa.string())))
    kept = frame["reason"].isna()
    # Rows that are set aside keep their raw text, for review.
    aside = table.to_pandas(types_mapper=pd.ArrowDtype).assign(reason=frame["reason"])[~kept]
    return Cleaned(to_table(frame[kept], CONVERSATION), to_table(aside, SET_ASIDE), unknown)


def normalize_pair(question: str, answer: str) -> NormalizedPair:
    """Normalises a question to one line, and an answer line by line. Placeholders get their canonical spelling."""
    question, answer = normalize_line(question), normalize_text(answer)
    repaired = repair(question), repair(answer)
    names: list[str] = []
    if repaired[0] is not None and repaired[1] is not None:
        question, in_question = canonical(repaired[0])
        answer, in_answer = canonical(repaired[1])
        names = [*in_question, *in_answer]
    return NormalizedPair(question, answer, names, _reason(question, answer, broken=None in repaired))


def normalize_text(text: str) -> str:
    """``text`` in Unicode NFC without invisible characters. Line breaks are kept, but at most one empty line in a row."""
    # Invisible characters may separate a letter from its accent, so they are removed first.
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text)))
    # [^\S\n]: any whitespace, no-break spaces included, except the line break.
    lines = [re.sub(r"[^\S\n]+", " ", line).rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def normalize_line(text: str) -> str:
    """Like ``normalize_text``, but on one line."""
    return " ".join(normalize_text(text).split())


def to_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """``frame`` as an Arrow table of ``schema``."""
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False).replace_schema_metadata(None)


def _reason(question: str, answer: str, *, broken: bool) -> str | None:
    for name, text, (shortest, longest) in (
        ("question", question, INSTRUCTION_CHARACTERS),
        ("answer", answer, RESPONSE_CHARACTERS),
    ):
        if not text:
            return f"empty {name}"
        if len(text) < shortest:
            return f"{name} shorter than {shortest} characters"
        if len(text) > longest:
            return f"{name} longer than {longest} characters"
    return "braces that cannot be repaired" if broken else None
