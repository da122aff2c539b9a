"""The (Q)LoRA fine-tune of a recipe: one folder with a manifest, trained once for equal input."""

import importlib.metadata
import json
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import (
    DataLake,
    atomic_file,
    atomic_folder,
    digest,
    file_sha256,
    read_json,
    remove_leftovers,
    write_json,
)
from cs_pipeline.model import compute_type, hush, load_base, load_tokenizer
from cs_pipeline.prompt import EMBEDDED_TEMPLATE, Example
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.tracking import Spool, live
from cs_pipeline.train.base import Base, find_base
from cs_pipeline.train.manifest import NAME, read_manifest, write_manifest
from cs_pipeline.train.rows import training_rows

CODE_VERSION = "1"
"""Raised when this stage makes another adapter of the same input."""

VALIDATION_ROWS = 256
"""Rows of the validation split on which the loss is taken before and after; sorted by id, so as good as random."""

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


def adapter_fingerprint(recipe: Recipe, base: Base, data: dict[str, str]) -> str:
    """16 hex digits that stand for everything an adapter is made of."""
    return digest(recipe.fingerprint, base.sha256, data, CODE_VERSION, EMBEDDED_TEMPLATE)


def data_versions(recipe: Recipe, lake: DataLake) -> dict[str, str]:
    """sha256 of each thing in the lake that training reads."""
    versions = {name: file_sha256(lake.table("prepare", name)) for name in ("train_split", "validation_split")}
    if recipe.prompt.route == "intent":
        folder = lake.path("prepare", "intent_classifier")
        versions["intent_classifier"] = digest({path.name: file_sha256(path) for path in sorted(folder.iterdir())})
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

    Raises PipelineError when a file of it was changed, or when the base is not there.
    """
    fingerprint = adapter_fingerprint(recipe, find_base(recipe, lake), data_versions(recipe, lake))
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    if not (folder / NAME).exists():
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

    ``report`` gets log lines; metrics go to a spool beside the adapter and from there, live, to MLflow. Raises
    PipelineError when the base is not there, no row fits, the loss would see the wrong tokens, or the training diverges.
    """
    base = find_base(recipe, lake)
    data = data_versions(recipe, lake)
    fingerprint = adapter_fingerprint(recipe, base, data)
    folder = lake.path("train", "adapter", recipe.name, fingerprint)
    facts = {
        "recipe": recipe.name,
        "fingerprint": fingerprint,
        "base": base.facts(),
        "data": data,
        "seed": recipe.trainer.seed,
        "code_version": CODE_VERSION,
        "git_commit": _git_commit(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    spool = spool_of(recipe.name, fingerprint, lake)
    spool.clear()
    remove_leftovers(folder)
    with atomic_folder(folder) as temporary:
        with live(spool, lake, fingerprint, recipe.name):
            metrics = _train(recipe, lake, Path(base.path), temporary, report, spool.append)
        (temporary / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        write_json(temporary / "metrics.json", metrics)
        if recipe.prompt.route == "intent":
            # What answers questions must route them as training did, wherever the folder goes.
            shutil.copytree(lake.path("prepare", "intent_classifier"), temporary / "intent_classifier")
        write_manifest(temporary, facts)
    _make_current(recipe, fingerprint, lake)
    return _verified(folder)


def _make_current(recipe: Recipe, fingerprint: str, lake: DataLake) -> None:
    write_json(lake.path("train", "adapter", f"{recipe.name}.json"), {"fingerprint": fingerprint})


def spool_of(recipe_name: str, fingerprint: str, lake: DataLake) -> Spool:
    """The spool of a training's live metrics."""
    return Spool(lake.path("train", "adapter", recipe_name, f"{fingerprint}.jsonl"))


def _verified(folder: Path) -> Adapter:
    return Adapter(folder, read_manifest(folder, "adapter"), read_json(folder / "metrics.json"))


def _train(
    recipe: Recipe,
    lake: DataLake,
    base: Path,
    folder: Path,
    report: Callable[[str], None],
    on_metrics: Callable[[int, dict[str, float]], None],
) -> dict[str, Any]:
    hush()
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import PrinterCallback, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    t = recipe.trainer
    tokenizer = load_tokenizer(base)
    train, validation = (training_rows(recipe, lake, tokenizer, side) for side in ("train", "validation"))
    report(
        f"{len(train.examples):,} rows to train on, {train.too_long} left out as longer than {t.max_length} tokens; "
        "loss on answers and stop token alone: verified"
    )
    set_seed(t.seed)
    model = load_base(base, recipe.quantisation)
    model.config.use_cache = False
    if recipe.quantisation == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=t.gradient_checkpointing)
    lora = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules="all-linear" if recipe.lora.target_modules == "all-linear" else list(recipe.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    collate = _CountingCollator(DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id))
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(train.examples),
        eval_dataset=_dataset(sorted(validation.examples[:VALIDATION_ROWS], key=lambda e: len(e.input_ids))),
        data_collator=collate,
        callbacks=[_progress(report, on_metrics, collate)],
        args=SFTConfig(
            output_dir=str(folder / "trainer"),
            max_steps=t.steps or -1,
            num_train_epochs=t.epochs or 1,
            learning_rate=t.learning_rate,
            lr_scheduler_type=t.scheduler,
            warmup_steps=t.warmup_share,
            weight_decay=t.weight_decay,
            optim=t.optimizer,
            per_device_train_batch_size=t.batch_size,
            per_device_eval_batch_size=t.batch_size,
            gradient_accumulation_steps=t.accumulation,
            activation_checkpointing=t.gradient_checkpointing,
            train_sampling_strategy="group_by_length",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=t.seed,
            data_seed=t.seed,
            bf16=compute_type() == torch.bfloat16,
            fp16=compute_type() == torch.float16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
    )
    trainer.remove_callback(PrinterCallback)  # our own lines say the same for people
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL keeps the adapter of a 4-bit base in bfloat16, where AdamW's small steps round to nothing, and which
            # a CPU computes slowly.
            parameter.data = parameter.data.float()
    before = trainer.evaluate()["eval_loss"]
    collate.reset()
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    real, padded = collate.real, collate.padded
    after = trainer.evaluate()["eval_loss"]
    _finite(recipe.name, before=before, after=after)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's card holds this machine's paths
    _portable(folder / "adapter_config.json", recipe)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    curve = [{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e]
    return {
        "rows": len(train.examples),
        "rows_too_long": train.too_long,
        "steps": trainer.state.global_step,
        "validation_loss_before": before,
        "validation_loss_after": after,
        "seconds": seconds,
        "tokens_per_second": real / seconds,
        "real_token_share": real / padded,
        "peak_memory_gib": _peak_memory_gib(),
        "trainable_parameters": trainable,
        "loss": curve,
    }


class _CountingCollator:
    """Counts the tokens of each batch that are text, and those that padding makes of them."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate
        self.reset()

    def reset(self) -> None:
        self.real = self.padded = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        self.real += sum(len(row["input_ids"]) for row in rows)
        self.padded += batch["input_ids"].numel()
        return batch


def _progress(
    report: Callable[[str], None], on_metrics: Callable[[int, dict[str, float]], None], collate: _CountingCollator
) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = self.said = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs: dict[str, float] = kwargs["logs"]
            if "loss" not in logs:
                return
            on_metrics(state.global_step, {k: logs[k] for k in ("loss", "learning_rate", "grad_norm") if k in logs})
            now = time.monotonic()
            if now - self.said > 5 or state.global_step == state.max_steps:
                self.said = now
                rate = state.global_step / (now - self.started)
                report(
                    f"adapter step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}, "
                    f"{collate.real / (now - self.started):,.0f} tokens/s, "
                    f"{(state.max_steps - state.global_step) / rate:.0f} s left"
                )

    return Progress()


def _dataset(examples: list[Example]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})


def _finite(recipe: str, **losses: float) -> None:
    for name, loss in losses.items():
        if not loss < float("inf"):
            raise PipelineError(
                f"The validation loss {name} training is {loss}: the recipe '{recipe}' diverged.",
                "Lower trainer.learning_rate, or train without nf4 to see whether quantisation is the reason.",
            )


def _portable(config: Path, recipe: Recipe) -> None:
    """The adapter's config names its base by repo or source, not by a path of this machine."""
    facts = json.loads(config.read_text())
    facts["base_model_name_or_path"] = recipe.base.repo if recipe.base.source == "hub" else recipe.base.source
    with atomic_file(config) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, sort_keys=True))


def _peak_memory_gib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository
