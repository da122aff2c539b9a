"""The command line ``cs-pipeline``: the demo, services and reports, and commands for a company's conversations."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake

PROJECT = Path(__file__).parents[2]
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
quarantine = typer.Typer(
    no_args_is_help=True, help="Rows that look like an attack or a mistake and are kept out of training."
)
app.add_typer(quarantine, name="quarantine")
ratings = typer.Typer(no_args_is_help=True, help="Samples for blind rating: raters do not know which version answered.")
app.add_typer(ratings, name="ratings")
intents = typer.Typer(no_args_is_help=True, help="Samples of company questions whose intent a person labels.")
app.add_typer(intents, name="intents")
console = Console(highlight=False)

DEMO_RECIPE = "smollm2_135m_demo"
"""The recipe of ``make demo`` and of the commands that show its results."""

_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C."""

JsonOption = Annotated[bool, typer.Option("--json", help="as JSON")]
WhyOption = Annotated[str, typer.Option(help="the reason, which is recorded")]
RecipeOption = Annotated[str, typer.Option(help="name of a recipe", envvar="CS_RECIPE")]


def main() -> None:
    """The entry point. Prints a PipelineError without a traceback and exits with 1; after Ctrl-C exits with 130."""
    os.environ.setdefault("DAGSTER_HOME", str(PROJECT / "dagster_home"))
    try:
        app()
    except PipelineError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except SystemExit as error:
        if error.code == _INTERRUPTED:
            Console(stderr=True).print("Stopped. Finished steps are kept; run the same command again to continue.")
        raise


@app.command()
def demo(recipe: RecipeOption = DEMO_RECIPE) -> None:
    """Run the full pipeline: materialise every asset, from the raw rows to the champion.

    In a lake without a champion, the free look-up is built first, so that the model is compared with it.
    """
    from cs_pipeline.cli.demo import run_demo

    run_demo(recipe, DataLake.default(), console)


@app.command()
def doctor(
    recipe: Annotated[str, typer.Option(help="estimate whether training this recipe fits this machine")] = "",
) -> None:
    """Check this machine, its libraries, the Dagster instance and the stores, and say what to fix."""
    from cs_pipeline.cli.doctor import check_installation, check_recipe, findings_table

    lake = DataLake.default()
    findings = check_recipe(recipe, lake) if recipe else check_installation(lake, Path(os.environ["DAGSTER_HOME"]))
    console.print(findings_table(findings))
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def report(recipe: RecipeOption = DEMO_RECIPE) -> None:
    """Show the summary of a recipe's evaluation report, and the paths of the full report and the leaderboard."""
    from rich.markdown import Markdown

    lake = DataLake.default()
    path = lake.path("evaluate", "evaluation_report", f"{recipe}.md")
    if not path.exists():
        raise PipelineError(f"{path} does not exist.", f"Run the full pipeline: cs-pipeline demo --recipe {recipe}")
    console.print(Markdown(path.read_text()))
    console.print(f"\nThe full report: {path.with_suffix('.html')}", soft_wrap=True)
    leaderboard = lake.path("evaluate", "leaderboard.html")
    if leaderboard.exists():
        console.print(f"All recipes side by side: {leaderboard}", soft_wrap=True)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="a customer's question")],
    version: Annotated[int | None, typer.Option(help="a version of cs-support; default: the champion")] = None,
) -> None:
    """Ask the champion or another version a question."""
    lake = DataLake.default()
    if not question.strip():
        raise PipelineError("The question is empty.", 'Ask something: cs-pipeline ask "where is my refund?"')
    from cs_pipeline.register.version import ask_version
    from cs_pipeline.tracking import champion_number, find_versions, open_store

    client = open_store(lake)
    number = version if version is not None else champion_number(client)
    if number is None:
        raise PipelineError("There is no champion yet.", "Run the full pipeline first: make demo")
    versions = [int(v.version) for v in find_versions(client)]
    if number not in versions:
        raise PipelineError(f"cs-support has no version {number}.", f"Choose one of: {', '.join(map(str, versions))}.")
    console.print(f"[dim]cs-support version {number}:[/]")
    console.print(ask_version(number, [question], lake)[0], markup=False)


@app.command()
def dev() -> None:
    """Run the Dagster UI and daemon on port 3000, MLflow on port 5000 and the chat on port 8000, until Ctrl-C."""
    from cs_pipeline.cli.dev import serve_dev

    raise typer.Exit(serve_dev(PROJECT, DataLake.default()))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="anything but localhost requires CS_SERVE_KEY")] = None,
    port: Annotated[int | None, typer.Option(help="default: CS_SERVE_PORT, else 8000")] = None,
) -> None:
    """Serve the chat page and the API with the champion until Ctrl-C. Environment variables CS_SERVE_… set the rest."""
    from cs_pipeline.cli.dev import port_holder
    from cs_pipeline.serve.settings import load_settings

    settings = load_settings(host, port)
    if holder := port_holder(settings.port):
        raise PipelineError(
            f"Port {settings.port} is in use by {holder}.", "Stop that first, or choose another --port."
        )
    from cs_pipeline.serve.server import run_server

    run_server(settings, DataLake.default())


