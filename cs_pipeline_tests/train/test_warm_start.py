"""Training that goes on from the champion: where it begins, what it keeps of it, and when it does not."""

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
from cs_pipeline.recipe import MixtureSettings, Recipe, load_recipe
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
from cs_pipeline.train.warm_start import WarmStart, find_warm_start
from cs_pipeline_tests.conftest import RECIPES, copy_lake, own_world
from cs_pipeline_tests.train import FILES, add_to_side, company_rows


@dataclass(frozen=True)
class GoneOn:
    """A lake in which version 1 is champion, company rows have landed, and a training has gone on from it."""

    lake: DataLake
    recipe: Recipe
    first: Adapter
    second: Adapter
    lines: list[str]


def going_on(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"start": "champion", **changes})


@pytest.fixture(scope="module")
def gone_on(champion_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> GoneOn:
    lake = copy_lake(champion_lake, tmp_path_factory.mktemp("going_on") / "lake")
    lines: list[str] = []
    with own_world(lake.root) as patch:
        patch.setenv("CS_RECIPES", str(RECIPES))
        recipe = going_on(load_recipe("tiny"), mixture=MixtureSettings(company_weight=2))
        first = current_adapter("tiny", lake)
        add_to_side(lake, "train", company_rows(40))
        second = train_adapter(recipe, lake, lines.append)
    return GoneOn(lake, recipe, first, second, lines)


def make_champion(lake: DataLake, recipe: Recipe, adapter: Adapter) -> int:
    """Registers ``adapter`` without judging it, and gives it the alias."""
    client = open_store(lake)
    run = get_or_create_run(client, lake, adapter.fingerprint, recipe.name)
    tags = {FINGERPRINT: adapter.fingerprint, "cs.recipe": recipe.name}
    number = client.create_model_version(MODEL, _log_model(run, recipe, lake, adapter), run, tags=tags).version
    client.set_registered_model_alias(MODEL, CHAMPION, str(number))
    return int(number)


def begins(recipe: Recipe, lake: DataLake) -> WarmStart:
    return find_warm_start(recipe, find_base(recipe, lake), lake)


def test_it_begins_where_the_champion_ended(gone_on: GoneOn) -> None:
    first, second = gone_on.first, gone_on.second
    assert second.metrics["validation_loss_before"] == pytest.approx(first.metrics["validation_loss_after"], rel=1e-3)
    assert second.metrics["validation_loss_before"] < first.metrics["validation_loss_before"]
    why = f"on from champion 1, adapter {first.fingerprint}"
    assert second.manifest["start"] == {"why": why, "version": 1, "fingerprint": first.fingerprint}
    assert f"training begins {why}" in gone_on.lines
    assert first.manifest["start"] == {"why": "from the base, as the recipe says", "version": None, "fingerprint": None}


def test_what_the_champion_has_seen_it_has_seen_too(gone_on: GoneOn) -> None:
    before, after = seen_rows(gone_on.first.folder), seen_rows(gone_on.second.folder)
    assert set(before.column("through").to_pylist()) == {""}
    ids = after.column("row_id").to_pylist()
    assert len(ids) == len(set(ids)) > 240
    assert set(before.column("row_id").to_pylist()) < set(ids)
    own = after.filter(pc.equal(after.column("through"), ""))
    assert own.num_rows == gone_on.second.metrics["rows_different"]
    through = after.filter(pc.equal(after.column("through"), gone_on.first.fingerprint))
    assert own.num_rows + through.num_rows == after.num_rows
    assert through.num_rows > 0
    assert not set(own.column("row_id").to_pylist()) & set(through.column("row_id").to_pylist())


def test_the_manifest_counts_the_rows_of_each_file(gone_on: GoneOn) -> None:
    seen = seen_rows(gone_on.second.folder).to_pylist()
    ours = [row for row in seen if row["source"] == "company"]
    counts = [{"sha256": sha, "rows": sum(row["source_file_sha256"] == sha for row in ours)} for sha in FILES]
    assert gone_on.second.manifest["company"] == {"rows": len(ours), "files": counts}
    assert len(ours) == gone_on.second.metrics["rows_of_company"] > 0
    assert all(row["subject_id"] for row in ours)
    assert gone_on.first.manifest["company"] == {"rows": 0, "files": []}
    assert gone_on.second.metrics["rows"] == gone_on.recipe.train_rows


def test_equal_input_is_not_trained_again_and_the_base_has_not_changed(gone_on: GoneOn) -> None:
    found = find_adapter(gone_on.recipe, gone_on.lake)
    assert found is not None
    assert found.fingerprint == gone_on.second.fingerprint != gone_on.first.fingerprint
    assert gone_on.second.manifest["base"] == gone_on.first.manifest["base"]
    assert find_adapter(gone_on.recipe.model_copy(update={"start": "base"}), gone_on.lake) is None


def test_a_champion_goes_on_from_itself_only_with_other_data(gone_on: GoneOn, tmp_path: Path) -> None:
    lake = copy_lake(gone_on.lake.root, tmp_path / "copy")
    number = make_champion(lake, gone_on.recipe, gone_on.second)
    assert begins(gone_on.recipe, lake).fingerprint == gone_on.second.fingerprint
    found = find_adapter(gone_on.recipe, lake)
    assert found is not None
    assert found.fingerprint == gone_on.second.fingerprint, "promoted, it is still what this recipe makes of this data"

    add_to_side(lake, "train", company_rows(60)[40:])
    assert find_adapter(gone_on.recipe, lake) is None
    short = going_on(gone_on.recipe, trainer=gone_on.recipe.trainer.model_copy(update={"max_steps": 2}))
    third = train_adapter(short, lake, print)
    assert third.manifest["start"]["version"] == number
    seen = seen_rows(third.folder)
    assert set(seen.column("through").to_pylist()) == {"", gone_on.first.fingerprint, gone_on.second.fingerprint}
    assert set(seen_rows(gone_on.second.folder).column("row_id").to_pylist()) < set(seen.column("row_id").to_pylist())


def test_without_a_champion_it_begins_at_the_base(gone_on: GoneOn, tmp_path: Path) -> None:
    lake = copy_lake(gone_on.lake.root, tmp_path / "copy")
    open_store(lake).delete_registered_model_alias(MODEL, CHAMPION)
    assert champion_version(lake) is None
    assert begins(gone_on.recipe, lake) == WarmStart(None, "from the base, for there is no champion yet")
    assert find_adapter(gone_on.recipe, lake) is None


def test_what_is_to_be_forgotten_is_not_gone_on_from(gone_on: GoneOn, tmp_path: Path) -> None:
    lake = copy_lake(gone_on.lake.root, tmp_path / "copy")
    open_store(lake).set_model_version_tag(MODEL, "1", FORGOTTEN, "2026-11-01")
    start = begins(gone_on.recipe, lake)
    assert start == WarmStart(None, "from the base, for champion 1 has seen rows that are to be forgotten")
    assert find_adapter(gone_on.recipe, lake) is None


def test_a_champion_that_does_not_fit_is_told(gone_on: GoneOn) -> None:
    assert gone_on.recipe.lora
    lora = gone_on.recipe.lora.model_copy(update={"r": 4, "target_modules": ("q_proj",)})
    other = gone_on.recipe.model_copy(update={"name": "other", "lora": lora})
    base = find_base(gone_on.recipe, gone_on.lake)
    with pytest.raises(PipelineError) as raised:
        find_warm_start(other, dataclasses.replace(base, name="another base", sha256="0123"), gone_on.lake)
    assert "'other' goes on from the champion, but it cannot from version 1, made by 'tiny'" in raised.value.what
    assert f"its base is {base.name} ({base.sha256}), not another base (0123)" in raised.value.what
    assert "its lora.r is 8, not 4; its lora.target_modules is all-linear, not ('q_proj',)." in raised.value.what
    assert "'start: base'" in raised.value.fix
    refusals: list[Callable[[], object]] = [
        lambda: find_adapter(other, gone_on.lake),
        lambda: train_adapter(other, gone_on.lake, print),
    ]
    for refused in refusals:
        with pytest.raises(PipelineError, match=r"its lora\.r is 8, not 4"):
            refused()


def test_a_folder_that_does_not_say_what_was_seen_is_told(gone_on: GoneOn, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"rows\.parquet cannot be read") as raised:
        seen_rows(tmp_path)
    assert "start: base" in raised.value.fix
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"rows\.parquet cannot be read"):
        seen_rows(tmp_path)
    assert isinstance(seen_rows(gone_on.second.folder), pa.Table)
