"""The leaderboard of a sweep over two recipes through the real job, and which recipes it can compare."""

import re
import shutil
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.core.manifest import write_manifest
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.report.leaderboard import LEADERBOARD_METRICS, LEADERBOARD_SCHEMA
from cs_pipeline.evaluate.report.leaderboard_report import LeaderboardReport, write_leaderboard
from cs_pipeline.evaluate.report.rendering import figure
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import (
    evaluation_file,
    evaluation_folder,
    evaluations_lock,
    read_evaluation,
    write_evaluation,
)
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.recipe import CascadeRecipe, EvaluationSettings, LookupRecipe
from cs_pipeline.tracking import MODEL, open_store
from cs_pipeline.train.adapter import build_lookup
from cs_pipeline_tests.conftest import copy_lake, run_job
from cs_pipeline_tests.support.reported import HOSTILE, Page

RECIPES = ["tiny", "tiny_lora"]
OF_A_RECIPE = ["base_model", "adapter", "evaluation", "evaluation_report", "leaderboard", "model_version"]


@pytest.fixture(scope="module")
def sweep(
    champion_lake: Path, small_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DataLake, dg.ExecuteInProcessResult]:
    """The session's lake with ``tiny``, after the same job has run for a second recipe, and the result of that run."""
    lake = copy_lake(champion_lake, tmp_path_factory.mktemp("sweep") / "lake")
    result = run_job(lake.root, small_csv, OF_A_RECIPE, "tiny_lora")
    assert result.success
    return lake, result


@pytest.fixture
def swept(sweep: tuple[DataLake, dg.ExecuteInProcessResult], lake: DataLake) -> DataLake:
    """A copy without the store, for tests that change it."""
    for stage in ("prepare", "train", "evaluate"):
        shutil.copytree(sweep[0].path(stage), lake.path(stage))
    return lake


def rows_of(board: LeaderboardReport) -> dict[str, dict[str, Any]]:
    return {row["recipe"]: row for row in board.leaderboard.rows.to_pylist()}


def under_another_name(lake: DataLake, recipe: str, name: str, **changes: Any) -> None:
    """Copies adapter and evaluation of ``recipe`` to ``name``, with ``changes`` in the adapter's recipe."""
    shutil.copytree(lake.path("train", "adapter", recipe), lake.path("train", "adapter", name))
    shutil.copy(lake.path("train", "adapter", f"{recipe}.json"), lake.path("train", "adapter", f"{name}.json"))
    shutil.copytree(evaluation_folder(recipe, lake), evaluation_folder(name, lake))
    results = read_evaluation(recipe, lake).model_copy(update={"recipe": name})
    write_evaluation(results, evaluation_file(name, lake))
    folder = lake.path("train", "adapter", name, results.adapter_fingerprint)
    content = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content | {"name": name} | changes))
    facts = {key: value for key, value in read_json(folder / "manifest.json").items() if key != "files"}
    write_manifest(folder, facts)


def test_two_recipes_through_the_job_are_two_rows_with_their_figures(
    sweep: tuple[DataLake, dg.ExecuteInProcessResult],
) -> None:
    lake, _ = sweep
    table = lake.read("evaluate", "leaderboard")
    assert table.schema.equals(LEADERBOARD_SCHEMA)
    rows = {row["recipe"]: row for row in table.to_pylist()}
    assert sorted(rows) == RECIPES
    for name, row in rows.items():
        results = read_evaluation(name, lake)
        folder = lake.path("train", "adapter", name, results.adapter_fingerprint)
        made_by, metrics = yaml.safe_load((folder / "recipe.yaml").read_text()), read_json(folder / "metrics.json")
        for metric in LEADERBOARD_METRICS:
            tuned, base = (results.scores[system][metric] for system in ("tuned", "base"))
            minus = results.differences["base"][metric]
            assert tuned is not None
            assert base is not None
            assert minus is not None
            assert [row[metric + end] for end in ("", "_low", "_high")] == [tuned.score, tuned.low, tuned.high]
            assert row[f"{metric}_base"] == base.score
            ends = ("_minus_base", "_minus_base_low", "_minus_base_high")
            assert [row[metric + end] for end in ends] == [minus.difference, minus.low, minus.high]
        assert row["learning_rate"] == made_by["trainer"]["learning_rate"]
        assert (row["r"], row["lora_alpha"]) == (made_by["lora"]["r"], made_by["lora"]["lora_alpha"])
        assert row["quantization"] == made_by["quantization"]
        for measured in ("seconds", "tokens_per_second", "peak_memory_gib", "trainable_parameters", "steps", "rows"):
            assert row[measured] == metrics[measured], measured
        assert row["evaluation_seconds"] == results.seconds["tuned"]
        weights = (folder / "adapter_model.safetensors").stat().st_size
        assert row["adapter_mib"] * 2**20 == pytest.approx(weights)
        assert (row["placeholders"], row["note"]) == ("keep", "")
    tiny, lora = rows["tiny"], rows["tiny_lora"]
    assert (tiny["method"], lora["method"]) == ("QLoRA", "LoRA")
    assert (tiny["steps"], lora["steps"]) == (30, 10)  # 80 rows, once, eight at a time
    assert (tiny["epochs"], lora["epochs"]) == (1, 1)
    assert (tiny["effective_batch"], lora["effective_batch"]) == (8, 8)
    assert {row["parameters"] - row["trainable_parameters"] for row in (tiny, lora)} == {145_216}  # the base they share
    assert "(145,216 parameters)" in tiny["base"]
    assert lora["trainable_parameters"] * 4 == tiny["trainable_parameters"]  # r 2 and 8 on the same layers


