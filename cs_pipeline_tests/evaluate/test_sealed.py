"""A look-up evaluated on a test set that is large enough to seal a part of it: who sees the sealed rows, and what for."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.core.manifest import write_manifest
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.evaluation import SEALED_FILE, evaluate
from cs_pipeline.evaluate.openings import read_openings, record_opening
from cs_pipeline.evaluate.report.leaderboard import gather_leaderboard
from cs_pipeline.evaluate.report.leaderboard_report import write_leaderboard
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import FREE_SYSTEMS, EvaluationResults, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.scoring.test_set import MIN_CLUSTERS_TO_SEAL, FrozenTestSet, sealed_rows
from cs_pipeline.forget import find_affected, forget_records
from cs_pipeline.recipe import LookupRecipe, load_recipe
from cs_pipeline.retrieval.lookup import HANDOVER_ANSWER, write_threshold
from cs_pipeline.text.copied import mostly_copied
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import build_lookup
from cs_pipeline_tests.conftest import own_world
from cs_pipeline_tests.support.reported import Page

ROWS = 330
NEVER = 2.0
"""A similarity that no question reaches: the look-up hands every question over."""


def lookup_recipe() -> LookupRecipe:
    found = load_recipe("tiny_lookup")
    assert isinstance(found, LookupRecipe)
    return found


@pytest.fixture
def recipe(own_recipes: None) -> LookupRecipe:
    return lookup_recipe()


def make_champion(lake: DataLake, recipe: LookupRecipe, folder: Path) -> Version:
    """A look-up that hands every question over, laid out in ``folder`` like a version of the registry.

    It does not route, because it would answer the questions whose intent the router is sure of.
    """
    unrouted = LookupRecipe.model_validate(recipe.model_dump(exclude={"prompt"}) | {"prompt": {"route": "none"}})
    shutil.copytree(build_lookup(unrouted, lake).folder, folder / "adapter")
    build_lookup(recipe, lake)
    write_threshold(folder / "adapter", NEVER)
    manifest = read_manifest_of(folder / "adapter")
    write_manifest(folder / "adapter", manifest | {"fingerprint": "f" * 16})
    return Version(4, "f" * 16, recipe.name, "some run", folder)


def read_manifest_of(folder: Path) -> dict[str, Any]:
    """The facts of the manifest, without the hashes of files that the test has changed."""
    manifest: dict[str, Any] = read_json(folder / "manifest.json")
    del manifest["files"]
    return manifest


@pytest.fixture(scope="module")
def sealed_lake(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataLake, Version]]:
    """Training questions with another beginning and end are the test questions, each in its own cluster."""
    folder = tmp_path_factory.mktemp("sealed")
    lake = DataLake(folder / "lake")
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    train = lake.read("prepare", "train_split").to_pandas().drop_duplicates("instruction").head(ROWS)
    number = [f"no. {i:03d}q" for i in range(len(train))]
    test = train.assign(
        row_id=[f"{i:04d}{'ab' * 14}" for i in range(len(train))],
        cluster_id=[f"cluster {i}" for i in range(len(train))],
        instruction=[f"hello, {text} {end}" for text, end in zip(train["instruction"], number, strict=True)],
        response=[f"{text} {end}" for text, end in zip(train["response"], number, strict=True)],
        split="test",
        nearest_train_similarity=0.7,
    )
    lake.write("prepare", "test_split", pa.Table.from_pandas(test, SPLIT_ROW, preserve_index=False), SPLIT_ROW)
    with own_world(lake.root) as patch:
        patch.setenv("CS_RECIPES", str(Path(__file__).parents[1] / "recipes"))
        recipe = lookup_recipe()
        champion = make_champion(lake, recipe, folder / "version")
        evaluate(recipe, lake, champion, print)
        yield lake, champion


@pytest.fixture
def lake(sealed_lake: tuple[DataLake, Version], tmp_path: Path) -> DataLake:
    """A copy that the test may change."""
    shutil.copytree(sealed_lake[0].root, tmp_path / "lake")
    return DataLake(tmp_path / "lake")


def mask(lake: DataLake) -> pd.Series:
    """Which test rows are sealed, by row_id."""
    test = lake.read("prepare", "test_split", ["row_id", "cluster_id"]).to_pandas()
    return pd.Series(sealed_rows(test["cluster_id"].tolist()), index=test["row_id"])


def figures(results: EvaluationResults) -> dict[str, Any]:
    """The results without the sealed part, and without what identifies the input or depends on the clock."""
    return results.model_dump(mode="json", exclude={"sealed", "fingerprint", "data", "seconds", "runs"})


@pytest.mark.parametrize(("clusters", "sealed"), [(MIN_CLUSTERS_TO_SEAL - 1, False), (MIN_CLUSTERS_TO_SEAL, True)])
def test_a_small_test_set_stays_open(clusters: int, sealed: bool) -> None:
    assert sealed_rows([f"cluster {i % clusters}" for i in range(1000)]).any() == sealed


def test_about_a_third_of_the_clusters_is_sealed_and_stays_so() -> None:
    clusters = [f"cluster {i // 2}" for i in range(6000)]
    sealed = sealed_rows(clusters)
    assert sealed.mean() == pytest.approx(1 / 3, abs=0.03)
    assert (sealed[::2] == sealed[1::2]).all(), "a cluster is sealed as a whole"
    assert sealed_rows(clusters[:1000][::-1]).tolist() == sealed[:1000][::-1].tolist()


def test_the_deciding_systems_answer_every_row_once(sealed_lake: tuple[DataLake, Version]) -> None:
    lake, _ = sealed_lake
    folder, sealed = evaluation_folder("tiny_lookup", lake), mask(lake)
    results = read_evaluation("tiny_lookup", lake)
    tables = {name: pq.read_table(folder / name) for name in ("answers.parquet", SEALED_FILE)}
    assert tables[SEALED_FILE].schema.names == tables["answers.parquet"].schema.names
    for name, of_sealed in (("answers.parquet", False), (SEALED_FILE, True)):
        frame = tables[name].to_pandas()
        wanted = sealed.index[sealed == of_sealed].tolist()
        systems = {"tuned", "champion", *FREE_SYSTEMS} | (set() if of_sealed else {"random"})
        assert {system: rows["row_id"].tolist() for system, rows in frame.groupby("system")} == dict.fromkeys(
            systems, wanted
        )
    assert results.sealed is not None
    assert 80 < results.sealed.rows == results.sealed.clusters == sealed.sum()
    assert results.rows == results.clusters == ROWS - results.sealed.rows
    assert set(results.sealed.differences) == {"champion", *FREE_SYSTEMS}
    frame = tables[SEALED_FILE].to_pandas()
    means = 100 * frame.groupby("system")["quality"].mean()
    for system, difference in results.sealed.differences.items():
        assert difference is not None
        assert difference.rows == results.sealed.rows
        assert difference.difference == pytest.approx(means["tuned"] - means[system]), system
    assert {d.rows for d in results.differences["champion"].values() if d is not None} == {results.rows}


def test_sealed_rows_are_in_no_other_file(lake: DataLake, recipe: LookupRecipe) -> None:
    report = write_report(recipe, lake)
    write_leaderboard([recipe.name], lake)
    sealed = mask(lake)
    test = lake.read("prepare", "test_split").to_pandas().set_index("row_id")

    def found_in(path: Path, rows: pd.DataFrame) -> bool:
        texts = (
            path.read_text()
            if path.suffix != ".parquet"
            else "\n".join(str(value) for column in pq.read_table(path).columns for value in column.to_pylist())
        )
        ends = [text.rsplit(" ", 1)[1] for text in rows["instruction"]]
        return any(end.casefold() in texts.casefold() for end in [*ends, *rows.index])

    files = [path for path in lake.path("evaluate").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "answers.parquet",
        "robustness.parquet",
        "openings.json",
        "leaderboard.html",
    }
    holding = {of: {p.name for p in files if found_in(p, test[sealed == of])} for of in (True, False)}
    assert holding[True] == {SEALED_FILE}
    assert holding[False] >= {"answers.parquet", "references.parquet", "robustness.parquet", report.path.name}
    assert SEALED_FILE not in holding[False]


def test_only_the_decision_changes_with_the_sealed_rows(
    lake: DataLake, recipe: LookupRecipe, sealed_lake: tuple[DataLake, Version]
) -> None:
    """Of the sealed rows, other references: the intent that the champion's one answer has."""
    folder, champion = evaluation_folder(recipe.name, lake), sealed_lake[1]
    before = read_evaluation(recipe.name, lake)
    tables = {path.name: pq.read_table(path) for path in folder.glob("*.parquet")}
    (intent,) = FrozenTestSet(recipe, lake).classify_answers([HANDOVER_ANSWER])
    sealed = mask(lake)
    rows = [
        row | ({"response": HANDOVER_ANSWER, "intent": intent} if sealed[row["row_id"]] else {})
        for row in lake.read("prepare", "test_split").to_pylist()
    ]
    lake.write("prepare", "test_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    after = evaluate(recipe, lake, champion, print).results
    assert after.fingerprint != before.fingerprint
    assert figures(after) == figures(before)
    for name, table in tables.items():
        assert pq.read_table(folder / name).equals(table) == (name != SEALED_FILE), name
    assert before.sealed is not None
    assert after.sealed is not None
    gains = [results.sealed.differences["champion"] for results in (before, after) if results.sealed is not None]
    assert [gain is not None and gain.low > 0 for gain in gains] == [True, False]
    assert "not better than" not in decide_promotion(before).reason
    reason = decide_promotion(after).reason
    assert reason.startswith("its answers are not better than those of the champion")
    assert f"on {after.sealed.rows} sealed questions" in reason


def test_a_report_opens_the_sealed_rows_once_and_a_leaderboard_never(lake: DataLake, recipe: LookupRecipe) -> None:
    results = read_evaluation(recipe.name, lake)
    assert results.sealed is not None
    write_leaderboard([recipe.name], lake)
    assert read_openings(lake) == []
    record_opening(results.model_copy(update={"fingerprint": "of another evaluation"}), lake)
    html = [write_report(recipe, lake).path.read_text() for _ in range(2)]
    assert html[0] == html[1]
    assert [each.evaluation for each in read_openings(lake)] == ["of another evaluation", results.fingerprint]
    assert record_opening(results, lake) == 1, "the promotion reads the same number"
    text = " ".join(Page(html[0]).text.split())
    opening = text[: text.index("Findings", text.index("Who should answer"))]
    assert f"{results.rows} open test questions" in opening
    assert f"Another {results.sealed.rows} questions in {results.sealed.clusters} clusters are sealed" in opening
    assert "The sealed questions were opened once in the year before this decision" in opening


def test_a_forgotten_answer_leaves_the_sealed_rows_too(lake: DataLake, recipe: LookupRecipe) -> None:
    path = evaluation_folder(recipe.name, lake) / SEALED_FILE
    rows = lake.read("prepare", "train_split", ["row_id", "response"]).to_pylist()
    before = pq.read_table(path)
    given = set(before.column("answer").to_pylist())
    forgotten = next(row for row in rows if row["response"] in given)
    forget_records(lake, find_affected(lake, row=forgotten["row_id"]), "asked for")
    left = pq.read_table(path)
    assert 0 < left.num_rows < before.num_rows
    assert not mostly_copied(left.column("answer").to_pylist(), [forgotten["response"]]).any()
    assert set(left.to_pandas().groupby("row_id").size()) == {5}, "a question is removed for all systems"


def test_a_recipe_that_asks_few_questions_opens_nothing_and_is_compared_on_these(
    lake: DataLake, recipe: LookupRecipe, sealed_lake: tuple[DataLake, Version]
) -> None:
    few = recipe.evaluation.model_copy(update={"test_rows": 60})
    brief = recipe.model_copy(update={"name": "brief", "evaluation": few})
    build_lookup(brief, lake)
    results = evaluate(brief, lake, sealed_lake[1], print).results
    whole = read_evaluation(recipe.name, lake)
    assert (results.rows, results.rows_left_out, results.sealed) == (60, whole.rows - 60, None)
    assert not (evaluation_folder("brief", lake) / SEALED_FILE).exists()
    asked = set(pq.read_table(evaluation_folder("brief", lake) / "answers.parquet").column("row_id").to_pylist())
    assert not asked & set(mask(lake).index[mask(lake)])
    decision = decide_promotion(results)
    assert (decision.promote, decision.undecided) == (False, True)
    board = gather_leaderboard([recipe.name, "brief"], lake)
    notes = dict(zip(board.rows.column("recipe").to_pylist(), board.rows.column("note").to_pylist(), strict=True))
    assert notes == {recipe.name: "", "brief": "asked only 60 test questions"}
    (behind,) = board.behind.values()
    assert (behind.rows, behind.difference) == (60, 0)
