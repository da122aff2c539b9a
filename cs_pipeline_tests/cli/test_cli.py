"""The installed command: errors are printed once with a fix, a stopped run can be continued, questions are answered."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from cs_pipeline.cli import demo
from cs_pipeline.core.lake import DataLake
from cs_pipeline.recipe import FineTuneRecipe, load_recipe
from cs_pipeline.register.history import read_history
from cs_pipeline_tests.conftest import RECIPES, own_world

COMMAND = Path(sys.executable).with_name("cs-pipeline")
PROJECT = Path(__file__).parents[2]
TIMEOUT = 400
"""Seconds. On an idle machine a command takes about one."""

Finished = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Workspace:
    """A lake, a Dagster home and the environment variables for them."""

    folder: Path
    settings: dict[str, str]

    @property
    def lake(self) -> DataLake:
        return DataLake(Path(self.settings["CS_LAKE"]))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        with own_world(self.lake.root):
            environment = os.environ | {"CS_RECIPES": str(RECIPES), "COLUMNS": "80"} | self.settings
        return subprocess.Popen(
            [str(COMMAND), *arguments],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal reaches the whole process group
        )

    def run(self, *arguments: str) -> Finished:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            end(process)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def files(self) -> list[str]:
        root = self.lake.root
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        return [name for name in self.files() if "/." in f"/{name}" and not name.endswith(".lock")]


def end(process: "subprocess.Popen[str]") -> None:
    """Kills the process and its children, if they still run."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_workspace(folder: Path, **settings: str) -> Workspace:
    home = folder / "dagster_home"
    home.mkdir(parents=True)
    shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", home)
    return Workspace(folder, {"CS_LAKE": str(folder / "lake"), "DAGSTER_HOME": str(home)} | settings)


@dataclass(frozen=True)
class WrongInput:
    """A wrong input: the command, its environment variables, and texts that the error and its fix must contain."""

    arguments: tuple[str, ...]
    settings: dict[str, str]
    named: tuple[str, ...]
    fix: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "missing.csv").write_text("flags,instruction,intent,response\nB,where is it,track_order,On its way.\n")
    (folder / "file").touch()
    tiny = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    recipes = folder / "recipes"
    recipes.mkdir()
    for name, changes in (
        ("misspelt", {"trainer": {**tiny["trainer"], "learning_rat": 1}}),
        ("long_blocks", {"base": {**tiny["base"], "block_size": 10_000_000}}),
    ):
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump({**tiny, **changes}))
    return folder


TINY = ("demo", "--recipe", "tiny")
WRONG = {
    "missing column": WrongInput(
        TINY, {"CS_BITEXT": "{inputs}/missing.csv"}, ("missing.csv", "category"), "It needs flags"
    ),
    "no such source": WrongInput(TINY, {"CS_BITEXT": "kaggle"}, ("'kaggle'",), "Set it to 'sample'"),
    "no such recipe": WrongInput(
        ("demo", "--recipe", "gpt"),
        {},
        ("no recipe 'gpt' in", str(RECIPES)),
        f"Choose one of: {', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))}.",
    ),
    "unknown key": WrongInput(
        ("demo", "--recipe", "misspelt"),
        {"CS_RECIPES": "{inputs}/recipes"},
        ("misspelt.yaml", "'trainer.learning_rat' is not a key of a recipe"),
        "Fix these keys",
    ),
    "training refuses": WrongInput(
        ("demo", "--recipe", "long_blocks"),
        {"CS_RECIPES": "{inputs}/recipes", "CS_BITEXT": "{small_csv}"},
        ("base_model: Bitext's training rows have", "base.block_size is 10,000,000"),
        "Lower base.block_size in the recipe",
    ),
    "lake below a file": WrongInput(
        TINY, {"CS_LAKE": "{inputs}/file/lake"}, ("cannot be written", "file/lake"), "CS_LAKE"
    ),
    "no champion": WrongInput(("ask", "where is my refund?"), {}, ("There is no champion yet.",), "make demo"),
    "empty question": WrongInput(("ask", "  "), {}, ("The question is empty.",), "cs-pipeline ask"),
    "no report": WrongInput(
        ("report", "--recipe", "tiny"), {}, ("tiny.md does not exist",), "cs-pipeline demo --recipe tiny"
    ),
}
UNRELATED_FILES = [
    "evaluate/human_ratings.parquet",
    "ingest/.ledger.lock",
    "ingest/ledger.db",
    "prepare/knowledge_base.json",
    "prepare/knowledge_base.parquet",
    "prepare/knowledge_base_set_aside.parquet",
    "serve/.feedback.lock",
    "serve/feedback.db",
]
FILES_LEFT = {
    "no champion": ["register/.mlflow.lock", "register/mlflow.db"],
    **dict.fromkeys(("missing column", "no such source"), UNRELATED_FILES),
}
"""The files in the lake after the error: an empty store, or the empty tables of ratings and articles, which need no other
table. "training refuses" is not listed: all earlier assets have been materialised and stay."""


