"""Shared fixtures. Every test has its own lake, no network, and none of the user's settings."""

import gc
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from cs_pipeline.company import load_company
from cs_pipeline.core.lake import DataLake, locked
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, LookupRecipe, load_fine_tune_recipe, load_recipe

if TYPE_CHECKING:
    import pyarrow as pa

    from cs_pipeline.prepare.splits.split import Split
    from cs_pipeline.text.clean import Cleaned

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers that may lie beside the project. Without them, measurements on real rows are skipped."""

RECIPES = Path(__file__).parent / "recipes"
"""Recipes for tests: ``tiny``, ``tiny_lora`` to compare with it, ``tiny_rag``, which retrieves, and ``tiny_lookup``."""

os.environ["CS_RECIPES"] = str(RECIPES)  # the partitions are read when the definitions are loaded
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once; another number of threads gives other sums
# Containers often set it; every process that a test starts would then compile torch and transformers again for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

LONG = frozenset(
    f"test_{name}.py"
    for name in (
        *("company", "families", "service", "cli", "graph", "leaderboard", "bench", "bench_serve", "dev"),
        *("recipes", "recovery", "forget", "cascade"),
    )
)
"""Files whose few tests take minutes. Started last, they would keep one worker busy after all others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the long files first."""
    items.sort(key=lambda item: item.path.name not in LONG)


_frozen_modules = 0


def _freeze_libraries(phase: str, about: dict[str, int]) -> None:
    """After a full garbage collection, takes the objects of newly imported libraries out of later ones.

    Every training calls ``gc.collect`` several times. With a million objects of torch, transformers and MLflow, one such
    call takes a third of a second.
    """
    global _frozen_modules
    if phase == "stop" and about["generation"] == 2 and len(sys.modules) >= _frozen_modules + 50:
        gc.freeze()
        _frozen_modules = len(sys.modules)


gc.callbacks.append(_freeze_libraries)


@contextmanager
def own_world(lake: Path) -> Iterator[pytest.MonkeyPatch]:
    """An environment without the user's settings and the hub: ``CS_LAKE`` is ``lake``, and ``CS_MODELS`` is beside it.

    No embedding model is used, because none is fetched in tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("CS_", "MLFLOW_", "HF_", "DAGSTER_")):
                patch.delenv(name)
        patch.setenv("CS_LAKE", str(lake))
        patch.setenv("CS_MODELS", str(lake.with_name("models")))
        patch.setenv("CS_EMBEDDER", "characters")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield patch


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path) -> Iterator[None]:
    """No test reads the user's settings, lake, instance or store, or reaches a model hub."""
    with own_world(tmp_path / "lake"):
        yield


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


@pytest.fixture
def own_recipes(own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the recipes for tests instead of the project's own."""
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))


@pytest.fixture
def tiny(own_recipes: None) -> FineTuneRecipe:
    """The recipe of the lakes ``prepared`` and ``champion_lake``."""
    return load_fine_tune_recipe("tiny")


@pytest.fixture
def tiny_lookup(own_recipes: None) -> LookupRecipe:
    """The look-up among the recipes for tests."""
    recipe = load_recipe("tiny_lookup")
    assert isinstance(recipe, LookupRecipe)
    return recipe


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MadeOnce:
    """A folder that all workers of this test run share: the first one that asks creates it, the others wait."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with locked(shared / f"{name}.lock"):
            if not done.exists():
                assert not folder.exists(), f"making {folder} has failed before"
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def small_csv(made_once: MadeOnce) -> Path:
    """A file in the Bitext schema: 810 sample rows, 30 per intent."""
    from cs_pipeline.ingest.sample import sample_rows

    return made_once("bitext", lambda folder: sample_rows(810).to_csv(folder / "small.csv", index=False)) / "small.csv"


def run_job(
    lake: Path, source: Path, selection: list[str] | None = None, recipe: str = "tiny"
) -> dg.ExecuteInProcessResult:
    """Runs the real job in this process, on an instance beside ``lake``; ``selection`` are assets, None means all."""
    from cs_pipeline.definitions import defs

    home = lake.with_name("dagster")
    home.mkdir(parents=True, exist_ok=True)
    off = {"telemetry": {"enabled": False}}
    with own_world(lake) as patch, dg.DagsterInstance.local_temp(str(home), overrides=off) as instance:
        patch.setenv("CS_RECIPES", str(RECIPES))
        patch.setenv("CS_BITEXT", str(source))
        return defs.resolve_job_def("support_model").execute_in_process(
            instance=instance,
            partition_key=recipe,
            asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
            raise_on_error=False,
        )


BEFORE_TRAINING = [
    "bitext_conversations",
    "clean_bitext",
    "bitext_splits",
    "intent_classifier",
    "subjects",
    "conversations",
    "knowledge_base",
    "router",
    "train_split",
    "validation_split",
    "test_split",
    "retrieval_index",
]


@pytest.fixture(scope="session")
def prepared(made_once: MadeOnce, small_csv: Path) -> Path:
    """A lake with everything before training. Tests read it and train in copies."""

    def make(folder: Path) -> None:
        assert run_job(folder / "lake", small_csv, BEFORE_TRAINING).success

    return made_once("prepared", make) / "lake"


@pytest.fixture
def prepared_lake(prepared: Path, tmp_path: Path) -> DataLake:
    """A copy of the tables of ``prepared``, which a test may change. It is the lake of the test's settings."""
    shutil.copytree(prepared / "prepare", tmp_path / "lake" / "prepare")
    return DataLake(tmp_path / "lake")


