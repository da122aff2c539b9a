"""Details that an answer asks a customer for, such as order numbers, addresses and names. ``details.yaml`` has the words.

The patterns are used in two ways. The support desk must not let a model ask for private details that the request does not
require. So ``private_details`` includes vague wordings ("your account details") and requests to confirm. The evaluation
must not count good answers as errors. So ``specific_details`` includes neither. Of the 2,414 real answers described in
``evaluate/scoring/answer_errors.py``, 0.66 % then count as asking for unnecessary details. With both, 1.24 % would.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.text.placeholders import catalogue

_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
_ASKS = any_of(_RULES["asks"], _RULES["words"])
_ASKS_OR_CONFIRMS = any_of(f"{_RULES['asks']}{_RULES['asks_to_confirm']}", _RULES["words"])
_END = any_of(_RULES["end_of_details"])
_PRIVATE, _VAGUE, _IMPERSONAL = (
    {name: any_of(rf"\{{\{{{name}\}}\}}|\b<NAME>s?\b", {"NAME": block}) for name, block in _RULES[key].items()}
    for key in ("private", "vague", "impersonal")
)
# "about the order number {{Order Number}}" states a number and does not ask for it.
_NAMED = re.compile(r"\w+ \w+ #?\{\{[^{}\n]*\}\}")


def worth_asking(missing: Sequence[str], intent: str | None, *, private: bool) -> list[str]:
    """Which of an answer's ``missing`` placeholders to ask the customer for: at most two.

    If ``private`` is true, only details that requests of the ``intent`` require.
    """
    candidates = _RULES["required"].get(intent, ()) if private else _RULES["askable"]
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


def narrowed(sentence: str, intent: str | None, known: Collection[str]) -> str:
    """``sentence``, changed to ask only for private details that the ``intent`` requires and that are not ``known``.

    Empty if it asks for private details, but for none of these.
    """
    asked = private_details(sentence)
    needed = [name for name in _RULES["required"].get(intent, ()) if name in asked and name not in known]
    if asked <= set(needed):
        return sentence
    return f"{request(needed)}{sentence[len(sentence.rstrip()) :]}" if needed else ""


def _asked_for(text: str, asks: re.Pattern[str], details: dict[str, re.Pattern[str]]) -> frozenset[str]:
    lists = [_END.split(text[ask.end() :], maxsplit=1)[0] for ask in asks.finditer(text)]
    return frozenset(name for name, pattern in details.items() if any(map(pattern.search, lists)))