@app.command()
def land(
    files: Annotated[list[Path], typer.Argument(help="exports of tickets or chats")],
    knowledge: Annotated[
        bool, typer.Option("--knowledge", help="the files are help articles: .md, .html, .txt")
    ] = False,
) -> None:
    """Copy files into the landing folder, all or none, and show the detected formats."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.knowledge import land_articles
    from cs_pipeline.ingest.landing import land_files

    lake = DataLake.default()
    company = load_company(lake)
    if knowledge:
        for file, kind in zip(files, land_articles(files, lake, company), strict=True):
            console.print(f"knowledge/{file.name}: {kind}", markup=False)
        console.print("[dim]While make dev runs, the sensor changed_articles picks them up within a minute.[/]")
        return
    for landed in land_files(files, lake, company):
        console.print(f"{landed.name}: {landed.format}, {landed.size:,} bytes", markup=False)
    console.print("[dim]While make dev runs, the sensor landed_files picks them up within a minute.[/]")


@quarantine.command("list")
def quarantine_list() -> None:
    """List the flagged rows and the reasons."""
    from rich.table import Column, Table

    from cs_pipeline.prepare.company.interactions import flagged_rows

    table = Table(Column("row", no_wrap=True), Column("day", no_wrap=True), "reason", "question", "answer")
    for row in flagged_rows(DataLake.default()):
        if not row.released:
            texts = (row.reason, _short(row.question), _short(row.answer))
            table.add_row(row.row_id, str(row.day), *map(escape, texts))
    console.print(table if table.row_count else "No rows are kept out of training.")


@quarantine.command()
def release(rows: Annotated[list[str], typer.Argument(help="row ids from 'quarantine list'")], why: WhyOption) -> None:
    """Release flagged rows for training."""
    from cs_pipeline.prepare.company.interactions import release_row

    lake = DataLake.default()
    for row in rows:
        release_row(lake, row, _decided_by(), why)
    console.print(f"{len(rows)} released; the next training run may use them.")


@ratings.command("export")
def ratings_export(
    sheet: Annotated[Path, typer.Argument(help="the CSV file to write")], recipe: RecipeOption = DEMO_RECIPE
) -> None:
    """Write answers from the recipe's last evaluation as a rating sheet, and a key file that says who wrote each."""
    from cs_pipeline.evaluate.people.ratings import export_samples

    written = export_samples(recipe, DataLake.default(), sheet)
    if written.handed_over:
        console.print(f"{written.handed_over} test questions are left out: a look-up hands them over to a person.")
    advice = "Have raters fill in scores from 1 to 5; do not give them the key."
    console.print(f"{sheet}: {written.answers} answers. {advice}", markup=False)
    console.print("[dim]Then: cs-pipeline ratings import FILE --rater NAME[/]")


@ratings.command("import")
def ratings_import(
    sheet: Annotated[Path, typer.Argument(help="a sheet with the scores filled in")],
    rater: Annotated[str, typer.Option(help="the rater; default: your user name")] = "",
    key: Annotated[Path | None, typer.Option(help="the key of the sheet; default: the one beside it")] = None,
) -> None:
    """Import the scores of a sheet, all or none. Importing the same sheet again changes nothing."""
    from cs_pipeline.evaluate.people.ratings import import_samples

    added, known = import_samples(sheet, key, rater or _user(), DataLake.default())
    console.print(
        f"{added} ratings added, {known} already known. The next materialisation of human_ratings includes them."
    )


@intents.command("export")
def intents_export(
    sheet: Annotated[Path, typer.Argument(help="the CSV file to write")],
    rows: Annotated[int, typer.Option(min=1, help="the number of questions")] = 100,
) -> None:
    """Write company test questions without their predicted intents, for a person to label."""
    from cs_pipeline.evaluate.people.intent_labels import export_intent_sheet

    count = export_intent_sheet(DataLake.default(), sheet, rows)
    console.print(
        f"{sheet}: {count} questions. Fill the column 'intent' with intents from the last column; "
        "leave it empty if unsure.",
        markup=False,
    )
    console.print("[dim]Then: cs-pipeline intents import FILE[/]")


@intents.command("import")
def intents_import(
    sheet: Annotated[Path, typer.Argument(help="a sheet with the intents filled in")],
    replace: Annotated[bool, typer.Option("--replace", help="replace labels of earlier imports")] = False,
) -> None:
    """Import the intents of a sheet, all or none. The next evaluation measures right intent on these rows too."""
    from cs_pipeline.evaluate.people.intent_labels import import_intent_sheet

    added, known = import_intent_sheet(DataLake.default(), sheet, replace)
    console.print(f"{added} labels added, {known} already known. Materialise 'evaluation' to use them.")


