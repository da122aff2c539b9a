"""The fine-tune of a recipe: rows in, trained weights and figures out, whatever interrupts it on the way."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.core.schema import IN_PROMPT
from cs_pipeline.llm.model import hush, load_chat, memory_used
from cs_pipeline.llm.prompt import ChatFormat
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.rows import TrainingRows, training_rows
from cs_pipeline.train.trainer.checkpoints import Checkpoints
from cs_pipeline.train.trainer.distributed import highest, processes, rank, rows_at_once, total
from cs_pipeline.train.trainer.hardware import Hardware, hardware_of
from cs_pipeline.train.trainer.peft_model import build_peft_model, in_full_precision, save_peft_model, trainer_parts
from cs_pipeline.train.trainer.stopping import Request, StoppedError, noted

if TYPE_CHECKING:
    from cs_pipeline.train.trainer.resumable import Resumable


def fine_tune(
    recipe: Recipe,
    lake: DataLake,
    base: Path,
    start: Path | None,
    folder: Path,
    work: Path,
    report: Callable[[str], None],
    on_metrics: Callable[[int, dict[str, float]], None],
) -> tuple[dict[str, Any], pa.Table]:
    """Trains on ``base``, from the adapter in ``start`` if there is one, and writes weights and tokenizer to ``folder``.

    ``work`` keeps the checkpoints: called again with equal arguments, the training goes on from the newest. A micro-batch
    that memory cannot hold is halved; the rows of each step stay the same. Returns the figures, and the rows it was trained
    on with the schema SEEN_ROW. Raises PipelineError when no row fits, the loss would see the wrong tokens, ``start`` does not
    fit, memory does not suffice for a single row, the training diverges, or somebody asked it to stop.
    """
    from cs_pipeline.train.trainer.progress import DivergedError

    hush()
    chat = load_chat(recipe, base, None)
    train, validation = (training_rows(recipe, lake, chat, side) for side in ("train", "validation"))
    own = train.seen.filter(pc.not_equal(train.seen.column("through"), IN_PROMPT))
    company = own.column("source").to_pylist().count("company")
    report(
        f"{len(train.examples):,} rows to train on, made of {own.num_rows:,} different ones, {company:,} of them the "
        f"company's; {train.too_long} left out as longer than {recipe.trainer.max_length} tokens, {train.shortened} without "
        f"their oldest turns; {train.found_left_out:,} of {train.found:,} found texts left out; {train.rewritten:,} hold "
        f"characters that the tokenizer lacks and that are spelt instead, {train.spelt:.1%} of all; loss on answers and "
        "stop token alone: verified"
    )
    training = _Training(recipe, chat, base, start, train, validation, work, report, on_metrics)
    attempts = _begun(recipe, work)
    while True:
        try:
            figures, model = training.attempt(attempts)
            break
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            attempts = _halved(recipe, _begun(recipe, work), work, report)
        except DivergedError:
            training.checkpoints.discard()  # from there it would diverge again
            raise
        # Only here, where nothing holds on to the failed attempt any more.
        gc.collect()
        _empty_cache()
    save_peft_model(model, recipe, folder)
    chat.tokenizer.save_pretrained(folder)
    counts = {
        "rows": len(train.examples),
        "rows_different": own.num_rows,
        "rows_of_company": company,
        "rows_too_long": train.too_long,
        "rows_shortened": train.shortened,
        "found_texts": train.found,
        "found_texts_left_out": train.found_left_out,
        "rows_retold": train.retold,
        "rows_rewritten": train.rewritten,
        "spelt_share": train.spelt,
    }
    return counts | figures, train.seen


@dataclass(frozen=True)
class _Attempts:
    """What became of a training so far.

    ``micro`` rows are computed at once in each process; so many as in ``too_large`` were too much for its memory. It went on
    from the checkpoints of the steps ``resumed_from``.
    """

    micro: int
    too_large: list[int]
    resumed_from: list[int]


@dataclass(frozen=True)
class _Training:
    recipe: Recipe
    chat: ChatFormat
    base: Path
    start: Path | None
    train: TrainingRows
    validation: TrainingRows
    work: Path
    report: Callable[[str], None]
    on_metrics: Callable[[int, dict[str, float]], None]

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.work, self.report)

    def attempt(self, attempts: _Attempts) -> tuple[dict[str, Any], Any]:
        """Trains from the newest checkpoint, or from the beginning, to the end; the figures, and the model at its best."""
        from transformers import set_seed

        from cs_pipeline.train.trainer.resumable import training_history
        from cs_pipeline.train.trainer.schedule import best_step, is_over

        t = self.recipe.trainer
        # The first process looks, and sets broken ones aside; the others take the same.
        step = int(total((self.checkpoints.newest() or 0) if rank() == 0 else 0)[0])
        checkpoint = self.checkpoints.at(step) if step else None
        if step:
            self.report(f"goes on from the checkpoint of step {step}")
            attempts = replace(attempts, resumed_from=[*attempts.resumed_from, step])
            if rank() == 0:
                write_json(self.work / _ATTEMPTS, asdict(attempts))
        set_seed(t.seed)
        model = build_peft_model(self.recipe, self.base, self.start)
        request = Request()
        speed = hardware_of(self.recipe, model)
        speed.take_up(model)
        self.report(speed.line())
        trainer = self._trainer(model, attempts.micro, speed, request, fresh=not step)
        in_full_precision(model)
        if checkpoint is not None and is_over(t, training_history(checkpoint)):
            trainer.take_over(checkpoint)
        else:
            with noted(request):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if not is_over(t, trainer.state):
            raise StoppedError(
                f"Stopped by {request.signal or 'another process'} after step {trainer.state.global_step} of "
                f"{trainer.state.max_steps}; everything up to there is kept.",
                "Start the same training again: it goes on from there.",
            )
        best = best_step(trainer.state)
        if best and best != trainer.state.global_step:
            trainer.load_weights(self.checkpoints.at(best))
        return self._figures(trainer, attempts, speed), model

    def _trainer(self, model: Any, micro: int, speed: Hardware, request: Request, *, fresh: bool) -> "Resumable":
        from datasets import Dataset
        from transformers import PrinterCallback

        from cs_pipeline.train.trainer.batches import Batches
        from cs_pipeline.train.trainer.progress import Meter, Progress
        from cs_pipeline.train.trainer.resumable import Material, Resumable
        from cs_pipeline.train.trainer.schedule import Schedule

        t, meter, parts = self.recipe.trainer, Meter(), trainer_parts(self.chat, speed.packing)

        def batches(rows: TrainingRows, at_once: int) -> Batches:
            return Batches([len(e) for e in rows.examples], at_once, micro, t.seed, rank(), processes())

        material = Material(
            self.train.examples,
            self.validation.examples,
            batches(self.train, t.per_device_train_batch_size * t.gradient_accumulation_steps),
            batches(self.validation, len(self.validation.examples)),
            self.checkpoints,
            meter,
        )
        columns = {"input_ids": [[0]], "labels": [[0]]}  # the rows come from the material
        trainer: Resumable = type("Resumable", (Resumable, parts.trainer), {})(
            material=material,
            model=model,
            processing_class=self.chat.tokenizer,
            train_dataset=Dataset.from_dict(columns),
            data_collator=parts.collate,
            callbacks=[Schedule(t, request), Progress(self.recipe, self.report, self.on_metrics, meter)],
            args=parts.arguments(
                output_dir=str(self.work / "trainer"),
                max_steps=t.max_steps or -1,
                num_train_epochs=t.num_train_epochs or 1,
                learning_rate=t.learning_rate,
                lr_scheduler_type=t.lr_scheduler_type,
                warmup_steps=t.warmup_steps,
                weight_decay=t.weight_decay,
                optim=t.optim,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=-(
                    -t.per_device_train_batch_size * t.gradient_accumulation_steps // (micro * processes())
                ),
                ddp_find_unused_parameters=False,
                eval_on_start=fresh,
                logging_steps=10,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=t.seed,
                **speed.arguments(),
                **parts.own,
            ),
        )
        trainer.remove_callback(PrinterCallback)  # our own lines say the same for people
        return trainer

    def _figures(self, trainer: "Resumable", attempts: _Attempts, speed: Hardware) -> dict[str, Any]:
        from cs_pipeline.train.trainer.schedule import best_step, validated

        t, state = self.recipe.trainer, trainer.state
        measured = trainer.measured()
        real, padded = total(measured["real"], measured["padded"])
        validations = validated(state)
        (before,) = (e["eval_loss"] for e in state.log_history if "eval_loss" in e and e["step"] == 0)
        model: Any = trainer.model
        return {
            "steps": state.global_step,
            "epochs": state.epoch,
            "best_step": best_step(state),
            "effective_batch": t.per_device_train_batch_size * t.gradient_accumulation_steps,
            "batch_size": attempts.micro,
            "out_of_memory": len(attempts.too_large),
            "resumed_from": attempts.resumed_from,
            "validation_loss_before": before,
            "validation_loss_after": min(loss for _, loss in validations),
            "validation_loss": [{"step": step, "loss": loss} for step, loss in validations],
            "seconds": measured["seconds"],
            "tokens_per_second": real / measured["seconds"],
            "real_token_share": real / padded,
            "peak_memory_gib": highest(memory_used()),
            "parameters": (model if self.recipe.lora is None else model.get_base_model()).num_parameters(),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "loss": [{"step": e["step"], "loss": e["loss"]} for e in state.log_history if "loss" in e],
            **speed.facts(),
        }


_ATTEMPTS = "attempts.json"


def _begun(recipe: Recipe, work: Path) -> _Attempts:
    """What ``work`` says of the attempts so far; the recipe's own micro-batch where it says nothing."""
    if (work / _ATTEMPTS).exists():
        return _Attempts(**read_json(work / _ATTEMPTS))
    micro = rows_at_once(
        recipe.trainer.per_device_train_batch_size, recipe.trainer.gradient_accumulation_steps, processes()
    )
    return _Attempts(micro, [], [])


