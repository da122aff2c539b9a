"""Help articles as text: title, address, headings with their paragraphs, and what their readers do not see.

Markdown is rendered to HTML, and all HTML read in one way. Nothing is fetched, no entity resolved and no script run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from cs_pipeline.text.clean import regular_line

if TYPE_CHECKING:
    from lxml.html import HtmlElement

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.{0,10000}?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_ADDRESS = re.compile(r"https?://[^\s<>\"'\x00-\x20]+")

_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = _HEADINGS | {
    *("address", "article", "blockquote", "body", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "header"),
    *("hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
}
_UNREAD = frozenset(
    {
        *("aside", "button", "datalist", "footer", "form", "head", "iframe", "nav", "noscript", "object", "script"),
        *("select", "style", "svg", "template", "textarea"),
    }
)
_UNSEEN_STYLE = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|(?:font-size|opacity|(?:max-)?(?:width|height)):0(?:\.0*)?(?![.\d])"
    r"|(?:text-indent|left|top):-\d{3}|(?:^|;)color:(?:#fff(?:fff)?|white|transparent)(?![\w#])"
)
_UNSEEN_CLASSES = frozenset({"hidden", "d-none", "sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text"})


class ArticleError(Exception):
    """The file is no article; the message says why."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph or an item of a list, and the heading that it stands under, empty where there is none."""

    heading: str
    text: str


@dataclass(frozen=True)
class Article:
    """``address`` is the URL that the file states, if it states one; ``unseen`` what a reader of the page does not see."""

    title: str
    address: str | None
    paragraphs: list[Paragraph]
    unseen: list[str]


def read_article(path: str, content: bytes) -> Article:
    """The article in the file ``path``, Markdown, HTML or text by its name. Raises ArticleError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArticleError(f"is not UTF-8 from byte {error.start} on: save it as UTF-8") from None
    if found := _CONTROL.search(text):
        raise ArticleError(f"has the control character U+{ord(found[0]):04X}: it is no text, or damaged")
    name = PurePosixPath(path)
    said: dict[str, Any] = {}
    if name.suffix.lower() in (".md", ".markdown", ".txt"):
        said, text = _front_matter(text)
    if name.suffix.lower() == ".txt":
        paragraphs = [Paragraph("", part.strip()) for part in re.split(r"\n\s*\n", text) if part.strip()]
        page = _Page(None, None, paragraphs, [])
    else:
        page = _read_html(_rendered(text) if name.suffix.lower() in (".md", ".markdown") else text)
    if not page.paragraphs:
        raise ArticleError("holds no text")
    title = regular_line(str(said.get("title") or page.title or "")) or name.stem.replace("_", " ").replace("-", " ")
    address = str(said.get("url") or page.address or "").strip()
    return Article(title, address if _ADDRESS.fullmatch(address) else None, page.paragraphs, page.unseen)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """What stands between lines of ``---`` at the beginning, and the rest."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return {}, text
    try:
        said = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:
        raise ArticleError(f"has front matter that is no YAML ({type(error).__name__}): fix it") from None
    return (said, text[found.end() :]) if isinstance(said, dict) else ({}, text)


def _rendered(text: str) -> str:
    from markdown_it import MarkdownIt

    html: str = MarkdownIt("commonmark", {"maxNesting": 100}).enable("table").render(text)
    return html


@dataclass(frozen=True)
class _Page:
    title: str | None
    address: str | None
    paragraphs: list[Paragraph]
    unseen: list[str]


def _read_html(text: str) -> _Page:
    from lxml import etree, html

    # libxml2 takes neither text with a declared encoding nor an empty one.
    parser = html.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.encode(), parser=parser)
    except etree.LxmlError:
        raise ArticleError("holds no text") from None
    if any(entry.type_name == "ERR_INTERNAL_ERROR" or "depth" in entry.message for entry in parser.error_log):
        raise ArticleError("is nested too deeply to be read whole")
    mains = root.findall(".//main")
    paragraphs, unseen = [], []
    title, heading = None, ""
    for block in _blocks(mains[0] if len(mains) == 1 else root):
        if block.unseen:
            unseen.append(block.text)
        elif block.is_heading:
            heading = block.text
            title = title or heading
        else:
            paragraphs.append(Paragraph(heading, block.text))
    named = root.findtext(".//title")
    canonical = next((link.get("href") for link in root.iter("link") if link.get("rel") == "canonical"), None)
    return _Page(title or named, canonical, paragraphs, unseen)


@dataclass(frozen=True)
class _Block:
    text: str
    is_heading: bool
    unseen: bool


def _blocks(root: "HtmlElement") -> Iterator[_Block]:
    """The blocks of text below ``root``, in order, without recursion: a page may be nested as deeply as it likes."""
    from lxml import etree

    pieces: list[str] = []
    heading = False
    unseen: HtmlElement | None = None

    def end(*, unseen: bool = False) -> Iterator[_Block]:
        text = "\n".join(line for line in (" ".join(line.split()) for line in "".join(pieces).split("\n")) if line)
        pieces.clear()
        if text.strip("- "):
            yield _Block(text, heading, unseen)

    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        tag = element.tag
        if event == "start":
            if tag in _UNREAD or element.get("role") == "navigation":
                walk.skip_subtree()
                continue
            if unseen is None and _is_unseen(element):
                yield from end()
                unseen = element
            if tag in _BLOCKS:
                yield from end(unseen=unseen is not None)
                heading = tag in _HEADINGS
            pieces.append({"li": "- ", "br": "\n", "td": " ", "th": " "}.get(tag, ""))
            # Line breaks of the source are spaces, but in preformatted text.
            pieces.append(element.text or "" if tag == "pre" else _flowing(element.text))
        else:
            if tag in _BLOCKS:
                yield from end(unseen=unseen is not None)
                heading = False
            if element is unseen:
                yield from end(unseen=True)
                unseen = None
            if element is not root:
                pieces.append(_flowing(element.tail))
    yield from end()


def _flowing(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _is_unseen(element: "HtmlElement") -> bool:
    if element.get("hidden") is not None or _UNSEEN_CLASSES & set((element.get("class") or "").lower().split()):
        return True
    style = element.get("style")
    return bool(style and _UNSEEN_STYLE.search(re.sub(r"\s+|!important", "", style.lower())))