@pytest.fixture(scope="session")
def champion_lake(made_once: MadeOnce, small_csv: Path) -> Path:
    """A lake after the full pipeline, with version 1 as champion; tests read it, and change copies (``copy_lake``).

    Its tiny model gives bad answers, which the promotion refuses. A person makes it champion. ``summary.txt`` beside the
    lake is what the demo prints before that.
    """

    def make(folder: Path) -> None:
        from rich.console import Console

        from cs_pipeline.cli.demo import _print_summary
        from cs_pipeline.register.promotion import roll_back

        lake = folder / "lake"
        result = run_job(lake, small_csv)
        assert result.success
        with own_world(lake) as patch, (folder / "summary.txt").open("w") as summary:
            patch.setenv("CS_RECIPES", str(RECIPES))
            _print_summary(result, load_recipe("tiny"), DataLake(lake), Console(file=summary, width=80))
            roll_back(DataLake(lake), 1, "the tests need a champion", "a test")

    return made_once("champion", make) / "lake"


@pytest.fixture(scope="session")
def company_lake(made_once: MadeOnce, champion_lake: Path, small_csv: Path) -> Path:
    """A lake with version 2, trained by the real job on 810 generated rows and 120 of a company; tests change copies."""

    def make(folder: Path) -> None:
        from cs_pipeline.company import company_file
        from cs_pipeline.ingest.landing import land_files
        from cs_pipeline_tests.support.company import SETTINGS, ingest
        from cs_pipeline_tests.support.exports import export

        lake = copy_lake(champion_lake, folder / "lake")
        company_file(lake).write_text(SETTINGS)
        with own_world(lake.root):
            land_files([export(folder / "tickets.csv", 120, seed=1)], lake, load_company(lake))
            ingest(lake)
        assert run_job(lake.root, small_csv).success

    return made_once("company", make) / "lake"


@pytest.fixture(scope="session")
def rag_lake(made_once: MadeOnce, prepared: Path) -> Path:
    """A lake with an article, in which ``tiny_rag`` was trained and evaluated; tests read it."""

    def make(folder: Path) -> None:
        from cs_pipeline.evaluate.evaluation import evaluate
        from cs_pipeline.evaluate.report.report import write_report
        from cs_pipeline.retrieval.index import build_index
        from cs_pipeline.retrieval.passages import read_knowledge
        from cs_pipeline.train.adapter import train_adapter
        from cs_pipeline.train.embedded import build_embedded

        lake = DataLake(folder / "lake")
        with own_world(lake.root) as patch:
            patch.setenv("CS_RECIPES", str(RECIPES))
            shutil.copytree(prepared / "prepare", lake.path("prepare"))
            article = lake.path("landing", "knowledge", "returns.md")
            article.parent.mkdir(parents=True)
            article.write_text("# Returning things\n\nA return is free of charge. Take the parcel to any shop.\n")
            read_knowledge(lake, load_company(lake))
            build_index(lake)
            recipe = load_fine_tune_recipe("tiny_rag")
            assert isinstance(recipe.base, EmbeddedBase)
            build_embedded(recipe.base, lake, print)
            train_adapter(recipe, lake, print)
            evaluate(recipe, lake, None, print)
            write_report(recipe, lake)

    return made_once("rag", make) / "lake"


def copy_lake(lake: Path, to: Path) -> DataLake:
    """A copy of ``lake`` with its own MLflow store, whose database holds absolute addresses of files."""
    shutil.copytree(lake, to)
    with sqlite3.connect(to / "register" / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (lake.as_uri(), to.as_uri()))
    database.close()
    return DataLake(to)


@pytest.fixture(scope="session")
def bitext_csv() -> Path:
    """The file of real Bitext rows beside the project."""
    path = SHARED / "bitext" / "bitext_customer_support.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def raw_bitext(bitext_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> "pa.Table":
    """The real rows as they are read."""
    from cs_pipeline.ingest.bitext import load_bitext

    return load_bitext(str(bitext_csv), tmp_path_factory.mktemp("cache"))[0]


@pytest.fixture(scope="session")
def bitext_texts(raw_bitext: "pa.Table") -> list[str]:
    """1,000 real texts: questions and answers of 500 rows, evenly spread."""
    rows = raw_bitext.take(list(range(0, raw_bitext.num_rows, raw_bitext.num_rows // 500))[:500])
    return [*rows.column("instruction").to_pylist(), *rows.column("response").to_pylist()]


@pytest.fixture(scope="session")
def cleaned_bitext(raw_bitext: "pa.Table") -> "Cleaned":
    from cs_pipeline.text.clean import clean

    return clean(raw_bitext)


@pytest.fixture(scope="session")
def split_bitext(cleaned_bitext: "Cleaned") -> "Split":
    from cs_pipeline.prepare.splits.split import split

    return split(cleaned_bitext.rows, before=None)
