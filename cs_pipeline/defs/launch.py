"""Where training runs: one process here, one a GPU of this machine, or a job of a Ray or Kubernetes cluster."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import DataLake, make_folder
from cs_pipeline.core.yaml_file import read_yaml

MOST_RETRIES = 2
"""How often a training that was killed without a word is started again."""

SETTINGS = ("CS_RECIPES", "MLFLOW_TRACKING_URI")
"""What a job on a cluster is told of this environment, beside the lake. No secret: who sees a job sees its environment."""

GRACE = 60
"""Seconds for a training to end after Ctrl-C; torchrun kills what has not ended after 30."""


@dataclass(frozen=True)
class _Training:
    """A training to be started; ``gpus`` and ``pod`` are for clusters."""

    context: dg.AssetExecutionContext
    lake: DataLake
    options: tuple[str, ...]
    processes: int | None
    gpus: int | None
    pod: str | None

    def file(self, name: str) -> Path:
        """A file in the lake for what Dagster and the training have to say to one another."""
        return self.lake.path("train", f".{self.context.partition_key}.{name}")

    def command(self, python: str, processes: int) -> list[str]:
        """Several processes are started, watched and ended together by torchrun."""
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        entry = ["-m", "cs_pipeline.train", "--recipe", self.context.partition_key, *self.options]
        return [python, *(together if processes > 1 else []), *entry]

    def environment(self) -> dict[str, str]:
        return {"CS_LAKE": str(self.lake.root), "CS_FAILURE_FILE": str(self.file("failure"))}

    def environment_of_job(self) -> dict[str, str]:
        """Raises PipelineError where a secret would be in it."""
        known = {name: os.environ[name] for name in SETTINGS if name in os.environ}
        if any(without_secret(value) != value for value in known.values()):
            raise PipelineError(
                "MLFLOW_TRACKING_URI holds a password, and who sees a job on the cluster would see it.",
                "Take it out of the address; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here, and on the "
                "cluster by its own secrets.",
            )
        return known | self.environment()

    def gpus_of_job(self) -> int:
        return (self.processes or 1) if self.gpus is None else self.gpus


class Launcher(dg.ConfigurableResource):
    """How a training is started: as the environment says, where a run's configuration says nothing."""

    kind: str | None = Field(
        default=None, description="local, torchrun, ray or kubernetes; else CS_LAUNCHER, else local"
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that train together, one a GPU; else CS_PROCESSES, else all GPUs of this machine "
        "for torchrun and one elsewhere",
    )
    gpus: int | None = Field(
        default=None, ge=0, description="GPUs of a job on a cluster; else CS_GPUS, else one a process"
    )
    pod: str | None = Field(default=None, description="YAML file of the pod for kubernetes; else CS_POD")

    @property
    def here(self) -> bool:
        """Whether trainings run on this machine."""
        return self._kind() in ("local", "torchrun")

    def run(self, context: dg.AssetExecutionContext, lake: DataLake, *options: str) -> None:
        """Runs ``python -m cs_pipeline.train`` with ``options`` for the partition's recipe, and waits for its end.

        The process makes a file in the lake when it begins. If it fails, it writes the reason there, and that is the
        failure's description. If it is killed, the file stays empty, and it is started again.
        """
        training = _Training(
            context,
            lake,
            options,
            _number(self.processes, "CS_PROCESSES"),
            _number(self.gpus, "CS_GPUS"),
            self.pod or os.environ.get("CS_POD"),
        )
        start, failure = LAUNCHERS[self._kind()], training.file("failure")
        make_folder(failure.parent)
        failure.unlink(missing_ok=True)
        try:
            start(training)
        except PipelineError:
            raise
        except Exception as error:
            raise self._outcome(context, failure, error) from error
        finally:
            failure.unlink(missing_ok=True)

    def _kind(self) -> str:
        kind = self.kind or os.environ.get("CS_LAUNCHER") or "local"
        if kind not in LAUNCHERS:
            raise PipelineError(f"There is no launcher '{kind}'.", f"Set CS_LAUNCHER to one of {', '.join(LAUNCHERS)}.")
        return kind

    def _outcome(self, context: dg.AssetExecutionContext, failure: Path, error: Exception) -> Exception:
        """What becomes of a training that ended with ``error``."""
        if not failure.exists():
            where = "" if self.here else " The lake must be on storage that the job sees under the same path."
            return dg.Failure(f"The training did not begin: {error}{where}", allow_retries=False)
        reason = failure.read_text()
        if reason:
            return dg.Failure(reason, allow_retries=False)
        context.log.warning(f"The training was killed or asked to stop ({error}); it is started again.")
        return dg.RetryRequested(max_retries=MOST_RETRIES)


