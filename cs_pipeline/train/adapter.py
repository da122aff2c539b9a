"""The (Q)LoRA fine-tune of a recipe: one folder with a manifest, trained once for equal input."""

import importlib.metadata
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder, digest, file_sha256, read_json, remove_leftovers, write_json
from cs_pipeline.core.manifest import MANIFEST_NAME, read_manifest, write_manifest
from cs_pipeline.core.schema import SEEN_ROW, check_schema
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.llm.base import Base, find_base
from cs_pipeline.llm.prompt import FOUND_FORM
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.retrieval.index import index_version
from cs_pipeline.tracking import Spool, stream_metrics
from cs_pipeline.train.finetune import fine_tune
from cs_pipeline.train.rows import OUT_OF_SCOPE, OUT_OF_SCOPE_FILE
from cs_pipeline.train.trainer.checkpoints import remove_working_folder, working_folder
from cs_pipeline.train.warm_start import ChampionAdapter, find_warm_start

ROWS = "rows.parquet"
"""The file of an adapter's folder that says on which rows it was trained."""

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class Adapter:
    """A finished fine-tune: its folder, its manifest and its metrics."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])


def adapter_fingerprint(recipe: Recipe, base: Base, data: dict[str, str], start: str | None) -> str:
    """16 hex digits that stand for everything an adapter is made of; ``start`` is the adapter it goes on from, if any."""
    form = () if recipe.prompt.retrieve is None else (FOUND_FORM,)
    return digest(
        recipe.fingerprint, base.sha256, data, start, CODE_VERSIONS["adapter"], recipe.prompt.template_text(), *form
    )


def data_versions(recipe: Recipe, lake: DataLake) -> dict[str, str]:
    """sha256 of each table and file that training reads, and the version of the index where the recipe retrieves."""
    versions = {name: file_sha256(lake.table("prepare", name)) for name in ("train_split", "validation_split")}
    if recipe.prompt.route == "intent":
        folder = lake.path("prepare", "intent_classifier")
        versions["intent_classifier"] = digest({path.name: file_sha256(path) for path in sorted(folder.iterdir())})
    if recipe.prompt.retrieve is not None:
        versions["retrieval_index"] = index_version(lake)
    if recipe.mixture.out_of_scope:
        versions[OUT_OF_SCOPE] = file_sha256(OUT_OF_SCOPE_FILE)
    return versions


def current_adapter(recipe_name: str, lake: DataLake) -> Adapter:
    """The adapter that the recipe was last trained to, its files verified against the manifest.

    Raises PipelineError when there is none, or when a file of it was changed.
    """
    pointer = lake.path("train", "adapter", f"{recipe_name}.json")
    if not pointer.exists():
        raise PipelineError(
            f"{pointer} is not there: the recipe '{recipe_name}' has no trained adapter in this lake.",
            f"Materialise 'adapter' for the partition '{recipe_name}'.",
        )
    folder = lake.path("train", "adapter", recipe_name, read_json(pointer)["fingerprint"])
    return _verified(folder)


def find_adapter(recipe: Recipe, lake: DataLake) -> Adapter | None:
    """The adapter that equal input has made before, or None; it becomes the recipe's current one.

    Raises PipelineError when a file of it was changed, when the base is not there, or the champion does not fit.
    """
    base, data = find_base(recipe, lake), data_versions(recipe, lake)
    start = find_warm_start(recipe, base, lake)
    fingerprint = adapter_fingerprint(recipe, base, data, start.fingerprint)
    if start.champion is not None:
        made = adapter_fingerprint(recipe, base, data, start.champion.went_on_from)
        if made == start.champion.fingerprint:
            # The champion is what this recipe makes of this data; to go on from it would be to train on equal data.
            fingerprint = made
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    if not (folder / MANIFEST_NAME).exists():
        return None
    adapter = _verified(folder)
    _make_current(recipe, fingerprint, lake)
    return adapter


def base_of(adapter: Adapter, recipe: Recipe, lake: DataLake) -> Path:
    """Where the base lies that ``adapter`` was trained on.

    Raises PipelineError when ``recipe`` or its base is another by now, or when the base is not there.
    """
    base = find_base(recipe, lake)
    trained = read_recipe(adapter.folder / "recipe.yaml")
    for what, now, then in (
        ("recipe", recipe.fingerprint, trained.fingerprint),
        ("base model", base.sha256, adapter.manifest["base"]["sha256"]),
    ):
        if now != then:
            raise PipelineError(
                f"The {what} of '{recipe.name}' has changed since its adapter {adapter.fingerprint} was trained.",
                f"Materialise 'adapter' for the partition '{recipe.name}' again.",
            )
    return Path(base.path)


def train_adapter(recipe: Recipe, lake: DataLake, report: Callable[[str], None]) -> Adapter:
    """Trains the adapter of ``recipe`` and makes it the recipe's current one.

    A training of equal input that was interrupted is gone on with. ``report`` gets log lines; metrics go to a spool beside
    the adapter and from there, live, to MLflow. Raises PipelineError when the base is not there, the champion to go on from
    does not fit, another process trains the same, or ``fine_tune`` fails.
    """
    base = find_base(recipe, lake)
    data = data_versions(recipe, lake)
    start = find_warm_start(recipe, base, lake)
    report(f"training begins {start.why}")
    fingerprint = adapter_fingerprint(recipe, base, data, start.fingerprint)
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    facts = {
        "recipe": recipe.name,
        "fingerprint": fingerprint,
        "base": base.facts(),
        "data": data,
        "start": start.facts(),
        "seed": recipe.trainer.seed,
        "code_version": CODE_VERSIONS["adapter"],
        "git_commit": _git_commit(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    spool = spool_of(recipe.name, fingerprint, lake)
    with _alone_in(folder) as (temporary, work):
        with stream_metrics(spool, lake, fingerprint, recipe.name):
            before = None if start.champion is None else start.champion.folder
            metrics, own = fine_tune(recipe, lake, Path(base.path), before, temporary, work, report, spool.append)
        seen = _seen(own, start.champion)
        check_schema(seen, SEEN_ROW, ROWS)
        pq.write_table(seen, temporary / ROWS, compression="zstd")
        (temporary / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        write_json(temporary / "metrics.json", metrics)
        if recipe.prompt.route == "intent":
            # What answers questions must route them as training did, wherever the folder goes.
            shutil.copytree(lake.path("prepare", "intent_classifier"), temporary / "intent_classifier")
        write_manifest(temporary, {**facts, "company": _company(seen)})
    _make_current(recipe, fingerprint, lake)
    return _verified(folder)


def assist(recipe: Recipe, lake: DataLake) -> None:
    """What the other processes do while the first one is in ``train_adapter``: the same steps, and nothing is kept of it."""
    base = find_base(recipe, lake)
    start = find_warm_start(recipe, base, lake)
    fingerprint = adapter_fingerprint(recipe, base, data_versions(recipe, lake), start.fingerprint)
    work = _work(lake.path("train", "adapter", recipe.name, fingerprint))
    before = None if start.champion is None else start.champion.folder
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            recipe, lake, Path(base.path), before, Path(folder), work, lambda line: None, lambda step, metrics: None
        )


def seen_rows(folder: Path) -> pa.Table:
    """The rows that the adapter in ``folder`` was trained on, once each, with the schema SEEN_ROW.

    Rows that only an adapter has seen from which its training went on count too. Raises PipelineError when the folder
    does not say.
    """
    try:
        with pa.OSFile(str(folder / ROWS)) as file:
            return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(
            f"{folder / ROWS} cannot be read, so nobody can say on which rows that adapter was trained: {error}.",
            "Train the recipe again from its base ('start: base'), and register it.",
        ) from error


def _seen(own: pa.Table, champion: ChampionAdapter | None) -> pa.Table:
    """The rows trained on, and those that only the champion has seen from which the training went on."""
    if champion is None:
        return own
    through = seen_rows(champion.folder)
    through = through.filter(pc.invert(pc.is_in(through.column("row_id"), own.column("row_id").combine_chunks())))
    # What the champion has itself through another keeps that one's name.
    names = [name or champion.fingerprint for name in through.column("through").to_pylist()]
    through = through.drop_columns("through").append_column(SEEN_ROW.field("through"), pa.array(names, pa.string()))
    return pa.concat_tables([own, through])


def _company(seen: pa.Table) -> dict[str, Any]:
    """How many of the company's rows were seen, and how many of each landed file."""
    ours = seen.filter(pc.equal(seen.column("source"), "company"))
    files = Counter(ours.column("source_file_sha256").to_pylist())
    return {"rows": ours.num_rows, "files": [{"sha256": sha256, "rows": files[sha256]} for sha256 in sorted(files)]}


