"""Who should answer customers today, and why: this version, the champion or a free look-up."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.decision import (
    DECISIONS_PER_YEAR,
    LOOK_UP,
    MAX_COMPANY_LOSS,
    PRIMARY_METRIC,
    TRAINING_NOISE,
    Decision,
    best_free_lookup,
    company_conversations_needed,
    may_decide,
    preference,
    rivals,
)
from cs_pipeline.evaluate.report.rendering import figure, interval_text
from cs_pipeline.evaluate.results import (
    FREE_SYSTEMS,
    LOOKUP,
    CompanyResults,
    CrossValidated,
    EvaluationResults,
    LabelledIntents,
    PeopleVotes,
    Scores,
)
from cs_pipeline.evaluate.scoring.cost import Cost
from cs_pipeline.evaluate.scoring.statistics import Difference, paired_bootstrap
from cs_pipeline.text.copied import COPIED_RUN

CONTENDER_METRICS = ("right_intent", "placeholder_f1", "fabricates", "chrf", "length_ratio", "stop_rate")
"""The other metrics in the table of contenders. The table is sorted by answer quality."""

_CONTENDERS = ("tuned", "champion", *FREE_SYSTEMS, "base")
_FREE_METHODS = {LOOKUP: LOOK_UP, "nearest": "copy", "central": "copy"}
_ABOUT = {
    LOOKUP: "the usual known answer to similar questions",
    "nearest": "the answer of the nearest training question",
    "central": "the most central answer of the predicted intent",
}
_WORST_INTENTS = 3
_VERDICTS = {
    "better": "clearly better",
    "worse": "clearly worse",
    "unclear": "not clearly different",
}
_MAKE_A_VERSION = (
    "Materialise the partition 'lookup' of the job support_model, or run: cs-pipeline demo --recipe lookup. It makes the"
    " free look-up a version, and needs no training."
)


@dataclass(frozen=True)
class Recommendation:
    """Who should answer customers, and why.

    ``system`` is a key of SYSTEMS, None if no system should answer. ``who`` names it in a sentence. ``reasons`` are pairs
    of a label and a text. Brackets in a text hold the 95 % interval of a difference.
    """

    system: str | None
    who: str
    reasons: list[tuple[str, str]]


@dataclass(frozen=True)
class ContenderRow:
    """A system that could answer customers: what it is, how it was made, its scores, and the time and price of its answers.

    ``minus`` is the answer quality of this version minus that of the system; None for this version itself. ``seconds`` is
    the time of one answer, ``price`` the price of 1,000 answers; None if the company has no ``price_per_hour``. With
    ``at_most`` both are upper limits: answering and scoring were only timed together.
    """

    system: str
    name: str
    about: str
    method: str
    scores: Scores
    minus: Difference | None
    seconds: float | None
    price: float | None
    at_most: bool


def quality_difference(answers: pd.DataFrame, system: str, other: str) -> Difference | None:
    """The answer quality of ``system`` minus that of ``other``, from the table of all answers."""
    ours, theirs = (answers[answers["system"] == name] for name in (system, other))
    clusters = ours["cluster_id"].tolist()
    return paired_bootstrap(ours, theirs, clusters, metrics=(PRIMARY_METRIC,))[PRIMARY_METRIC]


def recommend(
    results: EvaluationResults,
    decision: Decision,
    champion_gain: Difference | None,
    earlier_decisions: int,
    votes: PeopleVotes | None = None,
) -> Recommendation:
    """Names who should answer customers. Says why, by how much, how sure that is, and which rows it is based on.

    ``champion_gain`` is the answer quality of the champion minus that of the best free look-up. It is None if there is no
    champion, or if the champion was not trained. ``decision`` was based on ``earlier_decisions`` and ``votes``.
    """
    system = _chosen(results, decision, champion_gain)
    who = _who(results, system)
    reason = decision.reason.removeprefix("a person has to decide: ")
    if decision.undecided:
        who = f"A person has to decide. Until then: {who}"
    reasons = [
        ("Why", f"{reason[0].upper()}{reason[1:]}."),
        ("By how much", _by_how_much(results, champion_gain)),
        ("What people prefer", _people(results, votes)),
        ("What training bought", _training_bought(results, champion_gain)),
        ("How sure", _how_sure(results)),
        ("On which questions", _measured_on(results)),
        ("Earlier decisions", _earlier(results, earlier_decisions)),
    ]
    if results.company is not None:
        reasons.insert(2, ("Your own conversations", _own_conversations(results, results.company)))
    if system in FREE_SYSTEMS:
        reasons.append(("What to do", _MAKE_A_VERSION))
    return Recommendation(system, who, reasons)


def contender_rows(
    results: EvaluationResults, costs: Mapping[str, Cost], price_per_hour: float | None
) -> list[ContenderRow]:
    """Every system that could answer customers, the highest answer quality first."""
    rows = []
    for system in (name for name in _CONTENDERS if name in results.scores):
        at_most = system not in costs
        if at_most:
            seconds: float | None = results.seconds[system] / results.rows
            price = (
                None
                if price_per_hour is None
                else 1000 * price_per_hour * results.seconds[system] / results.rows / 3600
            )
        else:
            seconds, price = costs[system].p50, costs[system].per_1000_answers
        minus = None if system == "tuned" else results.differences[system][PRIMARY_METRIC]
        name, about, method = _described(results, system)
        rows.append(ContenderRow(system, name, about, method, results.scores[system], minus, seconds, price, at_most))
    return sorted(rows, key=lambda row: -(score.score if (score := row.scores[PRIMARY_METRIC]) else -1.0))


def _described(results: EvaluationResults, system: str) -> tuple[str, str, str]:
    """Name, explanation and method of a contender."""
    if system == "tuned":
        return results.recipe, "this version", results.methods["tuned"]
    if system == "champion":
        return "champion", f"version {results.champion_version}", results.methods["champion"]
    if system == "base":
        return "base", results.base["name"], "not trained"
    if system == LOOKUP and results.methods["tuned"] == LOOK_UP:
        return system, "the usual known answer, never handed over", LOOK_UP
    return system, _ABOUT[system], _FREE_METHODS[system]


def _chosen(results: EvaluationResults, decision: Decision, champion_gain: Difference | None) -> str | None:
    """The system that should answer, None if there is none.

    A trained champion that is clearly worse than a free look-up should not answer. If this version is a look-up and was
    refused, no other look-up is recommended in its place.
    """
    if decision.promote:
        return "tuned"
    beaten = champion_gain is not None and champion_gain.high < 0
    if results.methods["tuned"] == LOOK_UP:
        return "champion" if "champion" in results.scores else None
    return "champion" if "champion" in results.scores and not beaten else best_free_lookup(results)


def _who(results: EvaluationResults, system: str | None) -> str:
    if system is None:
        return "Nobody yet: there is no champion, and this version is not good enough."
    name, about, method = _described(results, system)
    if system == "tuned":
        return f"This version: {name} ({method})."
    if system == "champion":
        return f"The current champion: {about} ({method}). This version stays challenger."
    rather_than = "rather than the champion or this version" if "champion" in results.scores else "not this version"
    return f"The free look-up '{system}', {rather_than}: {about}, word for word."


def _by_how_much(results: EvaluationResults, champion_gain: Difference | None) -> str:
    free = best_free_lookup(results)
    other = [("champion", f"the champion, version {results.champion_version}")] if "champion" in results.scores else []
    compared = [*other, (free, f"the best free look-up, '{free}'")]
    texts = [
        _gain(results, "tuned", system, name, difference)
        for system, name in compared
        if (difference := results.differences[system].get(PRIMARY_METRIC)) is not None
    ]
    sentence = f"This version has an answer quality of {_score(results, 'tuned')} of 100: {'; '.join(texts)}."
    if champion_gain is not None:
        text = _gain(results, "champion", free, f"the free look-up '{free}'", champion_gain)
        sentence += f" The champion itself: {text}."
    return sentence


def _own_conversations(results: EvaluationResults, company: CompanyResults) -> str:
    """How the look-up answers the company's questions, where it is worst, and whether there are enough to compare models."""
    questions = company.rows + company.rows_left_out
    asked = f", of which {company.rows:,} were asked" if company.rows_left_out else ""
    borrowed = f" It took {company.from_bitext:,} of its answers from Bitext." if company.from_bitext else ""
    sentence = (
        f"{company.conversations:,} conversations with {questions:,} questions{asked}. Without the known answers of a"
        f" question's own conversation and near-duplicates, the look-up answers {company.rows - company.handed_over:,} of"
        f" them{_cross_validated(company)} and hands {company.handed_over:,} over to a person."
        f"{borrowed}{_worst_intents(company)}"
    )
    needed = company_conversations_needed(company, next(iter(rivals(results)), None))
    tested = f" {company.test_rows:,} of the questions {'is' if company.test_rows == 1 else 'are'} in the test, "
    if needed > company.conversations:
        return f"{sentence}{tested}too few to compare models on them: about {needed:,} conversations are needed."
    return f"{sentence}{tested}enough to see a loss of {MAX_COMPANY_LOSS:g} points of answer quality."


