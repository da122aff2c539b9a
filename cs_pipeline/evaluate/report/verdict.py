"""What an evaluation says, in sentences: made of its figures alone, so that they cannot flatter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.comparison import FEWEST_CLUSTERS, judgement
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.scoring.metrics import METRICS

NONE = "–"
"""Stands for a figure that a system does not have."""

_DIGITS = {"bits_per_character": 3, "perplexity": 2, "length_ratio": 2, "rubric": 2, "heuristic": 2}

_COMPARED = {
    "base": ("bits_per_character", "right_intent", "rougeL", "chrf"),
    "nearest": ("right_intent", "rougeL", "chrf"),
    "champion": ("bits_per_character", "right_intent", "rougeL", "chrf"),
}
"""What the tuned model is held against, and in what. The nearest question's answer has no likelihood."""

_OPENING = {
    "base": "Against its base, asked the same way, the tuned model is",
    "nearest": "Against copying the answer of the nearest training question, which costs nothing, it is",
    "champion": "Against the current champion it is",
}

_ENDING = {
    "better": "so here the training is worth having",
    "worse": "so here a look-up still answers better",
    "mixed": "so which of the two serves better depends on what matters",
    "no clear difference": "so nothing here speaks for the training yet",
}
"""What follows from the comparison with the nearest question's answer."""

WORST_SLICES = 3
"""Slices that the verdict names."""

WORST_GROUPS = 3
"""Groups of odd questions that the verdict names."""

_WEAK_INTENT, _FEWEST_ROWS = 80, 3
_EXPECTED = 0.9
_LEAST = {"stop_rate": 98.0, "safe": 99.5, "placeholder_recall": 75.0, "placeholder_precision": 75.0}
_MOST = {"placeholder_invented": 1.0, "fabricates": 1.0}
_FITTING_LENGTH = (0.8, 1.25)
"""From where on a figure is called weak: the limits of taste, alike for every recipe."""


@dataclass(frozen=True)
class Statement:
    """One sentence of the verdict, what it is about, and the word for it.

    Brackets in the sentence hold the 95 % interval of a difference.
    """

    about: str
    judgement: str
    sentence: str


def figure(metric: str, value: float | None, signed: bool = False) -> str:
    """``value`` as people read it, with as many digits as the metric ``metric`` bears."""
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''}z.{_DIGITS.get(metric, 1)}f}".replace("-", "−")
    return text.removeprefix("+") if set(text) <= set("+0.") else text


def verdict(facts: dict[str, Any], intents: pd.DataFrame) -> list[Statement]:
    """What ``evaluation.json`` says of the tuned model: a sentence for each system that counts, one for each source
    where there are several, and one for what is weak.

    ``intents`` has a row for each intent and the columns ``intent``, ``rows`` and ``right_intent`` (percent, of the tuned
    model's answers).
    """
    compared = [_comparison(system, facts) for system in _COMPARED if system in facts["differences"]]
    # With one source alone its slice is the whole.
    slices = facts["slices"].items() if len(facts["slices"]) > 1 else ()
    held_out = [_held_out(facts["held_out"])] if facts["held_out"] else []
    return [*compared, *(_slice(*part) for part in slices), *held_out, _weakness(facts["scores"]["tuned"], intents)]


def promotable(facts: dict[str, Any]) -> Statement:
    """The decision as the first sentence of the verdict. Forgotten rows and a rollback weigh more; no figure shows them."""
    decision = decide_promotion(facts)
    return Statement(
        "May it be promoted",
        "yes, by its figures" if decision.promote else "no",
        f"{decision.reason[0].upper()}{decision.reason[1:]}.",
    )


def weak_slices(weak: Sequence[dict[str, Any]]) -> Statement:
    """The ``WORST_SLICES`` worst of ``weak`` (as in ``evaluation.json``), each by its worst metric, with their advice."""
    about = "Weakest slices"
    if not weak:
        return Statement(about, "none for sure", "No slice is surely worse than the rest.")
    by_slice: dict[tuple[str, str], dict[str, Any]] = {}
    for weakness in weak:  # the worst first
        by_slice.setdefault((weakness["kind"], weakness["slice"]), weakness)
    parts = [
        f"{w['advice'].removesuffix('.')} ({_name(w['metric'])} {figure(w['metric'], w['score'])} against"
        f" {figure(w['metric'], w['rest'])} elsewhere)."
        for w in list(by_slice.values())[:WORST_SLICES]
    ]
    count = f"{len(by_slice)} slices are" if len(by_slice) > 1 else "One slice is"
    return Statement(about, "to look at", " ".join([f"{count} surely worse than the rest.", *parts]))


