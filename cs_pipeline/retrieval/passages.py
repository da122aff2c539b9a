"""The knowledge base: help articles cut into passages, without personal data, and without what speaks to a model.

Each run makes the tables what the files say now; a file whose content was read before is not read again.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake, digest, file_sha256, make_folder, read_json, write_json
from cs_pipeline.core.schema import PASSAGE, PASSAGE_SET_ASIDE
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.ingest.knowledge import ArticleFile, list_articles
from cs_pipeline.ingest.place import ChangedError, GoneError, UnreadableError
from cs_pipeline.retrieval.articles import Article, ArticleError, Paragraph, read_article
from cs_pipeline.text.clean import regular_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import canonical, repair
from cs_pipeline.text.poison import text_reasons

MOST_CHARACTERS = 600
"""Length of a passage with its heading: some 150 tokens, so that a few of them fit a small model's context."""

UNSEEN = "text that a reader of the page does not see"
COMMANDS = "a phrase that commands whoever answers"
BROKEN = "braces that cannot be repaired"

_TABLES = ("knowledge_base", "knowledge_base_set_aside")

# What a company says of itself; everything else that is found is somebody's own and does not belong into an article.
_COMPANYS_OWN = frozenset(
    {"Customer Support Email", "Customer Support Phone Number", "Personal Link", "Postal Address"}
)

# An article tells customers what to do. What tells the answerer is looked for more strictly than in a customer's ticket,
# which may well ask to ignore the message above.
_COMMANDS = re.compile(
    r"\b(?:ignore|disregard|forget)\s+(?:all\s+|everything\s+|the\s+|what\s+)*"
    r"(?:above|previous|preceding|earlier|before|foregoing|was said)\b"
    r"|\b(?:assistants?|agents?|a\.?i\.?|bots?|chatbots?|language models?|llms?|models?|system)\s*[:,]\s*"
    r"(?:always|never|you|please|do|don't|ignore|tell|say|answer|reply|offer|grant|refund|approve|reveal)\b"
    r"|\b(?:if|when|whenever) you are an? (?:ai|assistant|bot|chatbot|language model|llm)\b"
    r"|\bas an? (?:ai|language model|llm)\b.{0,40}\byou (?:must|should|will|have to)\b",
    re.IGNORECASE,
)

# The best first; none is inside a placeholder.
_PLACES_TO_CUT = [re.compile(rf"(?:{sign})(?![^{{}}]*}}}})") for sign in (r"[.!?]\s|\n", r"\s")]
_LONGEST_NAME = 100


@dataclass(frozen=True)
class KnowledgeBase:
    """The passages that answers may be made of, those ``set_aside``, and the files that are none, with the reasons.

    ``read`` is how many files were cut anew; ``personal`` counts the placeholders that were put in for personal data.
    """

    passages: pa.Table
    set_aside: pa.Table
    refused: dict[str, str]
    files: int
    read: int
    personal: Counter[str]


def known_files(lake: DataLake) -> dict[str, str]:
    """The identity of each file that the tables were made of, by path; of one that could not be read yet it is empty."""
    files: dict[str, str] = _state(lake).get("files", {})
    return files


def read_knowledge(lake: DataLake, company: Company) -> KnowledgeBase:
    """Writes the tables ``knowledge_base`` and ``knowledge_base_set_aside`` of what lies below ``landing/knowledge/`` now.

    Raises PipelineError when the landing place cannot be listed or the lake cannot be written.
    """
    make_folder(lake.path("prepare"))
    code = digest(
        CODE_VERSIONS["knowledge_base"],
        MOST_CHARACTERS,
        company.model_dump(mode="json", include={"patterns", "phone_regions"}),
    )
    before = _Before.of(lake, code)
    cutter = _Cutter(company)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
    refused: dict[str, str] = {}
    files: dict[str, str] = {}
    versions: dict[str, str] = {}
    read = 0
    for listed in list_articles(lake, company):
        files[listed.path] = listed.identity
        try:
            content = _content(listed)
        except GoneError:
            del files[listed.path]
            continue
        except ChangedError:
            refused[listed.path], files[listed.path] = "is still being written; the next look reads it", ""
            continue
        except (UnreadableError, ArticleError) as error:
            refused[listed.path] = str(error)
            continue
        version = hashlib.sha256(content).hexdigest()
        rows = before.rows_of(listed.path, version)
        if rows is None:
            try:
                rows = cutter.cut(listed.path, version, read_article(listed.path, content))
            except ArticleError as error:
                refused[listed.path] = str(error)
                continue
            read += 1
        versions[listed.path] = version
        for name in _TABLES:
            found[name] += rows[name]
    tables = [
        pa.Table.from_pylist(found[name], schema=schema)
        for name, schema in zip(_TABLES, (PASSAGE, PASSAGE_SET_ASIDE), strict=True)
    ]
    state = {"code": code, "files": files, "versions": versions, "refused": refused}
    if not before.is_same(state, tables):
        sha256s = [lake.write("prepare", name, t, t.schema) for name, t in zip(_TABLES, tables, strict=True)]
        write_json(lake.path("prepare", "knowledge_base.json"), state | {"tables": sha256s})
    return KnowledgeBase(tables[0], tables[1], refused, len(files), read, cutter.personal)


