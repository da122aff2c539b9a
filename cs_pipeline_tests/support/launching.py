"""FineTuneRecipe, base model and lake for a training of seconds, and an asset that launches it."""

from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.launch import Launcher
from cs_pipeline_tests.support.tiny import tiny_base
from cs_pipeline_tests.train import company_rows, write_split

ROWS = 33
"""Four steps of eight rows and one of a single row, in which one of two processes has none."""

RECIPE = {
    "description": "Two epochs of a tiny model.",
    "quantization": "nf4",
    "lora": {"r": 4, "lora_alpha": 8},
    "trainer": {
        "num_train_epochs": 2,
        "learning_rate": 1.0e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_length": 640,
        "checkpoint_seconds": 0,
    },
    "generation": {"max_new_tokens": 8},
}


def make_world(folder: Path) -> Path:
    """``folder`` with a base model and, in ``recipes``, the recipe ``small`` for it."""
    recipe = RECIPE | {"base": {"source": "path", "path": str(tiny_base(folder / "base", "embedded"))}}
    (folder / "recipes").mkdir()
    (folder / "recipes" / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def make_lake(root: Path) -> DataLake:
    """A lake with the tables that a training reads; row lengths vary a lot."""
    lake = DataLake(root)
    for split, count in (("train", ROWS), ("validation", 7)):
        rows = company_rows(count, split=split, context="[]")
        longer = [{**row, "response": " ".join([row["response"]] * (1 + i % 4))} for i, row in enumerate(rows)]
        write_split(lake, split, longer)
    return lake


def launch(launcher: Launcher, lake: DataLake, recipe: str, *options: str) -> tuple[bool, list[str], str]:
    """Trains ``recipe`` with ``launcher``, as the asset ``adapter`` does.

    Returns whether it succeeded, the lines of the run's log, and the reason if it failed.
    """

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition([recipe]))
    def trained(context: dg.AssetExecutionContext, launcher: Launcher) -> dg.MaterializeResult:
        launcher.run(context, lake, "--force", *options)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [trained],
            partition_key=recipe,
            resources={"launcher": launcher},
            instance=instance,
            raise_on_error=False,
        )
        lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
    failures: list[Any] = [event.event_specific_data for event in result.all_events if event.is_step_failure]
    reason = "".join(_reason(failure) for failure in failures)
    return result.success, lines, reason


def _reason(failure: Any) -> str:
    if failure.user_failure_data:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error.cause is not None:
        error = error.cause
    return str(error.message)
