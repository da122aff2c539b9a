"""Fine-tunes a recipe's model; resumes interrupted training, and halves the micro-batch when memory runs out."""

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
from cs_pipeline.llm.families import hidden_size
from cs_pipeline.llm.model import (
    MIN_BFLOAT16_SIZE,
    compute_dtype,
    load_chat_format,
    peak_memory_gib,
    quiet_libraries,
    rows_with_earlier_turns,
)
from cs_pipeline.llm.prompt import ChatFormat
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.rows import TrainingRows, select_rows, training_rows
from cs_pipeline.train.supervision import check_tokenizer
from cs_pipeline.train.trainer.checkpoints import Checkpoints
from cs_pipeline.train.trainer.distributed import (
    max_over_processes,
    micro_batch_rows,
    rank,
    sum_over_processes,
    world_size,
)
from cs_pipeline.train.trainer.hardware import Hardware, choose_hardware
from cs_pipeline.train.trainer.peft_model import build_peft_model, save_peft_model, train_in_float32, trainer_classes
from cs_pipeline.train.trainer.stopping import StoppedError, StopRequest, catch_stop_signals

if TYPE_CHECKING:
    from cs_pipeline.train.trainer.resumable import ResumableTrainer


def fine_tune(
    recipe: FineTuneRecipe,
    lake: DataLake,
    base: Path,
    warm_start: Path | None,
    folder: Path,
    work: Path,
    report: Callable[[str], None],
    on_metrics: Callable[[int, dict[str, float]], None],
) -> tuple[dict[str, Any], pa.Table]:
    """Fine-tunes ``base``, from the adapter in ``warm_start`` if given, and writes weights and tokenizer to ``folder``.

    Checkpoints are written to ``work``. When called again with the same arguments, training resumes from the newest one. A
    micro-batch that does not fit into memory is halved; the number of rows per step stays the same. Returns the metrics and
    the table of training rows (schema SEEN_ROW). Raises PipelineError if the tokenizer gives other ids than its file, if
    every row is longer than the recipe allows, if the loss would cover the wrong tokens, if ``warm_start`` does not match
    the model, if a single row does not fit into memory, if training diverges, or if a signal stops it.
    """
    quiet_libraries()  # before accelerate imports bitsandbytes, which complains that optional kernels are missing
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    from cs_pipeline.train.trainer.progress import DivergedError

    chat = load_chat_format(recipe, base, None)
    compared = check_tokenizer(chat, base, select_rows(recipe, lake, "train", ["instruction", "response"]))
    train, validation = (training_rows(recipe, lake, chat, side) for side in ("train", "validation"))
    own = train.seen.filter(pc.not_equal(train.seen.column("through"), IN_PROMPT))
    company = own.column("source").to_pylist().count("company")
    report(
        f"{len(train.examples):,} training rows from {own.num_rows:,} distinct rows, {company:,} of them from the company; "
        f"{train.too_long} dropped as longer than {recipe.trainer.max_length} tokens, {train.shortened} without their "
        f"oldest turns; {train.retrieved_dropped:,} of {train.retrieved:,} retrieved texts dropped; {train.escaped:,} rows "
        f"with characters that the tokenizer lacks, {train.escaped_share:.1%} of all characters became code points; "
        f"verified: the loss covers answers and stop tokens only; the token ids of {compared:,} rows are those of the "
        "base's tokenizer.json"
    )
    training = _Training(recipe, chat, base, warm_start, train, validation, work, report, on_metrics)
    history = _load_history(recipe, base, work)
    while True:
        try:
            figures, model = training.attempt(history)
            break
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            history = _halve_micro_batch(recipe, _load_history(recipe, base, work), work, report)
        except DivergedError:
            training.checkpoints.discard()  # resuming from one would diverge again
            raise
        # After the except block, because within it the exception still references the failed attempt's tensors.
        gc.collect()
        torch.cuda.empty_cache()
    save_peft_model(model, recipe, folder)
    chat.tokenizer.save_pretrained(folder)
    counts = {
        "rows": len(train.examples),
        "rows_different": own.num_rows,
        "rows_of_company": company,
        "rows_too_long": train.too_long,
        "rows_shortened": train.shortened,
        "rows_with_earlier_turns": train.with_earlier_turns
        + (0 if warm_start is None else rows_with_earlier_turns(warm_start)),
        "found_texts": train.retrieved,
        "found_texts_left_out": train.retrieved_dropped,
        "rows_retold": train.retold,
        "rows_escaped": train.escaped,
        "escaped_share": train.escaped_share,
    }
    return counts | figures, train.seen