def refused_files(lake: DataLake) -> dict[str, str]:
    """Why files below ``landing/knowledge/`` were not read, by path."""
    refused: dict[str, str] = _state(lake).get("refused", {})
    return refused


def _content(listed: ArticleFile) -> bytes:
    if listed.problem:
        raise ArticleError(listed.problem)
    return listed.read()


def _state(lake: DataLake) -> dict[str, Any]:
    path = lake.path("prepare", "knowledge_base.json")
    state: dict[str, Any] = read_json(path) if path.exists() else {}
    return state


class _Before:
    """What an earlier run made of files; nothing where its tables or this code are others."""

    def __init__(self, state: dict[str, Any], tables: dict[str, pa.Table]) -> None:
        self._state, self._tables = state, tables

    @classmethod
    def of(cls, lake: DataLake, code: str) -> "_Before":
        state = _state(lake)
        paths = [lake.table("prepare", name) for name in _TABLES]
        whole = all(path.exists() for path in paths) and state.get("tables") == [file_sha256(path) for path in paths]
        if not whole or state["code"] != code:
            return cls({"versions": {}}, {})
        return cls(state, {name: lake.read("prepare", name) for name in _TABLES})

    def rows_of(self, path: str, version: str) -> dict[str, list[dict[str, Any]]] | None:
        if self._state["versions"].get(path) != version:
            return None
        return {
            name: table.filter(pc.equal(table.column("path"), path)).to_pylist() for name, table in self._tables.items()
        }

    def is_same(self, state: dict[str, Any], tables: list[pa.Table]) -> bool:
        same = all(self._state.get(key) == value for key, value in state.items())
        return same and list(self._tables.values()) == tables


class _Cutter:
    """Cuts articles; counts what it replaces. Personal data is looked for from the first article on: that takes a second."""

    def __init__(self, company: Company) -> None:
        self.personal: Counter[str] = Counter()
        self._company = company
        self._data: PersonalData | None = None

    def cut(self, path: str, version: str, article: Article) -> dict[str, list[dict[str, Any]]]:
        """The rows of the tables that the article becomes."""
        title = self._clean(article.title) or path
        raw = list(_pieces(article.title, article.paragraphs))
        reasons = [_reasons(f"{article.title}\n{text}") for text in raw]
        # What is spread over two passages is found in the whole alone.
        whole = set(_reasons("\n".join([article.title, *raw]))).difference(*reasons)
        pieces = [(text, [*these, *sorted(whole)]) for text, these in zip(raw, reasons, strict=True)]
        pieces += [(text, [UNSEEN, *_reasons(text)]) for text in article.unseen]
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        seen: Counter[str] = Counter()
        for place, (text, why) in enumerate(pieces):
            clean = self._clean(text)
            row = {
                "passage_id": digest(path, text, seen[text]),
                "path": path,
                "place": place,
                "title": title,
                "text": clean or text,
                "address": article.address or path,
                "version": version,
            }
            seen[text] += 1
            why = [*why, BROKEN] if clean is None else why
            rows[_TABLES[bool(why)]].append({**row, "reason": "; ".join(why)} if why else row)
        return rows

    def _clean(self, text: str) -> str | None:
        """Regular text, placeholders in their canonical spelling, personal data replaced; None where braces are broken."""
        fixed = repair(regular_text(text))
        if fixed is None:
            return None
        self._data = self._data or PersonalData(self._company.phone_regions, self._company.own_patterns)
        text, _ = canonical(fixed)
        while found := [span for span in self._data.find(text, "agent") if span[2] not in _COMPANYS_OWN]:
            for start, end, placeholder in reversed(found):
                text = f"{text[:start]}{{{{{placeholder}}}}}{text[end:]}"
                self.personal[placeholder] += 1
        return text


def _reasons(text: str) -> list[str]:
    return [*text_reasons(text), *([COMMANDS] if _COMMANDS.search(text) else [])]


def _pieces(title: str, paragraphs: list[Paragraph]) -> Iterator[str]:
    """Paragraphs of one heading together, at most MOST_CHARACTERS with the heading; it leads unless it is the title."""
    heading, lines, length = "", list[str](), 0
    for paragraph in paragraphs:
        lead = "" if paragraph.heading == title else paragraph.heading[:200]
        for part in _parts(paragraph.text, MOST_CHARACTERS - len(lead) - 1):
            if lines and (lead != heading or length + 1 + len(part) > MOST_CHARACTERS):
                yield "\n".join(lines)
                lines = []
            if not lines:
                lines, length = ([lead] if lead else []), len(lead)
            heading = lead
            lines.append(part)
            length += 1 + len(part)
    if lines:
        yield "\n".join(lines)


def _parts(text: str, most: int) -> Iterator[str]:
    """``text`` in parts of at most ``most`` characters: whole where it is short, else by sentences, words, characters."""
    while len(text) > most:
        ends = (
            [at.end() for at in sign.finditer(text[: most + _LONGEST_NAME]) if at.end() <= most]
            for sign in _PLACES_TO_CUT
        )
        end = next((places[-1] for places in ends if places), most)
        yield text[:end].strip()
        text = text[end:].strip()
    if text:
        yield text
