"""Reads help articles: title, address, headings with their paragraphs, and text that is invisible to readers.

Markdown is rendered to HTML and then parsed like HTML files. Nothing is downloaded or run, and no entity is resolved.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from cs_pipeline.text.clean import normalize_line

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
_SKIPPED_TAGS = frozenset(
    {
        *("aside", "button", "datalist", "footer", "form", "head", "iframe", "nav", "noscript", "object", "script"),
        *("select", "style", "svg", "template", "textarea"),
    }
)
_INVISIBLE_STYLE = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|(?:font-size|opacity|(?:max-)?(?:width|height)):0(?:\.0*)?(?![.\d])"
    r"|(?:text-indent|left|top):-\d{3}|(?:^|;)color:(?:#fff(?:fff)?|white|transparent)(?![\w#])"
)
_INVISIBLE_CLASSES = frozenset(
    {"hidden", "d-none", "sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text"}
)


class ArticleError(Exception):
    """The file is not an article; the message says why."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph or list item. ``heading`` is the heading above it, empty if there is none."""

    heading: str
    text: str


@dataclass(frozen=True)
class Article:
    """A help article. ``address`` is the URL stated in the file. Readers of the page do not see the ``invisible`` texts."""

    title: str
    address: str | None
    paragraphs: list[Paragraph]
    invisible: list[str]


def read_article(path: str, content: bytes) -> Article:
    """Reads the file ``path`` as Markdown, HTML or text, depending on its suffix. Raises ArticleError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArticleError(f"is not UTF-8 from byte {error.start} on: save it as UTF-8") from None
    if found := _CONTROL.search(text):
        raise ArticleError(
            f"contains the control character U+{ord(found[0]):04X}: it is not a text file, or is damaged"
        )
    name = PurePosixPath(path)
    front_matter: dict[str, Any] = {}
    if name.suffix.lower() in (".md", ".markdown", ".txt"):
        front_matter, text = _split_front_matter(text)
    if name.suffix.lower() == ".txt":
        paragraphs = [Paragraph("", part.strip()) for part in re.split(r"\n\s*\n", text) if part.strip()]
        page = Article("", None, paragraphs, [])
    else:
        page = _read_html(_render_markdown(text) if name.suffix.lower() in (".md", ".markdown") else text)
    if not page.paragraphs:
        raise ArticleError("contains no text")
    title = normalize_line(str(front_matter.get("title") or page.title))
    title = title or name.stem.replace("_", " ").replace("-", " ")
    address = str(front_matter.get("url") or page.address or "").strip()
    return replace(page, title=title, address=address if _ADDRESS.fullmatch(address) else None)


def _split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML between lines of ``---`` at the start, and the rest of the text."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return {}, text
    try:
        content = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:
        raise ArticleError(f"has front matter that is not valid YAML ({type(error).__name__}): fix it") from None
    return (content, text[found.end() :]) if isinstance(content, dict) else ({}, text)


def _render_markdown(text: str) -> str:
    from markdown_it import MarkdownIt

    html: str = MarkdownIt("commonmark", {"maxNesting": 100}).enable("table").render(text)
    return html


def _read_html(text: str) -> Article:
    from lxml import etree, html

    # libxml2 accepts neither text with a declared encoding nor empty text.
    parser = html.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.encode(), parser=parser)
    except etree.LxmlError:
        raise ArticleError("contains no text") from None
    if any(entry.type_name == "ERR_INTERNAL_ERROR" or "depth" in entry.message for entry in parser.error_log):
        raise ArticleError("is nested too deeply to be read completely")
    mains = root.findall(".//main")
    paragraphs, invisible = [], []
    title, heading = None, ""
    for block in _blocks(mains[0] if len(mains) == 1 else root):
        if block.invisible:
            invisible.append(block.text)
        elif block.is_heading:
            heading = block.text
            title = title or heading
        else:
            paragraphs.append(Paragraph(heading, block.text))
    canonical = next((link.get("href") for link in root.iter("link") if link.get("rel") == "canonical"), None)
    return Article(title or root.findtext(".//title") or "", canonical, paragraphs, invisible)


@dataclass(frozen=True)
class _Block:
    text: str
    is_heading: bool
    invisible: bool


def _blocks(root: "HtmlElement") -> Iterator[_Block]:
    """The blocks of text below ``root``, in order. It is not recursive, because a page may be nested deeply."""
    from lxml import etree

    pieces: list[str] = []
    heading = False
    invisible: HtmlElement | None = None

    def finish_block(*, invisible: bool = False) -> Iterator[_Block]:
        text = "\n".join(line for line in (" ".join(line.split()) for line in "".join(pieces).split("\n")) if line)
        pieces.clear()
        if text.strip("- "):
            yield _Block(text, heading, invisible)

    events = etree.iterwalk(root, events=("start", "end"))
    for event, element in events:
        tag = element.tag
        if event == "start":
            if tag in _SKIPPED_TAGS or element.get("role") == "navigation":
                events.skip_subtree()
                continue
            if invisible is None and _is_invisible(element):
                yield from finish_block()
                invisible = element
            if tag in _BLOCKS:
                yield from finish_block(invisible=invisible is not None)
                heading = tag in _HEADINGS
            pieces.append({"li": "- ", "br": "\n", "td": " ", "th": " "}.get(tag, ""))
            # Line breaks of the source are spaces, except in preformatted text.
            pieces.append(element.text or "" if tag == "pre" else _collapse_spaces(element.text))
        else:
            if tag in _BLOCKS:
                yield from finish_block(invisible=invisible is not None)
                heading = False
            if element is invisible:
                yield from finish_block(invisible=True)
                invisible = None
            if element is not root:
                pieces.append(_collapse_spaces(element.tail))
    yield from finish_block()


def _collapse_spaces(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _is_invisible(element: "HtmlElement") -> bool:
    if element.get("hidden") is not None or _INVISIBLE_CLASSES & set((element.get("class") or "").lower().split()):
        return True
    style = element.get("style")
    return bool(style and _INVISIBLE_STYLE.search(re.sub(r"\s+|!important", "", style.lower())))
