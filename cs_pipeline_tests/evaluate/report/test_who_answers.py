"""The report opens with who should answer customers today, and with every system that could."""

import re
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.decision import DECISIONS_PER_YEAR, Decision, decide_promotion
from cs_pipeline.evaluate.openings import record_opening
from cs_pipeline.evaluate.report.rendering import figure, interval_text
from cs_pipeline.evaluate.report.report import EMBEDDED_WARNING, write_report
from cs_pipeline.evaluate.report.who_answers import (
    CONTENDER_METRICS,
    Recommendation,
    contender_rows,
    quality_difference,
    recommend,
)
from cs_pipeline.evaluate.results import (
    CompanyResults,
    CrossValidated,
    EvaluationResults,
    PeopleVotes,
    Scores,
    SealedResults,
    SliceResults,
    evaluation_folder,
)
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference, Interval
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline_tests.support.reported import CASCADE_RECIPE, LOOKUP_RECIPE, Page, evaluated
from cs_pipeline_tests.support.reported import recipe as recipe  # the fixture
from cs_pipeline_tests.support.results import company_of, difference, results_of

PROMOTED, REFUSED = Decision(True, "it is better"), Decision(False, "it is not better")
UNDECIDED = Decision(False, "a person has to decide: there are too few rows", undecided=True)
BETTER, WORSE, UNCLEAR = difference(1.0, 3.0), difference(-3.0, -1.0), difference(-1.0, 1.0)
SENTENCES = {
    "this": "This version: one (QLoRA).",
    "champion": "The current champion: version 7 (LoRA). This version stays challenger.",
    "lookup": "The free look-up 'lookup', not this version: the usual known answer to similar questions, word for word.",
    "rather": "The free look-up 'lookup', rather than the champion or this version: the usual known answer to similar"
    " questions, word for word.",
    "nobody": "Nobody yet: there is no champion, and this version is not good enough.",
}


def quality(score: float) -> Scores:
    return dict.fromkeys(METRICS) | {"quality": Interval(score, score - 1, score + 1)}


def compared(
    to_lookup: Difference | None, to_champion: Difference | None = None, method: str = "QLoRA", **known: Any
) -> EvaluationResults:
    """Results of a version of quality 60 beside a champion of 58 and look-ups of 57, 55 and 50."""
    scores = {"tuned": quality(60), "lookup": quality(57), "nearest": quality(55), "central": quality(50)}
    differences = {system: {"quality": to_lookup} for system in ("lookup", "nearest", "central")}
    methods = {"tuned": method}
    if to_champion is not None:
        scores["champion"], differences["champion"] = quality(58), {"quality": to_champion}
        methods["champion"], known["champion_version"] = "LoRA", 7
    figures = {"scores": scores, "differences": differences, "methods": methods, "answers_seen": None}
    return results_of(**figures | known)


def texts(recommended: Recommendation) -> dict[str, str]:
    return {about: text.replace("\N{NO-BREAK SPACE}", " ") for about, text in recommended.reasons}


@pytest.mark.parametrize(
    ("results", "decision", "champion_gain", "system", "who"),
    [
        (compared(BETTER), PROMOTED, None, "tuned", "this"),
        (compared(BETTER, BETTER), PROMOTED, BETTER, "tuned", "this"),
        (compared(BETTER, WORSE), REFUSED, BETTER, "champion", "champion"),
        (compared(BETTER, WORSE), REFUSED, UNCLEAR, "champion", "champion"),
        (compared(BETTER, WORSE), REFUSED, None, "champion", "champion"),  # a champion that is a look-up
        (compared(WORSE, UNCLEAR), REFUSED, WORSE, "lookup", "rather"),
        (compared(UNCLEAR), REFUSED, None, "lookup", "lookup"),
        (compared(UNCLEAR, method="look-up"), REFUSED, None, None, "nobody"),
        (compared(UNCLEAR, WORSE, method="look-up"), REFUSED, WORSE, "champion", "champion"),
    ],
)
def test_it_names_the_promoted_version_the_champion_or_a_free_lookup(
    results: EvaluationResults, decision: Decision, champion_gain: Difference | None, system: str | None, who: str
) -> None:
    recommended = recommend(results, decision, champion_gain, 0)
    assert (recommended.system, recommended.who) == (system, SENTENCES[who])
    assert texts(recommended)["Why"] == ("It is better." if decision.promote else "It is not better.")
    assert ("What to do" in texts(recommended)) == (system == "lookup")
    undecided = recommend(results, UNDECIDED, champion_gain, 0)
    if not decision.promote:
        assert undecided.who == f"A person has to decide. Until then: {SENTENCES[who]}"
        assert texts(undecided)["Why"] == "There are too few rows."


