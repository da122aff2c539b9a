"""HTML of messages to plain text."""

import html
import re

_TOKEN = re.compile(r"<!--(?:(?!-->).)*+(?:-->)?|<[!?][^<>]*+>|<(/?)([a-zA-Z][\w-]*+)[^<>]*+>", re.DOTALL)
_LOOKS_LIKE = re.compile(
    r"</?(?:p|div|br|span|a|b|i|u|em|strong|ul|ol|li|table|tr|td|blockquote|html|body|img|hr)\b", re.IGNORECASE
)
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = _PARAGRAPHS | {"div", "ul", "ol", "li", "table", "tr", "blockquote", "hr", "pre", "section", "article"}
_UNSEEN = frozenset({"script", "style", "head", "title"})


def plain_text(text: str) -> str:
    """``text`` without its markup where it has any; quoted parts get "> " before each line, as in mail.

    Paragraphs have an empty line between them, other blocks and line breaks a line of their own.
    """
    if not _LOOKS_LIKE.search(text):
        return html.unescape(text)
    lines: list[str] = []
    line: list[str] = []
    quotes = 0
    unseen = ""

    def end_line(*, even_if_empty: bool = False) -> None:
        words = " ".join("".join(line).split())
        line.clear()
        if words or even_if_empty:
            lines.append("> " * quotes + words)

    place = 0
    for token in _TOKEN.finditer(text):
        if not unseen:
            line.append(html.unescape(text[place : token.start()]))
        place = token.end()
        closes, name = bool(token[1]), (token[2] or "").lower()
        if unseen or name in _UNSEEN:
            unseen = "" if closes and name == (unseen or name) else unseen or name
        elif name == "br":
            end_line(even_if_empty=True)
        elif name in ("td", "th"):
            line.append(" ")
        elif name in _BLOCKS:
            end_line()
            if name == "blockquote":
                quotes = max(0, quotes + (-1 if closes else 1))
            if name in _PARAGRAPHS:
                lines.append("")
    if not unseen:
        line.append(html.unescape(text[place:]))
    end_line()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()
