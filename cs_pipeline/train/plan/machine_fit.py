"""Whether a recipe fits a machine: disk, memory, time and licence, before anything is fetched or trained."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import Finding, PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.hub import SPARE, cache_folder, cached
from cs_pipeline.recipe import HubBase, Recipe
from cs_pipeline.train.plan.estimate import Estimate, estimate, shape_of, to_fetch

ERROR = 0.15
"""Relative error of the estimated memory. Against the peak of real steps on a CPU (Llama and phi, 12 layers of width 512,
five settings) it was off by -11 % to +6 %; on a GPU it has not been compared."""
OVERHEAD = {"cpu": 1_200_000_000, "cuda": 1_000_000_000}
"""Bytes of the libraries in a training process (measured on a CPU), of a CUDA context and its libraries (assumed)."""
TOKENS_A_ROW = 170
"""Question and answer have 136 to 151 tokens on average over the Bitext rows, by the tokenizers of eight families; the
rest is a template."""
TOKENS_FOUND = 150
"""What a found text adds: about an answer's tokens, and a passage of at most 600 characters has no more."""
BITEXT_ROWS = 24_185
"""Training rows of the whole Bitext file, nine in ten of 26,872, where the lake has no split to count."""
REACHED = 0.4
"""Share of a bare matrix product's rate that a training reaches: assumed, so hours are good to a factor of two or three;
small models reach less."""
LONGEST = 48.0
"""Hours after which dagster.yaml ends a run (run_monitoring)."""


@dataclass(frozen=True)
class Machine:
    """Where a training would run: bytes of ``memory`` that it may take, of the numbers it computes in (``compute``), of
    ``disk`` that are free where the hub's cache lies; ``rate`` in operations a second."""

    name: str
    kind: str
    memory: float
    compute: int
    disk: float
    rate: float


def this_machine() -> Machine:
    """This machine's GPU, or its processor; its rate is measured for a fraction of a second."""
    import torch

    from cs_pipeline.llm.model import compute_type

    place = cache_folder()
    disk = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    compute = compute_type()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Machine(gpu.name, "cuda", gpu.total_memory, compute.itemsize, disk, _rate("cuda", 4096))
    return Machine("this processor", "cpu", memory_available(), compute.itemsize, disk, _rate("cpu", 1024))


def memory_available() -> float:
    """Bytes that a new process may take: of the machine, and of this container's share where it is one."""
    import psutil

    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    memory = psutil.virtual_memory()
    return float(memory.available if text == "max" else min(memory.available, int(text)))


def check_machine(recipe: Recipe, lake: DataLake, machine: Machine) -> list[Finding]:
    """What a training by ``recipe`` would need of ``machine``; nothing is fetched for it.

    A base whose shape is not known before its config.json is fetched gives a note instead of figures.
    """
    findings = [_licence(recipe), _download(recipe, machine)]
    shape = shape_of(recipe.base)
    if shape is None:
        what = "The shape of this base is not known here before it is fetched"
        return [*findings, Finding("memory", "note", what, "It is estimated after the download, before the training.")]
    found = estimate(recipe, shape, machine.compute)
    return [*findings, _memory(recipe, shape, found, machine), _time(recipe, lake, found, machine)]


def refuse(findings: list[Finding]) -> None:
    """Raises PipelineError with all that is a problem among ``findings``."""
    problems = [finding for finding in findings if finding.status == "problem"]
    if problems:
        raise PipelineError(
            "This recipe does not fit this machine: " + "; ".join(f"{p.name}: {p.what}" for p in problems) + ".",
            " ".join(str(p.fix) for p in problems),
        )


def needed(found: Estimate, machine: Machine) -> float:
    """Bytes of memory at the peak, the libraries' own included."""
    return found.memory.total + OVERHEAD[machine.kind]


def hours(recipe: Recipe, rows: int, found: Estimate, rate: float) -> float:
    """Hours of training on ``rows`` rows."""
    trainer = recipe.trainer
    if trainer.max_steps is not None:
        seen = float(trainer.max_steps * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps)
    else:
        seen = min(rows, recipe.train_rows or rows) * float(trainer.num_train_epochs or 0)
    wanted = recipe.prompt.retrieve
    tokens = TOKENS_A_ROW + (0 if wanted is None else TOKENS_FOUND * (wanted.answers + wanted.passages))
    return seen * min(tokens, trainer.max_length) * found.operations / (rate * REACHED) / 3600


