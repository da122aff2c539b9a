"""A transformers Trainer that can be interrupted at any step and resumed with the same result."""

import random
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerState

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORE_INDEX, Example
from cs_pipeline.train.trainer.batches import Batches, data_loader
from cs_pipeline.train.trainer.checkpoints import Checkpoints, read_state, write_state
from cs_pipeline.train.trainer.distributed import rank, sum_over_processes, world_size
from cs_pipeline.train.trainer.progress import Meter
from cs_pipeline.train.trainer.schedule import best_step

_WEIGHTS, _STATE, _HISTORY = "weights.safetensors", "state", "trainer_state.json"


@dataclass(frozen=True)
class TrainingInputs:
    """The rows to train on and their order, the checkpoints, and the meter that counts tokens and seconds."""

    train: list[Example]
    validation: list[Example]
    batches: Batches
    validation_batches: Batches
    checkpoints: Checkpoints
    meter: Meter


class ResumableTrainer(Trainer):
    """A mixin that adds this project's order of rows, atomic checkpoints and validation loss per token to a Trainer class.

    A checkpoint contains everything that the next step depends on: trained weights, optimizer, scheduler, loss scale,
    history, and the random states and running loss of each process. The position in the data follows from the step.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, **kwargs: Any) -> None:
        self._inputs = inputs
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        inputs = self._inputs
        return data_loader(inputs.train, inputs.batches, inputs.meter.counted(self.data_collator))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Computes the gradient of this process's part of a step, one micro-batch at a time. Returns the sum of the losses.

        Each loss is divided by the answer tokens of the whole step, so the number of micro-batches does not matter.
        """
        micro_batches = inputs["micro_batches"]
        in_this_process = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in micro_batches)
        answer_tokens = torch.tensor(int(sum_over_processes(in_this_process)[0]), device=self.args.device)
        losses = []
        for number, batch in enumerate(micro_batches, 1):
            # Processes exchange gradients after the last one.
            with nullcontext() if number == len(micro_batches) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch, answer_tokens))
        return torch.stack(losses).sum()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean loss per token of the validation answers, in nats; it does not depend on the batch size."""
        started = time.monotonic()
        inputs, model = self._inputs, self.model
        assert model is not None
        model.eval()
        nll, tokens = 0.0, 0
        # Forks the random state, because a data loader draws from it, and measuring the loss must not affect the training.
        with torch.random.fork_rng(devices=[]):
            (step,) = data_loader(inputs.validation, inputs.validation_batches, self.data_collator)
            for batch in step["micro_batches"]:
                count = int((batch["labels"] != IGNORE_INDEX).sum())
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, self._prepare_inputs(batch))
                if count:  # a process that has run out of rows gets a batch without answers
                    nll += loss.item() * count
                    tokens += count
        all_nll, all_tokens = sum_over_processes(nll, tokens)
        metrics = {"eval_loss": all_nll / all_tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        inputs.meter.exclude(time.monotonic() - started)
        return metrics

    def measured(self) -> dict[str, float]:
        """The meter's totals for all steps, including those before an interruption."""
        return self._inputs.meter.totals()

    def load_weights(self, checkpoint: Path) -> None:
        """Loads the weights of ``checkpoint`` into the model. Raises PipelineError if they belong to another model."""
        saved = load_file(checkpoint / _WEIGHTS)
        trained = dict(_trained_parameters(self.model))
        if saved.keys() != trained.keys() or any(saved[name].shape != trained[name].shape for name in saved):
            raise PipelineError(
                f"The weights in {checkpoint} are not those of the model that this recipe trains.",
                f"Delete {checkpoint.parent}; the training then starts from the beginning.",
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])

    def restore(self, checkpoint: Path) -> None:
        """Loads weights, history and meter from ``checkpoint``, as if this process had just completed its last step."""
        self.load_weights(checkpoint)
        self.state = read_trainer_state(checkpoint)
        if (state := _process_state(checkpoint)) is not None:
            self._inputs.meter.before = state["meter"]

    # transformers calls the methods below to save and load checkpoints.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        inputs = self._inputs
        states = _gather(
            {
                "random": _random_state(),
                "loss": self._tr_loss.item(),
                "logged": self._globalstep_last_logged,
                "meter": inputs.meter.totals(),
            }
        )
        if rank() == 0:
            scaler = self.accelerator.scaler
            with inputs.checkpoints.writing(self.state.global_step, best_step(self.state)) as folder:
                save_file(
                    {name: p.detach().cpu().contiguous() for name, p in _trained_parameters(self.model)},
                    folder / _WEIGHTS,
                )
                assert self.optimizer is not None
                assert self.lr_scheduler is not None
                state = {
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.lr_scheduler.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "processes": states,
                }
                write_state(folder / _STATE, state)
                self.state.save_to_json(str(folder / _HISTORY))
        inputs.meter.exclude(time.monotonic() - started)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint) / _STATE)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Does nothing: the scaler is loaded together with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores the random state, loss and meter of this process: this is called last before the first step."""
        state = _process_state(Path(str(checkpoint)))
        if state is None:
            return
        _set_random_state(state["random"])
        self._tr_loss.fill_(state["loss"])
        self._globalstep_last_logged = state["logged"]
        self._inputs.meter.before = state["meter"]


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """The trainer's state in ``checkpoint``: the step, and the log up to that step."""
    return TrainerState.load_from_json(str(checkpoint / _HISTORY))


def _process_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state of this process in ``checkpoint``; None if a different number of processes wrote it.

    In that case dropout draws other random numbers, and meter and running loss restart at zero. Nothing else depends on the
    number of processes.
    """
    states: list[dict[str, Any]] = read_state(checkpoint / _STATE)["processes"]
    return states[rank()] if len(states) == world_size() else None


def _trained_parameters(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The ``state`` of every process, by rank."""
    if world_size() == 1:
        return [state]
    states: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
