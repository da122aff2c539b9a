"""The command line: ``cs-pipeline demo | doctor | report | ask | dev``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake

PROJECT = Path(__file__).parent.parent
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)

INTERRUPTED = 130
"""The exit code that Typer makes of Ctrl-C."""

RecipeOption = Annotated[str, typer.Option(help="name of a recipe", envvar="CS_RECIPE")]


def main() -> None:
    """The entry point: an error made for people is printed without a traceback, Ctrl-C says what is kept."""
    os.environ.setdefault("DAGSTER_HOME", str(PROJECT / "dagster_home"))
    try:
        app()
    except PipelineError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]Error:[/] {_plain(str(error))}", soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Console(stderr=True).print("Stopped. What was finished is kept; the same command goes on from there.")
        raise


@app.command()
def demo(recipe: RecipeOption = "embedded") -> None:
    """The main job: materialise every asset, from the raw rows to the champion."""
    from cs_pipeline.demo import run_demo

    run_demo(recipe, DataLake.default(), console)


@app.command()
def doctor() -> None:
    """Look at this machine, its libraries, the instance and the stores; say what to mend."""
    from cs_pipeline.doctor import examine, table

    findings = examine(DataLake.default(), Path(os.environ["DAGSTER_HOME"]))
    console.print(table(findings))
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def report(recipe: RecipeOption = "embedded") -> None:
    """Show the summary of a recipe's evaluation report and where the whole of it lies."""
    from rich.markdown import Markdown

    path = DataLake.default().path("evaluate", "evaluation_report", f"{recipe}.md")
    if not path.exists():
        raise PipelineError(f"{path} is not there.", f"Run the whole job first: cs-pipeline demo --recipe {recipe}")
    console.print(Markdown(path.read_text()))
    console.print(f"\nThe whole report: {path.with_suffix('.html')}", soft_wrap=True)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="what a customer would ask")],
    version: Annotated[int | None, typer.Option(help="a version of cs-support; else the champion")] = None,
) -> None:
    """Let the champion answer."""
    lake = DataLake.default()
    if not question.strip():
        raise PipelineError("The question is empty.", 'Ask something: cs-pipeline ask "where is my refund?"')
    from cs_pipeline.register.version import ask_version
    from cs_pipeline.tracking import champion_number, find_versions, open_store

    client = open_store(lake)
    number = version if version is not None else champion_number(client)
    if number is None:
        raise PipelineError("There is no champion yet.", "Run the whole job first: make demo")
    versions = [int(v.version) for v in find_versions(client)]
    if number not in versions:
        raise PipelineError(f"cs-support has no version {number}.", f"Choose one of: {', '.join(map(str, versions))}.")
    console.print(f"[dim]cs-support version {number}:[/]")
    console.print(ask_version(number, [question], lake)[0], markup=False)


@app.command()
def dev() -> None:
    """Dagster UI and daemon on port 3000 and the MLflow UI on port 5000, until Ctrl-C."""
    from cs_pipeline.dev import serve_dev

    raise typer.Exit(serve_dev(PROJECT, DataLake.default()))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
