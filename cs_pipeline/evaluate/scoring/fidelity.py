"""Measures whether answers are faithful: no needed placeholder is missing, none is invented, and no fact is made up.

For each answer ``fidelity`` needs the texts that the model was given (question, earlier turns, retrieved texts), the
reference **with its placeholders** (as in the test split), the row id and the recipe's placeholder mode.

What an answer needs depends on the mode:

- keep: the reference's placeholders, by their canonical names;
- generic: for each of them the catalogue's ``phrase`` or ``modifier``, or a word of ``named_by``, which already names it;
- strip: nothing;
- realistic: for each of them one of the catalogue's examples; if the model was given the row's own value, this value.

A placeholder in an answer is invented if neither the reference nor any text that the model was given contains it. The
catalogue's placeholders are an exception. In mode keep an answer may use them all. In the other modes it may use none: a
model never sees them, because the mode replaces or removes them.

A fact (``text/facts.py``) is fabricated if nothing that the model was given contains it. In mode realistic the catalogue's
examples are not fabricated. But if the model was given one example, such as an order number, and writes another example of
the same placeholder, that one is fabricated.

Of Bitext's 24,094 real reference answers 107 (0.44 %) state a fact that their question does not, 186 facts in all: how
long something takes (103), e-mail addresses (51, at example.com or company.com), web addresses (13), opening days and
hours (17), a hotline and one number. All were checked by hand: their authors made them up.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import pandas as pd

from cs_pipeline.text.facts import Fact, facts, is_known, values
from cs_pipeline.text.placeholders import PlaceholderMode, apply, catalogue, find

FIDELITY_COLUMNS = {
    "needed": "placeholders of the reference, or their replacements in the mode (distinct names)",
    "present": "needed placeholders that the answer has",
    "invented": "placeholders of the answer without any source",
    "filled": "needed placeholders that are missing while the answer makes up a fact of their kind",
    "fabricated": "facts of the answer without any source",
    "fabricated_facts": "these facts, each as 'kind: words'",
}


def fidelity(
    given: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str],
    row_ids: Sequence[str],
    mode: PlaceholderMode,
) -> pd.DataFrame:
    """FIDELITY_COLUMNS, one row per answer in the order given; ``fabricated_facts`` is a list of strings, the others are
    counts.

    ``given`` holds texts in ``mode``, ``references`` texts with placeholders. A needed placeholder whose example values are
    not recognised as facts (a name, a city) can be missing but never counts as filled.
    """
    rows = [_row(*row, mode) for row in zip(given, answers, references, row_ids, strict=True)]
    return pd.DataFrame(rows, columns=list(FIDELITY_COLUMNS)).astype(
        dict.fromkeys(list(FIDELITY_COLUMNS)[:-1], "int64")
    )


def fabricated_facts(given: str, answer: str, mode: PlaceholderMode = PlaceholderMode.KEEP) -> list[Fact]:
    """The facts of ``answer`` that are neither in ``given`` nor, in mode realistic, allowed by the catalogue's examples."""
    stated = facts(answer)
    if not stated:
        return []
    known = values(given)
    unknown = [fact for fact in stated if not is_known(fact, known)]
    if mode is PlaceholderMode.REALISTIC and unknown:
        examples = list(_examples_in(answer, given))
        unknown = [fact for fact in unknown if not any(_allows(example, fact) for example in examples)]
    return unknown


