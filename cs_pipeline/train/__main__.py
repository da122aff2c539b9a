"""Training, by hand or by Dagster: ``python -m cs_pipeline.train --recipe NAME``. Dagster is only a pipe to report into."""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.recipe import EmbeddedBase, Recipe, load_recipe

FAILURE_FILE = "failure_file"
"""Key of the Pipes extras: the file into which a failure is written. A process that was killed leaves it empty."""


def main() -> int:
    """Exit code 0 when the adapter (or, with ``--base-only``, the base) is there, 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m cs_pipeline.train", description="Train the adapter of a recipe.")
    parser.add_argument("--recipe", required=True, help="name of a file in cs_pipeline/recipes, without .yaml")
    parser.add_argument("--base-only", action="store_true", help="make or fetch the base model and stop")
    parser.add_argument("--force", action="store_true", help="train again although equal input was trained before")
    arguments = parser.parse_args()
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        return _run(arguments, None)
    with open_dagster_pipes() as pipes:
        return _run(arguments, pipes)


def _run(arguments: argparse.Namespace, pipes: PipesContext | None) -> int:
    def report(line: str) -> None:
        if pipes is None:
            print(line, flush=True)  # noqa: T201
        else:
            pipes.log.info(line)

    try:
        _train(load_recipe(arguments.recipe), DataLake.default(), arguments, report)
    except KeyboardInterrupt:
        return 130  # whoever sent it knows; nothing half-written is left
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else traceback.format_exc()
        if pipes is None:
            print(message, file=sys.stderr)  # noqa: T201
        else:
            Path(pipes.get_extra(FAILURE_FILE)).write_text(message)
        return 1
    return 0


def _train(recipe: Recipe, lake: DataLake, arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft calls what it will rename
    if isinstance(recipe.base, EmbeddedBase):
        from cs_pipeline.train.embedded import build_embedded

        build_embedded(recipe.base, lake, report)
    if arguments.base_only:
        from cs_pipeline.train.base import find_base

        report(f"base model: {find_base(recipe, lake).name}")
        return
    from cs_pipeline.train.adapter import find_adapter, train_adapter

    adapter = (None if arguments.force else find_adapter(recipe, lake)) or train_adapter(recipe, lake, report)
    report(f"adapter {adapter.fingerprint} of {recipe.name}: {adapter.folder}")


if __name__ == "__main__":
    sys.exit(main())