@dataclass(frozen=True)
class _RunHistory:
    """The history of one training run over all its restarts.

    A micro-batch has at most ``micro`` times ``max_length`` tokens. The sizes in ``too_large`` ran out of memory.
    ``resumed_from`` lists the steps of the checkpoints from which the run was resumed.
    """

    micro: int
    too_large: list[int]
    resumed_from: list[int]


@dataclass(frozen=True)
class _Training:
    recipe: FineTuneRecipe
    chat: ChatFormat
    base: Path
    warm_start: Path | None
    train: TrainingRows
    validation: TrainingRows
    work: Path
    report: Callable[[str], None]
    on_metrics: Callable[[int, dict[str, float]], None]

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.work, self.report)

    def attempt(self, history: _RunHistory) -> tuple[dict[str, Any], Any]:
        """Trains to the end, from the newest checkpoint if any; returns the metrics, and the model with its best weights."""
        from transformers import set_seed

        from cs_pipeline.train.trainer.resumable import read_trainer_state
        from cs_pipeline.train.trainer.schedule import best_step, is_finished

        t = self.recipe.trainer
        # Only the first process looks for checkpoints and sets broken ones aside. It sends the step to the others.
        step = int(sum_over_processes((self.checkpoints.newest() or 0) if rank() == 0 else 0)[0])
        checkpoint = self.checkpoints.at(step) if step else None
        if step:
            self.report(f"resumes from the checkpoint of step {step}")
            history = replace(history, resumed_from=[*history.resumed_from, step])
            if rank() == 0:
                write_json(self.work / _HISTORY_FILE, asdict(history))
        set_seed(t.seed)
        model = build_peft_model(self.recipe, self.base, self.warm_start)
        request = StopRequest()
        hardware = choose_hardware(self.recipe, model)
        hardware.apply_to(model)
        self.report(hardware.summary())
        trainer = self._trainer(model, history.micro, hardware, request, fresh=not step)
        train_in_float32(model)
        if checkpoint is not None and is_finished(t, read_trainer_state(checkpoint)):
            trainer.restore(checkpoint)
        else:
            with catch_stop_signals(request):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if not is_finished(t, trainer.state):
            raise StoppedError(
                f"Stopped by {request.signal or 'another process'} after step {trainer.state.global_step} of "
                f"{trainer.state.max_steps}; a checkpoint of that step is saved.",
                "Start the same training again: it resumes from there.",
            )
        best = best_step(trainer.state)
        if best and best != trainer.state.global_step:
            trainer.load_weights(self.checkpoints.at(best))
        return self._figures(trainer, history, hardware), model

    def _trainer(
        self, model: Any, micro: int, hardware: Hardware, request: StopRequest, *, fresh: bool
    ) -> "ResumableTrainer":
        from datasets import Dataset
        from transformers import PrinterCallback

        from cs_pipeline.train.trainer.batches import Batches
        from cs_pipeline.train.trainer.progress import Meter, ProgressCallback
        from cs_pipeline.train.trainer.resumable import ResumableTrainer, TrainingInputs
        from cs_pipeline.train.trainer.schedule import ScheduleCallback

        t, meter, classes = self.recipe.trainer, Meter(), trainer_classes(self.chat, hardware.packing)

        def batches(rows: TrainingRows, rows_per_step: int) -> Batches:
            return Batches(
                [len(e) for e in rows.examples], rows_per_step, micro * t.max_length, t.seed, rank(), world_size()
            )

        inputs = TrainingInputs(
            self.train.examples,
            self.validation.examples,
            batches(self.train, t.rows_per_step),
            batches(self.validation, len(self.validation.examples)),
            self.checkpoints,
            meter,
        )
        trainer: ResumableTrainer = type("Trainer", (ResumableTrainer, classes.trainer), {})(
            inputs=inputs,
            model=model,
            processing_class=self.chat.tokenizer,
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # unused: ``inputs`` has the rows
            data_collator=classes.collate,
            callbacks=[
                ScheduleCallback(t, request),
                ProgressCallback(self.recipe, self.report, self.on_metrics, meter),
            ],
            args=classes.arguments(
                output_dir=str(self.work / "trainer"),
                max_steps=t.max_steps or -1,
                num_train_epochs=t.num_train_epochs or 1,
                learning_rate=t.learning_rate,
                lr_scheduler_type=t.lr_scheduler_type,
                warmup_steps=t.warmup_steps,
                weight_decay=t.weight_decay,
                optim=t.optim,
                per_device_train_batch_size=1,  # the sampler yields a whole step, and training_step divides it
                ddp_find_unused_parameters=False,
                eval_on_start=fresh,
                logging_steps=10,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=t.seed,
                **hardware.arguments(),
                **classes.extra,
            ),
        )
        trainer.remove_callback(PrinterCallback)  # ProgressCallback reports the same as readable lines
        return trainer

    def _figures(self, trainer: "ResumableTrainer", history: _RunHistory, hardware: Hardware) -> dict[str, Any]:
        from cs_pipeline.train.trainer.schedule import best_step, validated

        t, state = self.recipe.trainer, trainer.state
        measured = trainer.measured()
        real, padded = sum_over_processes(measured["real"], measured["padded"])
        validations = validated(state)
        (before,) = (e["eval_loss"] for e in state.log_history if "eval_loss" in e and e["step"] == 0)
        model: Any = trainer.model
        return {
            "steps": state.global_step,
            "epochs": state.epoch,
            "best_step": best_step(state),
            "effective_batch": t.rows_per_step,
            "batch_size": history.micro,
            "out_of_memory": len(history.too_large),
            "resumed_from": history.resumed_from,
            "validation_loss_before": before,
            "validation_loss_after": min(loss for _, loss in validations),
            "validation_loss": [{"step": step, "loss": loss} for step, loss in validations],
            "seconds": measured["seconds"],
            "tokens_per_second": real / measured["seconds"],
            "real_token_share": real / padded,
            "peak_memory_gib": max_over_processes(peak_memory_gib()),
            "parameters": (model if self.recipe.lora is None else model.get_base_model()).num_parameters(),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "loss": [{"step": e["step"], "loss": e["loss"]} for e in state.log_history if "loss" in e],
            **hardware.facts(),
        }


