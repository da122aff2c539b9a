"""The adapter of a look-up: what is in it, how its threshold is chosen, and when it is reused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256, read_json
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.schema import SEEN_ROW, SPLIT_ROW
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.llm.base import NO_BASE
from cs_pipeline.recipe import LookupRecipe, read_recipe
from cs_pipeline.retrieval.index import build_index, forget_rows, index_lock, index_version, retrieval_folder
from cs_pipeline.retrieval.lookup import SAME_QUESTION, LookupModel
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.adapter import Adapter, base_of_adapter, build_lookup, current_adapter, find_adapter, seen_rows

FILES = {
    "lookup.json",
    "manifest.json",
    "metrics.json",
    "recipe.yaml",
    "rows.parquet",
}


@pytest.fixture
def lake(prepared_lake: DataLake) -> DataLake:
    return prepared_lake


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def stamp(adapter: Adapter) -> int:
    return (adapter.folder / "manifest.json").stat().st_mtime_ns


def best_similarities(recipe: LookupRecipe, lake: DataLake) -> list[float]:
    """For each validation question, the similarity of the known answer that would be given; 0 without one.

    It is 1 if the answer has the routed intent, because such an answer is given at any similarity.
    """
    rows = lake.read("prepare", "validation_split").to_pydict()
    index = open_index(recipe, lake)
    texts = retrieve(index, recipe.prompt, recipe.placeholders, rows["instruction"], rows["predicted_intent"])
    routed = zip(texts, rows["predicted_intent"], strict=True)
    return [0.0 if not found else 1.0 if found[0].intent == intent else found[0].similarity for found, intent in routed]


def test_the_folder_has_exactly_these_files(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    adapter = build_lookup(tiny_lookup, lake)
    assert adapter.is_lookup
    assert set(files(adapter.folder)) == FILES
    assert set(read_manifest(adapter.folder, "adapter")["files"]) == FILES - {"manifest.json"}
    assert [path.name for path in adapter.folder.parent.iterdir()] == [adapter.fingerprint]
    assert read_recipe(adapter.folder / "recipe.yaml") == tiny_lookup
    assert pq.read_table(adapter.folder / "rows.parquet").equals(SEEN_ROW.empty_table())
    assert seen_rows(adapter.folder).num_rows == 0
    assert current_adapter(tiny_lookup.name, lake) == adapter
    assert base_of_adapter(adapter, tiny_lookup, lake) is None


def test_it_contains_no_known_answer_and_no_path_of_this_machine(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    adapter = build_lookup(tiny_lookup, lake)
    answers = lake.read("prepare", "train_split", ["response"]).column("response").to_pylist()
    for name in FILES:
        content = (adapter.folder / name).read_bytes()
        assert str(lake.root).encode() not in content, name
        assert not any(answer.encode() in content for answer in answers), name


def test_the_manifest_records_where_it_comes_from(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    manifest = build_lookup(tiny_lookup, lake).manifest
    tables = ("train_split", "validation_split")
    assert {name: manifest["data"][name] for name in tables} == {
        name: file_sha256(lake.table("prepare", name)) for name in tables
    }
    assert set(manifest["data"]) == {*tables, "retrieval_index"}
    assert manifest["data"]["retrieval_index"] == index_version(lake)
    assert manifest["base"] == NO_BASE.facts()
    assert manifest["base"]["source"] == "none"
    assert manifest["start"] == {"why": "a look-up is not trained", "version": None, "fingerprint": None}
    assert manifest["company"] == {"rows": 0, "files": []}
    assert manifest["seed"] is None
    assert (manifest["recipe"], manifest["code_version"]) == ("tiny_lookup", CODE_VERSIONS["adapter"])


@pytest.mark.parametrize("unrouted", [0, 20, 1000])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.3])
def test_the_threshold_is_the_stated_quantile_of_the_validation_similarities(
    lake: DataLake, tiny_lookup: LookupRecipe, share: float, unrouted: int
) -> None:
    """``unrouted`` is the number of questions whose intent the router is not sure of."""
    rows = lake.read("prepare", "validation_split").to_pylist()
    rows = [row | ({"predicted_intent": None} if i < unrouted else {}) for i, row in enumerate(rows)]
    lake.write("prepare", "validation_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    tiny_lookup = tiny_lookup.model_copy(update={"handover_share": share})
    lines: list[str] = []
    adapter = build_lookup(tiny_lookup, lake, lines.append)
    best = best_similarities(tiny_lookup, lake)
    threshold = min(SAME_QUESTION, sorted(best)[int(np.floor(share * (len(best) - 1)))])
    assert read_json(adapter.folder / "lookup.json") == {"min_similarity": threshold}
    assert LookupModel.load(tiny_lookup, adapter.folder).min_similarity == threshold
    assert sum(similarity < threshold for similarity in best) <= share * len(best)
    if threshold < SAME_QUESTION:
        assert sum(similarity <= threshold for similarity in best) > share * (len(best) - 1)
    known = lake.read("prepare", "train_split").num_rows
    found = {name: adapter.metrics[name] for name in ("rows", "validation_questions", "min_similarity")}
    assert found == {"rows": known, "validation_questions": len(best), "min_similarity": threshold}
    assert adapter.metrics["seconds"] > 0
    assert lines == [
        f"{known:,} known answers; the look-up answers at a similarity of {threshold:.3f} or more, chosen with "
        f"{len(best):,} validation questions"
    ]


def test_equal_input_is_reused(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    first = build_lookup(tiny_lookup, lake)
    before, lines = stamp(first), list[str]()
    build_index(lake)  # nothing has changed
    described = tiny_lookup.model_copy(update={"description": "in other words", "evaluation": {}})
    again = build_lookup(tiny_lookup, lake, lines.append)
    for found in (again, find_adapter(tiny_lookup, lake), build_lookup(described, lake)):
        assert found == first
    assert stamp(first) == before
    assert lines == []


def test_it_is_made_if_it_is_only_looked_for(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    """Nothing has to be trained, so Dagster starts no training process for it."""
    found = find_adapter(tiny_lookup, lake)
    assert found is not None
    assert found == build_lookup(tiny_lookup, lake)


def test_force_chooses_the_threshold_again(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    first = build_lookup(tiny_lookup, lake)
    before, lines = stamp(first), list[str]()
    again = build_lookup(tiny_lookup, lake, lines.append, force=True)
    assert again.fingerprint == first.fingerprint
    assert stamp(again) > before
    assert len(lines) == 1
    same = FILES - {"manifest.json", "metrics.json"}  # the seconds differ
    assert {name: file_sha256(again.folder / name) for name in same} == {n: first.manifest["files"][n] for n in same}


def forget_one(lake: DataLake) -> None:
    with index_lock(lake):
        rows = pq.read_table(retrieval_folder(lake) / "answers.parquet").column("row_id").to_pylist()
        forget_rows(lake, rows[:1])


def ask_fewer(lake: DataLake) -> None:
    lake.write("prepare", "validation_split", lake.read("prepare", "validation_split").slice(1), SPLIT_ROW)


def route_otherwise(lake: DataLake) -> None:
    rows = lake.read("prepare", "validation_split")
    column = rows.column_names.index("predicted_intent")
    unknown = rows.set_column(column, SPLIT_ROW.field(column), pa.nulls(rows.num_rows, pa.string()))
    lake.write("prepare", "validation_split", unknown, SPLIT_ROW)


@pytest.mark.parametrize("change", [forget_one, ask_fewer, route_otherwise])
def test_other_data_give_another_adapter(
    lake: DataLake, tiny_lookup: LookupRecipe, change: Callable[[DataLake], None]
) -> None:
    first = build_lookup(tiny_lookup, lake)
    change(lake)
    second = build_lookup(tiny_lookup, lake)
    assert second.fingerprint != first.fingerprint
    assert current_adapter(tiny_lookup.name, lake) == second
    assert set(files(first.folder)) == FILES, "the earlier one is kept: a version may come from it"


@pytest.mark.parametrize(
    "change",
    [
        {"handover_share": 0.1},
        {"placeholders": PlaceholderMode.STRIP},
        {"name": "another"},
        {"prompt": {"route": "none"}},
    ],
)
def test_another_recipe_gives_another_adapter(
    lake: DataLake, tiny_lookup: LookupRecipe, change: dict[str, Any]
) -> None:
    other = LookupRecipe.model_validate(tiny_lookup.model_dump(exclude={"prompt"}) | change)
    found = build_lookup(other, lake)
    assert found.fingerprint != build_lookup(tiny_lookup, lake).fingerprint
    assert read_recipe(found.folder / "recipe.yaml") == other


def test_a_missing_index_is_reported_with_what_to_do(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    shutil.rmtree(retrieval_folder(lake))
    builds: list[Callable[[], object]] = [
        lambda: build_lookup(tiny_lookup, lake),
        lambda: find_adapter(tiny_lookup, lake),
    ]
    for build in builds:
        with pytest.raises(PipelineError, match="'retrieval_index' was not finished there") as raised:
            build()
        assert raised.value.fix == "Materialise 'retrieval_index' first."
    assert not lake.path("train", "adapter").exists()


def test_a_damaged_index_is_refused(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    build_lookup(tiny_lookup, lake)
    answers = retrieval_folder(lake) / "answers.parquet"
    answers.write_bytes(answers.read_bytes()[:-1] + b"!")
    with pytest.raises(PipelineError, match=r"answers\.parquet was changed"):
        build_lookup(tiny_lookup, lake)


def test_without_validation_questions_nothing_is_left_behind(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    lake.write("prepare", "validation_split", pa.Table.from_pylist([], SPLIT_ROW), SPLIT_ROW)
    with pytest.raises(PipelineError, match="no validation questions"):
        build_lookup(tiny_lookup, lake)
    assert not list(lake.path("train").rglob("*.json"))


def test_a_changed_file_is_refused(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    adapter = build_lookup(tiny_lookup, lake)
    (adapter.folder / "lookup.json").write_text('{"min_similarity": 0.0}')
    with pytest.raises(PipelineError, match=r"lookup\.json was changed after it was written"):
        build_lookup(tiny_lookup, lake)
    build_lookup(tiny_lookup, lake, force=True)
    assert current_adapter(tiny_lookup.name, lake).manifest["files"] == adapter.manifest["files"] | {
        "metrics.json": file_sha256(adapter.folder / "metrics.json")
    }


def test_the_adapter_of_another_recipe_is_not_used(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    adapter = build_lookup(tiny_lookup, lake)
    with pytest.raises(PipelineError, match="The recipe of 'tiny_lookup' has changed since its adapter"):
        base_of_adapter(adapter, tiny_lookup.model_copy(update={"handover_share": 0.2}), lake)


def by_hand(lake: DataLake, recipe: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cs_pipeline.train", "--recipe", recipe, *arguments]
    environment = {**os.environ, "CS_LAKE": str(lake.root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def printed_by(lake: DataLake, *arguments: str) -> list[str]:
    """What the training command prints for the recipe ``tiny_lookup``."""
    done = by_hand(lake, "tiny_lookup", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_training_command_builds_it(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    assert printed_by(lake, "--base-only") == ["base model: none: a look-up needs no model"]
    assert not lake.path("train", "adapter").exists()
    chosen, made = printed_by(lake)
    adapter = current_adapter(tiny_lookup.name, lake)
    before = stamp(adapter)
    assert "similarity" in chosen
    assert made == f"adapter {adapter.fingerprint} of tiny_lookup: {adapter.folder}"
    assert printed_by(lake) == [made]
    assert stamp(adapter) == before
    assert printed_by(lake, "--force") == [chosen, made]
    assert stamp(adapter) > before
    assert adapter.fingerprint == build_lookup(tiny_lookup, lake).fingerprint


def test_the_training_command_makes_no_cascade(lake: DataLake, own_recipes: None) -> None:
    refused = by_hand(lake, "tiny_cascade")
    assert refused.returncode == 1
    assert "The recipe 'tiny_cascade' is a cascade, which this command cannot build." in refused.stderr
    assert "Materialise 'adapter' for the partition 'tiny_cascade'." in refused.stderr
    assert "Traceback" not in refused.stderr
