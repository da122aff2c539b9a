"""Base models from the hub: what is downloaded, what is refused, and the messages when a download fails.

The hub is a server on this machine with the part of the API that a download needs: the list of files with their hashes,
and each file, also in ranges. The client library is the real one, in a new process because it reads its settings when
imported.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from cs_pipeline.llm.model import WEIGHTS, WEIGHTS_INDEX, missing_files
from cs_pipeline.recipe import HubBase

REPO, REVISION = "our-team/tiny-chat", "0123456789abcdef0123456789abcdef01234567"
WHAT = f"The base model {REPO} at revision {REVISION}"
TOKEN = "hf_notForAnybodysEyes"
TEXTS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
LEFT = {
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"import os",
    "weights.pt": b"a pickle",
    "consolidated.safetensors": b"the same weights in another tool's format",
    "original/params.json": b"{}",
}


class Hub(ThreadingHTTPServer):
    """``files`` at one revision. ``asked`` records requests, ``ranges`` those of the weights; ``behaviour`` is its way to
    answer."""

    files: dict[str, bytes]
    behaviour: str
    asked: list[str]
    ranges: list[str | None]
    tokens: set[str | None]
    stalled: threading.Event


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client may have disconnected
            super().handle()

    def do_GET(self) -> None:
        path, behaviour = self.path.partition("?")[0], self.server.behaviour
        self.server.asked.append(path)
        self.server.tokens.add(self.headers.get("Authorization"))
        tree, files = f"/api/models/{REPO}/tree/{REVISION}", f"/{REPO}/resolve/{REVISION}/"
        if behaviour == "no repository":
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif behaviour == "bad token":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path.startswith(f"/api/models/{REPO}/tree/") and (path != tree or behaviour == "no revision"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path == tree:
            self._send(200, json.dumps(self._listing()).encode(), {"Content-Type": "application/json"})
        elif path.startswith(files) and behaviour.startswith("gated"):
            self._send(int(behaviour[-3:]), b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(files):
            self._file(path.removeprefix(files))
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

    def _listing(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for name, content in self.server.files.items():
            if "/" in name:
                entries.append({"type": "directory", "path": name.partition("/")[0], "oid": git_blob(b"")})
                continue
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_blob(content)}
            if name.endswith(".safetensors"):
                size = 10**15 if self.server.behaviour == "huge" else len(content)
                entry |= {"size": size, "lfs": {"oid": sha256(content), "size": size, "pointerSize": 134}}
            entries.append(entry)
        return entries

    def _file(self, name: str) -> None:
        content, behaviour = self.server.files[name], self.server.behaviour
        headers = {"ETag": f'"{git_blob(content)}"', "X-Repo-Commit": REVISION}
        if not name.endswith(".safetensors") or self.command == "HEAD":
            self._send(200, content, headers)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if behaviour == "other content":
            content = content[:-1] + bytes([content[-1] ^ 1])
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = None if first or behaviour not in ("broken off", "stalls") else len(content) // 2
        self._send(206 if asked else 200, content[first:], headers, cut)
        if cut and behaviour == "stalls":
            self.wfile.flush()
            self.server.stalled.wait(60)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None

    def log_message(self, *args: Any) -> None:
        pass


@cache
def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answer)
    weights: dict[str, Any] = {"a": np.arange(300_000, dtype=np.float32), "b": np.ones((3, 7), np.float16)}
    server.files = {name: f'{{"made for": "{name}"}}'.encode() for name in TEXTS} | {WEIGHTS: save(weights)} | LEFT
    server.behaviour, server.asked, server.ranges, server.tokens = "open", [], [], set()
    server.stalled = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


def start(endpoint: str, home: Path, **more: str) -> "subprocess.Popen[str]":
    """A new process that downloads the base at ``REVISION`` and prints its folder and progress lines, or the error."""
    code = f"""if True:
        import json
        from cs_pipeline.core.errors import PipelineError
        from cs_pipeline.recipe import HubBase
        from cs_pipeline.llm.hub import fetch_base
        lines = []
        try:
            path = fetch_base(HubBase(source="hub", repo={REPO!r}, revision={REVISION!r}, licence="MIT"), lines.append)
            print(json.dumps({{"path": str(path), "lines": lines}}))
        except PipelineError as error:
            print(json.dumps({{"what": error.what, "fix": error.fix}}))
        """
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **more}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def fetch(endpoint: str, home: Path, **more: str) -> dict[str, Any]:
    out, err = start(endpoint, home, **more).communicate(timeout=240)
    assert out, err
    assert TOKEN not in out + err
    answer: dict[str, Any] = json.loads(out)
    return answer


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Future[dict[str, Any]]"]:
    """The error of a hub that does not answer; the library retries for a while, so other tests run meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        # Nobody listens on the discard port.
        yield pool.submit(fetch, "http://127.0.0.1:9", tmp_path_factory.mktemp("unreachable"), HF_TOKEN=TOKEN)


def test_only_safetensors_and_texts_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    found = fetch(address(hub), tmp_path, HF_TOKEN=TOKEN)
    folder = Path(found["path"])
    assert {path.name for path in folder.iterdir()} == TEXTS | {WEIGHTS}
    assert all((folder / name).read_bytes() == hub.files[name] for name in TEXTS | {WEIGHTS})
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert not any(path.endswith(name) for path in hub.asked for name in LEFT)
    assert any(
        line.startswith(f"Downloading {address(hub)}/{REPO}/resolve/{REVISION}/{WEIGHTS}") for line in found["lines"]
    )
    assert found["lines"][-1].endswith(" MB/s, 0 s left")

    hub.asked.clear()
    for endpoint, offline in ((address(hub), "0"), (address(hub), "1"), ("http://127.0.0.1:9", "0")):
        assert fetch(endpoint, tmp_path, HF_HUB_OFFLINE=offline) == {"path": str(folder), "lines": []}
    assert hub.asked == []


