"""Runs the Dagster job ``support_model`` in this process and prints a summary."""

import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.report.report import has_embedded_base
from cs_pipeline.evaluate.results import LOOKUP, evaluation_folder, read_evaluation
from cs_pipeline.recipe import CascadeRecipe, LookupRecipe, Recipe, load_fine_tune_recipe, load_recipe, recipe_names
from cs_pipeline.register.history import read_history
from cs_pipeline.tracking import champion_number, open_store

if TYPE_CHECKING:
    from dagster import DagsterInstance, ExecuteInProcessResult

_EXAMPLES = 3
_FIRST_RECIPE = "lookup"
"""The recipe of the first champion: it needs no training, and every model has to beat it."""


def run_demo(recipe_name: str, lake: DataLake, console: Console) -> None:
    """Materialises every asset for the recipe in the Dagster instance and prints a summary.

    In a lake without a champion, the free look-up is materialised first, so that the recipe's model is compared with it.
    Before a cascade its model's recipe is materialised; a model that is already trained on the same rows is reused.
    If an asset or a blocking check fails, it raises PipelineError with the message of the first failure. After Ctrl-C it
    raises KeyboardInterrupt.
    """
    recipe = load_recipe(recipe_name)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, for their developers
    import dagster as dg

    warnings.filterwarnings("ignore", category=dg.PreviewWarning)  # Pipes uses preview features

    console.print(f"[bold]{recipe.name}[/]: {recipe.description.strip()}\n")
    with dg.DagsterInstance.get() as instance:
        if _needs_lookup(recipe, lake):
            console.print(
                "There is no champion yet, so the free look-up (recipe 'lookup') comes first. A model has to beat it.\n"
            )
            _materialise(_FIRST_RECIPE, instance)
        if isinstance(recipe, CascadeRecipe):
            model = load_fine_tune_recipe(recipe.model)
            console.print(
                f"A cascade needs a model, so [bold]{model.name}[/] comes first: {model.description.strip()}\n"
            )
            _materialise(model.name, instance)
        result = _materialise(recipe.name, instance)
    _print_summary(result, recipe, lake, console)


def _needs_lookup(recipe: Recipe, lake: DataLake) -> bool:
    if isinstance(recipe, LookupRecipe) or _FIRST_RECIPE not in recipe_names():
        return False
    return champion_number(open_store(lake)) is None


def _materialise(partition: str, instance: "DagsterInstance") -> "ExecuteInProcessResult":
    """Runs the whole job for one recipe. Raises KeyboardInterrupt after Ctrl-C, and PipelineError when the run fails."""
    from cs_pipeline.definitions import defs

    result = defs.resolve_job_def("support_model").execute_in_process(
        instance=instance,
        partition_key=partition,
        run_config={"loggers": {"console": {}}},
        raise_on_error=False,
        # Without this tag the UI shows the run, but not under its job.
        tags={".dagster/repository": "__repository__@cs_pipeline"},
    )
    if _was_interrupted(result):
        raise KeyboardInterrupt
    if not result.success:
        raise _failure(result)
    return result


def _print_summary(result: "ExecuteInProcessResult", recipe: Recipe, lake: DataLake, console: Console) -> None:
    version = int(_metadata(result, "model_version")["version"])
    champion = int(_metadata(result, "champion")["champion"])
    console.rule()
    console.print(f"Registered: [bold]cs-support version {version}[/]")
    decisions = read_history(lake)
    if champion:
        promoted = [entry for entry in decisions if entry["version"] == champion and entry["promote"]]
        _print_decision(champion, "is the champion", promoted, console)
    if version != champion:
        what = "is challenger" if champion else "is not the champion; there is none yet"
        _print_decision(version, what, [entry for entry in decisions if entry["version"] == version], console)
    for example in _examples(recipe, lake):
        console.print()
        for label, text in example.items():
            console.print(Padding(Text.assemble((f"{label}: ", "bold"), text.strip() or "(nothing)"), (0, 0, 0, 2)))
    console.print()
    if has_embedded_base(read_evaluation(recipe.name, lake)):
        console.print(
            "[yellow]The embedded base only shows that the pipeline works; its answers are not for customers.[/]"
        )
    report = lake.path("evaluate", "evaluation_report", f"{recipe.name}.html")
    console.print(f"Report: {report}", soft_wrap=True)
    console.print("Next:   [bold]make dev[/] (Dagster, MLflow and the chat in the browser)")
    console.print('        or .venv/bin/cs-pipeline ask "where is my refund?"', markup=False)


def _print_decision(version: int, what: str, decisions: list[dict[str, Any]], console: Console) -> None:
    """The version, with the recipe and the reason of the last of the ``decisions`` about it."""
    recipe = f" ({decisions[-1]['recipe']})" if decisions and decisions[-1]["recipe"] else ""
    console.print(f"Version {version}{recipe} [bold]{what}[/]", end="")
    console.print(f": {decisions[-1]['reason']}." if decisions else ".", markup=False)


def _examples(recipe: Recipe, lake: DataLake) -> list[dict[str, str]]:
    """Test questions of different intents, with the answers of the free look-up, the base if there is one, and the version.

    The same rows give the same examples.
    """
    columns = ["row_id", "intent", "system", "question", "answer"]
    answers = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet", columns=columns)
    wide = answers.pivot_table(
        index=["row_id", "intent", "question"], columns="system", values="answer", aggfunc="first"
    )
    chosen = wide.reset_index().sort_values("row_id").drop_duplicates("intent").head(_EXAMPLES)
    if isinstance(recipe, LookupRecipe):
        labels = {"tuned": "look-up"}
    else:
        own = "cascade" if isinstance(recipe, CascadeRecipe) else "tuned"
        labels = {LOOKUP: "look-up", "base": "base", "tuned": own}
    return [
        {"Customer": row["question"]} | {label: row[system] for system, label in labels.items() if system in row}
        for row in chosen.to_dict("records")
    ]


def _metadata(result: "ExecuteInProcessResult", asset: str) -> dict[str, Any]:
    events = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in events[-1].metadata.items()}


def _was_interrupted(result: "ExecuteInProcessResult") -> bool:
    """Whether Ctrl-C ended the job. Dagster reports that as a failure of the run."""
    failures: list[Any] = [event.event_specific_data for event in result.all_events if event.is_run_failure]
    return any(failure.failure_reason.value == "UNEXPECTED_TERMINATION" for failure in failures)


def _failure(result: "ExecuteInProcessResult") -> PipelineError:
    """The first failure: the PipelineError that was raised, or the message of any other exception."""
    for event in result.all_events:
        if event.is_step_failure:
            data: Any = event.event_specific_data
            error = data.error
            while error.cause is not None and error.cls_name != PipelineError.__name__:
                error = error.cause
            text = data.user_failure_data.description if data.user_failure_data else error.message
            what, _, fix = (
                text.removeprefix("cs_pipeline.core.errors.PipelineError: ").strip().partition("\n  What to do: ")
            )
            return PipelineError(
                f"{event.step_key}: {what}", fix or f"Look at the run {result.run_id} in the Dagster UI: make dev"
            )
    failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
    names = ", ".join(f"{e.check_name} of {e.asset_key.to_user_string()}" for e in failed)
    return PipelineError(f"The run did not succeed; failed checks: {names or 'none'}.", "Open the Dagster UI: make dev")
