"""Assets and checks of the train stage. Training runs in a process of its own and reports through Dagster Pipes."""

from pathlib import Path

import dagster as dg

from cs_pipeline.defs.launch import Launcher
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import CascadeRecipe, load_recipe


@dg.asset(
    group_name="train",
    kinds={"huggingface"},
    partitions_def=RECIPES,
    # The classifier is not used here. It is a dependency so that its blocking check stops the run before the training
    # if intents cannot be learnt.
    deps=["bitext_splits", "intent_classifier"],
    pool="gpu",
)
def base_model(context: dg.AssetExecutionContext, lake: LakeResource, launcher: Launcher) -> dg.MaterializeResult:
    """The recipe's base model: from the hub at a pinned revision, a package, a folder, or the embedded one, trained here.

    A look-up has none.
    """
    from cs_pipeline.llm.base import find_base, needs_training
    from cs_pipeline.train.adapter import model_adapter
    from cs_pipeline.train.plan.machine_fit import check_machine, raise_on_problems, this_machine

    recipe = load_recipe(context.partition_key)
    if isinstance(recipe, CascadeRecipe):
        model_adapter(recipe, lake.lake)  # fails before the download if there is none
    if launcher.is_local:  # before the download; the resources of a cluster are unknown here
        raise_on_problems(check_machine(recipe, lake.lake, this_machine()))
    if needs_training(recipe, lake.lake):
        launcher.run(context, lake.lake, "--base-only")
    base = find_base(recipe, lake.lake, context.log.info)
    context.log.info(base.name)
    return dg.MaterializeResult(
        metadata={**base.facts(), **({"dagster/uri": Path(base.path).as_uri()} if base.path else {})},
        data_version=dg.DataVersion(base.sha256),
    )


@dg.asset_check(asset=base_model, blocking=True)
def fits_this_machine(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, launcher: Launcher
) -> dg.AssetCheckResult:
    """The training fits this machine's memory and a run's time limit, estimated from the downloaded base's real shape.

    If a cluster trains, findings about this machine are warnings.
    """
    from cs_pipeline.train.plan.machine_fit import check_machine, this_machine

    findings = check_machine(load_recipe(context.op_execution_context.partition_key), lake.lake, this_machine())
    return dg.AssetCheckResult(
        passed=not any(finding.status == "problem" for finding in findings),
        severity=dg.AssetCheckSeverity.ERROR if launcher.is_local else dg.AssetCheckSeverity.WARN,
        metadata={f.name: f"{f.status}: {f.what}" + (f" – {f.fix}" if f.fix else "") for f in findings},
    )


class AdapterConfig(dg.Config):
    """Whether to train again."""

    force: bool = False
    """Train even if an adapter was already trained on the same input."""


@dg.asset(
    group_name="train",
    kinds={"pytorch", "huggingface"},
    partitions_def=RECIPES,
    deps=[base_model, "train_split", "validation_split", "intent_classifier", "retrieval_index"],
    pool="gpu",
)
def adapter(
    context: dg.AssetExecutionContext, config: AdapterConfig, lake: LakeResource, launcher: Launcher
) -> dg.MaterializeResult:
    """The recipe's (Q)LoRA fine-tune, look-up or cascade of both. It is reused if it was made from the same input."""
    from cs_pipeline.train.adapter import current_adapter, find_adapter

    recipe = load_recipe(context.partition_key)
    trained = None if config.force else find_adapter(recipe, lake.lake)
    if trained is None and isinstance(recipe, CascadeRecipe):
        from cs_pipeline.evaluate.cascade import build_cascade

        trained = build_cascade(recipe, lake.lake, context.log.info)
    elif trained:
        context.log.info(f"Nothing to train: there is an adapter for this input: {trained.folder}")
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
    """The validation loss is lower after training than before. A look-up is not trained.

    Training that continues from the champion starts close to the minimum, so a higher loss is then only a warning: the
    champion stays champion unless the new version is better.
    """
    from cs_pipeline.train.adapter import current_adapter

    trained = current_adapter(context.op_execution_context.partition_key, lake.lake)
    if trained.is_lookup:
        return dg.AssetCheckResult(passed=True, metadata={"training": "none"})
    before, after = (trained.metrics[f"validation_loss_{when}"] for when in ("before", "after"))
    from_base = trained.manifest["start"]["fingerprint"] is None
    return dg.AssetCheckResult(
        passed=after < before,
        severity=dg.AssetCheckSeverity.ERROR if from_base else dg.AssetCheckSeverity.WARN,
        metadata={"before": before, "after": after},
    )


ASSETS = [base_model, adapter]
CHECKS = [fits_this_machine, loss_fell]
