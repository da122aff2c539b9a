"""Details that an answer asks a customer for, such as order numbers, addresses and names. See ``details.yaml``.

The patterns are used in two ways. The support desk must not let a model ask for private details that the request does not
require. So ``private_details`` includes vague wordings ("your account details") and requests to confirm. The evaluation
must not count good answers as errors. So ``specific_details`` includes neither. With it, 0.66 % of the 2,414 real answers
described in ``evaluate/scoring/answer_errors.py`` count as asking for unnecessary details. With both included, 1.24 % would.
"""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.text.placeholders import catalogue

_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
_NEEDABLE = tuple(dict.fromkeys(name for names in _RULES["required"].values() for name in names))
_ASKS = any_of(_RULES["asks"], _RULES["words"])
_ASKS_OR_CONFIRMS = any_of(f"{_RULES['asks']}{_RULES['asks_to_confirm']}", _RULES["words"])
_END = any_of(_RULES["end_of_details"])
_PRIVATE, _VAGUE, _IMPERSONAL = (
    {name: any_of(rf"\{{\{{{name}\}}\}}|\b<NAME>s?\b", {"NAME": block}) for name, block in _RULES[key].items()}
    for key in ("private", "vague", "impersonal")
)
# "about the order number {{Order Number}}" states a number and does not ask for it.
_NAMED = re.compile(r"\w+ \w+ #?\{\{[^{}\n]*\}\}")


def needed_details(intent: str | None, answers: Callable[[str], Sequence[str]]) -> tuple[str, ...]:
    """The details that are necessary to handle a request of ``intent``.

    For a company's own subject, these are the details that at least half of its known ``answers`` ask for. Passwords and the
    like are never among them.
    """
    if intent is None or intent in _RULES["required"]:
        return tuple(_RULES["required"].get(intent, ()))
    requests = [specific_details(answer) for answer in answers(intent)]
    return tuple(name for name in _NEEDABLE if 2 * sum(name in asked for asked in requests) >= max(1, len(requests)))


def worth_asking(missing: Sequence[str], needed: Collection[str] | None) -> list[str]:
    """The placeholders among an answer's ``missing`` ones whose values the customer should be asked for: at most two.

    Only details that are ``needed`` are asked for; if ``needed`` is None, those that ``details.yaml`` lists as askable.
    """
    candidates = _RULES["askable"] if needed is None else needed
    return [name for name in missing if name in candidates][:2]


def request(names: Sequence[str]) -> str:
    """A polite sentence that asks for the values of ``names``."""
    return f"Could you please tell me your {' and your '.join(catalogue()[name].phrase for name in names)}?"


def private_details(sentence: str) -> frozenset[str]:
    """The names (in ``details.yaml``) of the private details that ``sentence`` asks the customer to give or confirm.

    A request to type a detail into a form on the website does not count.
    """
    return _asked_for(sentence, _ASKS_OR_CONFIRMS, _PRIVATE | _VAGUE)


def specific_details(answer: str) -> frozenset[str]:
    """The names of the details, private or not, that ``answer`` explicitly asks the customer for."""
    return _asked_for(_NAMED.sub(" ", answer), _ASKS, _PRIVATE | _IMPERSONAL)


def narrowed(sentence: str, needed: Collection[str], known: Collection[str]) -> str:
    """``sentence``, changed to ask only for private details that are ``needed`` and not ``known``.

    The result is empty if the sentence asks for private details, but for none of these.
    """
    asked = private_details(sentence)
    open_ones = [name for name in needed if name in asked and name not in known]
    if asked <= set(open_ones):
        return sentence
    return f"{request(open_ones)}{sentence[len(sentence.rstrip()) :]}" if open_ones else ""


def _asked_for(text: str, asks: re.Pattern[str], details: dict[str, re.Pattern[str]]) -> frozenset[str]:
    lists = [_END.split(text[ask.end() :], maxsplit=1)[0] for ask in asks.finditer(text)]
    return frozenset(name for name, pattern in details.items() if any(map(pattern.search, lists)))