def test_it_says_by_how_much_against_whom_and_what_the_champion_is_worth() -> None:
    results = compared(BETTER, UNCLEAR, detectable={"champion": {"quality": 2.81}, "lookup": {"quality": 1.0}})
    reasons = texts(recommend(results, REFUSED, WORSE, 0))
    assert reasons["By how much"] == (
        "This version has an answer quality of 60.0 of 100: 0.0 [−1.0, +1.0] against the champion, version 7 (58.0), not"
        " clearly different; +2.0 [+1.0, +3.0] against the best free look-up, 'lookup' (57.0), clearly better. The champion"
        " itself: −2.0 [−3.0, −1.0] against the free look-up 'lookup' (57.0), clearly worse."
    )
    assert (
        "A true difference of 2.8 points from 'champion' would have been found in four of five" in reasons["How sure"]
    )


@pytest.mark.parametrize(
    ("to_lookup", "method", "champion_gain", "text"),
    [
        (
            BETTER,
            "QLoRA",
            None,
            "Fine-tuning bought this version 2.0 points of answer quality over the free look-up 'lookup'.",
        ),
        (
            WORSE,
            "QLoRA",
            None,
            "Nothing. Fine-tuning costs this version 2.0 points: the free look-up 'lookup' gives better",
        ),
        (UNCLEAR, "QLoRA", None, "Nothing. Fine-tuning buys this version nothing over the free look-up 'lookup'"),
        (None, "QLoRA", None, "It cannot be said: this version could not be compared with the free look-up 'lookup'."),
        (UNCLEAR, "look-up", None, "Nothing was trained: this version is a look-up, which costs nothing."),
        (
            UNCLEAR,
            "look-up",
            WORSE,
            "Nothing. Fine-tuning costs the champion 2.0 points: the free look-up 'lookup' gives",
        ),
    ],
)
def test_it_says_plainly_what_fine_tuning_bought(
    to_lookup: Difference | None, method: str, champion_gain: Difference | None, text: str
) -> None:
    results = compared(to_lookup, None if champion_gain is None else UNCLEAR, method)
    reasons = texts(recommend(results, REFUSED, champion_gain, 0))
    assert reasons["What training bought"].startswith(text)
    assert ("Another training" in reasons["How sure"]) == (method != "look-up")


def test_it_says_on_which_rows_and_how_often_they_were_used() -> None:
    part = SliceResults(rows=1200, clusters=1000, gates=True, scores={}, differences={})
    parts = {"bitext": part, "company": part.model_copy(update={"rows": 34, "clusters": 5})}
    results = compared(BETTER, rows=1234, clusters=1005, slices=parts)
    rows = "1,234 test questions in 1,005 clusters of near-duplicates, from 2 sources "
    rows += "(bitext: 1,200 in 1,000, company: 34 in 5)."
    for count, words in ((0, "never used for"), (1, "used once for"), (12, "used 12 times for")):
        reasons = texts(recommend(results, PROMOTED, None, count))
        assert reasons["On which questions"].startswith(rows)
        assert "No question is sealed" in reasons["On which questions"]
        assert "At the median" not in reasons["On which questions"]
        assert words in reasons["Earlier decisions"]
        assert f"after {DECISIONS_PER_YEAR} times in a year" in reasons["Earlier decisions"]


def test_it_says_how_many_sealed_questions_decided_and_how_often_they_were_opened() -> None:
    sealed = SealedResults(rows=402, clusters=395, differences={"lookup": BETTER}, with_open={"lookup": {}})
    results = compared(BETTER, rows=805, clusters=790, sealed=sealed)
    for count, words in ((0, "were never opened"), (1, "were opened once"), (12, "were opened 12 times")):
        reasons = texts(recommend(results, PROMOTED, None, count))
        assert reasons["On which questions"].startswith("805 open test questions in 790 clusters")
        assert "Another 402 questions in 395 clusters are sealed: they decide" in reasons["On which questions"]
        assert f"The sealed questions {words} in the year before" in reasons["Earlier decisions"]


