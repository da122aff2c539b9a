"""Converts the HTML of messages to plain text."""

import html
import re

_TOKEN = re.compile(r"<!--(?:(?!-->).)*+(?:-->)?|<[!?][^<>]*+>|<(/?)([a-zA-Z][\w-]*+)[^<>]*+>", re.DOTALL)
_HAS_MARKUP = re.compile(
    r"</?(?:p|div|br|span|a|b|i|u|em|strong|ul|ol|li|table|tr|td|blockquote|html|body|img|hr)\b", re.IGNORECASE
)
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = _PARAGRAPHS | {"div", "ul", "ol", "li", "table", "tr", "blockquote", "hr", "pre", "section", "article"}
_INVISIBLE = frozenset({"script", "style", "head", "title"})


def plain_text(text: str) -> str:
    """``text`` without HTML markup. Lines of a quotation start with "> ", as in mail.

    Paragraphs are separated by an empty line. Other blocks and line breaks start a new line.
    """
    if not _HAS_MARKUP.search(text):
        return html.unescape(text)
    lines: list[str] = []
    line: list[str] = []
    quotes = 0
    hidden_in = ""

    def end_line(*, even_if_empty: bool = False) -> None:
        words = " ".join("".join(line).split())
        line.clear()
        if words or even_if_empty:
            lines.append("> " * quotes + words)

    position = 0
    for token in _TOKEN.finditer(text):
        if not hidden_in:
            line.append(html.unescape(text[position : token.start()]))
        position = token.end()
        closes, name = bool(token[1]), (token[2] or "").lower()
        if hidden_in or name in _INVISIBLE:
            hidden_in = "" if closes and name == (hidden_in or name) else hidden_in or name
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
    if not hidden_in:
        line.append(html.unescape(text[position:]))
    end_line()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()
