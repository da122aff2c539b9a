"""Training that starts from the champion: what it keeps of it, and when it starts from the base instead."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.base import find_base
from cs_pipeline.recipe import FineTuneRecipe, MixtureSettings, load_fine_tune_recipe
from cs_pipeline.register.version import _log_model
from cs_pipeline.tracking import (
    CHAMPION,
    FINGERPRINT,
    FORGOTTEN,
    MODEL,
    champion_version,
    get_or_create_run,
    open_store,
)
from cs_pipeline.train.adapter import Adapter, current_adapter, find_adapter, seen_rows, train_adapter
from cs_pipeline.train.warm_start import TrainingStart, find_training_start
from cs_pipeline_tests.conftest import RECIPES, copy_lake, own_world
from cs_pipeline_tests.support import versions
from cs_pipeline_tests.train import FILES, add_to_split, company_rows


@dataclass(frozen=True)
class WarmStarted:
    """A lake in which version 1 is champion, company rows have arrived, and a training has started from the champion."""

    lake: DataLake
    recipe: FineTuneRecipe
    first: Adapter
    second: Adapter
    lines: list[str]


def from_champion(recipe: FineTuneRecipe, **changes: Any) -> FineTuneRecipe:
    return recipe.model_copy(update={"start": "champion", **changes})


@pytest.fixture(scope="module")
def warm_started(champion_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> WarmStarted:
    lake = copy_lake(champion_lake, tmp_path_factory.mktemp("warm_start") / "lake")
    lines: list[str] = []
    with own_world(lake.root) as patch:
        patch.setenv("CS_RECIPES", str(RECIPES))
        recipe = from_champion(load_fine_tune_recipe("tiny"), mixture=MixtureSettings(company_weight=2))
        first = current_adapter("tiny", lake)
        add_to_split(lake, "train", company_rows(40))
        second = train_adapter(recipe, lake, lines.append)
    return WarmStarted(lake, recipe, first, second, lines)


def make_champion(lake: DataLake, recipe: FineTuneRecipe, adapter: Adapter) -> int:
    """Registers ``adapter`` without an evaluation and makes it champion."""
    client = open_store(lake)
    run = get_or_create_run(client, lake, adapter.fingerprint, recipe.name)
    tags = {FINGERPRINT: adapter.fingerprint, "cs.recipe": recipe.name}
    number = client.create_model_version(MODEL, _log_model(run, recipe, lake, adapter), run, tags=tags).version
    client.set_registered_model_alias(MODEL, CHAMPION, str(number))
    return int(number)


def start_of(recipe: FineTuneRecipe, lake: DataLake) -> TrainingStart:
    return find_training_start(recipe, find_base(recipe, lake), lake)


def test_it_starts_where_the_champion_ended(warm_started: WarmStarted) -> None:
    first, second = warm_started.first, warm_started.second
    assert second.metrics["validation_loss_before"] == pytest.approx(first.metrics["validation_loss_after"], rel=1e-3)
    assert second.metrics["validation_loss_before"] < first.metrics["validation_loss_before"]
    why = f"from champion 1, adapter {first.fingerprint}"
    assert second.manifest["start"] == {"why": why, "version": 1, "fingerprint": first.fingerprint}
    assert f"training starts {why}" in warm_started.lines
    assert first.manifest["start"] == {"why": "from the base, as the recipe says", "version": None, "fingerprint": None}


def test_it_has_also_seen_the_rows_of_the_champion(warm_started: WarmStarted) -> None:
    before, after = seen_rows(warm_started.first.folder), seen_rows(warm_started.second.folder)
    assert set(before.column("through").to_pylist()) == {""}
    ids = after.column("row_id").to_pylist()
    assert len(ids) == len(set(ids)) > 240
    assert set(before.column("row_id").to_pylist()) < set(ids)
    own = after.filter(pc.equal(after.column("through"), ""))
    assert own.num_rows == warm_started.second.metrics["rows_different"]
    through = after.filter(pc.equal(after.column("through"), warm_started.first.fingerprint))
    assert own.num_rows + through.num_rows == after.num_rows
    assert through.num_rows > 0
    assert not set(own.column("row_id").to_pylist()) & set(through.column("row_id").to_pylist())


def test_the_manifest_counts_the_rows_of_each_file(warm_started: WarmStarted) -> None:
    seen = seen_rows(warm_started.second.folder).to_pylist()
    ours = [row for row in seen if row["source"] == "company"]
    counts = [{"sha256": sha, "rows": sum(row["source_file_sha256"] == sha for row in ours)} for sha in FILES]
    assert warm_started.second.manifest["company"] == {"rows": len(ours), "files": counts}
    assert len(ours) == warm_started.second.metrics["rows_of_company"] > 0
    assert all(row["subject_id"] for row in ours)
    assert warm_started.first.manifest["company"] == {"rows": 0, "files": []}
    assert warm_started.second.metrics["rows"] == warm_started.recipe.train_rows


def test_equal_input_is_not_trained_again(warm_started: WarmStarted) -> None:
    found = find_adapter(warm_started.recipe, warm_started.lake)
    assert found is not None
    assert found.fingerprint == warm_started.second.fingerprint != warm_started.first.fingerprint
    assert warm_started.second.manifest["base"] == warm_started.first.manifest["base"]
    assert find_adapter(warm_started.recipe.model_copy(update={"start": "base"}), warm_started.lake) is None


def test_a_champion_is_trained_further_only_on_other_data(warm_started: WarmStarted, tmp_path: Path) -> None:
    lake = copy_lake(warm_started.lake.root, tmp_path / "copy")
    number = make_champion(lake, warm_started.recipe, warm_started.second)
    assert start_of(warm_started.recipe, lake).fingerprint == warm_started.second.fingerprint
    found = find_adapter(warm_started.recipe, lake)
    assert found is not None
    assert found.fingerprint == warm_started.second.fingerprint, (
        "after promotion it is still the result of this recipe and data"
    )

    add_to_split(lake, "train", company_rows(60)[40:])
    assert find_adapter(warm_started.recipe, lake) is None
    short = from_champion(warm_started.recipe, trainer=warm_started.recipe.trainer.model_copy(update={"max_steps": 2}))
    third = train_adapter(short, lake, print)
    assert third.manifest["start"]["version"] == number
    seen = seen_rows(third.folder)
    assert set(seen.column("through").to_pylist()) == {
        "",
        warm_started.first.fingerprint,
        warm_started.second.fingerprint,
    }
    assert set(seen_rows(warm_started.second.folder).column("row_id").to_pylist()) < set(
        seen.column("row_id").to_pylist()
    )


def test_without_a_champion_it_starts_from_the_base(warm_started: WarmStarted, tmp_path: Path) -> None:
    lake = copy_lake(warm_started.lake.root, tmp_path / "copy")
    open_store(lake).delete_registered_model_alias(MODEL, CHAMPION)
    assert champion_version(lake) is None
    assert start_of(warm_started.recipe, lake) == TrainingStart(None, "from the base, because there is no champion yet")
    assert find_adapter(warm_started.recipe, lake) is None


def test_a_champion_marked_for_forgetting_is_not_used(warm_started: WarmStarted, tmp_path: Path) -> None:
    lake = copy_lake(warm_started.lake.root, tmp_path / "copy")
    open_store(lake).set_model_version_tag(MODEL, "1", FORGOTTEN, "2026-11-01")
    start = start_of(warm_started.recipe, lake)
    assert start == TrainingStart(None, "from the base, because champion 1 has seen rows that must be forgotten")
    assert find_adapter(warm_started.recipe, lake) is None


def test_beside_a_champion_that_is_a_lookup_it_starts_from_the_base(warm_started: WarmStarted, tmp_path: Path) -> None:
    lake, recipe = copy_lake(warm_started.lake.root, tmp_path / "copy"), warm_started.recipe
    number = versions.add_lookup(lake)
    versions.make_champion(lake, number)
    why = f"from the base, because champion {number} is a look-up"
    assert start_of(recipe, lake) == TrainingStart(None, why)
    assert find_adapter(recipe, lake) is None, (
        "the adapter that started from champion 1 is not the result of this start"
    )
    lines: list[str] = []
    short = from_champion(recipe, trainer=recipe.trainer.model_copy(update={"max_steps": 2}))
    trained = train_adapter(short, lake, lines.append)
    assert f"training starts {why}" in lines
    assert trained.manifest["start"] == {"why": why, "version": None, "fingerprint": None}
    seen = seen_rows(trained.folder)
    assert set(seen.column("through").to_pylist()) == {""}, "a look-up has seen no rows"
    assert seen.num_rows == trained.metrics["rows_different"]
    assert find_adapter(short, lake) == trained


def test_a_champion_that_does_not_fit_is_refused(warm_started: WarmStarted) -> None:
    assert warm_started.recipe.lora
    lora = warm_started.recipe.lora.model_copy(update={"r": 4, "target_modules": ("q_proj",)})
    other = warm_started.recipe.model_copy(update={"name": "other", "lora": lora})
    base = find_base(warm_started.recipe, warm_started.lake)
    with pytest.raises(PipelineError) as raised:
        find_training_start(other, dataclasses.replace(base, name="another base", sha256="0123"), warm_started.lake)
    assert (
        "'other' starts from the champion, but version 1, made with the recipe 'tiny', does not fit"
        in raised.value.what
    )
    assert f"its base is {base.name} ({base.sha256}), not another base (0123)" in raised.value.what
    assert "its lora.r is 8, not 4; its lora.target_modules is all-linear, not ('q_proj',)." in raised.value.what
    assert "'start: base'" in raised.value.fix
    refusals: list[Callable[[], object]] = [
        lambda: find_adapter(other, warm_started.lake),
        lambda: train_adapter(other, warm_started.lake, print),
    ]
    for refused in refusals:
        with pytest.raises(PipelineError, match=r"its lora\.r is 8, not 4"):
            refused()


def test_a_folder_without_a_readable_list_of_rows_is_refused(warm_started: WarmStarted, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"rows\.parquet cannot be read") as raised:
        seen_rows(tmp_path)
    assert "start: base" in raised.value.fix
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"rows\.parquet cannot be read"):
        seen_rows(tmp_path)
    assert isinstance(seen_rows(warm_started.second.folder), pa.Table)