def test_it_says_that_a_recipe_asks_only_some_questions() -> None:
    reasons = texts(recommend(compared(BETTER, rows=64, rows_left_out=98), REFUSED, None, 0))
    assert "leaves out 98 other test questions (evaluation.test_rows)" in reasons["On which questions"]
    assert "sealed" not in reasons["On which questions"]


def test_it_says_how_much_of_the_answers_is_in_training_answers() -> None:
    reasons = texts(recommend(compared(BETTER, answers_seen=0.614), PROMOTED, None, 0))
    assert (
        "At the median, 61% of a reference answer's runs of 8 words are also in training answers"
        in reasons["On which questions"]
    )


def test_the_best_free_lookup_counts_whichever_it_is() -> None:
    scores = {"tuned": quality(60), "lookup": quality(50), "nearest": quality(40), "central": quality(58)}
    gains = {"lookup": {"quality": BETTER}, "nearest": {"quality": BETTER}, "central": {"quality": UNCLEAR}}
    recommended = recommend(results_of(scores=scores, differences=gains), REFUSED, None, 0)
    assert recommended.system == "central"
    assert "the best free look-up, 'central' (58.0), not clearly different" in texts(recommended)["By how much"]
    assert "buys this version nothing over the free look-up 'central'" in texts(recommended)["What training bought"]


@pytest.mark.parametrize("champion", [False, True])
def test_every_contender_has_a_row_the_best_first(lake: DataLake, recipe: FineTuneRecipe, champion: bool) -> None:
    results = evaluated(lake, recipe, rows=80, champion=champion, share={"lookup": 0.9})
    (lake.root / "company.yaml").write_text("price_per_hour: 1.8\n")
    for number in range(3):
        record_opening(results.model_copy(update={"fingerprint": f"evaluation {number}"}), lake)
    report = write_report(recipe, lake)
    html = report.path.read_text()
    opening = html[html.index("<h1>") : html.index('<h2 id="findings">')]
    assert opening.index("Who should answer customers today, and why?") < opening.index(EMBEDDED_WARNING)
    assert opening.index(EMBEDDED_WARNING) < opening.index("<table")
    rows = re.findall(
        r'<tr(?: class="(chosen)")?><th scope="row">(.*?)<small>(.*?)</small></th>(.*?)</tr>', opening, re.S
    )
    names = [re.sub("<.*?>", "", name) for _, name, _, _ in rows]
    order = ["lookup", "demo", *(["champion"] if champion else []), "nearest", "base", "central"]
    assert names == order
    assert [chosen for chosen, *_ in rows].count("chosen") == 1
    for _, name, about, cells in rows:
        system = "tuned" if name.endswith("demo") else re.sub("<.*?>", "", name)
        score = results.scores[system]["quality"]
        assert score is not None
        shown = [re.sub("<.*?>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", cells, re.S)]
        assert shown[0] == [figure("quality", score.score), *interval_text("quality", score).split()]
        if system != "tuned":
            gain = results.differences[system]["quality"]
            assert gain is not None
            assert shown[1][0] == figure("quality", gain.difference, True)
            assert shown[1][2:] == interval_text("quality", gain, True).split()
        for metric, cell in zip(CONTENDER_METRICS, shown[2:], strict=False):
            value = results.scores[system][metric]
            assert cell == [figure(metric, value.score if value else None)], metric
        method = {"demo": "QLoRA", "champion": "LoRA", "base": "not trained", "lookup": "look-up"}
        assert about.startswith(method.get(re.sub("<.*?>", "", name), "copy"))
        if system in ("tuned", "champion", "base"):
            assert shown[-2:] == [["1.5"], ["0.15"]]  # 1,000 answers take 300 s, a twelfth of an hour
        else:  # 1.5 s to answer and score 80 rows
            assert shown[-2:] == [["≤", "0.019"], ["≤", "0.0094"]]
    table = [line for line in report.markdown.splitlines() if line.startswith("|")]
    assert [re.match(r"\| \**(\w+)", line)[1] for line in table[2:]] == order  # type: ignore[index]
    assert report.markdown.startswith("**Who should answer customers today, and why?** ")
    decision = decide_promotion(results, 3)
    for text in (Page(html).text, report.markdown.replace("\\", "")):
        assert f"{decision.reason[1:]}." in text
        assert "used 3 times" in text