@app.command()
def unanswered() -> None:
    """List questions about something new that customers keep asking, from the queue of handovers."""
    from datetime import UTC, datetime

    from cs_pipeline.company import load_company
    from cs_pipeline.serve.desk.recurring import recurring_questions
    from cs_pipeline.serve.desk.screening import Screening

    lake = DataLake.default()
    screening = Screening(load_company(lake))
    found = recurring_questions(lake, lambda text: screening.mask(text, "customer"), datetime.now(UTC).date())
    for group in found:
        about = ", ".join(group.keywords) or "this"
        console.print(
            f"Customers asked about {about} in {group.this_week} conversations this week ({group.conversations} in all); "
            "nobody has answered it yet.",
            markup=False,
        )
        for example in group.examples:
            console.print(f"  {_short(example)}", markup=False, style="dim")
    if not found:
        console.print("No question about something new was handed over in three conversations or more.")


@app.command("bitext-share")
def bitext_share() -> None:
    """Rate a look-up's answers to the company's questions with all or less of Bitext, and say which share is best."""
    from rich.table import Column, Table

    from cs_pipeline.cli.bitext_share import best_share, compare_bitext_shares
    from cs_pipeline.company import company_file

    lake = DataLake.default()
    results = compare_bitext_shares(lake, lambda line: console.print(line, style="dim", markup=False))
    names = ("bitext_share", "questions", "handed over", "Bitext's answers", "answer quality", "difference (95 %)")
    table = Table(*(Column(name, justify="right") for name in names))
    for result in results:
        gain = result.difference
        interval = "" if gain is None else f"{gain.difference:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
        counts = (result.questions, result.handed_over, result.from_bitext)
        table.add_row(f"{result.share:g}", *map(str, counts), f"{result.quality:.1f}", interval)
    console.print(table)
    best = best_share(results).share
    if best == results[0].share:
        console.print("No smaller share is clearly better: keep all of Bitext, which also answers general questions.")
    else:
        console.print(
            f"A smaller share is clearly better. Set bitext_share: {best:g} in {company_file(lake)}", soft_wrap=True
        )


@app.command()
def history(as_json: JsonOption = False) -> None:
    """Show every decision about the champion, oldest first."""
    from cs_pipeline.register.history import history_table, read_history

    lake = DataLake.default()
    if as_json:
        console.print_json(data=read_history(lake))
        return
    rows = history_table(lake)
    for row in rows:
        what = f"{row['what']}, champion before: {row['champion before']}, by {row['who']}"
        console.print(f"[bold]{row['when']}  version {row['version']}[/] ({row['recipe']})  {escape(what)}")
        console.print(f"  {row['why']}", markup=False)
    if not rows:
        console.print("No decisions yet.")


@app.command()
def rollback(
    why: WhyOption, to: Annotated[int | None, typer.Option(help="a version; default: the previous champion")] = None
) -> None:
    """Make an earlier version the champion again."""
    from cs_pipeline.register.promotion import roll_back

    entry = roll_back(DataLake.default(), to, why, _decided_by())
    before = entry["champion_before"]
    replaced = "there was none before" if before is None else f"before, it was version {before}"
    console.print(f"Version {entry['version']} is now the champion; {replaced}.")


@app.command()
def lineage(
    version: Annotated[int, typer.Argument(help="a version of cs-support")], as_json: JsonOption = False
) -> None:
    """Show the data, code and runs behind a model version, and every decision about it."""
    from cs_pipeline.register.lineage import lineage_tree, trace_lineage

    traced = trace_lineage(version, DataLake.default())
    if as_json:
        console.print_json(data=traced)
    else:
        console.print(lineage_tree(traced))


@app.command()
def forget(
    why: WhyOption,
    subject: Annotated[str, typer.Option(help="a customer's id or e-mail address as in the export")] = "",
    row: Annotated[str, typer.Option(help="a row id; its whole conversation is removed")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")] = False,
) -> None:
    """Remove a customer or a conversation from every table and every kept copy of a delivery, for good."""
    from cs_pipeline.forget import find_affected, forget_records

    lake = DataLake.default()
    affected = find_affected(lake, subject, row)
    for line in affected.summary():
        console.print(line, markup=False)
    if not yes:
        typer.confirm("Remove all this for good?", abort=True)
    forget_records(lake, affected, why)
    console.print("Forgotten. Marked versions will not be promoted, and retraining is due.")


def _decided_by() -> str:
    return f"{_user()}, command line"


def _user() -> str:
    import getpass

    return getpass.getuser()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
