"""The knowledge base: help articles split into passages, without personal data and without instructions to a model.

Each run makes the tables match the current files. A file whose content has not changed is not parsed again.
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
from cs_pipeline.ingest.landing_folder import ChangedError, GoneError, UnreadableError
from cs_pipeline.retrieval.articles import Article, ArticleError, Paragraph, read_article
from cs_pipeline.text.clean import normalize_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import canonical, repair
from cs_pipeline.text.poison import article_reasons

MAX_PASSAGE_CHARACTERS = 600
"""Maximum length of a passage with its heading: about 150 tokens, so that a few fit into a small model's context."""

INVISIBLE = "text that a reader of the page does not see"
BROKEN_BRACES = "braces that cannot be repaired"

_TABLES = ("knowledge_base", "knowledge_base_set_aside")

# Contacts of the company itself. Any other personal data belongs to a person and must not be in an article.
_COMPANY_CONTACTS = frozenset(
    {"Customer Support Email", "Customer Support Phone Number", "Personal Link", "Postal Address"}
)

# Where a long text is split, most preferred first. No such point is inside a placeholder.
_SPLIT_POINTS = [re.compile(rf"(?:{sign})(?![^{{}}]*}}}})") for sign in (r"[.!?]\s|\n", r"\s")]
_MAX_PLACEHOLDER_CHARACTERS = 100


@dataclass(frozen=True)
class KnowledgeBase:
    """The passages for answers, the passages ``set_aside``, and the ``refused`` files by path with their reasons.

    ``files`` is the number of files, ``read`` the number of new or changed files. ``personal`` counts the placeholders that
    replaced personal data.
    """

    passages: pa.Table
    set_aside: pa.Table
    refused: dict[str, str]
    files: int
    read: int
    personal: Counter[str]


def known_files(lake: DataLake) -> dict[str, str]:
    """The identity of each file that the tables were made from, by path; empty for a file that could not be read yet."""
    files: dict[str, str] = _state(lake).get("files", {})
    return files


def find_changes(lake: DataLake, company: Company) -> tuple[dict[str, str], str | None]:
    """The identity of each current file below ``landing/knowledge/``, by path, and a summary of the changes, if any."""
    files = {listed.path: listed.identity for listed in list_articles(lake, company)}
    known = known_files(lake)
    if files == known:
        return files, None
    changed = sum(files[path] != known[path] for path in files.keys() & known)
    return files, f"{len(files.keys() - known)} files new, {len(known.keys() - files)} gone, {changed} changed"


def read_knowledge(lake: DataLake, company: Company) -> KnowledgeBase:
    """Writes ``knowledge_base`` and ``knowledge_base_set_aside`` from the current files below ``landing/knowledge/``.

    Raises PipelineError if the landing folder cannot be listed or the lake cannot be written.
    """
    make_folder(lake.path("prepare"))
    code = digest(
        CODE_VERSIONS["knowledge_base"],
        MAX_PASSAGE_CHARACTERS,
        company.model_dump(mode="json", include={"patterns", "phone_regions"}),
    )
    previous = _PreviousTables.of(lake, code)
    splitter = _Splitter(company)
    rows_by_table: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
    refused: dict[str, str] = {}
    files: dict[str, str] = {}
    versions: dict[str, str] = {}
    read_count = 0
    for file in list_articles(lake, company):
        files[file.path] = file.identity
        try:
            content = _content(file)
        except GoneError:
            del files[file.path]
            continue
        except ChangedError:
            refused[file.path], files[file.path] = "is still being written; it is read on the next run", ""
            continue
        except (UnreadableError, ArticleError) as error:
            refused[file.path] = str(error)
            continue
        version = hashlib.sha256(content).hexdigest()
        rows = previous.rows_of(file.path, version)
        if rows is None:
            try:
                rows = splitter.split(file.path, version, read_article(file.path, content))
            except ArticleError as error:
                refused[file.path] = str(error)
                continue
            read_count += 1
        versions[file.path] = version
        for name in _TABLES:
            rows_by_table[name] += rows[name]
    tables = [
        pa.Table.from_pylist(rows_by_table[name], schema=schema)
        for name, schema in zip(_TABLES, (PASSAGE, PASSAGE_SET_ASIDE), strict=True)
    ]
    state = {"code": code, "files": files, "versions": versions, "refused": refused}
    if not previous.is_same(state, tables):
        named = zip(_TABLES, tables, strict=True)
        sha256s = [lake.write("prepare", name, table, table.schema) for name, table in named]
        write_json(lake.path("prepare", "knowledge_base.json"), state | {"tables": sha256s})
    return KnowledgeBase(tables[0], tables[1], refused, len(files), read_count, splitter.personal)