def _halved(recipe: Recipe, attempts: _Attempts, work: Path, report: Callable[[str], None]) -> _Attempts:
    """``attempts`` with half as many rows at once, kept for whoever goes on. Raises PipelineError if it was a single one."""
    micro = attempts.micro
    if micro == 1:
        raise PipelineError(
            "Memory does not suffice for the longest row alone.",
            "Lower trainer.max_length, switch trainer.gradient_checkpointing on, take quantization: nf4 or a smaller base.",
        ) from None
    smaller = replace(attempts, micro=micro // 2, too_large=[*attempts.too_large, micro])
    rows = recipe.trainer.per_device_train_batch_size * recipe.trainer.gradient_accumulation_steps
    report(
        f"{micro} rows at once do not fit into memory; training goes on with {micro // 2}, still {rows} per step. To start "
        f"that way: trainer.per_device_train_batch_size: {micro // 2}, "
        f"trainer.gradient_accumulation_steps: {-(-rows // (micro // 2))}."
    )
    write_json(work / _ATTEMPTS, asdict(smaller))
    if processes() > 1:
        raise PipelineError(
            f"Memory does not suffice for {micro} rows at once in process {rank()}, and the others wait for it.",
            f"Start the same training again: it goes on with {micro // 2} at once.",
        ) from None
    return smaller


def _out_of_memory(error: RuntimeError) -> bool:
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
