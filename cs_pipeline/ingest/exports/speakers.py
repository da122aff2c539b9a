"""Who speaks, told by a label such as "Agent", "Tom (Support)" or "jane@example.com"."""

import re
from functools import lru_cache

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports.records import AGENT_NAME, CUSTOMER_EMAIL, CUSTOMER_NAME, Role

_ROLE_LIKE = frozenset(
    {"customer", "client", "user", "end", "enduser", "visitor", "guest", "requester", "buyer", "consumer", "human"}
)
"""Words that say what a customer is and not who."""

_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@lru_cache(maxsize=1024)
def role_of(speaker: str, company: Company) -> Role:
    """The role, by the words of company.yaml; whom they do not name is a customer."""
    spoken = _words(speaker)
    if any(_words(name) in spoken for name in company.automatic):
        return "automatic"
    return "agent" if any(_words(name) in spoken for name in company.agents) else "customer"


@lru_cache(maxsize=1024)
def name_of(speaker: str, company: Company) -> str | None:
    """Who it is, without the words that say what he is: "Tom" of "Tom (Support)"; an e-mail address as it stands."""
    if "@" in speaker:
        return speaker
    roles = {*_words(" ".join((*company.agents, *company.automatic))).split(), *_ROLE_LIKE}
    names = [word for word in _LETTERS.findall(speaker) if word.casefold() not in roles]
    return " ".join(names) if sum(map(len, names)) > 1 else None


def placeholder_of(speaker: str, role: Role) -> str:
    """What takes the place of the speaker's name."""
    if role == "customer":
        return CUSTOMER_EMAIL if "@" in speaker else CUSTOMER_NAME
    return AGENT_NAME


def _words(text: str) -> str:
    # Spaces around, so that a word is found as a whole one.
    return f" {' '.join(_WORD.findall(text.casefold()))} "