def _cross_validated(part: CrossValidated) -> str:
    """The scores of the look-up's answers, worded for the middle of a sentence."""
    if (quality := part.scores.get(PRIMARY_METRIC)) is None:
        return " (too few to score)"
    score_text = f"{figure(PRIMARY_METRIC, quality.score)} [{interval_text(PRIMARY_METRIC, quality)}]"
    shares = [
        f", {words} in {figure(metric, score.score)}\N{NO-BREAK SPACE}% [{interval_text(metric, score)}]"
        for metric, words in (("right_intent", "the right intent"), ("fabricates", "made-up facts"))
        if (score := part.scores.get(metric)) is not None
    ]
    return f" with an answer quality of {score_text}{''.join(shares)},"


def _worst_intents(company: CompanyResults) -> str:
    """The intents on which the look-up is worst, if the company has several with enough questions."""
    known = [
        (score.score, intent)
        for intent, part in company.by_intent.items()
        if (score := part.scores.get(PRIMARY_METRIC)) is not None
    ]
    texts = [f"'{intent}' ({figure(PRIMARY_METRIC, score)})" for score, intent in sorted(known)[:_WORST_INTENTS]]
    return f" Its answers are worst on {', '.join(texts)}." if len(known) > 1 else ""


def _people(results: EvaluationResults, votes: PeopleVotes | None) -> str:
    """What people's blind votes say about this version, how many there are, how sure that is, and whether they decide."""
    compared = rivals(results)
    if not compared:
        return "There is nothing to compare this version with."
    decides, why = may_decide(votes)
    if votes is None or not votes.verdicts:
        return (
            f"Nobody has compared its answers blindly with those of {next(iter(compared.values()))} yet. Do it on the page,"
            f" or on a sheet: cs-pipeline ratings export FILE --recipe {results.recipe}"
        )
    sentence = preference(votes)
    sentence = f"{sentence[0].upper()}{sentence[1:]}. The others are those of {next(iter(compared.values()))}."
    return f"{sentence} {why[0].upper()}{why[1:]}." if decides else f"{sentence} This does not decide: {why}."


