"""Help articles: the current files below ``knowledge/`` in the landing folder.

Deliveries are ingested once. Articles are read from that folder in every run, so a changed file changes its article, and a
deleted file removes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, make_folder
from cs_pipeline.ingest.landing_folder import KNOWLEDGE_FOLDER, Entry, Folder, is_unfinished, landing_folder

_MAX_BYTES = 2_000_000
_TYPES = {".md": "Markdown", ".markdown": "Markdown", ".html": "HTML", ".htm": "HTML", ".txt": "text"}


@dataclass(frozen=True)
class ArticleFile:
    """A file below ``knowledge/``; ``path`` is relative to it. ``problem`` says why it cannot be read, and what to do."""

    path: str
    folder: Folder
    entry: Entry
    problem: str | None

    @property
    def identity(self) -> str:
        """A string that changes whenever the content changes."""
        return self.entry.identity

    def read(self) -> bytes:
        """The content. Raises ChangedError, GoneError and UnreadableError."""
        with self.folder.open(self.entry) as file:
            content = b""
            while len(content) <= _MAX_BYTES and (piece := file.read(_MAX_BYTES + 1 - len(content))):
                content += piece
        return content


def list_articles(lake: DataLake, company: Company) -> list[ArticleFile]:
    """The current files below ``knowledge/``, sorted by path, without hidden and unfinished ones.

    Raises PipelineError if the landing folder cannot be listed.
    """
    landing = landing_folder(lake, company)
    if not any(entry.is_folder and entry.name == KNOWLEDGE_FOLDER for entry in landing.entries()):
        return []
    return sorted(_files_below(landing.subfolder(KNOWLEDGE_FOLDER), ""), key=lambda file: file.path)


def land_articles(files: Sequence[Path], lake: DataLake, company: Company) -> list[str]:
    """Copies each of ``files`` atomically into ``knowledge/``, where it replaces any file of the same name.

    Returns the type of each article. If one of the files is not an article, raises PipelineError and copies none.
    """
    for file in files:
        if not file.is_file():
            raise PipelineError(
                f"{file} is missing or not a file.", f"Check the path, which is relative to {Path.cwd()}."
            )
        if problem := _problem(file.name, file.stat().st_size):
            raise PipelineError(f"{file} {problem}.", "Use --knowledge only for help articles.")
    landing = landing_folder(lake, company)
    if not company.landing:
        make_folder(lake.root / "landing" / KNOWLEDGE_FOLDER)
    folder = landing.subfolder(KNOWLEDGE_FOLDER)
    for file in files:
        folder.put(file, file.name)
    return [_TYPES[file.suffix.lower()] for file in files]


def _files_below(folder: Folder, prefix: str) -> Iterator[ArticleFile]:
    for entry in folder.entries():
        path = f"{prefix}{entry.name}"
        if is_unfinished(entry.name):
            continue
        if entry.is_folder:
            yield from _files_below(folder.subfolder(entry.name), f"{path}/")
        else:
            shown = path if path.isprintable() else ascii(path)
            yield ArticleFile(shown, folder, entry, entry.problem or _problem(entry.name, entry.size))


def _problem(name: str, size: int) -> str | None:
    if Path(name).suffix.lower() not in _TYPES:
        return "is not an article: save it as Markdown (.md), HTML (.html) or text (.txt)"
    if not size:
        return "is empty"
    if size > _MAX_BYTES:
        return f"has {size:,} bytes, more than the {_MAX_BYTES:,} allowed for an article: split it"
    return None