def _local(training: _Training) -> None:
    if training.processes not in (None, 1):
        raise PipelineError(
            f"The launcher 'local' starts one process, and CS_PROCESSES is {training.processes}.",
            "Set CS_LAUNCHER=torchrun, or unset CS_PROCESSES.",
        )
    _subprocess(training, 1, {})


def _torchrun(training: _Training) -> None:
    import torch

    processes = training.processes or torch.cuda.device_count()
    if not processes:
        raise PipelineError(
            "The launcher 'torchrun' starts a process a GPU, and there is no GPU here.",
            "Set CS_PROCESSES to the number of processes, or CS_LAUNCHER=local.",
        )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    _subprocess(training, processes, {"OMP_NUM_THREADS": threads})


def _subprocess(training: _Training, processes: int, settings: dict[str, str]) -> None:
    dg.PipesSubprocessClient(termination_timeout_seconds=GRACE).run(
        context=training.context,
        command=training.command(sys.executable, processes),
        env=training.environment() | settings,
    )


def _ray(training: _Training) -> None:
    try:
        from dagster_ray import PipesRayJobClient
    except ImportError as error:
        raise _extra_lacks("ray") from error
    # dagster-ray's own reader follows the job's log over one connection, and loses what comes after that breaks.
    reader = dg.PipesFileMessageReader(str(training.file("messages")))
    PipesRayJobClient(message_reader=reader).run(
        context=training.context,
        submit_job_params={
            "entrypoint": shlex.join(training.command("python", training.processes or 1)),
            "entrypoint_num_gpus": training.gpus_of_job(),
            "runtime_env": {"env_vars": training.environment_of_job()},
        },
    )


def _kubernetes(training: _Training) -> None:
    try:
        from dagster_k8s import PipesK8sClient
    except ImportError as error:
        raise _extra_lacks("kubernetes") from error
    if training.pod is None:
        raise PipelineError("The launcher 'kubernetes' needs a pod.", "Set CS_POD to a YAML file like docs/pod.yaml.")
    command = training.command("python", training.processes or 1)
    metadata, spec = filled_pod(Path(training.pod), command, training.gpus_of_job())
    PipesK8sClient().run(
        context=training.context,
        env=training.environment_of_job(),
        namespace=metadata.get("namespace"),
        base_pod_meta=metadata,
        base_pod_spec=spec,
        pod_wait_timeout=0,  # a training may take longer than dagster-k8s's day
    )


def filled_pod(path: Path, command: list[str], gpus: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and spec of the pod in ``path``, whose first container runs ``command`` with ``gpus``.

    Raises PipelineError when there is no container in it.
    """
    pod = read_yaml(path)
    spec = pod.get("spec") or {}
    if not spec.get("containers"):
        raise PipelineError(f"{path} has no spec.containers.", "Begin with docs/pod.yaml.")
    container = spec["containers"][0]
    container["command"] = command
    if gpus:
        container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = str(gpus)
    return pod.get("metadata") or {}, spec


def _number(given: int | None, name: str) -> int | None:
    said = os.environ.get(name)
    if given is not None or not said:
        return given
    if not said.isdecimal():
        raise PipelineError(f"{name} is '{said}', which is no number.", f"Set {name} to a number, or unset it.")
    return int(said)


def _extra_lacks(name: str) -> PipelineError:
    return PipelineError(
        f"The launcher '{name}' needs libraries that are not installed.",
        f"Install them: uv pip install 'cs-pipeline[{name}]'.",
    )


LAUNCHERS: dict[str, Callable[[_Training], None]] = {
    "local": _local,
    "torchrun": _torchrun,
    "ray": _ray,
    "kubernetes": _kubernetes,
}