def _gain(results: EvaluationResults, system: str, other: str, name: str, difference: Difference) -> str:
    by, low, high = (
        figure(PRIMARY_METRIC, value, signed=True) for value in (difference.difference, difference.low, difference.high)
    )
    word = _VERDICTS[judgement(PRIMARY_METRIC, difference.low, difference.high)]
    return f"{by} [{low},\N{NO-BREAK SPACE}{high}] against {name} ({_score(results, other)}), {word}"


def _score(results: EvaluationResults, system: str) -> str:
    score = results.scores[system][PRIMARY_METRIC]
    return figure(PRIMARY_METRIC, score.score if score else None)


def _training_bought(results: EvaluationResults, champion_gain: Difference | None) -> str:
    """What fine-tuning gained over the free look-up, for this version or, if that is a look-up, for the champion."""
    free, gain, whose = best_free_lookup(results), champion_gain, "the champion"
    if results.methods["tuned"] != LOOK_UP:
        gain, whose = results.differences[free].get(PRIMARY_METRIC), "this version"
    elif champion_gain is None:
        return "Nothing was trained: this version is a look-up, which costs nothing."
    if gain is None:
        return f"It cannot be said: {whose} could not be compared with the free look-up '{free}'."
    points = figure(PRIMARY_METRIC, abs(gain.difference))
    verdict = judgement(PRIMARY_METRIC, gain.low, gain.high)
    if verdict == "better":
        return f"Fine-tuning bought {whose} {points} points of answer quality over the free look-up '{free}'."
    if verdict == "worse":
        return f"Nothing. Fine-tuning costs {whose} {points} points: the free look-up '{free}' gives better answers."
    return f"Nothing. Fine-tuning buys {whose} nothing over the free look-up '{free}', as far as these questions show."


