"""Assets of the train stage: training runs in a process of its own, which reports through Dagster Pipes."""

from pathlib import Path

import dagster as dg

from cs_pipeline.defs.launch import Launcher
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import load_recipe


@dg.asset(
    group_name="train",
    kinds={"huggingface"},
    partitions_def=RECIPES,
    # The classifier is not read: its check keeps a minute of training from rows that cannot be learnt.
    deps=["bitext_splits", "intent_classifier"],
    pool="gpu",
    code_version="2",
)
def base_model(context: dg.AssetExecutionContext, lake: LakeResource, launcher: Launcher) -> dg.MaterializeResult:
    """The base the recipe names: from the hub at a pinned revision, from a folder, or the embedded one, trained here."""
    from cs_pipeline.llm.base import find_base, needs_training
    from cs_pipeline.train.plan.machine_fit import check_machine, refuse, this_machine

    recipe = load_recipe(context.partition_key)
    if launcher.here:  # the download costs too; what another machine has is not known here
        refuse(check_machine(recipe, lake.lake, this_machine()))
    if needs_training(recipe, lake.lake):
        launcher.run(context, lake.lake, "--base-only")
    base = find_base(recipe, lake.lake, context.log.info)
    context.log.info(base.name)
    return dg.MaterializeResult(
        metadata={**base.facts(), "dagster/uri": Path(base.path).as_uri()}, data_version=dg.DataVersion(base.sha256)
    )


@dg.asset_check(asset=base_model, blocking=True)
def fits_this_machine(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, launcher: Launcher
) -> dg.AssetCheckResult:
    """The training fits this machine's memory and a run's hours, by the base's true shape, now that it is here.

    Where a cluster trains, what this machine lacks is a warning.
    """
    from cs_pipeline.train.plan.machine_fit import check_machine, this_machine

    findings = check_machine(load_recipe(context.op_execution_context.partition_key), lake.lake, this_machine())
    return dg.AssetCheckResult(
        passed=not any(finding.status == "problem" for finding in findings),
        severity=dg.AssetCheckSeverity.ERROR if launcher.here else dg.AssetCheckSeverity.WARN,
        metadata={f.name: f"{f.status}: {f.what}" + (f" – {f.fix}" if f.fix else "") for f in findings},
    )


class AdapterConfig(dg.Config):
    """How to train."""

    force: bool = False
    """Train again although equal input was trained before."""


@dg.asset(
    group_name="train",
    kinds={"pytorch", "huggingface"},
    partitions_def=RECIPES,
    deps=[base_model, "train_split", "validation_split", "intent_classifier", "retrieval_index"],
    pool="gpu",
    code_version="2",
)
def adapter(
    context: dg.AssetExecutionContext, config: AdapterConfig, lake: LakeResource, launcher: Launcher
) -> dg.MaterializeResult:
    """The (Q)LoRA fine-tune of the recipe, trained once for equal input."""
    from cs_pipeline.train.adapter import current_adapter, find_adapter

    trained = None if config.force else find_adapter(load_recipe(context.partition_key), lake.lake)
    if trained:
        context.log.info(f"Equal input made this adapter before, and its files are unchanged: {trained.folder}")
    else:
        launcher.run(context, lake.lake, "--force")
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


ASSETS = [base_model, adapter]
CHECKS = [fits_this_machine, loss_fell]
