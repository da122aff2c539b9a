"""The training process, killed and asked to stop, while the metrics store is unreachable."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cs_pipeline.core.lake import file_sha256, read_json
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.tracking import get_or_create_run, open_store
from cs_pipeline.train.adapter import find_adapter, metrics_spool, train_adapter
from cs_pipeline_tests.support.little import SmallTraining, write_recipe

STEPS = 48


@pytest.fixture
def little(tmp_path: Path) -> SmallTraining:
    return SmallTraining.create(tmp_path)


@pytest.fixture
def recipe(little: SmallTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FineTuneRecipe:
    monkeypatch.setenv("CS_RECIPES", str(tmp_path / "recipes"))
    content = little.yaml(num_train_epochs=8, evaluations=4, checkpoint_seconds=0)
    return write_recipe(tmp_path / "recipes", "little", content)


def interrupted(little: SmallTraining, number: signal.Signals, when: Callable[[Path], bool]) -> tuple[int, str]:
    """Runs the command and sends the signal as soon as ``when(working folder)`` is true; returns exit code and output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cs_pipeline.train", "--recipe", "little"],
        env={**os.environ, "CS_LAKE": str(little.lake.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not any(when(work) for work in little.lake.path("train", "adapter", "little").glob("*.work")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output


def saved(work: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in work.glob("step-*")), default=0)


def test_a_training_that_is_killed_and_then_stopped_can_be_finished(
    little: SmallTraining, recipe: FineTuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = little.train(recipe, tmp_path / "undisturbed")
    assert undisturbed.figures["steps"] == STEPS

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens on the discard port
    code, _ = interrupted(little, signal.SIGKILL, lambda work: saved(work) > 10 and any(work.glob(".step-*")))
    assert code == -signal.SIGKILL
    (work,) = little.lake.path("train", "adapter", "little").glob("*.work")
    first = saved(work)

    code, output = interrupted(little, signal.SIGTERM, lambda work: saved(work) > first + 8)
    assert code == 143
    stopped = saved(work)
    assert f"resumes from the checkpoint of step {first}" in output
    assert f"Stopped by SIGTERM after step {stopped} of {STEPS}" in output
    assert "Start the same training again" in output
    assert "Traceback" not in output

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert find_adapter(recipe, little.lake) is None
    older = work.with_name("0123456789abcdef.work") / "step-00000010"  # of a training on older data
    older.mkdir(parents=True)
    (older / "adapter_model.safetensors").touch()
    lines: list[str] = []
    adapter = train_adapter(recipe, little.lake, lines.append)
    assert f"resumes from the checkpoint of step {stopped}" in lines
    assert file_sha256(adapter.folder / "adapter_model.safetensors") == undisturbed.weights
    for name, figure in undisturbed.equal_figures.items():
        assert adapter.metrics[name] == figure, name
    assert adapter.metrics["resumed_from"] == [first, stopped]

    # The metrics of all three processes are there once, in the order of the steps.
    client = open_store(little.lake)
    run = get_or_create_run(client, little.lake, adapter.fingerprint, "little")
    metrics_spool("little", adapter.fingerprint, little.lake).replay(client, run)
    for name in ("loss", "learning_rate", "grad_norm", "validation_loss"):
        sent = [(point.step, point.value) for point in client.get_metric_history(run, name)]
        assert sorted(sent) == [(step, m[name]) for step, m in sorted(undisturbed.metrics.items()) if name in m]

    beside = {path.name for path in adapter.folder.parent.iterdir()}
    name = adapter.fingerprint
    assert beside == {name, f"{name}.jsonl", f"{name}.sent"}, "the working folder is removed"
    assert read_json(little.lake.path("train", "adapter", "little.json")) == {"fingerprint": name}
    assert find_adapter(recipe, little.lake) is not None
