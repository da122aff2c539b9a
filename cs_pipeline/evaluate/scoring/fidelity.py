"""Whether answers keep to placeholders and to what was said: nothing left out, nothing invented, nothing filled in.

In: for each answer what the model was given (question, earlier turns, retrieved texts), the answer, the reference
**with its placeholders** (as the test split holds it), the row's id and the recipe's placeholder mode. Out: the
columns of FIDELITY_COLUMNS, one row an answer, in the order given.

What a reference needs depends on the mode:

- keep: its placeholders, by their canonical names;
- generic: the words that the mode leaves for them (phrase, modifier, or the words that name the thing already);
- strip: nothing;
- realistic: a value of the catalogue for each, and where the question has the row's value, that one.

A placeholder is invented where it stands neither in the question nor in the reference as the mode has it, nor (mode
keep) in the catalogue: in the other modes no model has ever been shown one. A fact (``facts.py``) is fabricated where
it stands in nothing that the model was given. In the mode realistic the catalogue's example values are no fabrication,
except that a model that was told one order number and writes another one has made it up.

On the 24,094 real reference answers of Bitext 107 (0.44 %) state a fact that their question does not, 186 facts in all:
how long something takes (103), e-mail addresses (51, at example.com or company.com), web addresses (13), days and hours
of opening (17), a hotline and one number. They were read: each is what its author made up.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import pandas as pd

from cs_pipeline.text.facts import Fact, facts, is_known, values
from cs_pipeline.text.placeholders import PlaceholderMode, apply, catalogue, find

FIDELITY_COLUMNS = {
    "needed": "placeholders, or what stands for them, that the reference has (names, repeats counted once)",
    "present": "those of them that the answer has",
    "invented": "placeholders of the answer that nothing justifies",
    "filled": "needed ones that are missing while the answer makes up a fact of their kind",
    "fabricated": "facts of the answer that were never said",
    "fabricated_facts": "these facts, each as 'kind: words'",
}


def fidelity(
    given: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str],
    row_ids: Sequence[str],
    mode: PlaceholderMode,
) -> pd.DataFrame:
    """The columns of FIDELITY_COLUMNS for each answer; ``fabricated_facts`` is a list of strings, the others are counts.

    ``given`` are texts in ``mode``, ``references`` texts with placeholders. A needed placeholder whose example values are no
    facts by themselves (a name, a city) can be missing but is never called filled.
    """
    rows = [_judged(*row, mode) for row in zip(given, answers, references, row_ids, strict=True)]
    return pd.DataFrame(rows, columns=list(FIDELITY_COLUMNS)).astype(
        dict.fromkeys(list(FIDELITY_COLUMNS)[:-1], "int64")
    )


def fabricated_facts(given: str, answer: str, mode: PlaceholderMode = PlaceholderMode.KEEP) -> list[Fact]:
    """The facts of ``answer`` that stand in nothing that was ``given``, nor (mode realistic) in the catalogue."""
    stated = facts(answer)
    if not stated:
        return []
    said = values(given)
    unknown = [fact for fact in stated if not is_known(fact, said)]
    if mode is PlaceholderMode.REALISTIC and unknown:
        shown = list(_examples_in(answer, given))
        unknown = [fact for fact in unknown if not any(_covers(example, fact) for example in shown)]
    return unknown


def _judged(given: str, answer: str, reference: str, row_id: str, mode: PlaceholderMode) -> tuple[object, ...]:
    referred, written = _names(reference), _names(answer)
    made_up = fabricated_facts(given, answer, mode)
    match mode:
        case PlaceholderMode.KEEP:
            needed, missing = referred, referred - written
            allowed = referred | _names(given) | catalogue().keys()
        case PlaceholderMode.GENERIC:
            needed = frozenset(name for name in referred if _said(name, _generic(reference)))
            missing = frozenset(name for name in needed if not _said(name, answer))
            allowed = (referred | _names(given)) - catalogue().keys()
        case PlaceholderMode.STRIP:
            needed = missing = frozenset()
            allowed = (referred | _names(given)) - catalogue().keys()
        case PlaceholderMode.REALISTIC:
            needed = referred & catalogue().keys()
            missing = frozenset(name for name in needed if not _has_value(name, given, answer, row_id))
            allowed = (referred | _names(given)) - catalogue().keys()
    kinds = {fact.kind for fact in made_up}
    filled = {name for name in missing if name in catalogue() and _kinds(name) & kinds}
    return (
        len(needed),
        len(needed - missing),
        len(written - allowed),
        len(filled),
        len(made_up),
        [f"{fact.kind}: {fact.text}" for fact in made_up],
    )


@lru_cache(maxsize=20_000)  # questions and references, once for all systems
def _names(text: str) -> frozenset[str]:
    return frozenset(catalogue().name_of(spelling) or spelling for spelling in find(text))


@lru_cache(maxsize=20_000)
def _generic(reference: str) -> str:
    return apply(reference, PlaceholderMode.GENERIC, "agent", "")


def _said(name: str, text: str) -> bool:
    """Whether the words that the mode generic leaves for the placeholder ``name`` stand in ``text``."""
    signs = _signs(name)
    return signs is not None and signs.search(text) is not None


@lru_cache
def _signs(name: str) -> re.Pattern[str] | None:
    entry = catalogue().get(name)
    if entry is None:
        return None
    words = [word for word in (entry.phrase, entry.modifier, *entry.named_by) if word]
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})", re.I)


def _has_value(name: str, given: str, answer: str, row_id: str) -> bool:
    own = apply(f"{{{{{name}}}}}", PlaceholderMode.REALISTIC, "agent", row_id)
    return own in answer if own in given else _pattern(name).search(answer) is not None


def _examples_in(answer: str, given: str) -> Iterator[re.Match[str]]:
    """The values of the catalogue in ``answer``, without those of a placeholder whose value the model was told."""
    for name in catalogue():
        if _kinds(name) and not _pattern(name).search(given):
            yield from _pattern(name).finditer(answer)


def _covers(example: re.Match[str], fact: Fact) -> bool:
    """Whether ``fact`` is the ``example``; a bare "3" or "2 to 3" says how long something takes, and no price or date."""
    if _HOW_LONG.fullmatch(example[0]) and fact.kind not in ("duration", "number"):
        return False
    return example.start() < fact.end and fact.start < example.end()


_HOW_LONG = re.compile(r"\d{1,2}(?: to \d{1,2})?")
_AMOUNT = re.compile(r"\d+\.\d\d")


@lru_cache
def _pattern(name: str) -> re.Pattern[str]:
    """Matches the example values of the placeholder ``name``, whatever their digits."""
    examples = sorted(catalogue()[name].examples, key=len, reverse=True)
    return re.compile("|".join(map(_bounded, examples)))


def _bounded(example: str) -> str:
    before = r"(?<![\w.])" if example[0].isalnum() else ""
    after = r"(?!\w)" if example[-1].isalnum() or example[-1] == "#" else ""
    return before + re.escape(example).replace(r"\#", r"\d") + after


@lru_cache
def _kinds(name: str) -> frozenset[str]:
    """The kinds of facts that may stand where the placeholder ``name`` belongs: those of its examples.

    What is a plain number there is written with its unit in a text: a duration, an amount with its currency, or a code.
    """
    kinds: set[str] = set()
    for example in (example.replace("#", "7") for example in catalogue()[name].examples):
        found = {fact.kind for fact in facts(example)}
        if "number" in found:
            found.add(
                "duration" if _HOW_LONG.fullmatch(example) else "amount" if _AMOUNT.fullmatch(example) else "code"
            )
        if "code" in found:
            found.add("number")
        kinds |= found
    return frozenset(kinds)
