"""What goes to a model and what comes from it, looked through: personal data, abuse, control tokens, secrets, markup."""

import re
import unicodedata
from collections.abc import Iterable

from cs_pipeline.company import Company
from cs_pipeline.serve.desk.filling import MOST_CHARACTERS
from cs_pipeline.text.clean import regular_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import Speaker, catalogue
from cs_pipeline.text.safety import is_safe


def visible_text(text: str) -> str:
    """``text`` as the rules and the model read it: regular, and without halves of characters, tags and turned directions."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return regular_text(_UNSEEN.sub("", whole))


def without_markup(sentence: str) -> str:
    """``sentence`` without HTML tags and images: no answer needs them, and no page should load what a model names."""
    return _MARKUP.sub("", sentence) if "<" in sentence or "![" in sentence else sentence


def is_fit(sentence: str, said: str) -> bool:
    """Whether a customer may read ``sentence``: without control tokens, abuse and secrets, and without the address, card or
    account of somebody that nobody has ``said``.
    """
    return is_safe(said, sentence, "") and not _SECRET.search(sentence)


class Screening:
    """Finds personal data on both sides. Making one takes a second or two."""

    def __init__(self, company: Company) -> None:
        self._personal = PersonalData(company.phone_regions, company.own_patterns)

    def details(self, texts: Iterable[str]) -> dict[str, str]:
        """What a customer's ``texts``, oldest first, say of the customer, by placeholder; the latest counts."""
        found: dict[str, str] = {}
        for text in texts:
            told = [(name, text[start:end]) for start, end, name in self._personal.find(text, "customer")]
            # Of two in one text the first is meant more often: "order 4412345678, not 4412345679".
            found |= {name: value for name, value in reversed(told) if _is_own(name) and len(value) <= MOST_CHARACTERS}
        return found

    def masked(self, text: str, speaker: Speaker) -> str:
        """``text`` with placeholders for its personal data, as the model's training rows have them."""
        return self._personal.replace(text, speaker=speaker)[0]

    def anonymous(self, sentence: str, said: str) -> str:
        """An answer's ``sentence`` with placeholders for personal data that nobody has ``said``: a model can only have made
        it up, or have it from somebody else's conversation.
        """
        parts, end = [], 0
        known = _bare(said)
        for start, stop, name in self._personal.find(sentence, "agent"):
            if _bare(sentence[start:stop]) not in known:
                parts += [sentence[end:start], "{{", name, "}}"]
                end = stop
        return "".join([*parts, sentence[end:]])


def _is_own(name: str) -> bool:
    entry = catalogue().get(name)
    return (entry is not None and entry.determiner == "customer") or name.startswith("Client ")


def _bare(text: str) -> str:
    """``text`` without what one spelling of a number has and another lacks."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold()


# Embeddings, overrides and isolates of direction, invisible joints, tags and variation selectors in a row.
_UNSEEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u2061-\u2064\u180e\U000e0000-\U000e007f\U000e0100-\U000e01ef\ufffd]"
    "|(?<=[A-Za-z])[\u200c\u200d]+(?=[A-Za-z])"
)
_MARKUP = re.compile(
    r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|<(script|style|iframe|svg)\b.*?(?:</\1>|\Z)|</?[A-Za-z][^<>]*>|<img\b.*",
    re.I | re.S,
)
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z\d_-]{16,}\b|\b(?:AKIA|ASIA)[A-Z\d]{16}\b"
    r"|\bgh[opsu]_[A-Za-z\d]{20,}\b|\bgithub_pat_\w{20,}\b|\bxox[abprs]-[\w-]{10,}\b|\bhf_[A-Za-z\d]{20,}\b|\bAIza[\w-]{30,}\b"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
    r"|\b(?:bearer|authorization:)\s+[\w.~+/=-]{16,}"
    r"|\b(?:password|passphrase|api[_ -]?key|secret(?:[_ -]key)?|access[_ -]?token|pin)\b(?: is|:|=)"
    r"\s*[\"'`]?(?=\S*\d)\S{4,}",
    re.I,
)
