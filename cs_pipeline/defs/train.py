"""Assets of the train stage: training runs in a process of its own, which reports through Dagster Pipes."""

import sys
import tempfile
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError  # dagster has no public name for it

from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import load_recipe

MOST_RETRIES = 2
"""How often a training that was killed without a word is started again."""


@dg.asset(
    group_name="train",
    kinds={"huggingface"},
    partitions_def=RECIPES,
    # The classifier is not read: its check keeps a minute of training from rows that cannot be learnt.
    deps=["bitext_splits", "intent_classifier"],
    pool="gpu",
    code_version="2",
)
def base_model(
    context: dg.AssetExecutionContext, lake: LakeResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """The base the recipe names: from the hub at a pinned revision, from a folder, or the embedded one, trained here."""
    from cs_pipeline.train.base import find_base, needs_training

    recipe = load_recipe(context.partition_key)
    if needs_training(recipe, lake.lake):
        _run_training(context, lake, pipes, "--base-only")
    base = find_base(recipe, lake.lake)
    context.log.info(base.name)
    return dg.MaterializeResult(
        metadata={**base.facts(), "dagster/uri": Path(base.path).as_uri()}, data_version=dg.DataVersion(base.sha256)
    )


class AdapterConfig(dg.Config):
    """How to train."""

    force: bool = False
    """Train again although equal input was trained before."""


@dg.asset(
    group_name="train",
    kinds={"pytorch", "huggingface"},
    partitions_def=RECIPES,
    deps=[base_model, "train_split", "validation_split", "intent_classifier"],
    pool="gpu",
    code_version="2",
)
def adapter(
    context: dg.AssetExecutionContext, config: AdapterConfig, lake: LakeResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """The (Q)LoRA fine-tune of the recipe, trained once for equal input."""
    from cs_pipeline.train.adapter import current_adapter, find_adapter

    trained = None if config.force else find_adapter(load_recipe(context.partition_key), lake.lake)
    if trained:
        context.log.info(f"Equal input made this adapter before, and its files are unchanged: {trained.folder}")
    else:
        _run_training(context, lake, pipes, "--force")
        trained = current_adapter(context.partition_key, lake.lake)
    numbers = {k: v for k, v in trained.metrics.items() if isinstance(v, int | float)}
    return dg.MaterializeResult(
        metadata={
            **numbers,
            "fingerprint": trained.fingerprint,
            "recipe": dg.MetadataValue.md(f"```yaml\n{(trained.folder / 'recipe.yaml').read_text()}```"),
            "manifest": dg.MetadataValue.json(trained.manifest),
            "dagster/uri": trained.folder.as_uri(),
        },
        data_version=dg.DataVersion(trained.fingerprint),
    )


@dg.asset_check(asset=adapter, blocking=True)
def loss_fell(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The loss on the validation split is lower after the training than before.

    A training that goes on from the champion begins near the bottom: there a higher loss is a warning, and the champion
    stays because the promotion compares the two.
    """
    from cs_pipeline.train.adapter import current_adapter

    trained = current_adapter(context.op_execution_context.partition_key, lake.lake)
    before, after = (trained.metrics[f"validation_loss_{when}"] for when in ("before", "after"))
    from_base = trained.manifest["start"]["fingerprint"] is None
    return dg.AssetCheckResult(
        passed=after < before,
        severity=dg.AssetCheckSeverity.ERROR if from_base else dg.AssetCheckSeverity.WARN,
        metadata={"before": before, "after": after},
    )


def _run_training(
    context: dg.AssetExecutionContext, lake: LakeResource, pipes: dg.PipesSubprocessClient, *options: str
) -> None:
    """Runs the training process. One that failed has said why; one that was killed has not, and is started again."""
    with tempfile.TemporaryDirectory() as folder:
        failure = Path(folder, "failure.txt")
        failure.touch()
        try:
            pipes.run(
                context=context,
                command=[sys.executable, "-m", "cs_pipeline.train", "--recipe", context.partition_key, *options],
                env={"CS_LAKE": str(lake.lake.root)},
                extras={"failure_file": str(failure)},
            )
        except DagsterPipesExecutionError as error:
            reason = failure.read_text()
            if reason:
                raise dg.Failure(description=reason, allow_retries=False) from error
            context.log.warning(f"The training process was killed ({error}); it is started again.")
            raise dg.RetryRequested(max_retries=MOST_RETRIES) from error


ASSETS = [base_model, adapter]
CHECKS = [loss_fell]