def _licence(recipe: Recipe) -> Finding:
    base = recipe.base
    if not isinstance(base, HubBase):
        return Finding("base", "ok", "it is not the hub's: its licence is yours to know")
    what = f"{base.repo}, licence {base.licence}"
    if not base.gated or cached(base) is not None:
        return Finding("base", "ok", f"{what}, {'gated, and here already' if base.gated else 'open to everybody'}")
    if os.environ.get("HF_TOKEN"):
        return Finding(
            "base", "ok", f"{what}, gated; HF_TOKEN is set, and must be of an account that accepted the licence"
        )
    fix = f"Accept the licence at https://huggingface.co/{base.repo}, then set HF_TOKEN to a token of that account."
    return Finding("base", "problem", f"{what}, gated, and HF_TOKEN is not set", fix)


def _download(recipe: Recipe, machine: Machine) -> Finding:
    size = to_fetch(recipe.base)
    if size is None:
        return Finding("download", "note", "its size is not known before the hub is asked", "Look at the model's page.")
    if size == 0:
        return Finding("download", "ok", "nothing: the base is here or made here")
    what = f"{size / 1e9:,.1f} GB into {cache_folder()}, where {machine.disk / 1e9:,.1f} GB are free"
    if size + SPARE > machine.disk:
        return Finding("download", "problem", what, "Free the disk, or set HF_HOME to a folder on a larger one.")
    return Finding("download", "ok", what)


def _memory(recipe: Recipe, shape: dict[str, Any], found: Estimate, machine: Machine) -> Finding:
    takes, has = needed(found, machine), machine.memory
    parts = found.memory
    what = (
        f"about {takes / 1e9:.1f} GB at the peak (base {parts.weights / 1e9:.1f}, trained {parts.trained / 1e9:.1f}, "
        f"activations {parts.activations / 1e9:.1f}, logits {parts.logits / 1e9:.1f}) of {has / 1e9:.1f} on {machine.name}"
    )
    if takes * (1 + ERROR) <= has:
        return Finding("memory", "ok", what)
    smaller = _smaller(recipe, shape, machine)
    return Finding("memory", "note" if takes * (1 - ERROR) <= has else "problem", what, smaller)


def _smaller(recipe: Recipe, shape: dict[str, Any], machine: Machine) -> str:
    """The fewest changes, in the order of what they cost, after which the recipe fits with room to spare."""
    said: dict[str, str] = {}
    for keys, changed in _changes(recipe):
        said |= keys
        if needed(estimate(changed, shape, machine.compute), machine) * (1 + ERROR) <= machine.memory:
            return f"Put into the recipe: {', '.join(f'{key}: {value}' for key, value in said.items())}."
    return "No setting makes it fit: take a recipe with a smaller base, or a machine with more memory."


def _changes(recipe: Recipe) -> Iterator[tuple[dict[str, str], Recipe]]:
    """Ever smaller recipes, each with the keys that were changed last."""

    def trainer(**values: Any) -> Recipe:
        return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=values)})

    if not recipe.trainer.gradient_checkpointing:
        recipe = trainer(gradient_checkpointing=True)
        yield {"trainer.gradient_checkpointing": "true"}, recipe
    batch, accumulation = recipe.trainer.per_device_train_batch_size, recipe.trainer.gradient_accumulation_steps
    while batch > 1 and batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        recipe = trainer(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        yield (
            {
                "trainer.per_device_train_batch_size": str(batch),
                "trainer.gradient_accumulation_steps": str(accumulation),
            },
            recipe,
        )
    if recipe.trainer.max_length > 512:
        recipe = trainer(max_length=512)
        yield {"trainer.max_length": "512"}, recipe
    if recipe.quantization == "none" and recipe.lora is not None:
        recipe = recipe.model_copy(update={"quantization": "nf4"})
        yield {"quantization": "nf4"}, recipe


def _time(recipe: Recipe, lake: DataLake, found: Estimate, machine: Machine) -> Finding:
    takes = hours(recipe, _rows(lake), found, machine.rate)
    shown = f"{takes * 60:,.0f} minutes" if takes < 2 else f"{takes:,.0f} hours"
    what = (
        f"about {shown} of training, good to a factor of two or three: {found.operations / 1e9:,.1f} billion operations "
        f"a token at {REACHED:.0%} of the {machine.rate / 1e12:,.2f} TFLOP/s of a matrix product here"
    )
    if takes <= LONGEST:
        return Finding("time", "ok", what)
    fix = f"Dagster ends a run after {LONGEST:.0f} hours: a faster machine, a smaller base, fewer epochs or train_rows."
    return Finding("time", "problem" if takes > 3 * LONGEST else "note", what, fix)


def _rows(lake: DataLake) -> int:
    path = lake.table("prepare", "train_split")
    if not path.exists():
        return BITEXT_ROWS
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _rate(device: str, size: int) -> float:
    """Operations a second of a square matrix product, the best of several."""
    import torch

    from cs_pipeline.llm.model import compute_type

    matrix = torch.randn(size, size, device=device, dtype=compute_type())
    best, end = float("inf"), time.monotonic() + 0.3
    while time.monotonic() < end:
        start = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