def _make_current(recipe: Recipe, fingerprint: str, lake: DataLake) -> None:
    write_json(lake.path("train", "adapter", f"{recipe.name}.json"), {"fingerprint": fingerprint})
    # Those of trainings on older data too: nobody goes on with them, and some may have seen what is to be forgotten.
    for work in lake.path("train", "adapter", recipe.name).glob(_work(Path("*")).name):
        remove_working_folder(work)


@contextmanager
def _alone_in(folder: Path) -> Iterator[tuple[Path, Path]]:
    """For this process alone: a folder that becomes the adapter's, and that of what its training needs to go on."""
    with working_folder(_work(folder)) as work:
        remove_leftovers(folder)
        with atomic_folder(folder) as temporary:
            yield temporary, work


def _work(folder: Path) -> Path:
    """Where the training that makes the adapter in ``folder`` keeps what it needs to go on."""
    return folder.with_name(folder.name + ".work")


def spool_of(recipe_name: str, fingerprint: str, lake: DataLake) -> Spool:
    """The spool of a training's live metrics."""
    return Spool(lake.path("train", "adapter", recipe_name, f"{fingerprint}.jsonl"))


def _verified(folder: Path) -> Adapter:
    return Adapter(folder, read_manifest(folder, "adapter"), read_json(folder / "metrics.json"))


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository
