"""Training, by hand, by Dagster, or by torchrun in several processes: ``python -m cs_pipeline.train --recipe NAME``.

Dagster is only a pipe to report into. Of several processes the first one alone reports and writes.
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
from cs_pipeline.recipe import EmbeddedBase, Recipe, load_recipe
from cs_pipeline.train.trainer.distributed import Team, rank
from cs_pipeline.train.trainer.stopping import StoppedError

FAILURE_FILE = "CS_FAILURE_FILE"
"""Names the file that is made when the training begins and into which a failure is written; killed, it leaves it empty."""


def main() -> int:
    """Exit code 0 when the adapter (or, with ``--base-only``, the base) is there, 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m cs_pipeline.train", description="Train the adapter of a recipe.")
    parser.add_argument("--recipe", required=True, help="name of a file in cs_pipeline/recipes, without .yaml")
    parser.add_argument("--base-only", action="store_true", help="make or fetch the base model and stop")
    parser.add_argument("--force", action="store_true", help="train again although equal input was trained before")
    arguments = parser.parse_args()
    if rank() > 0:
        return _run(arguments, lambda line: None)
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        return _run(arguments, lambda line: print(line, flush=True))  # noqa: T201
    with open_dagster_pipes() as pipes:
        return _run(arguments, pipes.log.info)


def _run(arguments: argparse.Namespace, report: Callable[[str], None]) -> int:
    team = Team()
    try:
        if FAILURE_FILE in os.environ:
            Path(os.environ[FAILURE_FILE]).touch()
        team.join()
        _train(load_recipe(arguments.recipe), DataLake.default(), arguments, team, report)
        team.leave()
    except KeyboardInterrupt:
        return 130  # whoever sent it knows; nothing half-written is left
    except StoppedError as stopped:
        report(str(stopped))
        return 143  # no failure: a machine that is taken away asks so, and the training goes on elsewhere
    except Exception as error:
        if team.has_lost_another(error):
            print(f"Process {rank()} has lost another: {error}", file=sys.stderr)  # noqa: T201
        elif team.first_to_fail():
            _say(str(error) if isinstance(error, PipelineError) else traceback.format_exc())
        return 1
    return 0


def _say(reason: str) -> None:
    try:
        Path(os.environ[FAILURE_FILE]).write_text(reason)
    except (KeyError, OSError):  # by hand; or on a machine that does not see the lake of who started it
        print(reason, file=sys.stderr)  # noqa: T201


def _train(
    recipe: Recipe, lake: DataLake, arguments: argparse.Namespace, team: Team, report: Callable[[str], None]
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft calls what it will rename
    if team.decided(lambda: _prepared(recipe, lake, arguments, report)) == "train":
        from cs_pipeline.train.adapter import assist, train_adapter

        if rank() > 0:
            assist(recipe, lake)
        else:
            adapter = train_adapter(recipe, lake, report)
            report(f"adapter {adapter.fingerprint} of {recipe.name}: {adapter.folder}")


def _prepared(recipe: Recipe, lake: DataLake, arguments: argparse.Namespace, report: Callable[[str], None]) -> str:
    """Gets the base; returns "train" if there is something to train."""
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
