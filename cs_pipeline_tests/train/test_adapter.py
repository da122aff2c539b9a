"""A real, tiny QLoRA training: what it changes, leaves unchanged and writes, and that it is reproducible."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256, read_json
from cs_pipeline.llm.base import find_base
from cs_pipeline.llm.model import load_chat_format
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, PathBase, load_fine_tune_recipe
from cs_pipeline.tracking import MODEL, open_store
from cs_pipeline.train.adapter import Adapter, current_adapter, find_adapter, train_adapter
from cs_pipeline.train.embedded import build_embedded
from cs_pipeline.train.rows import training_rows
from cs_pipeline_tests.conftest import RECIPES, own_world

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "manifest.json",
    "metrics.json",
    "recipe.yaml",
    "router/router.json",
    "router/router.safetensors",
    "rows.parquet",
    "tokenizer.json",
    "tokenizer_config.json",
}


@dataclass(frozen=True)
class Training:
    """A finished training in this process, with hashes of the base's weights before and after."""

    lake: DataLake
    recipe: FineTuneRecipe
    adapter: Adapter
    base_files: dict[str, str]
    frozen: list[dict[str, str]]
    trained_names: set[str]
    lines: list[str]


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def runs(lake: DataLake) -> list[Any]:
    client = open_store(lake)
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def training(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    from cs_pipeline.train.trainer import loss

    frozen: list[dict[str, str]] = []
    trained_names: set[str] = set()

    def weights(model: Any) -> dict[str, str]:
        frozen_parameters = ((n, p) for n, p in model.named_parameters() if not p.requires_grad)
        return {n: hashlib.sha256(p.detach().cpu().numpy().tobytes()).hexdigest() for n, p in frozen_parameters}

    class Watched(loss.AnswerLossTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            model: Any = self.model
            frozen.append(weights(model))
            trained_names.update(n for n, p in model.named_parameters() if p.requires_grad)
            output = super().train(*args, **kwargs)
            frozen.append(weights(model))
            return output

    lake = DataLake(tmp_path_factory.mktemp("training") / "lake")
    shutil.copytree(prepared, lake.root)
    lines: list[str] = []
    with own_world(lake.root) as patch:
        patch.setenv("CS_RECIPES", str(RECIPES))
        patch.setattr(loss, "AnswerLossTrainer", Watched)
        recipe = load_fine_tune_recipe("tiny")
        assert isinstance(recipe.base, EmbeddedBase)
        base_files = files(build_embedded(recipe.base, lake, lines.append))
        adapter = train_adapter(recipe, lake, lines.append)
    return Training(lake, recipe, adapter, base_files, frozen, trained_names, lines)


def test_the_folder_has_exactly_these_files(training: Training) -> None:
    assert set(files(training.adapter.folder)) == FILES
    assert set(training.adapter.manifest["files"]) == FILES - {"manifest.json"}
    beside = {path.name for path in training.adapter.folder.parent.iterdir()}
    name = training.adapter.fingerprint
    assert beside == {name, f"{name}.jsonl", f"{name}.sent"}


def test_no_file_contains_a_path_of_this_machine(training: Training) -> None:
    for name in FILES:
        content = (training.adapter.folder / name).read_bytes()
        assert str(training.lake.root).encode() not in content, name


def test_base_weights_are_unchanged_on_disk_and_in_the_model(training: Training) -> None:
    base = Path(find_base(training.recipe, training.lake).path)
    assert files(base) == training.base_files
    before, after = training.frozen
    assert before == after
    assert any("q_proj" in name for name in before)
    assert any("embed_tokens" in name for name in before)


def test_only_lora_weights_were_trained(training: Training) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(training.adapter.folder / "adapter_model.safetensors")
    assert len(weights) == len(training.trained_names)
    for name in (*weights, *training.trained_names):
        assert ".lora_A." in name or ".lora_B." in name, name
    for name, tensor in weights.items():
        assert torch.isfinite(tensor).all(), name
        if ".lora_B." in name:  # all zeros before the first step
            assert tensor.abs().max() > 0, name


def test_the_loss_fell_and_the_metrics_are_recorded(training: Training) -> None:
    metrics = training.adapter.metrics
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]
    assert [point["step"] for point in metrics["loss"]] == [10, 20, 30]
    assert metrics["loss"][-1]["loss"] < metrics["loss"][0]["loss"]
    assert (metrics["rows"], metrics["rows_different"], metrics["steps"]) == (240, 240, 30)
    assert metrics["rows_of_company"] == metrics["rows_too_long"] == metrics["rows_with_earlier_turns"] == 0
    assert 0.8 <= metrics["real_token_share"] <= 1
    assert metrics["tokens_per_second"] > 0
    assert metrics["peak_memory_gib"] > 0.1
    assert any(line.startswith("adapter step 30/30, loss ") for line in training.lines)


def test_the_manifest_records_where_the_adapter_comes_from(training: Training) -> None:
    manifest = training.adapter.manifest
    tables = ("train_split", "validation_split")
    for name in tables:
        assert manifest["data"][name] == file_sha256(training.lake.table("prepare", name))
    assert set(manifest["data"]) == {*tables, "router"}
    assert manifest["base"] == find_base(training.recipe, training.lake).facts()
    assert manifest["start"]["fingerprint"] is None
    assert manifest["company"] == {"rows": 0, "files": []}
    assert manifest["seed"] == training.recipe.trainer.seed
    assert set(manifest["libraries"]) == {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"}


def test_two_lakes_give_equal_bytes(training: Training, champion_lake: Path) -> None:
    """The other lake was prepared separately and trained in other processes."""
    other = current_adapter("tiny", DataLake(champion_lake))
    assert other.manifest["data"] == training.adapter.manifest["data"]
    assert other.manifest["base"] == training.adapter.manifest["base"]
    assert other.fingerprint == training.adapter.fingerprint
    for name in ("adapter_model.safetensors", "rows.parquet"):
        assert file_sha256(other.folder / name) == file_sha256(training.adapter.folder / name)
    for key in ("loss", "validation_loss_before", "validation_loss_after", "real_token_share"):
        assert other.metrics[key] == training.adapter.metrics[key], key


def test_equal_input_is_found_and_not_trained_again(training: Training) -> None:
    before = files(training.lake.path("train"))
    (run,) = runs(training.lake)
    found = find_adapter(training.recipe, training.lake)
    assert found is not None
    assert found.folder == training.adapter.folder
    assert found.manifest == training.adapter.manifest
    assert files(training.lake.path("train")) == before
    assert [r.info.run_id for r in runs(training.lake)] == [run.info.run_id]


def test_other_input_is_another_adapter(training: Training) -> None:
    longer = training.recipe.trainer.model_copy(update={"max_steps": 31})
    assert find_adapter(training.recipe.model_copy(update={"trainer": longer}), training.lake) is None
    described = training.recipe.model_copy(update={"description": "another description"})
    assert find_adapter(described, training.lake) is not None


def by_hand(lake: DataLake, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cs_pipeline.train", *arguments],
        env={**os.environ, "CS_LAKE": str(lake.root)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.usefixtures("own_recipes")
def test_the_command_finds_it_too(training: Training) -> None:
    changed = (training.adapter.folder / "manifest.json").stat().st_mtime_ns
    result = by_hand(training.lake, "--recipe", "tiny")
    assert result.returncode == 0, result.stderr
    assert f"adapter {training.adapter.fingerprint} of tiny: {training.adapter.folder}" in result.stdout
    assert (training.adapter.folder / "manifest.json").stat().st_mtime_ns == changed


def test_the_command_reports_errors(lake: DataLake) -> None:
    result = by_hand(lake, "--recipe", "no_such_recipe")
    assert result.returncode == 1
    assert "There is no recipe 'no_such_recipe'" in result.stderr
    assert "Traceback" not in result.stderr


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add(path: Path) -> None:
    (path.parent / "pytorch_model.bin").write_bytes(b"added later")


@pytest.mark.parametrize(
    ("damage", "file", "named", "what"),
    [
        (one_byte, "adapter_model.safetensors", "adapter_model.safetensors", "was changed after it was written"),
        (one_byte, "router/router.safetensors", "router.safetensors", "was changed"),
        (Path.unlink, "tokenizer.json", "tokenizer.json", "is missing"),
        (add, "recipe.yaml", "pytorch_model.bin", "was added after the folder was written"),
        (lambda path: path.write_text("{}"), "manifest.json", "manifest.json", "is damaged"),
    ],
    ids=["one byte", "one byte below", "missing", "added", "manifest"],
)
def test_a_changed_adapter_folder_is_refused(
    training: Training, lake: DataLake, damage: Callable[[Path], None], file: str, named: str, what: str
) -> None:
    shutil.copytree(training.lake.root, lake.root)
    damage(lake.path("train", "adapter", "tiny", training.adapter.fingerprint, file))
    finds: list[Callable[[], object]] = [
        lambda: find_adapter(training.recipe, lake),
        lambda: current_adapter("tiny", lake),
    ]
    for find in finds:
        with pytest.raises(PipelineError, match=what) as error:
            find()
        assert named in error.value.what
        assert "materialise 'adapter' again" in error.value.fix


def test_a_changed_base_is_refused(training: Training, lake: DataLake) -> None:
    shutil.copytree(training.lake.root, lake.root)
    one_byte(Path(find_base(training.recipe, lake).path) / "model.safetensors")
    with pytest.raises(PipelineError, match=r"model\.safetensors was changed"):
        find_adapter(training.recipe, lake)


def test_a_missing_adapter_is_reported(training: Training, lake: DataLake) -> None:
    with pytest.raises(PipelineError, match="'tiny' has no trained adapter"):
        current_adapter("tiny", lake)


def test_long_rows_are_dropped_and_counted(training: Training) -> None:
    chat = load_chat_format(training.recipe, Path(find_base(training.recipe, training.lake).path), None)
    all_rows = training_rows(training.recipe, training.lake, chat, "validation")
    lengths = sorted(map(len, all_rows.examples))
    limit = lengths[len(lengths) // 2]
    shorter = training.recipe.trainer.model_copy(update={"max_length": limit})
    half = training_rows(training.recipe.model_copy(update={"trainer": shorter}), training.lake, chat, "validation")
    assert all_rows.too_long == 0
    assert half.too_long == sum(length > limit for length in lengths) > 0
    assert half.examples == [example for example in all_rows.examples if len(example) <= limit]
    none = training.recipe.trainer.model_copy(update={"max_length": 16})
    with pytest.raises(PipelineError, match="No row of the validation split fits into 16 tokens"):
        training_rows(training.recipe.model_copy(update={"trainer": none}), training.lake, chat, "validation")


def test_a_diverging_training_leaves_no_adapter(training: Training, lake: DataLake) -> None:
    shutil.copytree(training.lake.root, lake.root)
    wild = training.recipe.trainer.model_copy(update={"max_steps": 3, "learning_rate": 1e30})
    recipe = training.recipe.model_copy(update={"name": "wild", "trainer": wild, "quantization": "none"})
    with pytest.raises(PipelineError, match="the recipe 'wild' diverged"):
        train_adapter(recipe, lake, print)
    left = [path.name for path in lake.path("train", "adapter", "wild").iterdir()]
    assert [name for name in left if not name.endswith((".jsonl", ".sent"))] == []
    assert not lake.path("train", "adapter", "wild.json").exists()


def test_a_base_from_a_folder_while_the_store_is_unreachable(
    training: Training, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training continues while MLflow is unreachable; its metrics are sent later, once."""
    from cs_pipeline.tracking import get_or_create_run
    from cs_pipeline.train.adapter import metrics_spool

    shutil.copytree(training.lake.root / "prepare", lake.root / "prepare")
    folder = tmp_path / "models" / "our_base"
    shutil.copytree(find_base(training.recipe, training.lake).path, folder)
    (folder / "manifest.json").unlink()
    before = files(folder)
    recipe = training.recipe.model_copy(update={"base": PathBase(source="path", path=folder)})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens on the discard port
    adapter = train_adapter(recipe, lake, print)
    assert files(folder) == before
    assert adapter.manifest["base"]["name"] == "our_base"
    assert adapter.manifest["base"]["source"] == "path"
    assert adapter.metrics["loss"] == training.adapter.metrics["loss"]  # the same weights from another place
    assert read_json(adapter.folder / "adapter_config.json")["base_model_name_or_path"] == "path"

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    spool, client = metrics_spool(recipe.name, adapter.fingerprint, lake), open_store(lake)
    run = get_or_create_run(client, lake, adapter.fingerprint, recipe.name)
    assert spool.replay(client, run) > 0
    assert spool.replay(client, run) == 0
    sent = [(m.step, m.value) for m in client.get_metric_history(run, "loss")]
    assert sent == [(point["step"], point["loss"]) for point in adapter.metrics["loss"]]
