"""Where training runs: in one process here, in one process per GPU of this machine, or in a Ray or Kubernetes job."""

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

_MAX_RETRIES = 2
"""How many times a training run is restarted if it is killed, that is, if it ends without reporting a reason."""

_JOB_SETTINGS = ("CS_RECIPES", "MLFLOW_TRACKING_URI")
"""Environment variables that a cluster job inherits. No secrets: anyone who sees a job sees its environment."""

_TERMINATION_SECONDS = 60
"""Seconds that a training run may take to end after Ctrl-C. torchrun kills its processes after 30."""


@dataclass(frozen=True)
class _Training:
    """A training run to start; ``gpus`` and ``pod`` are for clusters."""

    context: dg.AssetExecutionContext
    lake: DataLake
    options: tuple[str, ...]
    processes: int | None
    gpus: int | None
    pod: str | None

    def file(self, name: str) -> Path:
        """A file in the lake through which the training and Dagster communicate."""
        return self.lake.path("train", f".{self.context.partition_key}.{name}")

    def command(self, python: str, processes: int) -> list[str]:
        """The training's command line. Several processes are started, watched and stopped by torchrun."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        entry = ["-m", "cs_pipeline.train", "--recipe", self.context.partition_key, *self.options]
        return [python, *(torchrun if processes > 1 else []), *entry]

    def environment(self) -> dict[str, str]:
        return {"CS_LAKE": str(self.lake.root), "CS_FAILURE_FILE": str(self.file("failure"))}

    def job_environment(self) -> dict[str, str]:
        """The environment of a cluster job. Raises PipelineError if it would contain a secret."""
        settings = {name: os.environ[name] for name in _JOB_SETTINGS if name in os.environ}
        if any(without_secret(value) != value for value in settings.values()):
            raise PipelineError(
                "MLFLOW_TRACKING_URI contains a password, and anyone who sees the job on the cluster would see it.",
                "Remove it from the address; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here, and on the "
                "cluster through its own secrets.",
            )
        return settings | self.environment()

    def job_gpus(self) -> int:
        return (self.processes or 1) if self.gpus is None else self.gpus


class Launcher(dg.ConfigurableResource):
    """How a training run is started. Fields that the run's configuration leaves out are read from environment variables."""

    kind: str | None = Field(
        default=None, description="local, torchrun, ray or kubernetes; default: CS_LAUNCHER, else local"
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that train together, one per GPU; default: CS_PROCESSES, else one, or with torchrun one "
        "per GPU of this machine",
    )
    gpus: int | None = Field(
        default=None, ge=0, description="GPUs of a cluster job; default: CS_GPUS, else one per process"
    )
    pod: str | None = Field(default=None, description="YAML file of the Kubernetes pod; default: CS_POD")

    @property
    def is_local(self) -> bool:
        """Whether training runs on this machine."""
        return self._kind() in ("local", "torchrun")

    def run(self, context: dg.AssetExecutionContext, lake: DataLake, *options: str) -> None:
        """Runs ``python -m cs_pipeline.train`` with ``options`` for the partition's recipe, and waits until it ends.

        The process creates a file in the lake when it starts. If it fails, it writes the reason into the file, and the step
        fails with that reason. If it is killed, the file stays empty, and the training is started again.
        """
        training = _Training(
            context=context,
            lake=lake,
            options=options,
            processes=_number_setting(self.processes, "CS_PROCESSES"),
            gpus=_number_setting(self.gpus, "CS_GPUS"),
            pod=self.pod or os.environ.get("CS_POD"),
        )
        launch, failure_file = LAUNCHERS[self._kind()], training.file("failure")
        make_folder(failure_file.parent)
        failure_file.unlink(missing_ok=True)
        try:
            launch(training)
        except PipelineError:
            raise
        except Exception as error:
            raise self._exception(context, failure_file, error) from error
        finally:
            failure_file.unlink(missing_ok=True)

    def _kind(self) -> str:
        kind = self.kind or os.environ.get("CS_LAUNCHER") or "local"
        if kind not in LAUNCHERS:
            raise PipelineError(f"There is no launcher '{kind}'.", f"Set CS_LAUNCHER to one of {', '.join(LAUNCHERS)}.")
        return kind

    def _exception(self, context: dg.AssetExecutionContext, failure_file: Path, error: Exception) -> Exception:
        """The exception to raise for a training run that ended with ``error``."""
        if not failure_file.exists():
            where = "" if self.is_local else " The job needs the lake under the same path as here."
            return dg.Failure(f"The training did not start: {error}{where}", allow_retries=False)
        reason = failure_file.read_text()
        if reason:
            return dg.Failure(reason, allow_retries=False)
        context.log.warning(f"The training was killed or stopped ({error}); starting it again.")
        return dg.RetryRequested(max_retries=_MAX_RETRIES)


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
            "The launcher 'torchrun' starts one process per GPU, and this machine has no GPU.",
            "Set CS_PROCESSES to the number of processes, or CS_LAUNCHER=local.",
        )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    _subprocess(training, processes, {"OMP_NUM_THREADS": threads})


def _subprocess(training: _Training, processes: int, environment: dict[str, str]) -> None:
    dg.PipesSubprocessClient(termination_timeout_seconds=_TERMINATION_SECONDS).run(
        context=training.context,
        command=training.command(sys.executable, processes),
        env=training.environment() | environment,
    )


def _ray(training: _Training) -> None:
    try:
        from dagster_ray import PipesRayJobClient
    except ImportError as error:
        raise _missing_extra("ray") from error
    # dagster-ray's own reader follows the job's log over one connection; if that breaks, it loses all later messages.
    reader = dg.PipesFileMessageReader(str(training.file("messages")))
    PipesRayJobClient(message_reader=reader).run(
        context=training.context,
        submit_job_params={
            "entrypoint": shlex.join(training.command("python", training.processes or 1)),
            "entrypoint_num_gpus": training.job_gpus(),
            "runtime_env": {"env_vars": training.job_environment()},
        },
    )


def _kubernetes(training: _Training) -> None:
    try:
        from dagster_k8s import PipesK8sClient
    except ImportError as error:
        raise _missing_extra("kubernetes") from error
    if training.pod is None:
        raise PipelineError(
            "The launcher 'kubernetes' needs a pod specification.", "Set CS_POD to a YAML file like docs/pod.yaml."
        )
    command = training.command("python", training.processes or 1)
    metadata, spec = filled_pod(Path(training.pod), command, training.job_gpus())
    PipesK8sClient().run(
        context=training.context,
        env=training.job_environment(),
        namespace=metadata.get("namespace"),
        base_pod_meta=metadata,
        base_pod_spec=spec,
        pod_wait_timeout=0,  # no limit: dagster-k8s's default is one day
    )


def filled_pod(path: Path, command: list[str], gpus: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and spec of the pod in ``path``, with ``command`` and ``gpus`` set in its first container.

    Raises PipelineError if it has no container.
    """
    pod = read_yaml(path)
    spec = pod.get("spec") or {}
    if not spec.get("containers"):
        raise PipelineError(f"{path} has no spec.containers.", "Start from docs/pod.yaml.")
    container = spec["containers"][0]
    container["command"] = command
    if gpus:
        container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = str(gpus)
    return pod.get("metadata") or {}, spec


def _number_setting(given: int | None, name: str) -> int | None:
    value = os.environ.get(name)
    if given is not None or not value:
        return given
    if not value.isdecimal():
        raise PipelineError(f"{name} is '{value}', which is not a number.", f"Set {name} to a number, or unset it.")
    return int(value)


def _missing_extra(name: str) -> PipelineError:
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