SCORED: Scores = {
    "quality": Interval(61.24, 50, 72),
    "right_intent": Interval(80, 70, 90),
    "fabricates": Interval(0, 0, 0),
}


@pytest.mark.parametrize(
    ("company", "said"),
    [
        (
            company_of(30, 0, handed_over=18, scores=SCORED),
            "30 conversations with 30 questions. Without the known answers of a question's own conversation and"
            " near-duplicates, the look-up answers 12 of them with an answer quality of 61.2 [50.0 to 72.0], the right"
            " intent in 80.0 % [70.0 to 90.0], made-up facts in 0.0 % [0.0 to 0.0], and hands 18 over to a person. 0 of the"
            " questions are in the test, too few to compare models on them: about 2,500 conversations are needed.",
        ),
        (
            company_of(30, 1, handed_over=21, from_bitext=2),
            "30 conversations with 30 questions. Without the known answers of a question's own conversation and"
            " near-duplicates, the look-up answers 9 of them (too few to score) and hands 21 over to a person. It took 2 of"
            " its answers from Bitext. 1 of the questions is in the test, too few to compare models on them: about 2,500"
            " conversations are needed.",
        ),
        (
            company_of(
                3000,
                150,
                rows=2000,
                rows_left_out=1100,
                handed_over=200,
                by_intent={
                    intent: CrossValidated(
                        rows=40, clusters=30, handed_over=2, from_bitext=0, scores={"quality": Interval(score, 0, 100)}
                    )
                    for intent, score in (("brakes", 70), ("lights", 20.5), ("leasing", 90), ("a lost key", 40))
                }
                | {"other": CrossValidated(rows=20, clusters=20, handed_over=20, from_bitext=0, scores={})},
                differences={"lookup": difference(-6.0, 6.0, rows=150, clusters=150)},
            ),
            "3,000 conversations with 3,100 questions, of which 2,000 were asked. Without the known answers of a question's"
            " own conversation and near-duplicates, the look-up answers 1,800 of them (too few to score) and hands 200 over"
            " to a person. Its answers are worst on 'lights' (20.5), 'a lost key' (40.0), 'brakes' (70.0). 150 of the"
            " questions are in the test, enough to see a loss of 10 points of answer quality.",
        ),
    ],
)
def test_it_says_what_the_companys_own_conversations_show(company: CompanyResults, said: str) -> None:
    recommended = recommend(compared(BETTER, company=company), REFUSED, None, 0)
    label, text = recommended.reasons[2]
    assert (label, text.replace("\N{NO-BREAK SPACE}", " ")) == ("Your own conversations", said)
    assert "Your own conversations" not in texts(recommend(compared(BETTER), REFUSED, None, 0))


def test_it_says_what_people_prefer_and_whether_that_decides() -> None:
    def said(votes: PeopleVotes | None, results: EvaluationResults) -> str:
        return texts(recommend(results, REFUSED, None, 0, votes))["What people prefer"]

    beside = compared(BETTER, UNCLEAR)
    votes = PeopleVotes(
        candidate="version 8",
        incumbent="version 7",
        won=24,
        lost=6,
        ties=2,
        share=0.8,
        low=0.627,
        high=0.905,
        verdicts=70,
        raters=3,
        busiest=0.5,
        shared=0,
        agreement=None,
    )
    assert said(votes, beside) == (
        "3 people with 70 verdicts prefer its answers on 24 questions and the others on 6 (80 %, 95 % interval 63 to 90 %),"
        " with 2 ties. The others are those of the champion. Their votes decide which answers are better."
    )
    few = votes.model_copy(update={"lost": 5})
    assert said(few, beside).endswith("This does not decide: they need to prefer one side on 30 questions.")
    assert "those of the champion yet" in said(None, beside)
    assert "those of the best free look-up yet" in said(votes.model_copy(update={"verdicts": 0}), compared(BETTER))
    assert "cs-pipeline ratings export FILE --recipe one" in said(None, compared(BETTER))
    assert said(None, compared(UNCLEAR, method="look-up")) == "There is nothing to compare this version with."