_HISTORY_FILE = "attempts.json"


def _load_history(recipe: FineTuneRecipe, base: Path, work: Path) -> _RunHistory:
    """The history recorded in ``work``; without a record, a new one with the micro-batch that suits this machine."""
    if (work / _HISTORY_FILE).exists():
        return _RunHistory(**read_json(work / _HISTORY_FILE))
    return _RunHistory(_micro_batch(recipe, base), [], [])


def _micro_batch(recipe: FineTuneRecipe, base: Path) -> int:
    """Rows of ``max_length`` tokens in a micro-batch: on a CPU, no more than its memory has room for."""
    import torch

    from cs_pipeline.train.plan.estimate import estimate
    from cs_pipeline.train.plan.machine_fit import available_memory

    rows, config = micro_batch_rows(recipe.trainer, world_size()), read_json(base / "config.json")
    if torch.cuda.is_available() or hidden_size(config) < MIN_BFLOAT16_SIZE:
        return rows  # on a GPU, running out of memory halves it; narrow models need little memory
    needs = estimate(recipe, config, compute_dtype(config).itemsize, "cpu", available_memory() / world_size())
    return min(rows, needs.micro_batch)


def _halve_micro_batch(
    recipe: FineTuneRecipe, history: _RunHistory, work: Path, report: Callable[[str], None]
) -> _RunHistory:
    """Halves the micro-batch in ``history``, and records the result in ``work``.

    Raises PipelineError if the micro-batch had room for one long row only. With several processes, it always raises one
    after recording, because all of them must be restarted.
    """
    micro = history.micro
    if micro == 1:
        raise PipelineError(
            f"Even a micro-batch of {recipe.trainer.max_length:,} tokens, one long row, does not fit into memory.",
            "Lower trainer.max_length, set gradient_checkpointing: true or quantization: nf4, or choose a smaller base.",
        ) from None
    smaller = replace(history, micro=micro // 2, too_large=[*history.too_large, micro])
    rows = recipe.trainer.rows_per_step
    report(
        f"Micro-batches of {micro * recipe.trainer.max_length:,} tokens do not fit into memory; training continues with "
        f"micro-batches half as large, still {rows} rows per step. To start with that size, set "
        f"trainer.per_device_train_batch_size: {micro // 2}, "
        f"trainer.gradient_accumulation_steps: {-(-rows // (micro // 2))}."
    )
    write_json(work / _HISTORY_FILE, asdict(smaller))
    if world_size() > 1:
        raise PipelineError(
            f"A micro-batch does not fit into the memory of process {rank()}, and the others are waiting for it.",
            "Start the same training again: it continues with micro-batches half as large.",
        ) from None
    return smaller