def refused_files(lake: DataLake) -> dict[str, str]:
    """Why files below ``landing/knowledge/`` were not read, by path."""
    refused: dict[str, str] = _state(lake).get("refused", {})
    return refused


def _content(file: ArticleFile) -> bytes:
    if file.problem:
        raise ArticleError(file.problem)
    return file.read()


def _state(lake: DataLake) -> dict[str, Any]:
    path = lake.path("prepare", "knowledge_base.json")
    state: dict[str, Any] = read_json(path) if path.exists() else {}
    return state


class _PreviousTables:
    """The tables of the previous run. Empty if they were modified or written by another version of the code."""

    def __init__(self, state: dict[str, Any], tables: dict[str, pa.Table]) -> None:
        self._state, self._tables = state, tables

    @classmethod
    def of(cls, lake: DataLake, code: str) -> "_PreviousTables":
        state = _state(lake)
        paths = [lake.table("prepare", name) for name in _TABLES]
        intact = all(path.exists() for path in paths) and state.get("tables") == [file_sha256(path) for path in paths]
        if not intact or state["code"] != code:
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


class _Splitter:
    """Splits articles into passages, and counts the personal data that it replaces. Recognisers are loaded at first use."""

    def __init__(self, company: Company) -> None:
        self.personal: Counter[str] = Counter()
        self._company = company
        self._recognisers: PersonalData | None = None

    def split(self, path: str, version: str, article: Article) -> dict[str, list[dict[str, Any]]]:
        """The article's rows for each table."""
        title = self._clean(article.title) or path
        raw = list(_passages(article.title, article.paragraphs))
        reasons_by_passage = [article_reasons(f"{article.title}\n{text}") for text in raw]
        # A phrase that spans two passages is found only in the article as a whole.
        spanning = set(article_reasons("\n".join([article.title, *raw]))).difference(*reasons_by_passage)
        pieces = [(text, [*reasons, *sorted(spanning)]) for text, reasons in zip(raw, reasons_by_passage, strict=True)]
        pieces += [(text, [INVISIBLE, *article_reasons(text)]) for text in article.invisible]
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        seen: Counter[str] = Counter()
        for position, (text, own_reasons) in enumerate(pieces):
            clean = self._clean(text)
            row = {
                "passage_id": digest(path, text, seen[text]),
                "path": path,
                "place": position,
                "title": title,
                "text": clean or text,
                "address": article.address or path,
                "version": version,
            }
            seen[text] += 1
            own_reasons = [*own_reasons, BROKEN_BRACES] if clean is None else own_reasons
            rows[_TABLES[bool(own_reasons)]].append({**row, "reason": "; ".join(own_reasons)} if own_reasons else row)
        return rows

    def _clean(self, text: str) -> str | None:
        """Normalised text, with canonical placeholders and without personal data; None if its braces are broken."""
        fixed = repair(normalize_text(text))
        if fixed is None:
            return None
        self._recognisers = self._recognisers or PersonalData(self._company.phone_regions, self._company.own_patterns)
        text, _ = canonical(fixed)
        while found := [span for span in self._recognisers.find(text, "agent") if span[2] not in _COMPANY_CONTACTS]:
            for start, end, placeholder in reversed(found):
                text = f"{text[:start]}{{{{{placeholder}}}}}{text[end:]}"
                self.personal[placeholder] += 1
        return text


def _passages(title: str, paragraphs: list[Paragraph]) -> Iterator[str]:
    """Passages of at most MAX_PASSAGE_CHARACTERS. Each belongs to one heading and starts with it unless it is the title."""
    heading, lines, length = "", list[str](), 0
    for paragraph in paragraphs:
        lead = "" if paragraph.heading == title else paragraph.heading[:200]
        for part in _parts(paragraph.text, MAX_PASSAGE_CHARACTERS - len(lead) - 1):
            if lines and (lead != heading or length + 1 + len(part) > MAX_PASSAGE_CHARACTERS):
                yield "\n".join(lines)
                lines = []
            if not lines:
                lines, length = ([lead] if lead else []), len(lead)
            heading = lead
            lines.append(part)
            length += 1 + len(part)
    if lines:
        yield "\n".join(lines)


def _parts(text: str, limit: int) -> Iterator[str]:
    """``text`` in parts of at most ``limit`` characters, split after sentences if possible, else after words."""
    while len(text) > limit:
        window = text[: limit + _MAX_PLACEHOLDER_CHARACTERS]
        ends = ([match.end() for match in point.finditer(window) if match.end() <= limit] for point in _SPLIT_POINTS)
        end = next((positions[-1] for positions in ends if positions), limit)
        yield text[:end].strip()
        text = text[end:].strip()
    if text:
        yield text
