"""The training loop of the (Q)LoRA fine-tune: rows in, adapter weights and figures out."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, atomic_file
from cs_pipeline.model import compute_type, hush, load_tokenizer
from cs_pipeline.prompt import Example
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.learner import in_full_precision, learner
from cs_pipeline.train.rows import training_rows


def fine_tune(
    recipe: Recipe,
    lake: DataLake,
    base: Path,
    start: Path | None,
    folder: Path,
    report: Callable[[str], None],
    on_metrics: Callable[[int, dict[str, float]], None],
) -> tuple[dict[str, Any], pa.Table]:
    """Trains on ``base``, from the adapter in ``start`` if there is one, and writes weights and tokenizer to ``folder``.

    Returns the figures, and the rows it was trained on with the schema SEEN. Raises PipelineError when no row fits, the
    loss would see the wrong tokens, ``start`` does not fit, or the training diverges.
    """
    hush()
    import torch
    from transformers import PrinterCallback, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    t = recipe.trainer
    tokenizer = load_tokenizer(base)
    train, validation = (training_rows(recipe, lake, tokenizer, side) for side in ("train", "validation"))
    company = train.seen.column("source").to_pylist().count("company")
    report(
        f"{len(train.examples):,} rows to train on, made of {train.seen.num_rows:,} different ones, {company:,} of them the "
        f"company's; {train.too_long} left out as longer than {t.max_length} tokens, {train.shortened} without their "
        "oldest turns; loss on answers and stop token alone: verified"
    )
    set_seed(t.seed)
    model = learner(recipe, base, start)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    collate = _CountingCollator(DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id))
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(train.examples),
        eval_dataset=_dataset(sorted(validation.examples, key=len)),
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
    in_full_precision(model)
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
    figures = {
        "rows": len(train.examples),
        "rows_different": train.seen.num_rows,
        "rows_of_company": company,
        "rows_too_long": train.too_long,
        "rows_shortened": train.shortened,
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
    return figures, train.seen


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
