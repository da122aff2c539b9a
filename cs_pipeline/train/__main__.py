"""The training command, for people, Dagster and torchrun: ``python -m cs_pipeline.train --recipe NAME``.

It reports to Dagster through Pipes if Dagster started it. Of several processes, only the first one reports and writes.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, open_dagster_pipes

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, LookupRecipe, load_recipe
from cs_pipeline.train.trainer.distributed import ProcessGroup, rank
from cs_pipeline.train.trainer.stopping import StoppedError

FAILURE_FILE = "CS_FAILURE_FILE"
"""Environment variable with a file's path. Training creates the file, and writes the reason into it if it fails. After a
kill the file is empty."""


def main() -> int:
    """Exit code 0 if the adapter (with ``--base-only``, the base) exists, 1 after an error, 130 or 143 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m cs_pipeline.train", description="Train the adapter of a recipe.")
    parser.add_argument("--recipe", required=True, help="name of a file in cs_pipeline/recipes, without .yaml")
    parser.add_argument("--base-only", action="store_true", help="train or download the base model and stop")
    parser.add_argument(
        "--force", action="store_true", help="train again even if there is an adapter for the same input"
    )
    arguments = parser.parse_args()
    if rank() > 0:
        return _run(arguments, lambda line: None)
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        return _run(arguments, lambda line: print(line, flush=True))  # noqa: T201
    with open_dagster_pipes() as pipes:
        return _run(arguments, pipes.log.info)


def _run(arguments: argparse.Namespace, report: Callable[[str], None]) -> int:
    group = ProcessGroup()
    try:
        if FAILURE_FILE in os.environ:
            Path(os.environ[FAILURE_FILE]).touch()
        group.join()
        recipe = load_recipe(arguments.recipe)
        if isinstance(recipe, FineTuneRecipe):
            _train(recipe, DataLake.default(), arguments, group, report)
        elif isinstance(recipe, LookupRecipe):
            if rank() == 0:
                _build_lookup(recipe, DataLake.default(), arguments, report)
        else:
            raise PipelineError(
                f"The recipe '{recipe.name}' is a {recipe.training_method}, which this command cannot build.",
                f"Materialise 'adapter' for the partition '{recipe.name}'.",
            )
        group.leave()
    except KeyboardInterrupt:
        return 130  # no message is needed: the user pressed Ctrl-C, and no incomplete file is left
    except StoppedError as stopped:
        report(str(stopped))
        return 143  # not a failure: a machine shutting down sends this signal, and training resumes elsewhere
    except Exception as error:
        if group.lost_another(error):
            print(f"Process {rank()} stopped because another process ended: {error}", file=sys.stderr)  # noqa: T201
        elif group.first_to_fail():
            _report_failure(str(error) if isinstance(error, PipelineError) else traceback.format_exc())
        return 1
    return 0


def _report_failure(reason: str) -> None:
    try:
        Path(os.environ[FAILURE_FILE]).write_text(reason)
    except (KeyError, OSError):  # started by a person, or on a machine without access to the launcher's folder
        print(reason, file=sys.stderr)  # noqa: T201


def _train(
    recipe: FineTuneRecipe,
    lake: DataLake,
    arguments: argparse.Namespace,
    group: ProcessGroup,
    report: Callable[[str], None],
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft uses names that transformers has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if group.broadcast(lambda: _prepare(recipe, lake, arguments, report)) == "train":
        from cs_pipeline.train.adapter import train_adapter, train_as_worker

        if rank() > 0:
            train_as_worker(recipe, lake)
        else:
            adapter = train_adapter(recipe, lake, report)
            report(f"adapter {adapter.fingerprint} of {recipe.name}: {adapter.folder}")


def _build_lookup(
    recipe: LookupRecipe, lake: DataLake, arguments: argparse.Namespace, report: Callable[[str], None]
) -> None:
    from cs_pipeline.llm.base import find_base
    from cs_pipeline.train.adapter import build_lookup

    if arguments.base_only:
        report(f"base model: {find_base(recipe, lake, report).name}")
        return
    adapter = build_lookup(recipe, lake, report, force=arguments.force)
    report(f"adapter {adapter.fingerprint} of {recipe.name}: {adapter.folder}")


def _prepare(
    recipe: FineTuneRecipe, lake: DataLake, arguments: argparse.Namespace, report: Callable[[str], None]
) -> str:
    """Trains or downloads the base; returns "train" if the adapter must be trained, else "nothing"."""
    from cs_pipeline.llm.base import find_base

    if isinstance(recipe.base, EmbeddedBase):
        from cs_pipeline.train.embedded import build_embedded

        build_embedded(recipe.base, lake, report)
    base = find_base(recipe, lake, report)
    if arguments.base_only:
        report(f"base model: {base.name}")
        return "nothing"
    from cs_pipeline.train.adapter import find_adapter

    adapter = None if arguments.force else find_adapter(recipe, lake)
    if adapter is None:
        return "train"
    report(f"adapter {adapter.fingerprint} of {recipe.name}: {adapter.folder}")
    return "nothing"


if __name__ == "__main__":
    sys.exit(main())
