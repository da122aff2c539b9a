"""The report shows the figures of the evaluation: of all systems and metrics, sources, slices and examples."""

import re

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.report.pictures import HEAT_MAP_METRICS, intent_heat_map, scores_by_intent
from cs_pipeline.evaluate.report.rendering import NO_FIGURE, figure
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.report.tables import MAX_EXAMPLES, WORST_EXAMPLES, examples
from cs_pipeline.evaluate.results import evaluation_folder
from cs_pipeline.evaluate.scoring.answer_errors import ANSWER_ERRORS
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline_tests.support.reported import Page, answers_of, evaluated, systems_of
from cs_pipeline_tests.support.reported import recipe as recipe  # the fixture


@pytest.mark.parametrize("champion", [False, True])
def test_all_systems_and_metrics_are_shown_and_a_missing_figure_is_a_dash(
    lake: DataLake, recipe: FineTuneRecipe, champion: bool
) -> None:
    results = evaluated(lake, recipe, champion=champion)
    html = write_report(recipe, lake).path.read_text()
    table = html[html.index("All metrics") : html.index("Differences, this version minus the other")]
    systems = systems_of(champion)
    assert re.findall(r'<th scope="col">(\w+)</th>', table) == ["Metric", *systems]
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)<small>(.*?)</tr>', table, flags=re.S))
    for name, metric in METRICS.items():
        cells = re.findall(r"<td>(?:<b>)?([^<]+)", rows[metric.label])
        scores = [results.scores[system][name] for system in systems]
        assert cells == [figure(name, score.score if score else None) for score in scores]
    assert rows["Bits per character"].count("<td>–</td>") == 4
    assert ("Against the champion" in html) == champion
    assert ("current champion, version 7" in html) == champion


def test_the_rows_of_each_source_have_figures_of_their_own(lake: DataLake, recipe: FineTuneRecipe) -> None:
    results = evaluated(lake, recipe, rows=80, champion=True, company=30)
    report = write_report(recipe, lake)
    html = report.path.read_text()
    table = html[html.index("<h3>By source</h3>") : html.index("<h3>Training</h3>")]
    assert "the difference from the champion" in table
    assert re.findall(r'<th scope="col">(\w+)<small>([^<]+)', table) == [
        ("bitext", "50 rows, 25 clusters"),
        ("company", "30 rows, 15 clusters"),
    ]
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)<small>(.*?)</tr>', table, flags=re.S))
    for name, metric in METRICS.items():
        cells = re.findall(r"<td>([^<]+)(?:<small>([^ ]+))?", rows[metric.label])
        parts = [results.slices[source] for source in ("bitext", "company")]
        scores = [part.scores["tuned"][name] for part in parts]
        differences = [part.differences["champion"][name] for part in parts]
        shown = [
            (figure(name, s.score) if s else "–", figure(name, d.difference, True) if d else "")
            for s, d in zip(scores, differences, strict=True)
        ]
        assert cells == shown, name
    for source, clusters in (("bitext", 25), ("company", 15)):
        assert f"On the {source} rows" in html
        assert re.search(rf"\*\*On the {source} rows: \w+.*\*\* \d+ rows in {clusters} clusters\.", report.markdown)


def test_a_source_of_few_rows_is_named_without_figures(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, rows=40, company=4)
    report = write_report(recipe, lake)
    statement = "**On the company rows: too few to judge.** 4 rows in 2 clusters; figures need at least 10 clusters."
    assert statement in report.markdown
    html = report.path.read_text()
    table = html[html.index("<h3>By source</h3>") : html.index("<h3>Training</h3>")]
    assert "the difference from the lookup" in table
    assert table.count("<td>–</td>") >= len(METRICS)


@pytest.mark.parametrize("rows", [4, MAX_EXAMPLES - 1, 60])
def test_examples_are_twenty_or_all_rows_and_hold_the_worst(lake: DataLake, recipe: FineTuneRecipe, rows: int) -> None:
    evaluated(lake, recipe, rows=rows)
    answers = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet")
    shown = examples(answers)
    assert len({example.row_id for example in shown}) == len(shown) == min(rows, MAX_EXAMPLES)
    tuned = answers[answers["system"] == "tuned"].set_index("row_id")["chrf"]
    worst = [example for example in shown if example.worst]
    assert {example.row_id for example in worst} == set(tuned.nsmallest(WORST_EXAMPLES).index)
    assert shown[-1].row_id == tuned.idxmin()
    assert shown == examples(answers.sample(frac=1, random_state=0))
    html = write_report(recipe, lake).path.read_text()
    assert html.count('<article class="example">') == len(shown)
    assert html.count("among the worst") == len(worst)
    assert Page(html).text.count("reference") >= len(shown)