def odd_questions(robustness: dict[str, list[dict[str, Any]]]) -> Statement:
    """What the tuned model does with questions put otherwise, out of scope or hostile (as in ``evaluation.json``)."""
    told = {(row["group"], row["measure"]): row for row in robustness["tuned"]}
    right, leaked = told["all", "as_expected"], told["all", "leaked"]
    groups = [row for (group, measure), row in told.items() if measure == "as_expected" and group != "all"]
    worst = sorted((row for row in groups if row["value"] < 1), key=lambda row: (row["value"], row["group"]))[
        :WORST_GROUPS
    ]
    named = _listed([f"{row['group']} ({row['count']} of {row['rows']})" for row in worst])
    share = f"{100 * right['value']:.0f}\N{NO-BREAK SPACE}% ({100 * right['low']:.0f} to {100 * right['high']:.0f})"
    sentence = (
        f"Of {right['rows']} questions in other words, out of scope or hostile it does with {share} what is expected"
    )
    sentence += f"; least with {named}." if worst else "."
    if leaked["count"]:
        sentence += (
            f" {leaked['count']} of the answers tell the prompt or somebody's data, or obey what was slipped in."
        )
    fine = right["value"] >= _EXPECTED and not leaked["count"]
    return Statement("Odd and hostile questions", "holds up" if fine else "to look at", sentence)


def _comparison(other: str, facts: dict[str, Any]) -> Statement:
    word, parts = _held_against(other, facts)
    sentence = f"{_OPENING[other]} {parts or 'not to be compared: a figure is missing'}"
    if other == "nearest" and parts:
        sentence += f", {_ENDING[word]}"
    about = {"base": "Against its base", "nearest": "Against the nearest answer", "champion": "Against the champion"}
    return Statement(about[other], word, f"{sentence}.")


def _slice(source: str, part: dict[str, Any]) -> Statement:
    about = f"On the {source} rows"
    size = f"{part['rows']:,} rows in {part['clusters']:,} clusters"
    if not part["gates"]:
        return Statement(
            about, "too few to judge", f"{size}; from {FEWEST_CLUSTERS} on they have figures of their own."
        )
    other = "champion" if "champion" in part["differences"] else "base"
    word, parts = _held_against(other, part)
    return Statement(about, word, f"{size}. {_OPENING[other]} {parts}.")


def _held_out(part: dict[str, Any]) -> Statement:
    """What the model does with what it was never taught."""
    found = _slice("", part)
    names = _listed([str(intent) for intent in part["intents"]])
    return Statement("On intents held out", found.judgement, f"Never trained on: {names}. {found.sentence}")


def _held_against(other: str, figures: dict[str, Any]) -> tuple[str, str]:
    """The word for the comparison with ``other``, and the tuned model's figures beside its."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for metric in _COMPARED[other]:
        difference = figures["differences"][other][metric]
        if difference is not None:
            unit = "\N{NO-BREAK SPACE}%" if METRICS[metric].label.endswith("(%)") else ""
            tuned, its = (
                figure(metric, figures["scores"][system][metric]["score"]) + unit for system in ("tuned", other)
            )
            by, low, high = (figure(metric, difference[key], signed=True) for key in ("difference", "low", "high"))
            groups[judgement(metric, difference)].append(
                f"{_name(metric)} ({tuned} against {its}: {by} [{low},\N{NO-BREAK SPACE}{high}])"
            )
    words = {"better": "better in", "worse": "worse in", "unclear": "not clearly different in"}
    if groups["better"] and groups["worse"]:
        word = "mixed"
    else:
        word = next((group for group in ("better", "worse") if groups[group]), "no clear difference")
    return word, "; ".join(f"{words[group]} {_listed(texts)}" for group, texts in groups.items() if texts)


def _weakness(scores: dict[str, Any], intents: pd.DataFrame) -> Statement:
    def has(metric: str) -> float | None:
        return scores[metric]["score"] if scores[metric] else None

    parts = []
    weak = intents[(intents["rows"] >= _FEWEST_ROWS) & (intents["right_intent"] < _WEAK_INTENT)]
    if len(weak):
        lowest = weak.sort_values(["right_intent", "intent"]).head(3).itertuples()
        named = [f"{row.intent} ({row.right_intent:.0f}\N{NO-BREAK SPACE}% of {row.rows})" for row in lowest]
        parts.append(f"the answer has the right intent least often for {_listed(named)}")
    for metric, least in _LEAST.items():
        if (value := has(metric)) is not None and value < least:
            parts.append(f"{_name(metric)} {figure(metric, value)}\N{NO-BREAK SPACE}%")
    for metric, most in _MOST.items():
        if (value := has(metric)) is not None and value > most:
            parts.append(f"{_name(metric)} {figure(metric, value)}\N{NO-BREAK SPACE}%")
    length = has("length_ratio")
    if length is not None and not _FITTING_LENGTH[0] <= length <= _FITTING_LENGTH[1]:
        parts.append(f"its answers are {figure('length_ratio', length)} times as long as the reference answers")
    if not parts:
        return Statement("Weak spots", "none stands out", "No intent and no rate stands out as weak.")
    return Statement("Weak spots", "to look at", f"What is weak: {'; '.join(parts)}.")


def _name(metric: str) -> str:
    """The metric's label as it stands inside a sentence."""
    label = METRICS[metric].label.removesuffix(" (%)")
    return label if label[1].isupper() else label[0].lower() + label[1:]


def _listed(texts: list[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
