"""Trains adapters. Each is a folder with a manifest. If the input is the same, the existing adapter is reused.

The adapter of a look-up has no weights. Its folder holds the look-up's settings and threshold, so that it is evaluated,
registered and served like every other adapter.
"""

import importlib.metadata
import logging
import shutil
import subprocess
import tempfile
import time
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
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.llm.base import NO_BASE, Base, find_base
from cs_pipeline.llm.prompt import RETRIEVED_TEXT_FORMAT
from cs_pipeline.recipe import (
    CascadeRecipe,
    FineTuneRecipe,
    LookupRecipe,
    Recipe,
    load_fine_tune_recipe,
    read_recipe,
)
from cs_pipeline.retrieval.index import index_version
from cs_pipeline.retrieval.lookup import lookup_threshold, write_threshold
from cs_pipeline.retrieval.retrieve import is_conversation_known, open_index
from cs_pipeline.retrieval.router import OWN_ROUTER, router_folder
from cs_pipeline.tracking import Spool, stream_metrics
from cs_pipeline.train.rows import OUT_OF_SCOPE, OUT_OF_SCOPE_FILE
from cs_pipeline.train.trainer.checkpoints import remove_working_folder, working_folder
from cs_pipeline.train.warm_start import ChampionAdapter, TrainingStart, find_training_start

logger = logging.getLogger(__name__)

SEEN_ROWS_FILE = "rows.parquet"
"""The file in an adapter's folder that lists the rows it was trained on."""

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class Adapter:
    """A finished adapter: its folder, manifest and metrics."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def is_lookup(self) -> bool:
        """Whether it has no weights: a look-up."""
        return bool(self.manifest["base"]["source"] == NO_BASE.source)


def adapter_fingerprint(recipe: FineTuneRecipe, base: Base, data: dict[str, str], warm_start: str | None) -> str:
    """A hash (16 hex digits) of everything an adapter is made from. ``warm_start`` is its parent's fingerprint, if any."""
    text_format = () if recipe.prompt.retrieve is None else (RETRIEVED_TEXT_FORMAT,)
    return digest(
        recipe.fingerprint,
        base.sha256,
        data,
        warm_start,
        CODE_VERSIONS["adapter"],
        recipe.prompt.template_text(),
        *text_format,
    )


def data_versions(recipe: Recipe, lake: DataLake) -> dict[str, str]:
    """The sha256 of each table and file that ``recipe`` is trained on, and the index version if it retrieves.

    The entry ``own_conversations`` says that no row retrieves an answer of its own conversation. It is left out where
    that makes no difference to any prompt.
    """
    versions = {name: file_sha256(lake.table("prepare", name)) for name in ("train_split", "validation_split")}
    if _has_own_router(recipe):
        versions["router"] = digest({path.name: file_sha256(path) for path in sorted(router_folder(lake).iterdir())})
    if recipe.prompt.retrieve is not None:
        versions["retrieval_index"] = index_version(lake)
        if is_conversation_known(lake):  # earlier releases retrieved these rows too
            versions["own_conversations"] = "left out"
    if isinstance(recipe, FineTuneRecipe) and recipe.mixture.out_of_scope:
        versions[OUT_OF_SCOPE] = file_sha256(OUT_OF_SCOPE_FILE)
    return versions


def _inputs(recipe: FineTuneRecipe, lake: DataLake) -> tuple[Base, dict[str, str], TrainingStart, str]:
    """The inputs of a training run that begins now (base, data versions, start), and its adapter's fingerprint."""
    base, data = find_base(recipe, lake), data_versions(recipe, lake)
    start = find_training_start(recipe, base, lake)
    return base, data, start, adapter_fingerprint(recipe, base, data, start.fingerprint)


def current_adapter(recipe_name: str, lake: DataLake) -> Adapter:
    """The recipe's latest adapter, with its files verified against the manifest.

    Raises PipelineError if there is none, or if one of its files has changed.
    """
    pointer = _pointer(recipe_name, lake)
    if not pointer.exists():
        raise PipelineError(
            f"{pointer} is missing: the recipe '{recipe_name}' has no trained adapter in this lake.",
            f"Materialise 'adapter' for the partition '{recipe_name}'.",
        )
    folder = lake.path("train", "adapter", recipe_name, read_json(pointer)["fingerprint"])
    return _verified(folder)


