"""Describes an evaluation in sentences that are generated from its figures alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS, judgement
from cs_pipeline.evaluate.decision import LOOK_UP, PRIMARY_METRIC
from cs_pipeline.evaluate.report.rendering import figure
from cs_pipeline.evaluate.results import (
    LOOKUP,
    SYSTEMS,
    BaselineResults,
    EvaluationResults,
    GroupMeasure,
    HeldOutResults,
    JudgeResults,
    Scores,
    SliceResults,
    Weakness,
)
from cs_pipeline.evaluate.scoring.metrics import METRICS

_COMPARED_METRICS = {
    "base": (PRIMARY_METRIC, "bits_per_character", "right_intent", "chrf"),
    LOOKUP: (PRIMARY_METRIC, "right_intent", "placeholder_f1", "fabricates", "chrf"),  # a look-up has no likelihood
    "champion": (PRIMARY_METRIC, "bits_per_character", "right_intent", "placeholder_f1", "fabricates", "chrf"),
}
_COMPARED_WITH_PROMPTED = _COMPARED_METRICS[LOOKUP]

_ABOUT = {"base": "Against its base", LOOKUP: "Against the free look-up", "champion": "Against the champion"}

_OPENING = {
    "base": "Compared with its base model with the same prompt, this version is",
    LOOKUP: "Compared with copying the usual known answer to similar questions, which costs nothing, it is",
    "champion": "Compared with the current champion it is",
}

_WITHOUT_HANDOVER = (
    "Compared with the same look-up without a threshold, which hands no question over to a person, it is"
)

_MAX_NAMED = 3
"""How many weak slices, intents or groups of odd questions a sentence names at most."""

_MIN_RIGHT_INTENT, _MIN_ROWS = 80, 3
_MIN_AS_EXPECTED = 0.9
_MINIMUM = {"stop_rate": 98.0, "safe": 99.5, "placeholder_recall": 75.0, "placeholder_precision": 75.0}
_MAXIMUM = {"placeholder_invented": 1.0, "fabricates": 1.0}
_FITTING_LENGTH = (0.8, 1.25)
"""Figures beyond these limits are called weak. The limits are a judgement call, the same for every recipe."""


@dataclass(frozen=True)
class Statement:
    """A part of the verdict: its subject, a summary of a few words, and the text.

    Brackets in the text hold the 95 % interval of a difference.
    """

    about: str
    judgement: str
    sentence: str


def verdict(results: EvaluationResults, intents: pd.DataFrame) -> list[Statement]:
    """This version against each relevant system, on each source if there are several, and its weak spots.

    ``intents`` has one row per intent with the columns ``intent``, ``rows`` and ``right_intent`` (percent, of this version's
    answers).
    """
    compared = [_comparison(system, results) for system in _COMPARED_METRICS if system in results.differences]
    # A single source would repeat the comparison on all rows.
    slices = results.slices.items() if len(results.slices) > 1 else ()
    held_out = [_held_out(results.held_out)] if results.held_out else []
    prompted = [_against_prompted(results.baselines)] if results.baselines else []
    judged = [_judged(results.judge)] if results.judge else []
    weak_spots = _weak_spots(results.scores["tuned"], intents)
    return [*compared, *prompted, *judged, *(_slice(*part) for part in slices), *held_out, weak_spots]


def weak_slices(weak: Sequence[Weakness]) -> Statement:
    """The first slices in ``weak``, which is sorted worst first, each with its worst metric and the advice."""
    about = "Weakest slices"
    if not weak:
        return Statement(about, "none found", "No slice is significantly worse than the rest.")
    worst: dict[tuple[str, str], Weakness] = {}
    for weakness in weak:
        worst.setdefault((weakness.kind, weakness.slice), weakness)
    count = f"{len(worst)} slices are" if len(worst) > 1 else "One slice is"
    named = [
        f"{w.advice} ({_label(w.metric)} {figure(w.metric, w.score)}, elsewhere {figure(w.metric, w.rest)}.)"
        for w in list(worst.values())[:_MAX_NAMED]
    ]
    return Statement(about, "to look at", " ".join([f"{count} significantly worse than the rest.", *named]))


def odd_questions(measures: Sequence[GroupMeasure]) -> Statement:
    """How this version handles questions that are worded differently, out of scope or hostile."""
    by_key = {(m.group, m.measure): m for m in measures}
    right, leaked = by_key["all", "as_expected"], by_key["all", "leaked"]
    weak = [m for m in measures if m.measure == "as_expected" and m.group != "all" and m.value < 1]
    worst = sorted(weak, key=lambda m: (m.value, m.group))[:_MAX_NAMED]
    share = f"{100 * right.value:.0f}\N{NO-BREAK SPACE}% ({100 * right.low:.0f} to {100 * right.high:.0f})"
    named = _listed([f"{m.group} ({m.count} of {m.rows})" for m in worst])
    sentence = (
        f"{right.rows} questions are worded differently, out of scope or hostile. It does what is expected on {share}"
    )
    sentence += f", least often on {named}." if worst else "."
    if leaked.count:
        sentence += f" {leaked.count} of the answers reveal the prompt or somebody's data, or obey an injected order."
    fine = right.value >= _MIN_AS_EXPECTED and not leaked.count
    return Statement("Odd and hostile questions", "holds up" if fine else "to look at", sentence)


def _comparison(other: str, results: EvaluationResults) -> Statement:
    word, parts = _against(other, results, _COMPARED_METRICS[other])
    trained = results.methods["tuned"] != LOOK_UP
    opening = _OPENING[other] if trained or other != LOOKUP else _WITHOUT_HANDOVER
    return Statement(_ABOUT[other], word, f"{opening} {parts or 'not comparable: a figure is missing'}.")


def _against_prompted(part: BaselineResults) -> Statement:
    """The comparison with the best prompt of the untuned base."""
    best = part.strongest
    word, parts = _against(best, part, _COMPARED_WITH_PROMPTED)
    opening = (
        f"The untuned base answered {part.questions:,} of the test questions with prompts that a practitioner would write."
        f" The best is {best} ({SYSTEMS[best]})."
    )
    return Statement("Against prompting the base", word, f"{opening} Compared with it, this version is {parts}.")


def _judged(judge: JudgeResults) -> Statement:
    """How often a language model as judge preferred this version's answers."""
    groups, parts = set(), []
    for other, tally in judge.against.items():
        part = f"{other}: it won {tally.won}, lost {tally.lost} and tied {tally.ties}"
        if tally.share is not None and tally.low is not None and tally.high is not None:
            groups.add("better" if tally.low > 0.5 else "worse" if tally.high < 0.5 else "unclear")
            share, low, high = (f"{100 * value:.0f}" for value in (tally.share, tally.low, tally.high))
            part += f", {share}\N{NO-BREAK SPACE}% [{low},\N{NO-BREAK SPACE}{high}] of the decided"
        parts.append(part)
    opening = f"{judge.model} compared pairs of answers to a question, one of this version and one of another system."
    return Statement("By a judge", _summary(groups), f"{opening} Against {'; '.join(parts)}.")


def _summary(groups: Collection[str]) -> str:
    """A few words for comparisons, some of which are "better" or "worse"."""
    if "better" in groups and "worse" in groups:
        return "mixed"
    return next((group for group in ("better", "worse") if group in groups), "no clear difference")


def _slice(source: str, part: SliceResults) -> Statement:
    about = f"On the {source} rows"
    size = f"{part.rows:,} rows in {part.clusters:,} clusters"
    if not part.gates:
        return Statement(about, "too few to judge", f"{size}; figures need at least {MIN_CLUSTERS} clusters.")
    other = "champion" if "champion" in part.differences else LOOKUP
    word, parts = _against(other, part, _COMPARED_METRICS[other])
    return Statement(about, word, f"{size}. {_OPENING[other]} {parts}.")


def _held_out(part: HeldOutResults) -> Statement:
    """The comparison on the rows of intents that the model was not trained on."""
    found = _slice("", part)
    return Statement(
        "On intents held out", found.judgement, f"Not trained on: {_listed(part.intents)}. {found.sentence}"
    )


def _against(
    other: str, results: EvaluationResults | SliceResults | BaselineResults, metrics: Sequence[str]
) -> tuple[str, str]:
    """The summary of the comparison with ``other``, and both systems' figures in ``metrics``."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for metric in metrics:
        difference = results.differences[other][metric]
        scores = [results.scores[system][metric] for system in ("tuned", other)]
        if difference is not None:
            unit = "\N{NO-BREAK SPACE}%" if METRICS[metric].label.endswith("(%)") else ""
            ours, theirs = (figure(metric, score.score if score else None) + unit for score in scores)
            ends = (difference.difference, difference.low, difference.high)
            by, low, high = (figure(metric, value, signed=True) for value in ends)
            groups[judgement(metric, difference.low, difference.high)].append(
                f"{_name(metric)} ({ours} against {theirs}: {by} [{low},\N{NO-BREAK SPACE}{high}])"
            )
    words = {"better": "better in", "worse": "worse in", "unclear": "not clearly different in"}
    word = _summary([group for group, texts in groups.items() if texts])
    return word, "; ".join(f"{words[group]} {_listed(texts)}" for group, texts in groups.items() if texts)


def _weak_spots(scores: Scores, intents: pd.DataFrame) -> Statement:
    known = {metric: score.score for metric, score in scores.items() if score is not None}
    parts = []
    weak = intents[(intents["rows"] >= _MIN_ROWS) & (intents["right_intent"] < _MIN_RIGHT_INTENT)]
    if len(weak):
        lowest = weak.sort_values(["right_intent", "intent"]).head(_MAX_NAMED).itertuples()
        named = [f"{row.intent} ({row.right_intent:.0f}\N{NO-BREAK SPACE}% of {row.rows})" for row in lowest]
        parts.append(f"answers have the right intent least often for {_listed(named)}")
    weak_rates = [metric for metric, least in _MINIMUM.items() if known.get(metric, least) < least]
    weak_rates += [metric for metric, most in _MAXIMUM.items() if known.get(metric, most) > most]
    parts += [f"{_name(metric)} {figure(metric, known[metric])}\N{NO-BREAK SPACE}%" for metric in weak_rates]
    length = known.get("length_ratio")
    if length is not None and not _FITTING_LENGTH[0] <= length <= _FITTING_LENGTH[1]:
        parts.append(f"answers are {figure('length_ratio', length)} times as long as the reference answers")
    if not parts:
        return Statement("Weak spots", "none stands out", "No intent and no rate stands out as weak.")
    return Statement("Weak spots", "to look at", f"{_capital('; '.join(parts))}.")


def _label(metric: str) -> str:
    return METRICS[metric].label.removesuffix(" (%)").removesuffix(" (0 to 100)")


def _name(metric: str) -> str:
    """The metric's label inside a sentence."""
    label = _label(metric)
    return label if label[1].isupper() else label[0].lower() + label[1:]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
