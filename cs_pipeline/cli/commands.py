"""The command line: ``cs-pipeline demo | doctor | report | ask | dev``, and those for a company's conversations."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake

PROJECT = Path(__file__).parents[2]
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
quarantine = typer.Typer(no_args_is_help=True, help="Rows that look like an attack or a mistake, kept out of training.")
app.add_typer(quarantine, name="quarantine")
ratings = typer.Typer(no_args_is_help=True, help="Samples for people to rate who do not know which version answered.")
app.add_typer(ratings, name="ratings")
console = Console(highlight=False)

INTERRUPTED = 130
"""The exit code that Typer makes of Ctrl-C."""

JsonOption = Annotated[bool, typer.Option("--json", help="as JSON")]
WhyOption = Annotated[str, typer.Option(help="the reason, kept in the history")]
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
    from cs_pipeline.cli.demo import run_demo

    run_demo(recipe, DataLake.default(), console)


@app.command()
def doctor(
    recipe: Annotated[str, typer.Option(help="what a training by this recipe takes, and whether it fits here")] = "",
) -> None:
    """Look at this machine, its libraries, the instance and the stores; say what to fix."""
    from cs_pipeline.cli.doctor import examine, examine_recipe, table

    lake = DataLake.default()
    findings = examine_recipe(recipe, lake) if recipe else examine(lake, Path(os.environ["DAGSTER_HOME"]))
    console.print(table(findings))
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def report(recipe: RecipeOption = "embedded") -> None:
    """Show the summary of a recipe's evaluation report, and where the whole of it and the leaderboard lie."""
    from rich.markdown import Markdown

    path = DataLake.default().path("evaluate", "evaluation_report", f"{recipe}.md")
    if not path.exists():
        raise PipelineError(f"{path} is not there.", f"Run the whole job first: cs-pipeline demo --recipe {recipe}")
    console.print(Markdown(path.read_text()))
    console.print(f"\nThe whole report: {path.with_suffix('.html')}", soft_wrap=True)
    board = DataLake.default().path("evaluate", "leaderboard.html")
    if board.exists():
        console.print(f"All recipes side by side: {board}", soft_wrap=True)


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
    """Dagster UI and daemon on port 3000, the MLflow UI on port 5000 and the chat on port 8000, until Ctrl-C."""
    from cs_pipeline.cli.dev import serve_dev

    raise typer.Exit(serve_dev(PROJECT, DataLake.default()))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="elsewhere than on this machine it takes CS_SERVE_KEY")] = None,
    port: Annotated[int | None, typer.Option(help="else CS_SERVE_PORT, else 8000")] = None,
) -> None:
    """The chat page and the API on the champion, until Ctrl-C; further settings are CS_SERVE_… in the environment."""
    from cs_pipeline.cli.dev import port_holder
    from cs_pipeline.serve.settings import load_settings

    settings = load_settings(host, port)
    if holder := port_holder(settings.port):
        raise PipelineError(
            f"Port {settings.port} is in use by {holder}.", "Stop that first, or choose another --port."
        )
    from cs_pipeline.serve.server import run_server as run

    run(settings, DataLake.default())