def test_the_second_is_compared_with_the_first_on_the_same_questions(
    sweep: tuple[DataLake, dg.ExecuteInProcessResult],
) -> None:
    lake, _ = sweep
    first, second = lake.read("evaluate", "leaderboard").to_pylist()
    assert first["quality"] > second["quality"]
    assert first["behind_first"] is None
    assert second["behind_first"] == pytest.approx(second["quality"] - first["quality"])
    tuned = {}
    for row in (first, second):
        answers = pd.read_parquet(evaluation_folder(row["recipe"], lake) / "answers.parquet")
        tuned[row["recipe"]] = answers[answers["system"] == "tuned"].reset_index(drop=True)
    ahead, behind = tuned[first["recipe"]], tuned[second["recipe"]]
    assert ahead["row_id"].tolist() == behind["row_id"].tolist()
    low, high = second["behind_first_low"], second["behind_first_high"]
    assert low < second["behind_first"] < high
    # An interval made of whole clusters, by hand.
    extra = 100 * (behind["quality"] - ahead["quality"])
    clusters = ahead.assign(extra=extra).groupby("cluster_id")[["extra", "rows"]].sum()
    drawn = np.random.default_rng(1).integers(0, len(clusters), (2000, len(clusters)))
    sums = clusters.to_numpy()[drawn].sum(axis=1)
    by_hand = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    assert [low, high] == pytest.approx(by_hand, abs=0.15 * (high - low))


def test_dagster_shows_table_columns_and_plot(sweep: tuple[DataLake, dg.ExecuteInProcessResult]) -> None:
    lake, result = sweep
    (event,) = result.asset_materializations_for_node("leaderboard")
    metadata = event.metadata
    assert metadata["dagster/row_count"].value == 2
    schema = metadata["dagster/column_schema"].value
    assert isinstance(schema, dg.TableSchema)
    assert [column.name for column in schema.columns] == LEADERBOARD_SCHEMA.names
    assert metadata["page"].value == str(lake.path("evaluate", "leaderboard.html"))
    results, settings, cost = (str(metadata[name].value) for name in ("results", "settings", "cost"))
    for row in lake.read("evaluate", "leaderboard").to_pylist():
        name = row["recipe"].replace("_", r"\_")
        line = next(line for line in results.splitlines() if line.startswith(f"| {name} |"))
        for metric in ("quality", "right_intent", "bits_per_character"):
            low, high = (figure(metric, row[metric + end]) for end in ("_low", "_high"))
            assert rf"{figure(metric, row[metric])} \[{low} to {high}\]" in line
        assert any(line.startswith(f"| {name} |") and f"| {row['method']} |" in line for line in settings.splitlines())
        assert any(line.startswith(f"| {name} |") and "GiB" in line for line in cost.splitlines())
    pictures = re.findall(r"!\[(.+?)\]\(data:image/svg\+xml;base64,[\w+/=]+\)", results)
    assert pictures == ["Answer quality (0 to 100)", "Answer quality (0 to 100), minus the free look-up"]


