"""Two training processes on this machine give the same result as one, even after one is killed, and one failure message."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.defs.launch import Launcher
from cs_pipeline.recipe import TrainerSettings
from cs_pipeline.train.adapter import Adapter, current_adapter
from cs_pipeline.train.trainer.distributed import micro_batch_rows
from cs_pipeline_tests.conftest import own_world
from cs_pipeline_tests.support.launching import ROWS, launch, make_lake, make_world


@dataclass(frozen=True)
class Trained:
    """An adapter, its spooled metrics and its log lines."""

    adapter: Adapter
    spooled: str
    lines: list[str]


@contextmanager
def killing(lake: DataLake, rank: str) -> Iterator[list[int]]:
    """Kills the process ``rank`` of a training launched by this process as soon as there is a checkpoint."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            if next(lake.path("train", "adapter", "small").glob("*.work/step-*"), None):
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):  # the process has just ended
                        if "cs_pipeline.train" in child.cmdline() and child.environ().get("RANK") == rank:
                            child.kill()
                            killed.append(child.pid)
                            return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world: Path) -> dict[str, Trained]:
    """The same recipe and rows: in one process started by hand, and in two launched by Dagster, one of them killed."""
    one, two = (make_lake(world / name) for name in ("one", "two"))
    with own_world(one.root) as patch:
        patch.setenv("CS_RECIPES", str(world / "recipes"))
        patch.setenv(
            "MLFLOW_TRACKING_URI", "http://127.0.0.1:9"
        )  # nobody listens there; these tests do not need the store
        alone = subprocess.Popen(
            [sys.executable, "-m", "cs_pipeline.train", "--recipe", "small"], stdout=subprocess.PIPE, text=True
        )
        with killing(two, "1") as killed:
            success, lines, reason = launch(Launcher(kind="torchrun", processes=2), two, "small")
        output, _ = alone.communicate(timeout=300)
        assert alone.returncode == 0
        assert success, reason
        assert len(killed) == 1
        spools = [next(lake.path("train", "adapter", "small").glob("*.jsonl")).read_text() for lake in (one, two)]
        return {
            "one": Trained(current_adapter("small", one), spools[0], output.splitlines()),
            "two": Trained(current_adapter("small", two), spools[1], lines),
        }


def settings(batch_size: int, accumulation: int) -> TrainerSettings:
    return TrainerSettings(
        max_steps=1,
        learning_rate=1,
        max_length=16,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "expected"),
    [(8, 1, 1, 8), (8, 1, 2, 4), (4, 2, 2, 4), (4, 2, 4, 2), (1, 16, 4, 1), (8, 1, 3, 3), (8, 1, 8, 1), (2, 8, 2, 2)],
)
def test_a_step_is_divided_among_processes(batch_size: int, accumulation: int, processes: int, expected: int) -> None:
    assert micro_batch_rows(settings(batch_size, accumulation), processes) == expected


def test_a_step_with_too_few_rows_is_refused() -> None:
    with pytest.raises(PipelineError, match="8 rows, which is too few for 9 processes") as error:
        micro_batch_rows(settings(4, 2), 9)
    assert "at most 8" in error.value.fix


def test_two_processes_give_the_same_result_as_one(trained: dict[str, Trained]) -> None:
    one, two = (trained[name].adapter for name in ("one", "two"))
    assert two.fingerprint == one.fingerprint
    assert set(two.manifest["files"]) == set(one.manifest["files"])
    for key in ("rows", "rows_different", "steps", "epochs", "best_step", "effective_batch"):
        assert two.metrics[key] == one.metrics[key], key
    assert one.metrics["rows"] == ROWS
    assert one.metrics["steps"] == 10
    assert file_sha256(two.folder / "rows.parquet") == file_sha256(one.folder / "rows.parquet")
    # Summing float32 numbers in another order changes the sum by about 1e-7. Repeating one row in one step of ten changes
    # the loss by 2e-6 and the gradient by 3 %, so comparing both would show it.
    for key in ("validation_loss_before", "validation_loss_after"):
        assert two.metrics[key] == pytest.approx(one.metrics[key], rel=1e-6), key
    assert one.metrics["validation_loss_after"] < one.metrics["validation_loss_before"] - 0.05
    spooled = [[json.loads(line) for line in trained[name].spooled.splitlines()] for name in ("one", "two")]
    assert [entry["step"] for entry in spooled[1]] == [entry["step"] for entry in spooled[0]] == [0, 10, 10]
    for alone, together in zip(*spooled, strict=True):
        gradient = [entry["metrics"].pop("grad_norm", 0) for entry in (alone, together)]
        assert gradient[1] == pytest.approx(gradient[0], rel=1e-4)
        assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)


def test_the_figures_cover_both_processes(trained: dict[str, Trained]) -> None:
    one, two = (trained[name].adapter.metrics for name in ("one", "two"))
    tokens = [round(metrics["tokens_per_second"] * metrics["seconds"]) for metrics in (one, two)]
    assert tokens[0] == tokens[1] > 5_000
    # Each process has fewer rows to pad. Its padding includes one token for each step in which it had no row left.
    assert one["real_token_share"] < two["real_token_share"] < 1


def test_only_the_first_process_reports(trained: dict[str, Trained]) -> None:
    """In both attempts; the second one resumed from the last checkpoint of the first."""
    lines = Counter(trained["two"].lines)
    assert lines["[pipes] external process successfully opened dagster pipes."] == 2
    assert sum(count for line, count in lines.items() if line.startswith("The training was killed")) == 1
    (resumed,) = trained["two"].adapter.metrics["resumed_from"]
    assert lines[f"resumes from the checkpoint of step {resumed}"] == 1
    assert 1 <= resumed < 10
    for lines_ in (trained["one"].lines, trained["two"].lines):
        assert len([line for line in lines_ if line.startswith("adapter step 10/10")]) == 1


def test_a_failure_of_any_process_is_reported_once(world: Path, lake: DataLake, tmp_path: Path) -> None:
    """Started by ``accelerate launch``; without a GPU the processes use gloo, as with torchrun."""
    make_lake(lake.root)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, runpy\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.environ['CS_RECIPES'] = '/nowhere'\n"
        "runpy.run_module('cs_pipeline.train', run_name='__main__', alter_sys=True)\n"
    )
    failure = tmp_path / "failure"
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launched = subprocess.run(
        [sys.executable, "-m", *launcher, "--mixed_precision=no", "--dynamo_backend=no", script, "--recipe", "small"],
        env={**os.environ, "CS_FAILURE_FILE": str(failure), "CS_RECIPES": str(world / "recipes")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 1, launched.stderr
    assert failure.read_text() == "There is no recipe 'small' in /nowhere.\n  What to do: Choose one of: none."
    assert not list(lake.path("train").rglob("manifest.json"))
