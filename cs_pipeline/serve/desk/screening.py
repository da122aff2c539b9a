"""Checks on everything that goes to a model or comes from it: personal data, abuse, control tokens, secrets, markup."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from cs_pipeline.company import Company
from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.serve.desk.filling import MAX_VALUE_CHARACTERS
from cs_pipeline.text.clean import normalize_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import Speaker, catalogue
from cs_pipeline.text.safety import is_safe


def visible_text(text: str) -> str:
    """``text`` as the rules and the model read it: normalised, without lone surrogates, tags and direction marks."""
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return normalize_text(_INVISIBLE.sub("", valid))


def strip_markup(sentence: str) -> str:
    """``sentence`` without HTML tags and images. No answer needs them, and a page must not load addresses from a model."""
    return _MARKUP.sub("", sentence) if "<" in sentence or "![" in sentence else sentence


def is_fit_for_customers(sentence: str, known: str) -> bool:
    """Whether a customer may read ``sentence``.

    It must not contain control tokens, abuse, secrets, or an e-mail address, card number or IBAN not in ``known``.
    """
    return is_safe(known, sentence, "") and not _SECRET.search(sentence)


class Screening:
    """Finds personal data in questions and answers. Creating one takes a second or two."""

    def __init__(self, company: Company) -> None:
        self._personal = PersonalData(company.phone_regions, company.own_patterns)

    def customer_details(self, texts: Iterable[str]) -> dict[str, str]:
        """The customer's details in ``texts`` (oldest first), by placeholder. The latest text wins."""
        details: dict[str, str] = {}
        for text in texts:
            found = [(name, text[start:end]) for start, end, name in self._personal.find(text, "customer")]
            # Within one text the first value is more likely meant: "order 4412345678, not 4412345679".
            details |= {n: v for n, v in reversed(found) if _is_customers(n) and len(v) <= MAX_VALUE_CHARACTERS}
        return details

    def mask(self, text: str, speaker: Speaker) -> str:
        """``text`` with placeholders for its personal data, like the model's training rows."""
        return self._personal.replace(text, speaker=speaker)[0]

    def mask_unknown(self, sentence: str, known: str) -> str:
        """An answer's ``sentence`` with placeholders for personal data that is not in ``known``.

        The model invented such data, or learnt it from another customer's conversation.
        """
        parts, end = [], 0
        known = _bare(known)
        for start, stop, name in self._personal.find(sentence, "agent"):
            if _bare(sentence[start:stop]) not in known:
                parts += [sentence[end:start], "{{", name, "}}"]
                end = stop
        return "".join([*parts, sentence[end:]])


def _is_customers(name: str) -> bool:
    """Whether the placeholder ``name`` stands for a detail of the customer."""
    entry = catalogue().get(name)
    return (entry is not None and entry.determiner == "customer") or name.startswith("Client ")


def _bare(text: str) -> str:
    """``text`` without separators, so that different spellings of a number compare equal."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold()


# Direction embeddings, overrides and isolates, invisible operators, tags, variation selectors, and joiners inside words.
_INVISIBLE = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u2061-\u2064\u180e\U000e0000-\U000e007f\U000e0100-\U000e01ef\ufffd]"
    "|(?<=[A-Za-z])[\u200c\u200d]+(?=[A-Za-z])"
)
_MARKUP = re.compile(
    r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|<(script|style|iframe|svg)\b.*?(?:</\1>|\Z)|</?[A-Za-z][^<>]*>|<img\b.*",
    re.I | re.S,
)
_SECRET = any_of(read_yaml(Path(__file__).with_suffix(".yaml"))["secret"], flags=re.I)