@pytest.fixture(scope="module")
def ended(
    inputs: Path, small_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Workspace, Finished]]:
    """The results of all wrong commands. Two run at a time, because each mostly waits for its interpreter to start."""

    def run(name: str) -> tuple[Workspace, Finished]:
        folders = {"inputs": inputs, "small_csv": small_csv}
        settings = {key: value.format(**folders) for key, value in WRONG[name].settings.items()}
        workspace = make_workspace(tmp_path_factory.mktemp("workspace"), **settings)
        return workspace, workspace.run(*WRONG[name].arguments)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(WRONG, pool.map(run, WRONG), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_reported_once_with_a_fix(ended: dict[str, tuple[Workspace, Finished]], name: str) -> None:
    workspace, result = ended[name]
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "Traceback" not in output
    assert output.count("Error:") == output.count("What to do:") == 1, output
    error = result.stderr[result.stderr.index("Error:") :]
    for part in WRONG[name].named:
        assert part in error
    assert WRONG[name].fix in error.partition("What to do:")[2]
    assert workspace.leftovers() == []
    if name != "training refuses":
        assert workspace.files() == FILES_LEFT.get(name, [])


@pytest.fixture(scope="module")
def with_lookup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recipes like the project's: a model, and the look-up that becomes the first champion."""
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copy(RECIPES / "tiny.yaml", folder)
    shutil.copy(RECIPES / "tiny_lookup.yaml", folder / "lookup.yaml")
    return folder


@pytest.fixture(scope="module")
def stopped(
    champion_lake: Path, small_csv: Path, with_lookup: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Finished]:
    """A demo that was stopped with Ctrl-C while it trained the adapter. Base and router are copied from an earlier run."""
    settings = {"CS_BITEXT": str(small_csv), "CS_RECIPES": str(with_lookup)}
    workspace = make_workspace(tmp_path_factory.mktemp("stopped"), **settings)
    for kept in ("train/base_model", "prepare/router"):
        shutil.copytree(champion_lake / kept, workspace.lake.path(*kept.split("/")))
    for kept in ("router.json", "predictions.parquet"):
        shutil.copy(champion_lake / "prepare" / kept, workspace.lake.path("prepare", kept))
    process = workspace.start("demo", "--recipe", "tiny")
    try:
        deadline = time.monotonic() + TIMEOUT
        spools = workspace.lake.path("train", "adapter", "tiny")
        while not list(spools.glob("*.jsonl")):  # until the loss before the first step was written
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("cs_pipeline.train" in child.cmdline() for child in children)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        end(process)
    return workspace, subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.fixture(scope="module")
def resumed(stopped: tuple[Workspace, Finished]) -> tuple[Workspace, Finished]:
    """The same command, run again after it was stopped."""
    workspace, _ = stopped
    return workspace, workspace.run("demo", "--recipe", "tiny")


FIRST = "There is no champion yet, so the free look-up (recipe 'lookup') comes first. A model has to beat it."
LOOKUP_IS_CHAMPION = "Version 1 (lookup) is the champion: there is no champion yet, and a look-up costs nothing."


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def labels(text: str) -> list[str]:
    """The labels of the examples in a summary, each as often as it is there."""
    known = ("Customer", "look-up", "base", "tuned")
    starts = [line.strip().partition(":")[0] for line in text.splitlines() if line.startswith("  ") and ": " in line]
    return [start for start in starts if start in known]


def test_stopping_prints_one_sentence_and_leaves_nothing_half_written(stopped: tuple[Workspace, Finished]) -> None:
    workspace, result = stopped
    assert result.returncode == 130
    last = result.stderr.splitlines()[-1]
    assert last == "Stopped. Finished steps are kept; run the same command again to continue."
    assert "Error" not in result.stderr
    assert workspace.leftovers() == []
    assert not list(workspace.lake.path("train", "adapter", "tiny").glob("*/manifest.json"))
    assert workspace.lake.table("prepare", "train_split").exists()


def test_the_free_lookup_comes_first_and_is_champion(stopped: tuple[Workspace, Finished]) -> None:
    workspace, result = stopped
    assert in_one_line(result.stdout).count(FIRST) == 1
    assert [(entry["version"], entry["recipe"], entry["promote"]) for entry in read_history(workspace.lake)] == [
        (1, "lookup", True)
    ]
    assert workspace.lake.path("evaluate", "evaluation_report", "lookup.html").exists()


def test_the_same_command_continues_to_the_champion(resumed: tuple[Workspace, Finished]) -> None:
    workspace, result = resumed
    assert result.returncode == 0, result.stderr
    said = in_one_line(result.stdout)
    assert FIRST not in said, "the look-up is champion already"
    assert "Registered: cs-support version 2" in said
    assert LOOKUP_IS_CHAMPION in said
    refusal = read_history(workspace.lake)[-1]
    assert (refusal["version"], refusal["promote"]) == (2, False)
    assert f"Version 2 (tiny) is challenger: {in_one_line(refusal['reason'])}." in said
    assert labels(result.stdout) == 3 * ["Customer", "look-up", "base", "tuned"]
    assert "its answers are not for customers" in said
    report = workspace.lake.path("evaluate", "evaluation_report", "tiny.html")
    assert f"Report: {report}" in result.stdout
    assert report.exists()
    assert "make dev" in result.stdout
    assert "ERROR" not in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert workspace.leftovers() == []


def test_the_examples_of_a_lookup_show_its_answers_alone(
    resumed: tuple[Workspace, Finished], with_lookup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS_RECIPES", str(with_lookup))
    found = demo._examples(load_recipe("lookup"), resumed[0].lake)
    assert [list(example) for example in found] == 3 * [["Customer", "look-up"]]
    assert all(text for example in found for text in example.values())


def test_the_lookup_comes_first_only_if_it_has_a_recipe_and_there_is_no_champion(
    resumed: tuple[Workspace, Finished], with_lookup: Path, tiny: FineTuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = DataLake.default()
    assert not demo._needs_lookup(tiny, empty), "the recipes of these tests have no look-up of that name"
    monkeypatch.setenv("CS_RECIPES", str(with_lookup))
    assert demo._needs_lookup(tiny, empty)
    assert not demo._needs_lookup(load_recipe("lookup"), empty)
    assert not demo._needs_lookup(tiny, resumed[0].lake)


def test_a_model_that_is_refused_leaves_no_champion(champion_lake: Path) -> None:
    said = in_one_line(champion_lake.with_name("summary.txt").read_text())
    assert "Registered: cs-support version 1 Version 1 (tiny) is not the champion; there is none yet: " in said


def test_the_champion_answers_a_question(resumed: tuple[Workspace, Finished]) -> None:
    workspace, _ = resumed
    result = workspace.run("ask", "where is my refund?")
    assert result.returncode == 0, result.stderr
    first, _, answer = result.stdout.partition("\n")
    assert first == "cs-support version 1:"
    assert answer.strip()


def test_an_unknown_version_is_an_error(resumed: tuple[Workspace, Finished]) -> None:
    workspace, _ = resumed
    result = workspace.run("ask", "--version", "7", "where is my refund?")
    assert result.returncode == 1
    assert "Error: cs-support has no version 7." in result.stderr
    assert "What to do: Choose one of: 1, 2." in result.stderr
    assert "Traceback" not in result.stderr


def test_the_report_and_the_leaderboard_are_shown(resumed: tuple[Workspace, Finished]) -> None:
    workspace, _ = resumed
    result = workspace.run("report", "--recipe", "tiny")
    assert result.returncode == 0, result.stderr
    assert f"The full report: {workspace.lake.path('evaluate', 'evaluation_report', 'tiny.html')}" in result.stdout
    assert f"All recipes side by side: {workspace.lake.path('evaluate', 'leaderboard.html')}" in result.stdout
