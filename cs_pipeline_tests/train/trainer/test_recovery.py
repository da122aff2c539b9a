"""Trainings that are killed, run out of memory or disk, or have damaged checkpoints end with the same result."""

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
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train import finetune
from cs_pipeline.train.plan import machine_fit
from cs_pipeline.train.trainer.checkpoints import Checkpoints
from cs_pipeline.train.trainer.peft_model import build_peft_model
from cs_pipeline_tests.support.little import RECIPE, STEPS, Outcome, SmallTraining

MAX_LENGTH = RECIPE["trainer"]["max_length"]
EACH_STEP = {"checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> SmallTraining:
    return SmallTraining.create(tmp_path_factory.mktemp("little"))


@pytest.fixture(scope="module")
def undisturbed(little: SmallTraining, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A training without checkpoints; the other tests write one after each step."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    outcome = little.train(little.recipe(), work)
    assert not list(work.glob("step-*"))
    return outcome


def killed(
    little: SmallTraining, recipe: FineTuneRecipe, work: Path, at: Callable[[str, tuple[Any, ...]], bool]
) -> bool:
    """Trains in a forked process that kills itself before the first operation for which ``at(event, arguments)`` is true."""
    pid = os.fork()
    if pid:
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


def test_equal_input_gives_equal_output_with_and_without_checkpoints(
    little: SmallTraining, undisturbed: Outcome, tmp_path: Path
) -> None:
    outcome = little.train(little.recipe(**EACH_STEP), tmp_path / "work")
    assert outcome == undisturbed
    assert undisturbed.figures["steps"] == STEPS
    assert undisturbed.figures["resumed_from"] == []
    assert undisturbed.figures["loss"][-1]["loss"] < undisturbed.figures["loss"][0]["loss"]


def test_another_seed_gives_another_result(little: SmallTraining, undisturbed: Outcome, tmp_path: Path) -> None:
    assert little.train(little.recipe(seed=1), tmp_path / "work") != undisturbed


@pytest.mark.parametrize("steps", [[1], [6, 7], [4, 9, 12]], ids=str)
def test_a_training_killed_while_saving_resumes_with_the_same_result(
    little: SmallTraining, undisturbed: Outcome, tmp_path: Path, steps: list[int]
) -> None:
    """With six steps per epoch: killed before any checkpoint, around the end of an epoch, and several times."""
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    for step in steps:
        # After the last step, only the trained weights are saved.
        assert killed(little, recipe, work, renamed(step) if step < STEPS else opened(work, "adapter_config.json"))
    outcome = little.train(recipe, work)
    assert outcome.weights == undisturbed.weights
    assert outcome.equal_figures == undisturbed.equal_figures
    resumed = [step - 1 for step in steps if step > 1]
    assert outcome.figures["resumed_from"] == resumed
    assert [line for line in outcome.lines if "checkpoint of step" in line] == [
        f"resumes from the checkpoint of step {step}" for step in resumed[-1:]
    ]
    for step, measured in undisturbed.metrics.items():
        assert outcome.metrics[step] == measured, "metrics from before the checkpoint are reported again"


def test_a_damaged_checkpoint_costs_only_one_step(little: SmallTraining, undisturbed: Outcome, tmp_path: Path) -> None:
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    assert killed(little, recipe, work, renamed(9))
    state = work / "step-00000008" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    outcome = little.train(recipe, work)
    assert outcome == undisturbed
    assert outcome.figures["resumed_from"] == [7]
    assert "set aside as broken-00000008" in outcome.lines[1]


def test_no_pickle_is_read(little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Lets training fail with micro-batches of more than ``most()`` long rows.

    Returns weak references to the models that were built.
    """
    made: list[weakref.ref[Any]] = []

    def build(*args: Any) -> Any:
        assert [model for model in made if model() is not None] == [], "the failed attempt's model is still in memory"
        model = build_peft_model(*args)

        def refuse(module: Any, positional: Any, named: dict[str, Any]) -> None:
            if module.training and named["input_ids"].numel() > most() * MAX_LENGTH:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        model.register_forward_pre_hook(refuse, with_kwargs=True)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(finetune, "build_peft_model", build)
    return made


def test_out_of_memory_halves_the_micro_batch_but_not_the_step(
    little: SmallTraining, undisturbed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert f"Micro-batches of {4 * MAX_LENGTH} tokens" in line
    assert "continues with micro-batches half as large, still 8 rows per step" in line
    assert "trainer.per_device_train_batch_size: 2, trainer.gradient_accumulation_steps: 4" in line


def test_a_cpu_with_little_memory_gets_small_micro_batches_from_the_start(
    little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = little.train(
        little.recipe(per_device_train_batch_size=1, gradient_accumulation_steps=8), tmp_path / "configured"
    )
    monkeypatch.setattr(machine_fit, "available_memory", lambda: 1e6)
    monkeypatch.setattr(finetune, "MIN_BFLOAT16_SIZE", 1)  # the model of this test is too narrow to be limited
    outcome = little.train(little.recipe(), tmp_path / "work")
    assert outcome == configured
    assert (outcome.figures["batch_size"], outcome.figures["effective_batch"]) == (1, 8)


def test_out_of_memory_in_the_middle_resumes_from_the_checkpoint(
    little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose random numbers depend on the batch size, the result is the same up to rounding."""
    lora = {"lora": little.recipe().lora.model_copy(update={"lora_dropout": 0.0})}  # type: ignore[union-attr]
    uninterrupted = little.train(little.recipe().model_copy(update=lora), tmp_path / "uninterrupted")
    gone: list[bool] = []

    def most() -> int:
        gone.extend([True] if (tmp_path / "work" / "step-00000006").exists() else [])
        return 2 if gone else 4

    scarce(monkeypatch, most)
    outcome = little.train(little.recipe(**EACH_STEP).model_copy(update=lora), tmp_path / "work")
    f = outcome.figures
    assert (f["batch_size"], f["out_of_memory"], f["resumed_from"]) == (2, 1, [6])
    assert f["steps"] == STEPS
    losses = [[point["loss"] for point in figures["loss"]] for figures in (f, uninterrupted.figures)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert f["validation_loss_after"] == pytest.approx(uninterrupted.figures["validation_loss_after"], rel=1e-5)


def test_a_resumed_training_remembers_how_many_rows_fit(
    little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, work = little.recipe(**EACH_STEP), tmp_path / "work"
    scarce(monkeypatch, lambda: 2)
    assert killed(little, recipe, work, renamed(3))
    made = scarce(monkeypatch, lambda: 2)
    assert little.train(recipe, work).figures["out_of_memory"] == 1
    assert len(made) == 1, "it does not run out of memory again"


def test_if_a_single_row_does_not_fit_the_error_says_what_to_change(
    little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce(monkeypatch, lambda: 0)
    with pytest.raises(
        PipelineError, match=f"Even a micro-batch of {MAX_LENGTH} tokens, one long row, does not fit into memory"
    ) as error:
        little.train(little.recipe(per_device_train_batch_size=2), tmp_path / "work")
    for key in ("max_length", "gradient_checkpointing", "nf4"):
        assert key in error.value.fix


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(finetune, "build_peft_model", build)
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        little.train(little.recipe(), tmp_path / "work")


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB; a checkpoint takes 68 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_training_resumes_when_there_is_room(
    little: SmallTraining, undisturbed: Outcome, small_disk: Path, tmp_path: Path
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
    assert f"the one of step {kept} is kept" in error.value.what
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
def forgetful(little: SmallTraining, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The outcome, and the adapter's folder."""
    work = tmp_path_factory.mktemp("forgetful") / "work"
    return little.train(little.recipe(**FORGETFUL), work), work.with_name("work.out")


def test_the_weights_of_the_lowest_validation_loss_are_kept(
    little: SmallTraining, forgetful: tuple[Outcome, Path], tmp_path: Path
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
    # Evaluation, with batches of its own, measures the same loss per token.
    model = SupportModel(ends_there, little.base, folder)
    rows = little.lake.read("prepare", "validation_split").to_pylist()
    questions, answers = ([row[name] for row in rows] for name in ("instruction", "response"))
    found = model.likelihoods(questions, [None] * len(rows), [()] * len(rows), answers)
    nll, tokens = sum(likelihood.nll for likelihood in found), sum(likelihood.tokens for likelihood in found)
    assert f["validation_loss_after"] == pytest.approx(nll / tokens, rel=1e-5)


def test_early_stopping_ends_the_training_and_an_interruption_changes_nothing(
    little: SmallTraining, forgetful: tuple[Outcome, Path], tmp_path: Path
) -> None:
    recipe = little.recipe(**FORGETFUL, **EACH_STEP, early_stopping_patience=1)
    patient = forgetful[0].figures["validation_loss"]
    losses = [point["loss"] for point in patient]
    risen = next(i for i, (one, next_) in enumerate(itertools.pairwise(losses)) if next_ >= one)
    impatient = little.train(recipe, tmp_path / "work")
    assert impatient.figures["validation_loss"] == patient[: risen + 2]
    assert impatient.figures["best_step"] == 3 * (risen + 1)
    assert impatient.figures["steps"] == 3 * (risen + 2) < 36
    # Killed after the last checkpoint: nothing is left to train, so no step may be added.
    assert killed(little, recipe, tmp_path / "killed", opened(tmp_path / "killed", "adapter_config.json"))
    outcome = little.train(recipe, tmp_path / "killed")
    assert (outcome.weights, outcome.equal_figures) == (impatient.weights, impatient.equal_figures)


def test_a_diverging_training_is_reported_at_once_and_leaves_no_checkpoint(
    little: SmallTraining, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match="the recipe 'little' diverged") as error:
        little.train(little.recipe(**EACH_STEP, learning_rate=1e30), tmp_path / "work")
    assert "step 10" in error.value.what, "the first logged step"
    assert Checkpoints(tmp_path / "work", print).newest() is None