@app.command()
def land(
    files: Annotated[list[Path], typer.Argument(help="exports of tickets or chats")],
    knowledge: Annotated[bool, typer.Option("--knowledge", help="they are help articles: .md, .html, .txt")] = False,
) -> None:
    """Copy files into the landing place, whole or not at all, and say what they are recognised as."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.knowledge import land_articles
    from cs_pipeline.ingest.landing import land_files as copy_in

    lake = DataLake.default()
    if knowledge:
        for file, kind in zip(files, land_articles(files, lake, load_company(lake)), strict=True):
            console.print(f"knowledge/{file.name}: {kind}", markup=False)
        console.print("[dim]The sensor changed_articles follows them within a minute while make dev runs.[/]")
        return
    for landed in copy_in(files, lake, load_company(lake)):
        console.print(f"{landed.name}: {landed.format}, {landed.bytes:,} bytes", markup=False)
    console.print("[dim]The sensor landed_files takes them within a minute while make dev runs.[/]")


@quarantine.command("list")
def quarantine_list() -> None:
    """The rows that were flagged, and why."""
    from rich.table import Column, Table

    from cs_pipeline.prepare.company.interactions import flagged

    table = Table(Column("row", no_wrap=True), Column("day", no_wrap=True), "reason", "question", "answer")
    for row in flagged(DataLake.default()):
        if not row.released:
            table.add_row(
                row.row_id, str(row.day), *map(_plain, (row.reason, _short(row.question), _short(row.answer)))
            )
    console.print(table if table.row_count else "No row is kept out of training.")


@quarantine.command()
def release(
    rows: Annotated[list[str], typer.Argument(help="row ids that 'quarantine list' shows")], why: WhyOption
) -> None:
    """Let flagged rows into training after all."""
    from cs_pipeline.prepare.company.interactions import release_rows as let_in

    lake = DataLake.default()
    for row in rows:
        let_in(lake, row, _who(), why)
    console.print(f"{len(rows)} released; the next training may use them.")


@ratings.command("export")
def ratings_export(
    sheet: Annotated[Path, typer.Argument(help="a CSV file to be made")], recipe: RecipeOption = "embedded"
) -> None:
    """Write answers of the recipe's last evaluation as a sheet to rate; who answered stands in the key beside it."""
    from cs_pipeline.evaluate.people.ratings import export_samples

    count = export_samples(recipe, DataLake.default(), sheet)
    console.print(
        f"{sheet}: {count} answers. Let people fill in the score, 1 to 5, and keep the key here.", markup=False
    )
    console.print("[dim]Then: cs-pipeline ratings import FILE --rater NAME[/]")


@ratings.command("import")
def ratings_import(
    sheet: Annotated[Path, typer.Argument(help="a sheet with its scores filled in")],
    rater: Annotated[str, typer.Option(help="who rated; else the name of this user")] = "",
    key: Annotated[Path | None, typer.Option(help="the key of the sheet; else the one beside it")] = None,
) -> None:
    """Take the scores of a sheet in, all or none; the same sheet again changes nothing."""
    from cs_pipeline.evaluate.people.ratings import import_samples

    added, known = import_samples(sheet, key, rater or _user(), DataLake.default())
    console.print(f"{added} ratings added, {known} known already. The next materialisation of human_ratings has them.")


@app.command()
def history(as_json: JsonOption = False) -> None:
    """Every decision on who is champion, oldest first."""
    from cs_pipeline.register.history import history_table, read_history

    lake = DataLake.default()
    if as_json:
        console.print_json(data=read_history(lake))
        return
    rows = history_table(lake)
    for row in rows:
        what = f"{row['what']}, champion before: {row['champion before']}, by {row['who']}"
        console.print(f"[bold]{row['when']}  version {row['version']}[/] ({row['recipe']})  {_plain(what)}")
        console.print(f"  {row['why']}", markup=False)
    if not rows:
        console.print("Nothing was decided yet.")


@app.command()
def rollback(
    why: WhyOption, to: Annotated[int | None, typer.Option(help="a version; else the champion before")] = None
) -> None:
    """Make an earlier version champion again."""
    from cs_pipeline.register.promotion import roll_back as roll_back

    entry = roll_back(DataLake.default(), to, why, _who())
    console.print(f"Version {entry['version']} is champion; version {entry['champion_before']} was.")


@app.command()
def lineage(
    version: Annotated[int, typer.Argument(help="a version of cs-support")], as_json: JsonOption = False
) -> None:
    """What a model version was made of, and every decision on it."""
    from cs_pipeline.register.lineage import trace_lineage as trace
    from cs_pipeline.register.lineage import tree

    found = trace(version, DataLake.default())
    if as_json:
        console.print_json(data=found)
    else:
        console.print(tree(found))


@app.command()
def forget(
    why: WhyOption,
    subject: Annotated[str, typer.Option(help="a customer's id or e-mail as the export has it")] = "",
    row: Annotated[str, typer.Option(help="a row id; its whole conversation goes")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="do it without asking")] = False,
) -> None:
    """Remove a person, or a conversation, from every table and kept file, for good."""
    from cs_pipeline.forget import affected
    from cs_pipeline.forget import forget_records as remove

    lake = DataLake.default()
    found = affected(lake, subject, row)
    for line in found.lines():
        console.print(line, markup=False)
    if not yes:
        typer.confirm("Remove all this for good?", abort=True)
    remove(lake, found, why)
    console.print("Forgotten. Marked versions are no longer promoted, and a training is due.")


def _who() -> str:
    return f"{_user()}, command line"


def _user() -> str:
    import getpass

    return getpass.getuser()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
