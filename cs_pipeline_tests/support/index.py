"""A package index on this machine (PEP 503), with packages that are written on the spot."""

import hashlib
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.package import PackageFiles, fetch_program


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], python: str = ">=3.8") -> Path:
    """A wheel of the package ``name`` with ``files``, and what an index needs to list it."""
    home = folder / "simple" / name
    home.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = home / f"{stem}-py3-none-any.whl"
    parts = files | {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Requires-Python: {python}\nRequires-Dist: a-package-that-nobody-has\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*parts, f"{stem}.dist-info/RECORD"])
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (parts | {f"{stem}.dist-info/RECORD": record.encode()}).items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), content)
    bound = python.replace(">", "&gt;")
    links = (f'<a href="{path.name}" data-requires-python="{bound}">{path.name}</a>' for path in home.glob("*.whl"))
    (home / "index.html").write_text(f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>")
    return wheel


def files_of(wheel: Path, files: dict[str, bytes], python_version: str | None = None) -> PackageFiles:
    """What a fetch of ``files`` from ``wheel`` is asked for, with true hashes."""
    _, version, *_ = wheel.name.split("-")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return PackageFiles(
        wheel.parent.name, version, hashlib.sha256(wheel.read_bytes()).hexdigest(), hashes, python_version
    )


class Index(ThreadingHTTPServer):
    """Serves a folder. ``asked`` are the paths that were requested; while ``stalls`` is set, wheels stop half-way."""

    asked: list[str]
    stalls: threading.Event

    @property
    def url(self) -> str:
        """Of the list of packages."""
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Answer(SimpleHTTPRequestHandler):
    server: Index

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client may have been killed
            super().handle()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if self.server.stalls.is_set() and self.path.endswith(".whl"):
            outputfile.write(source.read(1000))
            outputfile.flush()
            while self.server.stalls.is_set():
                time.sleep(0.05)
            return
        super().copyfile(source, outputfile)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Index]:
    """The index of the wheels in ``folder``."""
    server = Index(("127.0.0.1", 0), partial(_Answer, directory=str(folder)))
    server.asked, server.stalls = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stalls.clear()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def index_in_use(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index of the wheels in ``folder``, from which this process fetches; skips the test if it has no pip and no uv."""
    with serving(folder) as server:
        settings = index_settings(server.url, fetch_program() or "uv")
        if not settings:
            pytest.skip("neither pip nor uv is here")
        for name, value in settings.items():
            patch.setenv(name, value)
        yield server


def index_settings(url: str, program: str) -> dict[str, str]:
    """Environment variables with which ``program``, pip or uv, uses only the index at ``url``; {} if it is not here.

    They replace the settings of the person who runs the tests.
    """
    settings = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if program == "uv":
        settings |= {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": url, "UV_FIND_LINKS": "", "UV_HTTP_RETRIES": "0"}
        return settings if fetch_program() == "uv" or shutil.which("uv") else {}
    import ensurepip

    bundled = [*Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")]
    path = [*map(str, bundled), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    settings |= {"PYTHONPATH": os.pathsep.join(path), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "0"}
    return settings if bundled or "pip" in sys.modules else {}