def test_the_page_is_complete_and_self_contained(swept: DataLake) -> None:
    board = write_leaderboard([*RECIPES, "never_evaluated"], swept)
    html = board.path.read_text()
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 6
    assert not {"script", "link", "iframe", "object", "img", "image"} & set(tags)
    assert html.count("<style") == 1
    assert not re.search(r"url\(|@import|://", html[html.index("<style>") : html.index("</style>")])
    links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
    reports = [link for link in links if not link.startswith("#")]
    assert reports == [f"evaluation_report/{row['recipe']}.html" for row in board.leaderboard.rows.to_pylist()]
    assert all((board.path.parent / report).exists() for report in reports)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert "Not evaluated yet: never_evaluated." in page.text
    settings, cost = html.split('<h2 id="settings">')[1].split('<h2 id="cost">')
    for row in rows_of(board).values():
        for metric in LEADERBOARD_METRICS:
            low, high = (figure(metric, row[metric + end]) for end in ("_low", "_high"))
            assert f"{figure(metric, row[metric])}{low} to {high}" in page.text, metric
        for part, shown in (
            (settings, (row["base"], row["method"], f"{row['learning_rate']:g}", f"{row['r']} / {row['lora_alpha']}")),
            (cost, (f"{row['seconds']:,.0f} s", f"{row['peak_memory_gib']:.1f} GiB")),
        ):
            of_recipe = part[part.index(f">{row['recipe']}</th>") :]
            of_recipe = of_recipe[: of_recipe.index("</tr>")]
            assert set(shown) <= set(re.findall(r"<td>(.*?)</td>", of_recipe))
    assert {METRICS[metric].label for metric in LEADERBOARD_METRICS} <= set(page.texts)


def test_equal_evaluations_give_equal_bytes(swept: DataLake) -> None:
    files = [swept.path("evaluate", f"leaderboard.{kind}") for kind in ("html", "parquet")]
    markdown = write_leaderboard(RECIPES, swept).markdown
    before = [file.read_bytes() for file in files]
    assert write_leaderboard(RECIPES, swept).markdown == markdown
    assert [file.read_bytes() for file in files] == before


def test_another_placeholder_mode_has_a_ranking_of_its_own(swept: DataLake) -> None:
    under_another_name(swept, "tiny", "generic_twin", placeholders="generic")
    board = write_leaderboard([*RECIPES, "generic_twin"], swept)
    rows = rows_of(board)
    assert list(rows) == ["tiny", "tiny_lora", "generic_twin"]
    assert rows["generic_twin"]["quality"] == rows["tiny"]["quality"]
    assert rows["generic_twin"]["behind_first"] is None  # the first of its own
    assert rows["tiny_lora"]["behind_first"] < 0
    html = board.path.read_text()
    keep, generic = html.split("<h3>Placeholders: ")[1:]
    assert "generic_twin" not in keep
    assert "generic_twin" in generic[: generic.index("</table>")]
    assert "tiny_lora" not in generic[: generic.index("</table>")]
    assert "Figures are comparable only within one placeholder mode" in html
    assert "**Placeholders: generic**" in board.markdown["results"]


def test_a_lookup_is_ranked_with_the_models_and_has_nothing_of_a_training(swept: DataLake) -> None:
    trials = EvaluationSettings(robustness_cases=10, timed_answers=3)
    recipe = LookupRecipe(name="lookup", description="copies", method="lookup", evaluation=trials)
    build_lookup(recipe, swept)
    results = evaluate(recipe, swept, None, print).results
    report = write_report(recipe, swept)
    assert results.runs["tuned"].tokens == 0
    assert "Nothing was trained: this version is a look-up" in report.markdown
    board = write_leaderboard([*RECIPES, "lookup"], swept)
    row = rows_of(board)["lookup"]
    of_training = [field.name for field in LEADERBOARD_SCHEMA if field.nullable]
    for name in of_training[: of_training.index("quality")]:
        assert row[name] is None, name
    assert (row["method"], row["rows"], row["adapter_mib"]) == (
        "look-up",
        swept.read("prepare", "train_split").num_rows,
        0,
    )
    score = results.scores["tuned"]["quality"]
    assert score is not None
    assert (row["quality"], row["quality_base"], row["quality_minus_base"]) == (score.score, None, None)
    assert row["bits_per_character"] is None
    qualities = [row["quality"] for row in rows_of(board).values()]
    assert qualities == sorted(qualities, reverse=True)
    assert next(iter(rows_of(board))) == "lookup", "the tiny models are far worse"
    html, names = board.path.read_text(), list(rows_of(board))
    for columns in html.split('<h2 id="settings">')[1].split('<h2 id="cost">'):
        of_recipe = columns[columns.index(">lookup</th>") :]
        assert "<td>–</td>" in of_recipe[: of_recipe.index("</tr>")]
        assert "None" not in columns
    head, *ranked = re.findall(r"<tr>(.*?)</tr>", html[html.index("<h3>Placeholders: keep") :], re.S)[: len(names) + 1]
    assert "Minus the free look-up" in head
    for name, cells in zip(names, ranked, strict=True):
        gain = board.leaderboard.results[name].differences["lookup"]["quality"]
        assert gain is not None
        assert f"<td>{figure('quality', gain.difference, True)} <span" in cells
    for part in board.markdown.values():
        assert re.search(r"^\| lookup \| .*–", part, re.M)


