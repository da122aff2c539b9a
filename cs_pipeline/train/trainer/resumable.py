"""A Trainer whose training can be interrupted at any step and go on as if it had not been."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerState

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORED, Example
from cs_pipeline.train.trainer.batches import Batches, loader
from cs_pipeline.train.trainer.checkpoints import Checkpoints, read_state, write_state
from cs_pipeline.train.trainer.distributed import processes, rank, total
from cs_pipeline.train.trainer.progress import Meter
from cs_pipeline.train.trainer.schedule import best_step

WEIGHTS, STATE, HISTORY = "weights.safetensors", "state", "trainer_state.json"


@dataclass(frozen=True)
class Material:
    """What a training reads and writes: its rows in their order, its checkpoints, its measure."""

    train: list[Example]
    validation: list[Example]
    batches: Batches
    validation_batches: Batches
    checkpoints: Checkpoints
    meter: Meter


class Resumable(Trainer):
    """Rows in an order that is its own, checkpoints that are complete or absent, a validation loss per token.

    To be mixed in before the Trainer class that the model needs. A checkpoint holds everything that the next step depends
    on: the weights that are trained, optimizer, schedule, loss scale, the random numbers and the running loss of each
    process, and the history. The position in the data follows from the step.
    """

    def __init__(self, *args: Any, material: Material, **kwargs: Any) -> None:
        self._material = material
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        m = self._material
        return loader(m.train, m.batches, m.meter.counted(self.data_collator))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean loss of a token of the validation rows' answers, in nats; the same in batches of any size."""
        began = time.monotonic()
        m, model = self._material, self.model
        assert model is not None
        model.eval()
        nll, tokens = 0.0, 0
        with torch.random.fork_rng(
            devices=[]
        ):  # a loader draws a random number: how often is validated must not matter
            for batch in loader(m.validation, m.validation_batches, self.data_collator):
                count = int((batch["labels"] != IGNORED).sum())
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, self._prepare_inputs(batch))
                if count:  # a batch of a process that has no row left holds no answer
                    nll += loss.item() * count
                    tokens += count
        nll_of_all, tokens_of_all = total(nll, tokens)
        metrics = {"eval_loss": nll_of_all / tokens_of_all}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        m.meter.leave_out(time.monotonic() - began)
        return metrics

    def measured(self) -> dict[str, float]:
        """Tokens and seconds of all steps, those before an interruption too: real, padded, seconds."""
        return self._material.meter.all()

    def load_weights(self, checkpoint: Path) -> None:
        """Puts the weights of ``checkpoint`` into the model. Raises PipelineError when they are not those of this model."""
        saved = load_file(checkpoint / WEIGHTS)
        trained = dict(_trained(self.model))
        if saved.keys() != trained.keys() or any(saved[name].shape != trained[name].shape for name in saved):
            raise PipelineError(
                f"The weights in {checkpoint} are not those of the model that this recipe trains.",
                f"Delete {checkpoint.parent}; the training then begins anew.",
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])

    def take_over(self, checkpoint: Path) -> None:
        """Weights, history and measure of ``checkpoint``, as if its last step had just been done here."""
        self.load_weights(checkpoint)
        self.state = training_history(checkpoint)
        own = _own(checkpoint)
        if own is not None:
            self._material.meter.before = own["meter"]

    # What transformers calls to save and to load

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        m = self._material
        of_each = _gathered(
            {
                "random": _random_state(),
                "loss": self._tr_loss.item(),
                "logged": self._globalstep_last_logged,
                "meter": m.meter.all(),
            }
        )
        if rank() == 0:
            scaler = self.accelerator.scaler
            with m.checkpoints.writing(self.state.global_step, best_step(self.state)) as folder:
                save_file({name: p.detach().cpu().contiguous() for name, p in _trained(self.model)}, folder / WEIGHTS)
                assert self.optimizer is not None
                assert self.lr_scheduler is not None
                state = {
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.lr_scheduler.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "processes": of_each,
                }
                write_state(folder / STATE, state)
                self.state.save_to_json(str(folder / HISTORY))
        m.meter.leave_out(time.monotonic() - began)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint) / STATE)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It came with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The last that transformers restores before the first step: all that is each process's own."""
        own = _own(Path(str(checkpoint)))
        if own is None:
            return
        _set_random_state(own["random"])
        self._tr_loss.fill_(own["loss"])
        self._globalstep_last_logged = own["logged"]
        self._material.meter.before = own["meter"]


def training_history(checkpoint: Path) -> TrainerState:
    """The step of ``checkpoint`` and what was measured up to it."""
    return TrainerState.load_from_json(str(checkpoint / HISTORY))


def _own(checkpoint: Path) -> dict[str, Any] | None:
    """What ``checkpoint`` keeps of this process alone; None if another number of processes wrote it.

    Then the random numbers of dropout are others; everything else is the same whatever the number.
    """
    of_each: list[dict[str, Any]] = read_state(checkpoint / STATE)["processes"]
    return of_each[rank()] if len(of_each) == processes() else None


def _trained(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _gathered(own: dict[str, Any]) -> list[dict[str, Any]]:
    """``own`` of every process, by rank."""
    if processes() == 1:
        return [own]
    of_each: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(of_each, own)
    return of_each


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