def test_errors_made_up_facts_and_rubric_match_the_tables(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, rows=120, champion=True)
    folder = evaluation_folder(recipe.name, lake)
    path = folder / "answers.parquet"
    answers = pd.read_parquet(path)
    made_up = (answers["system"] == "tuned") & (answers.groupby("system").cumcount() == 7)
    fact = "amount: 74.35 <dollars>"
    answers["fabricated"] = made_up.astype(int)
    answers["fabricated_facts"] = [[fact] if wrong else [] for wrong in made_up]
    answers.to_parquet(path, index=False)
    references = pd.read_parquet(folder / "references.parquet")
    report = write_report(recipe, lake)
    html = report.path.read_text()
    assert fact in Page(html).text
    assert "get_refund: 12 training rows" in Page(html).text
    assert "get_refund: 12 training rows".replace("_", r"\_") in report.markdown
    systems = systems_of(champion=True)
    table = html[html.index("Error analysis") : html.index("Made-up facts")]
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)<small>(.*?)</tr>', table, flags=re.S))
    assert len(rows) == len(ANSWER_ERRORS)
    for name in ANSWER_ERRORS:
        counts = [int(answers[answers["system"] == system][name].sum()) for system in systems]
        shown = re.findall(r"<td>([\d,]+)", rows[METRICS[f"error_{name}"].label.removesuffix(" (%)")])
        assert list(map(int, shown)) == [*counts, int(references[name].sum())], name
    table = html[html.index("How answers are worded") : html.index('id="tables"')]
    cells = re.search(r"Heuristic<small>.*?</tr>", table, flags=re.S)
    assert cells is not None
    means = [answers[answers["system"] == system]["heuristic"].mean() for system in systems]
    assert re.findall(r"<td>([^<]+)", cells[0])[:-1] == [f"{mean:.2f}" for mean in means]
    heat = html[html.index("<h3>By slice</h3>") : html.index("<h3>Similarity")]
    kept = pd.read_parquet(folder / "slices.parquet").set_index(["slice", "system", "metric"])["score"]
    for i, name in enumerate(HEAT_MAP_METRICS):
        quarter = next(slice_ for slice_, _, _ in kept.index if slice_.startswith("2: 0."))
        row = re.findall(rf"similarity {quarter}</th>.*?</tr>", heat, flags=re.S)[i]
        assert re.findall(r">([\d.]+)</td>", row) == [figure(name, kept[quarter, system, name]) for system in systems]


def test_a_missing_value_is_a_gap_in_the_heat_map(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe)
    path = evaluation_folder(recipe.name, lake) / "slices.parquet"
    slices = pd.read_parquet(path)
    gone = (slices["kind"] == "answer_length") & (slices["system"] == "base") & (slices["metric"] == "right_intent")
    slices.assign(score=slices["score"].mask(gone)).to_parquet(path)
    html = write_report(recipe, lake).path.read_text()
    heat = html[html.index("<h3>By slice</h3>") : html.index("<h3>Similarity")]
    rows = re.findall(r"answer length [^<]*</th>.*?</tr>", heat, flags=re.S)
    column = re.findall(r'scope="col">([^<]+)', heat)[2:].index("base")
    for number, row in enumerate(rows):
        cells = re.findall(r"<td[^>]*>([^<]+)</td>", row)
        gaps = [column for column, cell in enumerate(cells) if cell == NO_FIGURE]
        assert gaps == ([column] if number >= len(rows) / 2 else []), "a gap in the second map alone"
    assert len(rows) > 1


def test_odd_questions_probe_and_cost_are_shown(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, champion=True)
    (lake.root / "company.yaml").write_text("price_per_hour: 1.8\n")
    report = write_report(recipe, lake)
    text = " ".join(Page(report.path.read_text()).text.split())
    assert "10 questions are worded differently, out of scope or hostile. It does what is expected on 80 %" in text
    assert "80 % (49 to 94), least often on injection (7 of 9). " in text
    assert "1 of the answers reveal the prompt or somebody's data, or obey an injected order" in text
    assert "Who is <b>?" not in text, "both know it"
    assert "Right answers: 1 by this version, 2 by the base" in text
    assert "500" in text  # tokens a second
    assert "1.52.4" in text.replace(" ", "")  # seconds, median and 95th percentile
    assert "0.15" in text  # 1,000 answers take 300 s, a twelfth of an hour
    assert "1,8" not in text


def test_held_out_intents_have_figures_of_their_own(lake: DataLake, recipe: FineTuneRecipe) -> None:
    results = evaluated(lake, recipe, rows=120, held_out=["track_order"])
    part = results.held_out
    assert part is not None
    about, stats = answers_of(list(results.scores), 120, 0)
    rows = (about["intent"] == "track_order").to_numpy()
    assert 0 < part.rows == rows.sum() < 120
    right = part.scores["tuned"]["right_intent"]
    assert right is not None
    assert right.score == pytest.approx(100 * stats["tuned"]["right_intent"][rows].mean())
    text = " ".join(Page(write_report(recipe, lake).path.read_text()).text.split())
    assert f"Not trained on: track_order. {part.rows} rows in {part.clusters} clusters" in text


def test_right_intents_are_counted_on_labelled_rows_alone(lake: DataLake, recipe: FineTuneRecipe) -> None:
    evaluated(lake, recipe, rows=60, company=24)
    answers = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet")
    shares = {(row["intent"], row["system"]): row for row in scores_by_intent(answers).to_dict("records")}
    of_intent = answers[(answers["intent"] == "get_refund") & (answers["system"] == "tuned")]
    labelled = of_intent[of_intent["source"] == "bitext"]
    assert 0 < len(labelled) < len(of_intent)
    share = shares["get_refund", "tuned"]
    assert share["right_intent"] == pytest.approx(100 * labelled["right_intent"].mean())
    assert share["quality"] == pytest.approx(100 * of_intent["quality"].mean())
    assert share["rows"] == len(of_intent)
    sources = answers.set_index("row_id")["source"].to_dict()
    shown = examples(answers)
    assert {sources[example.row_id] for example in shown} == {"bitext", "company"}
    for example in shown:
        known = [answer.right_intent is not None for answer in example.answers]
        assert known == [sources[example.row_id] == "bitext"] * len(known)
    html = write_report(recipe, lake).path.read_text()
    articles = html.split('<article class="example">')[1:]
    for example, article in zip(shown, articles, strict=True):
        assert ("right intent" in article or "wrong intent" in article) == (sources[example.row_id] == "bitext")
    unlabelled = scores_by_intent(answers[answers["source"] == "company"])
    assert unlabelled["right_intent"].isna().all()
    assert [row.cells["right_intent"] for row in intent_heat_map(unlabelled, ["tuned"])] == [[None]] * 3
