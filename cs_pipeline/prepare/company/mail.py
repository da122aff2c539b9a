"""Removes text that mail programs and help desks add (quoted history, signatures, disclaimers); finds automatic replies.

The patterns are in mail.yaml. When in doubt, the text is kept, because removed text cannot be used for training.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.yaml_file import any_of, read_yaml

_RULES = read_yaml(Path(__file__).with_name("mail.yaml"))
_PATTERNS = {name: any_of(block, _RULES["words"]) for name, block in _RULES.items() if isinstance(block, str)}
_QUOTED = re.compile(r"[ \t]*>(?!=)")
_AMOUNTS = re.compile(r"[ \t]*>[ \t]*[\d$€£]")
# A mail program's "On … wrote:" has a time or an address. If a line has neither, the customer may have written it.
_TIME_OR_ADDRESS = re.compile(r"\d[:h]\d\d|@")
_REPLY_ABOVE = re.compile(r"\s*##-.{1,200}-##\s*")
_DIVIDER = re.compile(r"[ \t]*[-_=*]{2,}[ \t]*")
_POSTSCRIPT = re.compile(r"\W{0,2}p\.? ?s\b", re.I)
_SENTENCE_END = re.compile(r"(?<!\binc)(?<!\bltd)(?<!\bco)(?<!\bcorp)(?<!\b\w)[.!?:;…]\Z", re.I)
_MAX_SIGNATURE_LINES, _MAX_LINE_CHARACTERS, _MAX_LINE_WORDS = 10, 80, 8
_MAX_ROUNDS = 20


@dataclass(frozen=True)
class _Phrases:
    """A pattern and its keywords. Every matching text contains a keyword. Searching for these first is 50 times faster."""

    keywords: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "_Phrases":
        return cls(tuple(entry["keywords"]), any_of(entry["patterns"], _RULES["words"], re.I | re.S))

    def match(self, text: str, lower: str) -> bool:
        """``lower`` is ``text`` in lower case."""
        return any(keyword in lower for keyword in self.keywords) and self.pattern.search(text) is not None


_AUTOMATIC = [_Phrases.of(entry) for entry in _RULES["automatic"]]
_AWAY = _Phrases.of(_RULES["away"])


def own_words(text: str) -> str:
    """``text`` without quoted mail, signature, disclaimer and "Sent from my …"; empty if nothing else is left."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    # When one part is removed, another may become the end. No ordinary text needs more rounds than this.
    for _ in range(_MAX_ROUNDS):
        before, text = text, _without_signature(_without_history(text))
        if text == before:
            break
    return text


def is_automatic(words: str, patterns: Iterable[re.Pattern[str]] = ()) -> bool:
    """Whether ``words`` is an automatic reply: a receipt, absence note, help desk's notice, or match of ``patterns``."""
    lower = words.lower()
    return (
        any(phrases.match(words, lower) for phrases in _AUTOMATIC)
        # If an absence note has a question, a person wrote it and wants an answer.
        or ("?" not in words and _AWAY.match(words, lower))
        or any(pattern.search(words) for pattern in patterns)
    )


def _without_history(text: str) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if length := _attribution(lines, index):
            below = _skip_blank(lines, index + length)
            if below < len(lines) and _QUOTED.match(lines[below]):
                index = _quote_end(lines, below)
            elif _TIME_OR_ADDRESS.search(" ".join(lines[index : index + length])):
                break
            else:
                kept.append(line)
                index += 1
        elif _PATTERNS["separator"].fullmatch(line) or _is_header(lines, index):
            break
        elif _REPLY_ABOVE.fullmatch(line):
            # The reply is above this line, the help desk's mail below it. If nothing is above, the text below is kept.
            if any(map(str.strip, kept)):
                break
            index += 1
        elif _QUOTED.match(line):
            end = _quote_end(lines, index)
            if _is_not_quoted(lines[index:end], kept):
                kept += lines[index:end]
            index = end
        else:
            kept.append(line)
            index += 1
    while kept and (not kept[-1].strip() or _DIVIDER.fullmatch(kept[-1])):
        kept.pop()
    return "\n".join(kept).strip()


def _attribution(lines: list[str], index: int) -> int:
    """The number of lines, starting at ``index``, that introduce a quotation ("On … Jane wrote:"); 0 if there are none."""
    if not _PATTERNS["attribution_start"].match(lines[index]):
        return 0
    for length in (1, 2, 3):
        if _PATTERNS["attribution"].fullmatch(" ".join(lines[index : index + length])):
            return length
    return 0


def _is_header(lines: list[str], index: int) -> bool:
    """Whether a mail's header begins here: From with Sent, or From with both Date and Subject.

    From and Date alone are not enough, because travel plans may have them.
    """
    if not _PATTERNS["header_from"].match(lines[index]):
        return False
    head = "\n".join(line[:300] for line in lines[index : index + 6])
    sent, date, subject = (_PATTERNS[f"header_{name}"].search(head) for name in ("sent", "date", "subject"))
    return bool(sent or (date and subject))


def _is_not_quoted(block: list[str], before: list[str]) -> bool:
    """Whether lines that begin with > are the writer's own text: amounts, or a list after a colon."""
    if all(map(_AMOUNTS.match, block)):
        return True
    above = next((line.rstrip() for line in reversed(before) if line.strip()), "")
    return above.endswith(":") and not _PATTERNS["attribution_end"].search(above)


def _quote_end(lines: list[str], index: int) -> int:
    while index < len(lines) and _QUOTED.match(lines[index]):
        index += 1
    return index


def _skip_blank(lines: list[str], index: int) -> int:
    while index < len(lines) and not lines[index].strip():
        index += 1
    return index


def _without_signature(text: str) -> str:
    lines = [
        line for line in text.split("\n") if not (len(line) <= 120 and _PATTERNS["sent_from_device"].fullmatch(line))
    ]
    while lines and not lines[-1].strip():
        lines.pop()
    kept: list[str] = []
    index = 0
    while index < len(lines):
        line, end = lines[index], index
        if _PATTERNS["disclaimer"].match(line):
            while end < len(lines) and lines[end].strip():
                end += 1
        elif line in ("-- ", "--", "\u2014"):
            end = _signature_end(lines, index + 1)
            is_signature = end == len(lines) or (line == "-- " and len(lines) - index <= 2 * _MAX_SIGNATURE_LINES)
            end = len(lines) if is_signature else index
        elif closing := _PATTERNS["closing"].fullmatch(line):
            end = _signature_end(lines, index + 1)
            has_name = any(map(str.strip, lines[index + 1 : end]))
            if not closing["regards"] and not has_name:
                end = index
            elif not has_name and _is_lone_name(lines, end):
                end = len(lines)
        elif len(line) <= 1_000 and (signed := _PATTERNS["closing_and_name"].fullmatch(line)):
            end = _signature_end(lines, index + 1)
            kept.append(signed["words"])
        if end == index:
            kept.append(line)
        index = max(end, index + 1)
    return "\n".join(kept).strip()


def _signature_end(lines: list[str], start: int) -> int:
    """The end of the lines that look like a name, a position and an address; ``start`` if there are none or too many."""
    end, count = start, 0
    for index in range(start, len(lines)):
        if not lines[index].strip():
            continue
        if not _is_signature_line(lines[index]):
            break
        end, count = index + 1, count + 1
        if count > _MAX_SIGNATURE_LINES:
            return start
    return end


def _is_signature_line(line: str) -> bool:
    line = line.strip()
    if len(line) > _MAX_LINE_CHARACTERS or _POSTSCRIPT.match(line) or _PATTERNS["about_a_number"].search(line):
        return False
    if _PATTERNS["closing"].fullmatch(line) or _DIVIDER.fullmatch(line):
        return True
    rest, contacts = _PATTERNS["contact"].subn(" ", line)
    words = re.findall(r"[^\W\d_][\w'’]*", rest)
    if contacts and len(words) <= 2:
        return True
    names = [word for word in words if not _PATTERNS["lower_case_name_part"].fullmatch(word)]
    capitalised = bool(names) and all(word[0] == word[0].upper() for word in names)
    return capitalised and len(words) <= _MAX_LINE_WORDS and not _SENTENCE_END.search(line)


def _is_lone_name(lines: list[str], index: int) -> bool:
    """Whether the text from ``index`` on is only one or two words: a name, even in lower case ("jane doe")."""
    words = " ".join(lines[index : index + 3]).split() if len(lines) - index <= 3 else []
    return 1 <= len(words) <= 2 and all(re.fullmatch(r"[^\W\d_]+", word) for word in words)
