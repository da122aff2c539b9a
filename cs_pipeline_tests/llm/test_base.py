"""Base models from folders, the embedded one, and the lack of one: what is accepted and what is refused."""

import os
import shutil
from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.schema import CONVERSATION
from cs_pipeline.llm.base import (
    NO_BASE,
    base_of_version,
    embedded_folder,
    find_base,
    find_pretrained_base,
    needs_training,
)
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, LookupRecipe, PathBase
from cs_pipeline.train.adapter import build_lookup
from cs_pipeline.train.embedded import build_embedded
from cs_pipeline_tests.train import add_to_split, company_rows


@pytest.fixture
def base_folder(champion_lake: Path, tiny: FineTuneRecipe) -> Path:
    assert tiny.base.source == "embedded"
    return embedded_folder(tiny.base, DataLake(champion_lake))


def test_a_folder_is_identified_by_its_content(base_folder: Path, tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("one", "two")]
    for copy in copies:
        copy.mkdir()
        for file in base_folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    one, two = (find_pretrained_base(PathBase(source="path", path=copy)) for copy in copies)
    assert (one.name, two.name) == ("one", "two")
    assert one.sha256 == two.sha256
    (copies[1] / "config.json").write_text((copies[1] / "config.json").read_text() + "\n")
    assert find_pretrained_base(PathBase(source="path", path=copies[1])).sha256 != one.sha256


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_that_is_not_a_model_is_refused(base_folder: Path, tmp_path: Path, lacking: str) -> None:
    for file in base_folder.iterdir():
        if file.name != lacking:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(PipelineError, match="lacks") as error:
        find_pretrained_base(PathBase(source="path", path=tmp_path))
    assert str(tmp_path) in error.value.what
    assert lacking in error.value.what
    assert "save_pretrained" in error.value.fix


def test_a_folder_with_truncated_weights_is_refused(base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(PipelineError, match=r"lacks a complete model\.safetensors"):
        find_pretrained_base(PathBase(source="path", path=weights.parent))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="nowhere lacks everything"):
        find_pretrained_base(PathBase(source="path", path=tmp_path / "nowhere"))


def test_the_embedded_base_must_have_been_trained(lake: DataLake, prepared: Path, tiny: FineTuneRecipe) -> None:
    with pytest.raises(PipelineError, match="'base_model' was not finished there"):
        find_base(tiny, DataLake(prepared))


def test_company_rows_do_not_change_the_embedded_base(
    lake: DataLake, champion_lake: Path, tiny: FineTuneRecipe
) -> None:
    shutil.copytree(champion_lake / "prepare", lake.root / "prepare")
    shutil.copytree(champion_lake / "train", lake.root / "train")
    before = find_base(tiny, lake)
    add_to_split(lake, "train", company_rows(5))
    assert find_base(tiny, lake) == before
    assert not needs_training(tiny, lake)
    splits = lake.read("prepare", "bitext_splits")
    lake.write("prepare", "bitext_splits", splits.slice(1), CONVERSATION)
    assert needs_training(tiny, lake)


def test_the_embedded_base_is_trained_on_bitexts_training_rows_only(lake: DataLake, prepared: Path) -> None:
    splits = DataLake(prepared).read("prepare", "bitext_splits")
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    spec = EmbeddedBase(source="embedded", hidden_size=16, num_hidden_layers=1, vocab_size=300, max_steps=1)
    folder = build_embedded(spec, lake, print)
    manifest = read_manifest(folder, "base_model")
    assert manifest["rows"] == splits.column("split").to_pylist().count("train") < splits.num_rows
    assert manifest["data"] == {"bitext_splits": file_sha256(lake.table("prepare", "bitext_splits"))}


LOOKUP = LookupRecipe(name="copies", description="For tests.", method="lookup")


def test_a_lookup_has_no_base(lake: DataLake) -> None:
    lines: list[str] = []
    base = find_base(LOOKUP, lake, lines.append)
    assert base is NO_BASE
    assert not needs_training(LOOKUP, lake), "although the lake has no table"
    assert not lake.root.exists()
    assert lines == []
    facts = {"source": "none", "name": "none: a look-up needs no model", "revision": None, "sha256": "none"}
    assert base.facts() == facts


def test_a_version_that_is_a_lookup_has_no_base_and_its_files_are_verified(
    prepared: Path, lake: DataLake, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    version = tmp_path / "version"
    shutil.copytree(build_lookup(LOOKUP, lake).folder, version / "adapter")
    assert base_of_version(LOOKUP, version) is None
    (version / "adapter" / "lookup.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"lookup\.json was changed after it was written"):
        base_of_version(LOOKUP, version)
