"""Removes what mail programs and help desks add: quoted history, signatures, disclaimers; recognises automatic replies.

The patterns are in mail.yaml. When in doubt, the text is kept, because what is removed is lost to training.
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
# A mail program writes the time or the address; "On 5 May your agent wrote:" may be the customer's own report.
_TIME_OR_ADDRESS = re.compile(r"\d[:h]\d\d|@")
_REPLY_ABOVE = re.compile(r"\s*##-.{1,200}-##\s*")
_RULE = re.compile(r"[ \t]*[-_=*]{2,}[ \t]*")
_POSTSCRIPT = re.compile(r"\W{0,2}p\.? ?s\b", re.I)
_SENTENCE_END = re.compile(r"(?<!\binc)(?<!\bltd)(?<!\bco)(?<!\bcorp)(?<!\b\w)[.!?:;…]\Z", re.I)
_MAX_SIGNATURE_LINES, _MAX_LINE_CHARACTERS, _MAX_LINE_WORDS = 10, 80, 8
_MAX_ROUNDS = 20


@dataclass(frozen=True)
class _Phrases:
    """A pattern, and keywords of which every matching text contains one. Searching for keywords is 50 times faster."""

    keywords: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "_Phrases":
        return cls(tuple(entry["keywords"]), any_of(entry["patterns"], _RULES["words"], re.I | re.S))

    def match(self, text: str, lower: str) -> bool:
        """``lower`` is ``text`` in lower case."""
        return any(map(lower.__contains__, self.keywords)) and self.pattern.search(text) is not None


_AUTOMATIC = [_Phrases.of(entry) for entry in _RULES["automatic"]]
_AWAY = _Phrases.of(_RULES["away"])


def own_words(text: str) -> str:
    """``text`` without quoted mail, signature, disclaimer and "Sent from my …"; empty if nothing else is left."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    # Removing one part may expose another. A text that needs more rounds than this was written to waste time.
    for _ in range(_MAX_ROUNDS):
        before, text = text, _without_signature(_without_history(text))
        if text == before:
            break
    return text


def is_automatic(words: str, patterns: Iterable[re.Pattern[str]] = ()) -> bool:
    """Whether ``words`` are an automatic reply: a receipt, an absence, a help desk's notice, or a match of ``patterns``."""
    lower = words.lower()
    return (
        any(phrases.match(words, lower) for phrases in _AUTOMATIC)
        # A person who asks something while away from the office wants an answer.
        or ("?" not in words and _AWAY.match(words, lower))
        or any(pattern.search(words) for pattern in patterns)
    )


def _without_history(text: str) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if length := _attribution(lines, place):
            below = _skip_blank(lines, place + length)
            if below < len(lines) and _QUOTED.match(lines[below]):
                place = _quote_end(lines, below)
            elif _TIME_OR_ADDRESS.search(" ".join(lines[place : place + length])):
                break
            else:
                kept.append(line)
                place += 1
        elif _PATTERNS["separator"].fullmatch(line) or _is_header(lines, place):
            break
        elif _REPLY_ABOVE.fullmatch(line):
            # Help desks put this line above their own text, and it comes back quoted in the customer's reply.
            if any(map(str.strip, kept)):
                break
            place += 1
        elif _QUOTED.match(line):
            end = _quote_end(lines, place)
            if _is_list(lines[place:end], kept):
                kept += lines[place:end]
            place = end
        else:
            kept.append(line)
            place += 1
    while kept and (not kept[-1].strip() or _RULE.fullmatch(kept[-1])):
        kept.pop()
    return "\n".join(kept).strip()


def _attribution(lines: list[str], place: int) -> int:
    """The number of lines from ``place`` on that introduce a quotation ("On … Jane wrote:"), 0 if there are none."""
    if not _PATTERNS["attribution_start"].match(lines[place]):
        return 0
    for length in (1, 2, 3):
        if _PATTERNS["attribution"].fullmatch(" ".join(lines[place : place + length])):
            return length
    return 0