def _pointer(recipe_name: str, lake: DataLake) -> Path:
    """The file that names the recipe's current adapter."""
    return lake.path("train", "adapter", f"{recipe_name}.json")


def find_adapter(recipe: Recipe, lake: DataLake) -> Adapter | None:
    """The adapter that was already trained on equal input, or None. It becomes the recipe's current adapter.

    A look-up needs no training, so its adapter is built if there is none. Raises PipelineError if one of the adapter's files
    has changed, if the base is missing, if the champion to start from does not fit, or if a cascade's model is not
    trained; also as ``build_lookup`` does.
    """
    if isinstance(recipe, LookupRecipe):
        return build_lookup(recipe, lake)
    if isinstance(recipe, CascadeRecipe):
        return find_stored(recipe, cascade_fingerprint(recipe, lake), lake)
    assert isinstance(recipe, FineTuneRecipe)
    base, data, start, fingerprint = _inputs(recipe, lake)
    if start.champion is not None:
        same_parent = adapter_fingerprint(recipe, base, data, start.champion.parent)
        if same_parent == start.champion.fingerprint:
            # The champion was trained with this recipe on this data; starting from it would train on the same data again.
            fingerprint = same_parent
    return find_stored(recipe, fingerprint, lake)


def cascade_fingerprint(recipe: CascadeRecipe, lake: DataLake) -> str:
    """A hash (16 hex digits) of everything a cascade is made from, including its model's current adapter.

    Raises PipelineError as ``model_adapter`` does.
    """
    model = model_adapter(recipe, lake).fingerprint
    return digest(recipe.fingerprint, data_versions(recipe, lake), model, CODE_VERSIONS["adapter"])


def model_adapter(recipe: CascadeRecipe, lake: DataLake) -> Adapter:
    """The current adapter of the cascade's model.

    Raises PipelineError if it is missing or changed, or if it was trained on rows that must be forgotten.
    """
    load_fine_tune_recipe(recipe.model)
    fix = f"Train the model first: cs-pipeline demo --recipe {recipe.model}, then repeat this for '{recipe.name}'."
    if not _pointer(recipe.model, lake).exists():
        raise PipelineError(
            f"The cascade '{recipe.name}' needs a model: '{recipe.model}' has no trained adapter in this lake.", fix
        )
    adapter = current_adapter(recipe.model, lake)
    if has_seen_forgotten_rows(adapter, lake):
        raise PipelineError(
            f"The model '{recipe.model}' of the cascade '{recipe.name}' was trained on rows that must be forgotten.",
            fix,
        )
    return adapter


def has_seen_forgotten_rows(adapter: Adapter, lake: DataLake) -> bool:
    """Whether ``adapter`` was trained on rows of the company that have since been forgotten."""
    if not adapter.manifest["company"]["rows"]:
        return False
    with Ledger(lake) as ledger:
        tombstones = ledger.tombstones()
    seen = seen_rows(adapter.folder)
    return any(
        not ids.isdisjoint(seen.column(name).to_pylist())
        for name, ids in (("row_id", tombstones.rows), ("subject_id", tombstones.subjects))
    )


def find_stored(recipe: Recipe, fingerprint: str, lake: DataLake) -> Adapter | None:
    """The adapter in the lake with this ``fingerprint``, or None. It becomes the recipe's current adapter."""
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    if not (folder / MANIFEST_NAME).exists():
        return None
    adapter = _verified(folder)
    _make_current(recipe, fingerprint, lake)
    return adapter