def _how_sure(results: EvaluationResults) -> str:
    rival = "champion" if "champion" in results.scores else best_free_lookup(results)
    detectable = results.detectable.get(rival, {}).get(PRIMARY_METRIC)
    sentence = "Brackets hold the 95\N{NO-BREAK SPACE}% interval over questions like these."
    if detectable is not None:
        sentence += (
            f" A true difference of {figure(PRIMARY_METRIC, detectable)} points from '{rival}' would have been found in four"
            " of five such evaluations."
        )
    if results.methods["tuned"] != LOOK_UP:
        sentence += (
            f" Another training run on the same rows may end {TRAINING_NOISE:g} points higher or lower. The"
            " decision takes that into account."
        )
    return sentence


def _measured_on(results: EvaluationResults) -> str:
    sources = ", ".join(f"{source}: {part.rows:,} in {part.clusters:,}" for source, part in results.slices.items())
    plural = "source" if len(results.slices) == 1 else "sources"
    seen = (
        ""
        if results.answers_seen is None
        else f" At the median, {results.answers_seen:.0%} of a reference answer's runs of {COPIED_RUN} words are also in"
        " training answers. The higher this is, the better copying works."
    )
    opened = "" if results.sealed is None else "open "
    return (
        f"{results.rows:,} {opened}test questions in {results.clusters:,} clusters of near-duplicates, from"
        f" {len(results.slices)} {plural} ({sources}). None has a near-duplicate among the training questions."
        f"{_sealed(results)}{seen}{_labelled(results.intent_labels)}"
    )


def _sealed(results: EvaluationResults) -> str:
    if results.rows_left_out:
        return (
            f" The recipe leaves out {results.rows_left_out:,} other test questions (evaluation.test_rows), so only a"
            " person can promote this version."
        )
    if results.sealed is None:
        return " No question is sealed, because there are too few."
    return (
        f" Another {results.sealed.rows:,} questions in {results.sealed.clusters:,} clusters are sealed: they decide whether"
        " this version's answers are better, and count when a loss has to be ruled out. No other figure on this page is"
        f" based on them{'' if results.company is None else ', except those on all conversations of the company'}."
    )


def _labelled(labels: LabelledIntents | None) -> str:
    """How many company rows count for right intent, and how often the router agrees with the labels that people gave."""
    if labels is None:
        return ""
    counted = (
        f" {labels.counted:,} of {labels.company_rows:,} company rows count for right intent: they have a subject, or a"
        " person's label of their intent."
    )
    if labels.share is None or labels.low is None or labels.high is None:
        return f"{counted} Nobody has labelled one yet: cs-pipeline intents export FILE"
    return (
        f"{counted} The router agrees with {labels.agreed:,} of {labels.labelled:,} labels ({100 * labels.share:.0f} %, 95 %"
        f" interval {100 * labels.low:.0f} to {100 * labels.high:.0f} %); {labels.without_intent:,} of them say that the"
        " question has none of the intents."
    )


def _earlier(results: EvaluationResults, decisions: int) -> str:
    often = {0: "never {}", 1: "{} once"}.get(decisions, f"{{}} {decisions} times")
    used = (
        f"The sealed questions were {often.format('opened')} in the year before this decision"
        if results.sealed
        else f"These questions were {often.format('used')} for decisions in the year before this decision"
    )
    return f"{used}; after {DECISIONS_PER_YEAR} times in a year, a person decides."