def _row(given: str, answer: str, reference: str, row_id: str, mode: PlaceholderMode) -> tuple[object, ...]:
    in_reference, in_answer = placeholder_names(reference), placeholder_names(answer)
    made_up = fabricated_facts(given, answer, mode)
    match mode:
        case PlaceholderMode.KEEP:
            needed, missing = in_reference, in_reference - in_answer
        case PlaceholderMode.GENERIC:
            needed = frozenset(name for name in in_reference if _has_phrase(name, _generic(reference)))
            missing = frozenset(name for name in needed if not _has_phrase(name, answer))
        case PlaceholderMode.STRIP:
            needed = missing = frozenset()
        case PlaceholderMode.REALISTIC:
            needed = in_reference & catalogue().keys()
            missing = frozenset(name for name in needed if not _has_value(name, given, answer, row_id))
    known = in_reference | placeholder_names(given)
    allowed = known | catalogue().keys() if mode is PlaceholderMode.KEEP else known - catalogue().keys()
    kinds = {fact.kind for fact in made_up}
    filled = {name for name in missing if name in catalogue() and _kinds(name) & kinds}
    return (
        len(needed),
        len(needed - missing),
        len(in_answer - allowed),
        len(filled),
        len(made_up),
        [f"{fact.kind}: {fact.text}" for fact in made_up],
    )


@lru_cache(maxsize=20_000)  # all systems share the questions and references
def placeholder_names(text: str) -> frozenset[str]:
    """The placeholders in ``text``, by the catalogue's name if it knows the spelling."""
    return frozenset(catalogue().name_of(spelling) or spelling for spelling in find(text))


@lru_cache(maxsize=20_000)
def _generic(reference: str) -> str:
    return apply(reference, PlaceholderMode.GENERIC, "agent", "")


def _has_phrase(name: str, text: str) -> bool:
    """Whether ``text`` has the words that replace the placeholder ``name`` in the mode generic."""
    pattern = _phrase_pattern(name)
    return pattern is not None and pattern.search(text) is not None


@lru_cache
def _phrase_pattern(name: str) -> re.Pattern[str] | None:
    entry = catalogue().get(name)
    if entry is None:
        return None
    words = [word for word in (entry.phrase, entry.modifier, *entry.named_by) if word]
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})", re.I)


def _has_value(name: str, given: str, answer: str, row_id: str) -> bool:
    row_value = apply(f"{{{{{name}}}}}", PlaceholderMode.REALISTIC, "agent", row_id)
    return row_value in answer if row_value in given else _example_pattern(name).search(answer) is not None


def _examples_in(answer: str, given: str) -> Iterator[re.Match[str]]:
    """The catalogue's values in ``answer``, except those of placeholders whose value the model was given."""
    for name in catalogue():
        if _kinds(name) and not _example_pattern(name).search(given):
            yield from _example_pattern(name).finditer(answer)


def _allows(example: re.Match[str], fact: Fact) -> bool:
    """Whether ``fact`` is not fabricated because it overlaps ``example``.

    A bare "3" or "2 to 3" is an example of a duration, not of a price or date.
    """
    if _DURATION.fullmatch(example[0]) and fact.kind not in ("duration", "number"):
        return False
    return example.start() < fact.end and fact.start < example.end()


_DURATION = re.compile(r"\d{1,2}(?: to \d{1,2})?")
_AMOUNT = re.compile(r"\d+\.\d\d")


@lru_cache
def _example_pattern(name: str) -> re.Pattern[str]:
    """Matches the example values of the placeholder ``name``, with any digits for ``#``."""
    examples = sorted(catalogue()[name].examples, key=len, reverse=True)
    return re.compile("|".join(map(_bounded, examples)))


def _bounded(example: str) -> str:
    before = r"(?<![\w.])" if example[0].isalnum() else ""
    after = r"(?!\w)" if example[-1].isalnum() or example[-1] == "#" else ""
    return before + re.escape(example).replace(r"\#", r"\d") + after


@lru_cache
def _kinds(name: str) -> frozenset[str]:
    """The kinds of facts that may take the place of the placeholder ``name``: the kinds of its examples.

    An example that is a bare number would have a unit in real text: it is a duration, an amount or a code.
    """
    kinds: set[str] = set()
    for example in (example.replace("#", "7") for example in catalogue()[name].examples):
        found = {fact.kind for fact in facts(example)}
        if "number" in found:
            found.add(
                "duration" if _DURATION.fullmatch(example) else "amount" if _AMOUNT.fullmatch(example) else "code"
            )
        if "code" in found:
            found.add("number")
        kinds |= found
    return frozenset(kinds)