def test_without_a_price_there_is_no_column_of_costs(lake: DataLake, recipe: FineTuneRecipe) -> None:
    results = evaluated(lake, recipe)
    html = write_report(recipe, lake).path.read_text()
    assert "Cost of 1,000 answers" not in html
    assert "Set <code>price_per_hour</code>" in html
    assert all(row.price is None for row in contender_rows(results, {}, None))


def test_a_champion_that_a_lookup_beats_is_named(lake: DataLake, recipe: FineTuneRecipe) -> None:
    results = evaluated(lake, recipe, rows=120, champion=True, share={"champion": 0.2, "tuned": 0.3, "lookup": 0.9})
    answers = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet")
    gain, score = quality_difference(answers, "champion", "lookup"), results.scores
    assert gain is not None
    assert gain.difference == pytest.approx(score["champion"]["quality"].score - score["lookup"]["quality"].score)  # type: ignore[union-attr]
    assert gain.high < 0
    html = write_report(recipe, lake).path.read_text()
    assert "The free look-up &#39;lookup&#39;, rather than the champion or this version" in html
    assert "cs-pipeline demo --recipe lookup" in html


def test_a_champion_that_is_a_lookup_is_not_compared_with_lookups(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, rows=120, champion=True, champion_method="look-up", share={"champion": 0.2, "tuned": 0.1})
    text = Page(write_report(recipe, lake).path.read_text()).text
    assert "The current champion: version 7 (look-up). This version stays challenger." in text
    assert "The champion itself" not in text


@pytest.mark.parametrize("champion", [False, True])
def test_the_report_of_a_lookup_has_nothing_about_training_or_a_base(lake: DataLake, champion: bool) -> None:
    evaluated(lake, LOOKUP_RECIPE, rows=60, champion=champion, company=20)
    (lake.root / "company.yaml").write_text("price_per_hour: 1.8\n")
    report = write_report(LOOKUP_RECIPE, lake)
    html = report.path.read_text()
    text = " ".join(Page(html).text.split())
    for absent in (
        "Training loss",
        "Forgotten knowledge",
        "Against its base",
        EMBEDDED_WARNING,
        "Validation loss",
        "Quantization",
    ):
        assert absent not in text + report.markdown, absent
    assert ">base<" not in html
    assert "Methodlook-up, nothing was trained" in text
    assert "0.432" in text  # the smallest similarity
    assert "0.5 % of 90 questions" in text
    assert "method look-up" in text
    assert text.index("look-up · this version") < text.index("look-up · the usual known answer, never handed over")
    assert ("Nothing was trained: this version is a look-up" in text) == (not champion)
    costs = html[html.index("<h3>What an answer costs</h3>") : html.index('<h2 id="tables">')]
    seconds = re.search(r"Seconds for one answer.*?<td>(.*?)<small>(.*?)</small>", costs, re.S)
    assert seconds is not None
    assert seconds.groups() == ("0.005", "0.006")
    tokens = re.search(r"Tokens per second.*?<td>(.*?)</td>", costs, re.S)
    assert tokens is not None
    assert tokens[1] == "–"
    assert "0.005" in costs  # 1,000 answers take 10 s


def test_the_report_of_a_cascade_has_the_training_of_its_model_and_no_base(lake: DataLake) -> None:
    evaluated(lake, CASCADE_RECIPE, rows=60, champion=True)
    report = write_report(CASCADE_RECIPE, lake)
    html = report.path.read_text()
    text = " ".join(Page(html).text.split())
    for shown in ("method cascade", "cascade · this version", "Fine-tuning bought this version", "Training loss"):
        assert shown in text
    for about, value in (
        ("Cascade", "a look-up first, then the model of 'demo'"),
        ("Look-up answers from similarity", "0.877"),
        ("Validation questions it answers", "62 %"),
        ("Method", "QLoRA, r 8, alpha 16"),
        ("Optimizer steps", "100, each on 4 ×"),
    ):
        assert f"{about}{value}" in Page(html).text.replace(" \n", ""), about
    assert EMBEDDED_WARNING in text
    assert ">base<" not in html
    assert "Forgotten knowledge" not in text