def build_lookup(
    recipe: LookupRecipe, lake: DataLake, report: Callable[[str], None] = logger.info, *, force: bool = False
) -> Adapter:
    """Chooses a look-up's threshold on the validation questions. Its adapter becomes the recipe's current one.

    An adapter of the same input is reused unless ``force`` is set. An adapter contains no known answers: those come from the
    current retrieval index, so no version has to be withdrawn when a conversation is forgotten. Raises PipelineError if the
    index is missing or damaged, or if there are no validation questions.
    """
    data = data_versions(recipe, lake)
    fingerprint = digest(recipe.fingerprint, data, CODE_VERSIONS["adapter"])
    if not force and (stored := find_stored(recipe, fingerprint, lake)) is not None:
        return stored
    started = time.monotonic()
    index = open_index(recipe, lake)
    assert index is not None  # a look-up retrieves
    threshold, questions = lookup_threshold(recipe, index, lake)
    known = index.answer_count
    report(
        f"{known:,} known answers; the look-up answers at a similarity of {threshold:.3f} or more, chosen with "
        f"{questions:,} validation questions"
    )
    metrics = {
        "rows": known,
        "validation_questions": questions,
        "min_similarity": threshold,
        "seconds": time.monotonic() - started,
    }
    start = TrainingStart(None, "a look-up is not trained")
    facts = {"base": NO_BASE.facts(), "start": start.facts(), "seed": None, "min_similarity": threshold}
    with new_adapter(recipe, lake, fingerprint, facts, metrics, SEEN_ROW.empty_table()) as temporary:
        write_threshold(temporary, threshold)
    return current_adapter(recipe.name, lake)


@contextmanager
def new_adapter(
    recipe: Recipe, lake: DataLake, fingerprint: str, facts: dict[str, Any], metrics: dict[str, Any], seen: pa.Table
) -> Iterator[Path]:
    """A temporary folder for the caller's files. It becomes the recipe's current adapter if no exception is raised.

    ``facts`` are base, start and seed for the manifest. ``seen`` lists the rows that were trained on (schema SEEN_ROW).
    """
    with atomic_folder(lake.path("train", "adapter", recipe.name, fingerprint)) as temporary:
        yield temporary
        _finish(temporary, recipe, lake, seen, metrics, fingerprint, data_versions(recipe, lake), facts)
    _make_current(recipe, fingerprint, lake)


def base_of_adapter(adapter: Adapter, recipe: Recipe, lake: DataLake) -> Path | None:
    """The path of the base that ``adapter`` was trained on; None for a look-up.

    Raises PipelineError if ``recipe`` or its base has changed since, or if the base is missing.
    """
    compared = [("recipe", recipe.fingerprint, read_recipe(adapter.folder / "recipe.yaml").fingerprint)]
    base = find_base(recipe, lake)
    compared.append(("base model", base.sha256, adapter.manifest["base"]["sha256"]))
    for what, now, then in compared:
        if now != then:
            raise PipelineError(
                f"The {what} of '{recipe.name}' has changed since its adapter {adapter.fingerprint} was trained.",
                f"Materialise 'adapter' for the partition '{recipe.name}' again.",
            )
    return None if base is NO_BASE else Path(base.path)


def train_adapter(recipe: FineTuneRecipe, lake: DataLake, report: Callable[[str], None]) -> Adapter:
    """Trains the adapter of ``recipe`` and makes it the recipe's current one.

    An interrupted training with equal input is resumed. ``report`` gets log lines; metrics go to a spool beside the adapter
    and from there to MLflow while it trains. Raises PipelineError if the base is missing, the champion to start from does
    not fit, another process trains the same adapter, or ``fine_tune`` fails.
    """
    from cs_pipeline.train.finetune import fine_tune  # imports torch, which most readers of adapters do not need

    base, data, start, fingerprint = _inputs(recipe, lake)
    report(f"training starts {start.why}")
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    facts = {"base": base.facts(), "start": start.facts(), "seed": recipe.trainer.seed}
    spool = metrics_spool(recipe.name, fingerprint, lake)
    with _locked_folders(folder) as (temporary, work):
        with stream_metrics(spool, lake, fingerprint, recipe.name):
            champion = None if start.champion is None else start.champion.folder
            metrics, own = fine_tune(recipe, lake, Path(base.path), champion, temporary, work, report, spool.append)
        seen = _all_seen(own, start.champion)
        _finish(temporary, recipe, lake, seen, metrics, fingerprint, data, facts)
    _make_current(recipe, fingerprint, lake)
    return _verified(folder)