def test_a_cascade_has_the_settings_and_weights_of_its_model(swept: DataLake) -> None:
    under_another_name(swept, "tiny", "both")
    folder = swept.path("train", "adapter", "both", read_evaluation("both", swept).adapter_fingerprint)
    inner = shutil.copytree(folder, folder.with_name("inner"))
    (folder / "adapter_model.safetensors").unlink()
    shutil.move(inner, folder / "model")
    recipe = CascadeRecipe(name="both", description="a look-up, then tiny", method="cascade", model="tiny")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    write_manifest(folder, {key: value for key, value in read_json(folder / "manifest.json").items() if key != "files"})
    rows = rows_of(write_leaderboard(["both", "tiny"], swept))
    changed = {name for name in LEADERBOARD_SCHEMA.names if rows["both"][name] != rows["tiny"][name]}
    assert changed - {"behind_first", "behind_first_low", "behind_first_high"} == {"recipe", "method"}
    assert rows["both"]["method"] == "cascade"
    assert rows["both"]["adapter_mib"] > 0


def test_settings_are_those_of_the_evaluated_adapter(swept: DataLake) -> None:
    under_another_name(swept, "tiny", "all_of_it", lora=None, quantization="none", description=HOSTILE)
    row = rows_of(write_leaderboard(["all_of_it"], swept))["all_of_it"]
    assert (row["method"], row["r"], row["lora_alpha"]) == ("all weights", None, None)
    write_json(swept.path("train", "adapter", "all_of_it.json"), {"fingerprint": "f" * 16})
    board = write_leaderboard(["all_of_it"], swept)
    assert rows_of(board)["all_of_it"]["note"] == "its newer adapter is not evaluated yet"
    assert "its newer adapter is not evaluated yet" in board.path.read_text()
    assert "its newer adapter is not evaluated yet" in board.markdown["results"]


def test_training_rows_that_have_changed_are_noted(swept: DataLake) -> None:
    train = swept.read("prepare", "train_split")
    swept.write("prepare", "train_split", train.slice(1), SPLIT_ROW)
    rows = rows_of(write_leaderboard(RECIPES, swept))
    assert {row["note"] for row in rows.values()} == {"trained on rows that differ from the current ones"}


def evaluated_on_other_rows(lake: DataLake) -> str:
    results = read_evaluation("tiny", lake)
    data = results.data.model_copy(update={"test_split": "0" * 64})
    write_evaluation(results.model_copy(update={"data": data}), evaluation_file("tiny", lake))
    return f"evaluated on {results.rows} test rows that differ from the current ones"


def evaluated_with_other_labels(lake: DataLake) -> str:
    results = read_evaluation("tiny", lake)
    data = results.data.model_copy(update={"intent_labels": "0" * 16})
    write_evaluation(results.model_copy(update={"data": data}), evaluation_file("tiny", lake))
    return "evaluated with other intent labels than the current ones"


def evaluated_by_other_code(lake: DataLake) -> str:
    results = read_evaluation("tiny", lake)
    write_evaluation(results.model_copy(update={"code_version": "0"}), evaluation_file("tiny", lake))
    return "evaluated by an earlier version of the code"


def written_by_another_release(lake: DataLake) -> str:
    path = evaluation_file("tiny", lake)
    write_json(path, read_json(path) | {"format_version": 0})
    return "was written by another release"