def test_the_shards_in_the_index_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = hub.files.pop(WEIGHTS)
    hub.files |= dict.fromkeys(names, weights) | {"model-00003-of-00002.safetensors": weights}
    hub.files[WEIGHTS_INDEX] = json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}).encode()
    folder = Path(fetch(address(hub), tmp_path)["path"])
    assert {path.name for path in folder.iterdir()} == TEXTS | {WEIGHTS_INDEX, *names}
    assert hub.ranges == [None]  # equal content is one file
    del hub.files[names[1]]
    failed = fetch(address(hub), tmp_path / "other")
    assert failed["what"] == f"{WHAT} has no safetensors weights: {names[1]} is missing."


def test_a_broken_download_is_resumed_in_the_same_call(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = "broken off"
    folder = Path(fetch(address(hub), tmp_path)["path"])
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert_resumed(hub)


def test_a_killed_download_is_incomplete_and_resumed_by_the_next_call(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = "stalls"
    process = start(address(hub), tmp_path)
    half, deadline = len(hub.files[WEIGHTS]) // 2, time.monotonic() + 60
    while sum(path.stat().st_size for path in tmp_path.rglob("*.part")) < half - 2**16:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    offline = fetch(address(hub), tmp_path, HF_HUB_OFFLINE="1")
    assert offline["what"].startswith(f"{WHAT} is not complete in {tmp_path}")
    assert "HF_HUB_OFFLINE forbids" in offline["what"]
    hub.behaviour = "open"
    folder = Path(fetch(address(hub), tmp_path)["path"])
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert_resumed(hub)


def assert_resumed(hub: Hub) -> None:
    """The weights were requested twice, the second time from about where the first response ended."""
    first, second = hub.ranges
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= len(hub.files[WEIGHTS]) // 2 - 2**16


def test_content_that_differs_from_the_listed_hash_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = "other content"
    failed = fetch(address(hub), tmp_path)
    assert "returned a different file than expected" in failed["what"]
    assert sha256(hub.files[WEIGHTS]) in failed["what"]
    assert not list(tmp_path.rglob(WEIGHTS))


def test_a_full_disk_is_reported_before_the_weights_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = "huge"
    failed = fetch(address(hub), tmp_path)
    assert failed["what"].startswith(f"{WHAT} needs 1,000,000.0 GB more in {tmp_path}")
    assert "HF_HOME" in failed["fix"]
    assert hub.ranges == []


@pytest.mark.parametrize(
    ("behaviour", "token", "what", "fix"),
    [
        (
            "gated 401",
            "",
            "is gated (MIT), and the hub refuses to send it without HF_TOKEN",
            f"Accept its licence at https://huggingface.co/{REPO}",
        ),
        ("gated 403", TOKEN, "is gated (MIT), and the hub refuses to send it with that HF_TOKEN", "Accept its licence"),
        ("no revision", TOKEN, "is not on the hub", "Fix base.repo and base.revision"),
        ("no repository", TOKEN, "is not on the hub", "Fix base.repo and base.revision"),
        ("bad token", TOKEN, "could not be downloaded: the hub answered 401", "Set HF_TOKEN to a valid token"),
    ],
)
def test_refusals_of_the_hub(hub: Hub, tmp_path: Path, behaviour: str, token: str, what: str, fix: str) -> None:
    hub.behaviour = behaviour
    failed = fetch(address(hub), tmp_path, HF_TOKEN=token)
    assert failed["what"].startswith(f"{WHAT} {what}")
    assert failed["fix"].startswith(fix)


def test_a_model_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files[WEIGHTS]
    failed = fetch(address(hub), tmp_path)
    assert failed["what"] == f"{WHAT} has no safetensors weights: {WEIGHTS} is missing."
    assert "pickles are never loaded" in failed["fix"]


def test_an_incomplete_download_of_another_tool_is_completed(hub: Hub, tmp_path: Path) -> None:
    folder = Path(fetch(address(hub), tmp_path)["path"])
    # The library's own list of files shows that a template is missing, and the weights are truncated.
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in TEXTS}}
    trees = folder.parents[1] / "trees"
    trees.mkdir()
    (trees / f"{REVISION}.json").write_text(json.dumps(listing))
    (folder / "chat_template.jinja").unlink()
    offline = fetch(address(hub), tmp_path, HF_HUB_OFFLINE="1")
    assert offline["what"].startswith(f"{WHAT} is not complete")
    os.truncate((folder / WEIGHTS).resolve(), 5000)
    assert missing_files(folder) == [f"a complete {WEIGHTS}"]
    assert Path(fetch(address(hub), tmp_path)["path"]) == folder
    assert all((folder / name).read_bytes() == hub.files[name] for name in TEXTS | {WEIGHTS})


def test_a_hub_base_needs_a_full_revision() -> None:
    with pytest.raises(ValueError, match="revision"):
        HubBase(source="hub", repo=REPO, revision="main", licence="MIT")


def test_an_unreachable_hub(unreachable: "Future[dict[str, Any]]") -> None:
    failed = unreachable.result()
    assert failed["what"].startswith(f"{WHAT} could not be downloaded: the hub cannot be reached")
    assert "Check the network and HF_HUB_OFFLINE" in failed["fix"]
    assert "source: path" in failed["fix"]