def _finish(
    folder: Path,
    recipe: Recipe,
    lake: DataLake,
    seen: pa.Table,
    metrics: dict[str, Any],
    fingerprint: str,
    data: dict[str, str],
    facts: dict[str, Any],
) -> None:
    """Writes the files that every adapter has: rows, recipe, metrics, the router if it needs one, and last the manifest."""
    check_schema(seen, SEEN_ROW, SEEN_ROWS_FILE)
    pq.write_table(seen, folder / SEEN_ROWS_FILE, compression="zstd")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    write_json(folder / "metrics.json", metrics)
    if _has_own_router(recipe):
        shutil.copytree(router_folder(lake), folder / OWN_ROUTER)
    write_manifest(
        folder,
        {
            "recipe": recipe.name,
            "fingerprint": fingerprint,
            "data": data,
            "code_version": CODE_VERSIONS["adapter"],
            "git_commit": _git_commit(),
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "company": _company_rows(seen),
            **facts,
        },
    )


def _has_own_router(recipe: Recipe) -> bool:
    """Whether the adapter of ``recipe`` has a copy of the router.

    The prompts of a fine-tune must name the intents that it was trained with. A look-up, including that of a cascade,
    uses the lake's current router and index. The model of a cascade has its own copy.
    """
    return isinstance(recipe, FineTuneRecipe) and recipe.prompt.route == "intent"


def train_as_worker(recipe: FineTuneRecipe, lake: DataLake) -> None:
    """Runs the steps of ``train_adapter`` in the other processes of a training run. Writes nothing."""
    from cs_pipeline.train.finetune import fine_tune

    base, _, start, fingerprint = _inputs(recipe, lake)
    work = _work_folder(lake.path("train", "adapter", recipe.name, fingerprint))
    champion = None if start.champion is None else start.champion.folder
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            recipe, lake, Path(base.path), champion, Path(folder), work, lambda line: None, lambda step, metrics: None
        )


def seen_rows(folder: Path) -> pa.Table:
    """The rows that the adapter in ``folder`` was trained on, once each, with the schema SEEN_ROW.

    They include the rows of the adapters that it was warm-started from. Raises PipelineError if the list cannot be read.
    """
    try:
        with pa.OSFile(str(folder / SEEN_ROWS_FILE)) as file:
            return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(
            f"{folder / SEEN_ROWS_FILE} cannot be read, so it is unknown which rows that adapter was trained on: {error}.",
            "Train the recipe again from its base ('start: base'), and register it.",
        ) from error


def _all_seen(own: pa.Table, champion: ChampionAdapter | None) -> pa.Table:
    """The ``own`` rows of a training run, and the other rows seen by the champion that it started from."""
    if champion is None:
        return own
    inherited = seen_rows(champion.folder)
    inherited = inherited.filter(pc.invert(pc.is_in(inherited.column("row_id"), own.column("row_id").combine_chunks())))
    # Rows that the champion inherited keep the fingerprint of the adapter that was trained on them.
    through = pa.array([name or champion.fingerprint for name in inherited.column("through").to_pylist()], pa.string())
    inherited = inherited.drop_columns("through").append_column(SEEN_ROW.field("through"), through)
    return pa.concat_tables([own, inherited])


def _company_rows(seen: pa.Table) -> dict[str, Any]:
    """The number of company rows seen, in total and by landed file."""
    company = seen.filter(pc.equal(seen.column("source"), "company"))
    files = Counter(company.column("source_file_sha256").to_pylist())
    return {"rows": company.num_rows, "files": [{"sha256": sha256, "rows": files[sha256]} for sha256 in sorted(files)]}


def _make_current(recipe: Recipe, fingerprint: str, lake: DataLake) -> None:
    write_json(_pointer(recipe.name, lake), {"fingerprint": fingerprint})
    # Working folders of training on older data are removed too: they are never resumed and may contain forgotten rows.
    for work in lake.path("train", "adapter", recipe.name).glob(_work_folder(Path("*")).name):
        remove_working_folder(work)


@contextmanager
def _locked_folders(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary folder that becomes ``folder``, and the working folder of its training, locked for this process."""
    with working_folder(_work_folder(folder)) as work:
        remove_leftovers(folder)
        with atomic_folder(folder) as temporary:
            yield temporary, work


def _work_folder(folder: Path) -> Path:
    """The working folder, with the checkpoints, of the training of the adapter in ``folder``."""
    return folder.with_name(folder.name + ".work")


def metrics_spool(recipe_name: str, fingerprint: str, lake: DataLake) -> Spool:
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