def _is_header(lines: list[str], place: int) -> bool:
    """Whether a mail's header begins here. A travel plan has From, To and Date too, but neither Sent nor Subject."""
    if not _PATTERNS["header_from"].match(lines[place]):
        return False
    head = "\n".join(line[:300] for line in lines[place : place + 6])
    sent, date, subject = (_PATTERNS[f"header_{name}"].search(head) for name in ("sent", "date", "subject"))
    return bool(sent or (date and subject))


def _is_list(block: list[str], before: list[str]) -> bool:
    """Whether lines that begin with > are the writer's own: amounts, or a list after a colon."""
    if all(map(_AMOUNTS.match, block)):
        return True
    above = next((line.rstrip() for line in reversed(before) if line.strip()), "")
    return above.endswith(":") and not _PATTERNS["attribution_end"].search(above)


def _quote_end(lines: list[str], place: int) -> int:
    while place < len(lines) and _QUOTED.match(lines[place]):
        place += 1
    return place


def _skip_blank(lines: list[str], place: int) -> int:
    while place < len(lines) and not lines[place].strip():
        place += 1
    return place


def _without_signature(text: str) -> str:
    lines = [
        line for line in text.split("\n") if not (len(line) <= 120 and _PATTERNS["sent_from_device"].fullmatch(line))
    ]
    while lines and not lines[-1].strip():
        lines.pop()
    kept: list[str] = []
    place = 0
    while place < len(lines):
        line, end = lines[place], place
        if _PATTERNS["disclaimer"].match(line):
            while end < len(lines) and lines[end].strip():
                end += 1
        elif line in ("-- ", "--", "\u2014"):
            end = _signature_end(lines, place + 1)
            whole = end == len(lines) or (line == "-- " and len(lines) - place <= 2 * _MAX_SIGNATURE_LINES)
            end = len(lines) if whole else place
        elif closing := _PATTERNS["closing"].fullmatch(line):
            end = _signature_end(lines, place + 1)
            named = any(map(str.strip, lines[place + 1 : end]))
            if not closing["regards"] and not named:
                end = place
            elif not named and _is_lone_name(lines, end):
                end = len(lines)
        elif len(line) <= 1_000 and (signed := _PATTERNS["closing_and_name"].fullmatch(line)):
            end = _signature_end(lines, place + 1)
            kept.append(signed["words"])
        if end == place:
            kept.append(line)
        place = max(end, place + 1)
    return "\n".join(kept).strip()


def _signature_end(lines: list[str], place: int) -> int:
    """The end of the lines that look like a name, a position and an address; ``place`` if there are none or too many."""
    end, found = place, 0
    for at in range(place, len(lines)):
        if not lines[at].strip():
            continue
        if not _is_signature_line(lines[at]):
            break
        end, found = at + 1, found + 1
        if found > _MAX_SIGNATURE_LINES:
            return place
    return end


def _is_signature_line(line: str) -> bool:
    line = line.strip()
    if len(line) > _MAX_LINE_CHARACTERS or _POSTSCRIPT.match(line) or _PATTERNS["about_a_number"].search(line):
        return False
    if _PATTERNS["closing"].fullmatch(line) or _RULE.fullmatch(line):
        return True
    rest, contacts = _PATTERNS["contact"].subn(" ", line)
    words = re.findall(r"[^\W\d_][\w'’]*", rest)
    if contacts and len(words) <= 2:
        return True
    names = [word for word in words if not _PATTERNS["lower_case_name_part"].fullmatch(word)]
    capitalised = bool(names) and all(word[0] == word[0].upper() for word in names)
    return capitalised and len(words) <= _MAX_LINE_WORDS and not _SENTENCE_END.search(line)


def _is_lone_name(lines: list[str], place: int) -> bool:
    """Whether only a lower-case name is left from ``place`` on, "jane" or "jane doe"."""
    words = " ".join(lines[place : place + 3]).split() if len(lines) - place <= 3 else []
    return 1 <= len(words) <= 2 and all(re.fullmatch(r"[^\W\d_]+", word) for word in words)
