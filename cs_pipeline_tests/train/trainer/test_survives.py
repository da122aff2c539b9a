"""Trainings that are killed, run out of memory or disk, or find their checkpoints damaged come to what others come to."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import Recipe
from cs_pipeline.train import finetune
from cs_pipeline.train.trainer import peft_model as learners
from cs_pipeline.train.trainer.checkpoints import Checkpoints
from cs_pipeline_tests.support.little import STEPS, Little, Outcome

EACH_STEP = {"checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Little:
    return Little.make(tmp_path_factory.mktemp("little"))


@pytest.fixture(scope="module")
def undisturbed(little: Little, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """No checkpoint is ever written; all others write one after each step."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    outcome = little.train(little.recipe(), work)
    assert not list(work.glob("step-*"))
    return outcome


def killed(little: Little, recipe: Recipe, work: Path, at: Callable[[str, tuple[Any, ...]], bool]) -> bool:
    """Trains in a forked process that kills itself before the operation at which ``at`` is true for event and arguments."""
    gc.freeze()  # so that the child's garbage collection touches no page of its parent
    pid = os.fork()
    if pid:
        gc.unfreeze()
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if at(event, arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.addaudithook(watch)
        little.train(recipe, work)
        status = 0
    finally:
        os._exit(status)


def renamed(step: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """Just before the checkpoint of ``step`` gets its name."""
    return lambda event, arguments: event == "os.rename" and str(arguments[1]).endswith(f"step-{step:08}")


def opened(work: Path, name: str) -> Callable[[str, tuple[Any, ...]], bool]:
    """Just before the file ``name`` of the finished adapter is opened."""
    path = str(work.with_name(work.name + ".out") / name)
    return lambda event, arguments: event == "open" and arguments[0] == path


def test_the_same_again_is_the_same(little: Little, undisturbed: Outcome, tmp_path: Path) -> None:
    """Checkpoints change nothing."""
    outcome = little.train(little.recipe(**EACH_STEP), tmp_path / "work")
    assert outcome == undisturbed
    assert undisturbed.figures["steps"] == STEPS
    assert undisturbed.figures["resumed_from"] == []
    assert undisturbed.figures["loss"][-1]["loss"] < undisturbed.figures["loss"][0]["loss"]


def test_another_order_or_another_dropout_would_be_seen(little: Little, undisturbed: Outcome, tmp_path: Path) -> None:
    assert little.train(little.recipe(seed=1), tmp_path / "work") != undisturbed


@pytest.mark.parametrize("steps", [[1], [6, 7], [4, 9, 12]], ids=str)
def test_killed_while_saving_and_gone_on_with(
    little: Little, undisturbed: Outcome, tmp_path: Path, steps: list[int]
) -> None:
    """Six steps an epoch: before any checkpoint; when the first epoch ends; in each, and again at the very end."""
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    for step in steps:
        # After the last step nothing is saved any more but what was trained.
        assert killed(little, recipe, work, renamed(step) if step < STEPS else opened(work, "adapter_config.json"))
    outcome = little.train(recipe, work)
    assert outcome.weights == undisturbed.weights
    assert outcome.equal_figures == undisturbed.equal_figures
    went_on = [step - 1 for step in steps if step > 1]
    assert outcome.figures["resumed_from"] == went_on
    assert [line for line in outcome.lines if "checkpoint of step" in line] == [
        f"goes on from the checkpoint of step {step}" for step in went_on[-1:]
    ]
    for step, measured in undisturbed.metrics.items():
        assert outcome.metrics[step] == measured, (
            "all metrics are handed on again, those from before the checkpoint too"
        )


def test_a_damaged_checkpoint_costs_a_step_and_no_more(little: Little, undisturbed: Outcome, tmp_path: Path) -> None:
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    assert killed(little, recipe, work, renamed(9))
    state = work / "step-00000008" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    outcome = little.train(recipe, work)
    assert outcome == undisturbed
    assert outcome.figures["resumed_from"] == [7]
    assert "set aside as broken-00000008" in outcome.lines[1]


def test_nothing_that_is_read_is_a_pickle(little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    assert killed(little, recipe, work, renamed(5))
    assert {path.suffix for path in work.rglob("step-*/*")} == {".json", ".safetensors"}

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle is read")

    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    assert little.train(recipe, work).figures["resumed_from"] == [4]


# Memory


def scarce(monkeypatch: pytest.MonkeyPatch, most: Callable[[], int]) -> list["weakref.ref[Any]"]:
    """A model that has no memory for more rows than ``most`` says when it is trained; the models that were made."""
    made: list[weakref.ref[Any]] = []

    def learner(*args: Any) -> Any:
        assert [model for model in made if model() is not None] == [], "the failed attempt's model still fills memory"
        model = learners.build_peft_model(*args)

        def refuse(module: Any, positional: Any, named: dict[str, Any]) -> None:
            if module.training and named["input_ids"].shape[0] > most():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        model.register_forward_pre_hook(refuse, with_kwargs=True)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(finetune, "learner", learner)
    return made


def test_out_of_memory_halves_the_micro_batch_and_not_the_step(
    little: Little, undisturbed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = little.train(
        little.recipe(per_device_train_batch_size=2, gradient_accumulation_steps=4), tmp_path / "configured"
    )
    made = scarce(monkeypatch, lambda: 2)
    outcome = little.train(little.recipe(), tmp_path / "work")
    assert len(made) == 2
    assert outcome == configured
    f = outcome.figures
    assert (f["batch_size"], f["effective_batch"], f["out_of_memory"], f["steps"]) == (2, 8, 1, STEPS)
    assert f["loss"][-1]["loss"] == pytest.approx(undisturbed.figures["loss"][-1]["loss"], rel=1e-2)  # other dropout
    (line,) = [line for line in outcome.lines if "do not fit into memory" in line]
    assert "4 rows at once" in line
    assert "goes on with 2, still 8 per step" in line
    assert "trainer.per_device_train_batch_size: 2, trainer.gradient_accumulation_steps: 4" in line


def test_out_of_memory_in_the_middle_goes_on_from_the_checkpoint(
    little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose random numbers depend on the batch, halved is the same up to rounding."""
    lora = {"lora": little.recipe().lora.model_copy(update={"lora_dropout": 0.0})}  # type: ignore[union-attr]
    whole = little.train(little.recipe().model_copy(update=lora), tmp_path / "whole")
    gone: list[bool] = []

    def most() -> int:
        gone.extend([True] if (tmp_path / "work" / "step-00000006").exists() else [])
        return 2 if gone else 4

    scarce(monkeypatch, most)
    outcome = little.train(little.recipe(**EACH_STEP).model_copy(update=lora), tmp_path / "work")
    f = outcome.figures
    assert (f["batch_size"], f["out_of_memory"], f["resumed_from"]) == (2, 1, [6])
    assert f["steps"] == STEPS
    losses = [[point["loss"] for point in figures["loss"]] for figures in (f, whole.figures)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert f["validation_loss_after"] == pytest.approx(whole.figures["validation_loss_after"], rel=1e-5)


def test_what_memory_holds_is_remembered_by_who_goes_on(
    little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    scarce(monkeypatch, lambda: 2)
    assert killed(little, recipe, work, renamed(3))
    made = scarce(monkeypatch, lambda: 2)
    assert little.train(recipe, work).figures["out_of_memory"] == 1
    assert len(made) == 1, "it does not run out of memory again"


def test_no_memory_for_a_single_row_is_an_error_that_names_what_to_change(
    little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce(monkeypatch, lambda: 0)
    with pytest.raises(PipelineError, match="Memory does not suffice for the longest row alone") as error:
        little.train(little.recipe(per_device_train_batch_size=2), tmp_path / "work")
    for key in ("max_length", "gradient_checkpointing", "nf4"):
        assert key in error.value.fix


def test_another_error_is_not_taken_for_it(little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learner(*args: Any) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(finetune, "learner", learner)
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        little.train(little.recipe(), tmp_path / "work")


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB; a checkpoint takes 68."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount a disk of its own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_training_goes_on_when_there_is_room(
    little: Little, undisturbed: Outcome, small_disk: Path, tmp_path: Path
) -> None:
    recipe, work = little.recipe(**EACH_STEP), small_disk / "work"
    filler = small_disk / "somebody else's"
    filler.write_bytes(bytes(220_000))
    with pytest.raises(PipelineError) as error:
        little.train(recipe, work)
    assert "cannot be written" in error.value.what
    assert "No space left" in error.value.what
    kept = Checkpoints(work, print).newest()
    assert kept
    assert f"that of step {kept} is kept" in error.value.what
    filler.unlink()
    outcome = little.train(recipe, work)
    assert outcome.weights == undisturbed.weights
    assert outcome.figures["resumed_from"] == [kept]


# Which weights are kept, and when a training ends


FORGETFUL = {
    "num_train_epochs": 6,
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "evaluations": 12,
}
"""Long enough for the validation loss to rise again."""


@pytest.fixture(scope="module")
def forgetful(little: Little, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """What it came to, and the adapter's folder."""
    work = tmp_path_factory.mktemp("forgetful") / "work"
    return little.train(little.recipe(**FORGETFUL), work), work.with_name("work.out")


def test_the_weights_of_the_lowest_validation_loss_are_kept(
    little: Little, forgetful: tuple[Outcome, Path], tmp_path: Path
) -> None:
    outcome, folder = forgetful
    f = outcome.figures
    losses = {point["step"]: point["loss"] for point in f["validation_loss"]}
    assert list(losses) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36]
    assert f["best_step"] == min(losses, key=losses.__getitem__)
    assert f["steps"] == 36 > f["best_step"]
    assert f["validation_loss_after"] == losses[f["best_step"]] < losses[36]
    # A run that ends at the best step, with the same schedule up to there, has the same weights.
    ends_there = little.recipe(**FORGETFUL | {"num_train_epochs": None, "max_steps": f["best_step"], "evaluations": 1})
    assert little.train(ends_there, tmp_path / "work").weights == outcome.weights
    # Measured as evaluation does it, in batches of its own, per token of answers and stop tokens, they are as good.
    model = SupportModel(ends_there, little.base, folder)
    rows = little.lake.read("prepare", "validation_split").to_pylist()
    questions, answers = ([row[name] for row in rows] for name in ("instruction", "response"))
    found = model.likelihoods(questions, [None] * len(rows), [()] * len(rows), answers)
    nll, tokens = sum(likelihood.nll for likelihood in found), sum(likelihood.tokens for likelihood in found)
    assert f["validation_loss_after"] == pytest.approx(nll / tokens, rel=1e-5)


def test_patience_ends_the_training_and_an_interruption_changes_nothing(
    little: Little, forgetful: tuple[Outcome, Path], tmp_path: Path
) -> None:
    recipe = little.recipe(**FORGETFUL, **EACH_STEP, early_stopping_patience=1)
    patient = forgetful[0].figures["validation_loss"]
    losses = [point["loss"] for point in patient]
    risen = next(i for i, (one, next_) in enumerate(itertools.pairwise(losses)) if next_ >= one)
    impatient = little.train(recipe, tmp_path / "work")
    assert impatient.figures["validation_loss"] == patient[: risen + 2]
    assert impatient.figures["best_step"] == 3 * (risen + 1)
    assert impatient.figures["steps"] == 3 * (risen + 2) < 36
    # Killed after the last checkpoint: nothing is left to train, and no step may be added.
    assert killed(little, recipe, tmp_path / "killed", opened(tmp_path / "killed", "adapter_config.json"))
    outcome = little.train(recipe, tmp_path / "killed")
    assert (outcome.weights, outcome.equal_figures) == (impatient.weights, impatient.equal_figures)


def test_a_training_that_diverges_is_said_at_once_and_keeps_nothing_to_go_on_from(
    little: Little, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match="the recipe 'little' diverged") as error:
        little.train(little.recipe(**EACH_STEP, learning_rate=1e30), tmp_path / "work")
    assert "step 10" in error.value.what, "the first one that is logged"
    assert Checkpoints(tmp_path / "work", print).newest() is None