def adapter_touched(lake: DataLake) -> str:
    fingerprint = read_evaluation("tiny", lake).adapter_fingerprint
    (lake.path("train", "adapter", "tiny", fingerprint) / "metrics.json").write_text("{}")
    return "metrics.json was changed after it was written"


def adapter_gone(lake: DataLake) -> str:
    shutil.rmtree(lake.path("train", "adapter", "tiny", read_evaluation("tiny", lake).adapter_fingerprint))
    return "'adapter' was not finished there"


def trained_by_other_code(lake: DataLake) -> str:
    folder = lake.path("train", "adapter", "tiny", read_evaluation("tiny", lake).adapter_fingerprint)
    metrics = read_json(folder / "metrics.json")
    del metrics["epochs"]
    write_json(folder / "metrics.json", metrics)
    write_manifest(folder, {key: value for key, value in read_json(folder / "manifest.json").items() if key != "files"})
    return "trained by an earlier version of the code, which did not measure epochs"


@pytest.mark.parametrize(
    "change",
    [
        evaluated_on_other_rows,
        evaluated_with_other_labels,
        evaluated_by_other_code,
        written_by_another_release,
        adapter_touched,
        adapter_gone,
        trained_by_other_code,
    ],
)
def test_a_recipe_that_is_not_comparable_is_named_with_the_reason(swept: DataLake, change: Any) -> None:
    reason = change(swept)
    board = write_leaderboard(RECIPES, swept)
    assert list(rows_of(board)) == ["tiny_lora"]
    assert reason in board.leaderboard.not_comparable["tiny"]
    page = Page(board.path.read_text())
    assert re.search(rf"Not comparable.*tiny: .*{reason}", page.text, re.S)
    assert "Not comparable: **tiny**" in board.markdown["results"]
    assert swept.read("evaluate", "leaderboard").num_rows == 1


def test_a_sweep_that_has_not_begun_is_an_empty_board(swept: DataLake) -> None:
    board = write_leaderboard(["never_evaluated"], swept)
    assert pq.read_table(swept.table("evaluate", "leaderboard")).equals(LEADERBOARD_SCHEMA.empty_table())
    assert board.leaderboard.not_evaluated == ["never_evaluated"]
    assert "No recipe has been evaluated on the current test rows yet." in board.path.read_text()


def test_a_board_waits_for_an_evaluation_that_is_being_written(swept: DataLake) -> None:
    """Of two concurrent runs of a sweep, the last one must see the evaluations of both."""
    folder = evaluation_folder("tiny_lora", swept)
    boards: list[LeaderboardReport] = []
    writer = threading.Thread(target=lambda: boards.append(write_leaderboard(RECIPES, swept)))
    with evaluations_lock(swept):
        aside = folder.rename(folder.with_name("aside"))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        aside.rename(folder)
    writer.join(60)
    assert [list(rows_of(board)) for board in boards] == [RECIPES]


def test_every_recipe_has_the_same_names_in_the_store(sweep: tuple[DataLake, dg.ExecuteInProcessResult]) -> None:
    lake, _ = sweep
    client = open_store(lake)
    assert [e.name for e in client.search_experiments() if e.name != "Default"] == [MODEL]
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    runs = {run.data.tags["cs.recipe"]: run.data for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == RECIPES
    tiny, lora = (runs[name] for name in RECIPES)
    assert tiny.metrics.keys() == {name for name in lora.metrics if not name.startswith("test.champion.")}  # tiny is it
    assert tiny.params.keys() == lora.params.keys()
    differing = {name for name in tiny.params if tiny.params[name] != lora.params[name]}
    assert differing >= {"name", "method", "lora.r", "quantization", "trainer.num_train_epochs", "train_rows"}
    for row in lake.read("evaluate", "leaderboard").to_pylist():
        logged = runs[row["recipe"]].metrics
        for metric in LEADERBOARD_METRICS:
            assert logged[f"test.{metric}"] == row[metric]
            assert logged[f"test.{metric}.low"] == row[f"{metric}_low"]
            assert logged[f"test.base.{metric}"] == row[f"{metric}_base"]
            assert logged[f"test.minus_base.{metric}.difference"] == row[f"{metric}_minus_base"]
        for cost in ("seconds", "tokens_per_second", "peak_memory_gib", "trainable_parameters"):
            assert logged[f"train.{cost}"] == row[cost]
        assert logged["test.seconds"] == row["evaluation_seconds"]
        assert runs[row["recipe"]].params["base.name"] == row["base"]
