"""Help articles at the landing place: the files below its folder ``knowledge/``, as they are now.

Unlike deliveries, which are taken once, they are read where they lie: an article that is changed or deleted there is changed
or gone here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, make_folder
from cs_pipeline.ingest.place import KNOWLEDGE, Entry, Place, is_unfinished, landing_place

MOST_BYTES = 2_000_000
"""A larger file is no article."""
SUFFIXES = {".md": "Markdown", ".markdown": "Markdown", ".html": "HTML", ".htm": "HTML", ".txt": "text"}

_KINDS = "Markdown (.md), HTML (.html) or text (.txt)"


@dataclass(frozen=True)
class Listed:
    """A file below ``knowledge/``: its path there, and what tells whether it has changed.

    ``problem`` says why it can never be read, and what to do.
    """

    path: str
    place: Place
    entry: Entry
    problem: str | None

    @property
    def identity(self) -> str:
        """Another one when the content is another."""
        return self.entry.identity

    def read(self) -> bytes:
        """The content. Raises ChangedError, GoneError and UnreadableError."""
        with self.place.open(self.entry) as file:
            content = b""
            while len(content) <= MOST_BYTES and (piece := file.read(MOST_BYTES + 1 - len(content))):
                content += piece
        return content


def articles(lake: DataLake, company: Company) -> list[Listed]:
    """The files that lie below ``knowledge/`` now, by path. Hidden and unfinished ones are no articles.

    Raises PipelineError when the landing place cannot be listed.
    """
    landing = landing_place(lake, company)
    if not any(entry.folder and entry.name == KNOWLEDGE for entry in landing.entries()):
        return []
    return sorted(_below(landing.within(KNOWLEDGE), ""), key=lambda listed: listed.path)


def land_articles(files: Sequence[Path], lake: DataLake, company: Company) -> list[str]:
    """Copies ``files`` into ``knowledge/``, each whole or not at all, in the place of those of the same names.

    Returns what kind of article each is. Raises PipelineError, and copies none, when one is none.
    """
    for file in files:
        if not file.is_file():
            raise PipelineError(f"{file} is not there, or no file.", f"Check the path; it starts at {Path.cwd()}.")
        if problem := _problem(file.name, file.stat().st_size):
            raise PipelineError(f"{file} {problem}.", "Land help articles alone with --knowledge.")
    landing = landing_place(lake, company)
    if not company.landing:
        make_folder(lake.root / "landing" / KNOWLEDGE)
    place = landing.within(KNOWLEDGE)
    for file in files:
        place.put(file, file.name)
    return [SUFFIXES[file.suffix.lower()] for file in files]


def _below(place: Place, folder: str) -> Iterator[Listed]:
    for entry in place.entries():
        path = f"{folder}{entry.name}"
        if is_unfinished(entry.name):
            continue
        if entry.folder:
            yield from _below(place.within(entry.name), f"{path}/")
        else:
            shown = path if path.isprintable() else ascii(path)
            yield Listed(shown, place, entry, entry.problem or _problem(entry.name, entry.bytes))


def _problem(name: str, size: int) -> str | None:
    if Path(name).suffix.lower() not in SUFFIXES:
        return f"is no article: write it as {_KINDS}"
    if not size:
        return "is empty"
    if size > MOST_BYTES:
        return f"has {size:,} bytes, more than the {MOST_BYTES:,} of an article: split it"
    return None
