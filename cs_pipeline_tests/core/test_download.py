import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core import download as module
from cs_pipeline.core.download import _MAX_ATTEMPTS, RemoteFile, download
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.sources import BITEXT, HUB_REPO, hub_file

CONTENT = bytes(range(256)) * 4000
"""About a megabyte, which is several chunks of the response."""
TOKEN = "hf_verySecretTokenOfTheUser"


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Answer:
    """The response to one request. When none is left, the server serves the content and respects ranges."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    then: str = "end"
    """What follows: "end", "drop" (the connection is closed halfway) or "stall" (halfway, nothing more comes)."""


class Server:
    """A real HTTP server on a free local port that follows its script and records the requests."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.script: list[Answer] = []
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with suppress(ConnectionError):  # the client may have stopped reading
                    super().handle()

            def do_GET(self) -> None:
                outer.requests.append(dict(self.headers))
                outer.paths.append(self.path)
                answer = outer.script.pop(0) if outer.script else outer.content_from(self.headers.get("Range"))
                self.send_response(answer.status)
                if "Transfer-Encoding" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                body = answer.body if answer.then == "end" else answer.body[: len(answer.body) // 2]
                self.wfile.write(body)
                if answer.then == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                if answer.then == "stall":
                    outer.closing.wait(10)
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def content_from(self, range_header: str | None) -> Answer:
        if range_header is None:
            return Answer(body=self.content)
        start = int(range_header.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content):
            return Answer(416, {"Content-Range": f"bytes */{len(self.content)}"})
        return Answer(
            206, {"Content-Range": f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"}, self.content[start:]
        )

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.requests]

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts in seconds, which no test really waits for."""
    waits: list[float] = []
    monkeypatch.setattr("cs_pipeline.core.download.time.sleep", waits.append)
    return waits


@pytest.fixture
def remote(server: Server) -> RemoteFile:
    return at(f"{server.base}/data/rows.csv")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "rows.csv"


def at(url: str) -> RemoteFile:
    return RemoteFile("github", "c0ffee", url, len(CONTENT), git_blob(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def on_hub(server: Server, monkeypatch: pytest.MonkeyPatch, revision: str = "main") -> RemoteFile:
    """Makes ``server`` the hub, where the dataset's file is ``CONTENT``."""
    monkeypatch.setenv("HF_ENDPOINT", server.base + "/")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return replace(hub_file(revision), size=len(CONTENT), git_blob=git_blob(CONTENT))


def refusal(remote: RemoteFile, target: Path) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        download(remote, target)
    assert not target.exists()
    assert caught.value.fix
    return caught.value


def test_the_dataset_has_a_pinned_url() -> None:
    assert BITEXT.url == (
        "https://raw.githubusercontent.com/bitext/customer-support-llm-chatbot-training-dataset/"
        "72ea2203180d14a416b579c657033ecd21e59a11/data/"
        "Bitext_Sample_Customer_Support_Training_Dataset_27K_responses-v11.csv"
    )


def test_a_file_is_downloaded_once(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    assert download(remote, target) == target
    assert target.read_bytes() == CONTENT
    assert not target.with_name("rows.csv.part").exists()
    server.close()
    assert download(remote, target) == target  # the server is gone
    assert server.ranges == [None]
    assert waits == []


def test_the_server_is_asked_not_to_compress(server: Server, remote: RemoteFile, target: Path) -> None:
    download(remote, target)
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_a_dropped_download_resumes_where_it_stopped(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    server.script = [Answer(body=CONTENT, then="drop")]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    first, second = server.ranges
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(CONTENT) // 2
    assert waits == [1.0]


def test_a_stalled_server_is_asked_again(
    server: Server, remote: RemoteFile, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", (5.0, 0.2))
    server.script = [Answer(body=CONTENT, then="stall")]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) >= 2


def test_a_later_call_resumes(server: Server, remote: RemoteFile, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_server_that_ignores_the_range_sends_the_file_from_its_beginning(
    server: Server, remote: RemoteFile, target: Path
) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    server.script = [Answer(200, body=CONTENT)]
    download(remote, target)
    assert target.read_bytes() == CONTENT


def test_a_different_range_than_requested_is_discarded(server: Server, remote: RemoteFile, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    server.script = [Answer(206, {"Content-Range": f"bytes 500-{len(CONTENT) - 1}/{len(CONTENT)}"}, CONTENT[500:])]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_complete_part_needs_no_request(server: Server, remote: RemoteFile, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT)
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == []


def test_a_remote_file_that_is_shorter_than_the_part_is_refused(
    server: Server, remote: RemoteFile, target: Path
) -> None:
    target.parent.mkdir()
    part = target.with_name("rows.csv.part")
    part.write_bytes(CONTENT[:5000])
    server.script = [Answer(416, {"Content-Range": "bytes */4000"})]
    assert "returned a different file than expected: 5,000 bytes" in refusal(remote, target).what
    assert not part.exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_after_its_pause(
    server: Server, remote: RemoteFile, target: Path, waits: list[float], status: int
) -> None:
    server.script = [Answer(status, {"Retry-After": "7"}), Answer(status), Answer(status, {"Retry-After": "soon"})]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert waits == [7.0, 2.0, 4.0]


def test_a_pause_may_be_a_date(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    server.script = [Answer(503, {"Retry-After": later}), Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
    download(remote, target)
    assert 100 < waits[0] <= 200
    assert waits[1] == 2.0


def test_a_pause_that_is_too_long_is_an_error(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    server.script = [Answer(429, {"Retry-After": "3600"})]
    assert "429 Too Many Requests, and asks to wait 3,600 s" in refusal(remote, target).what
    assert waits == []


def test_a_server_that_stays_down_is_an_error(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    server.script = [Answer(502)] * _MAX_ATTEMPTS
    error = refusal(remote, target)
    assert f"could not be downloaded in {_MAX_ATTEMPTS} attempts; the last one: the server answered 502" in error.what
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(server.requests) == _MAX_ATTEMPTS


def test_a_refused_connection_is_an_error(server: Server, target: Path, waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = refusal(at(f"http://127.0.0.1:{port}/rows.csv"), target)
    assert "Connection refused" in error.what
    assert "proxy" in error.fix
    assert len(waits) == _MAX_ATTEMPTS - 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_retried(server: Server, remote: RemoteFile, target: Path, status: int) -> None:
    server.script = [Answer(status)]
    assert f"{remote.url}: the server answered {status}" in refusal(remote, target).what
    assert len(server.requests) == 1


def test_different_content_of_the_same_size_is_refused(server: Server, remote: RemoteFile, target: Path) -> None:
    server.script = [Answer(body=CONTENT[::-1])]
    error = refusal(remote, target)
    assert git_blob(CONTENT) in error.what
    assert git_blob(CONTENT[::-1]) in error.what
    assert list(target.parent.iterdir()) == [target.with_name("rows.csv.lock")]


def test_a_login_page_instead_of_the_file_is_refused(server: Server, remote: RemoteFile, target: Path) -> None:
    server.script = [Answer(body=b"<html>Welcome to the hotel</html>")]
    assert "returned a different file than expected: 33 bytes" in refusal(remote, target).what
    assert len(server.requests) == 1


def test_reading_stops_when_there_is_too_much(server: Server, remote: RemoteFile, target: Path) -> None:
    server.script = [Answer(body=CONTENT * 8)]
    error = refusal(remote, target)
    read = int(error.what.split("expected: ")[1].split(" bytes")[0].replace(",", ""))
    assert len(CONTENT) < read < 2 * len(CONTENT)


def test_a_changed_target_is_downloaded_again(
    server: Server, remote: RemoteFile, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    download(remote, target)
    target.write_bytes(CONTENT[:-1] + b"x")
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert "was changed since it was downloaded" in caplog.text


def test_callers_at_the_same_time_download_once(server: Server, remote: RemoteFile, target: Path) -> None:
    threads = [threading.Thread(target=download, args=(remote, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_created_is_an_error(remote: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(PipelineError, match="cannot be written"):
        download(remote, tmp_path / "cache" / "rows.csv")


def test_a_part_that_cannot_be_written_is_an_error(server: Server, remote: RemoteFile, target: Path) -> None:
    part = target.with_name("rows.csv.part")
    part.mkdir(parents=True)
    assert f"{part} cannot be written" in refusal(remote, target).what


def test_progress_is_logged(
    server: Server,
    remote: RemoteFile,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_PROGRESS_INTERVAL", 0.0)
    caplog.set_level(logging.INFO)
    download(remote, target)
    lines = [record.message for record in caplog.records if record.name == module.__name__]
    assert lines[0] == f"Downloading {remote.url} (1.0 MB)"
    assert len(lines) > 3
    assert lines[-1].startswith("1.0 of 1.0 MB, ")
    assert lines[-1].endswith(" MB/s, 0 s left")


def test_the_hub_gets_the_token(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    download(on_hub(server, monkeypatch, "refs/convert"), target)
    assert server.requests[0]["Authorization"] == f"Bearer {TOKEN}"
    name = BITEXT.url.rpartition("/")[2]
    assert server.paths == [f"/datasets/{HUB_REPO}/resolve/refs%2Fconvert/{name}"]
    assert TOKEN not in caplog.text


def test_no_other_server_gets_the_token(
    server: Server, remote: RemoteFile, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"default login user password {TOKEN}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(remote, target)
    assert "Authorization" not in server.requests[0]


def test_a_redirect_of_the_hub_does_not_pass_the_token_on(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    storage = Server()
    try:
        server.script = [Answer(302, {"Location": f"{storage.base}/blob?signature=abc"})]
        download(on_hub(server, monkeypatch), target)
        assert server.requests[0]["Authorization"] == f"Bearer {TOKEN}"
        assert [headers.get("Authorization") for headers in storage.requests] == [None]
    finally:
        storage.close()


@pytest.mark.parametrize("token", [TOKEN + "\nX-Other: 1", "hf ä"])
def test_a_malformed_token_is_refused_without_being_shown(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(on_hub(server, monkeypatch), target)
    assert "HF_TOKEN contains spaces" in error.what
    assert token not in str(error)
    assert server.requests == []


@pytest.mark.parametrize(("status", "fix"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "revision 'v9'")])
def test_a_refusal_of_the_hub_says_what_to_do(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, status: int, fix: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.script = [Answer(status)]
    error = refusal(on_hub(server, monkeypatch, "v9"), target)
    assert fix in error.fix
    assert TOKEN not in str(error)


def test_offline_mode_forbids_downloads_from_the_hub(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = on_hub(server, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refusal(hub, target).what
    assert server.requests == []
    target.write_bytes(CONTENT)
    assert download(hub, target) == target  # a file that is already here needs no hub


@pytest.mark.parametrize("revision", ["", "../main", "a b", "main?x", "-x"])
def test_an_impossible_revision_is_refused(revision: str) -> None:
    with pytest.raises(PipelineError, match="is not a revision"):
        hub_file(revision)


def test_an_endpoint_with_a_password_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:pass1234@mirror.example")
    with pytest.raises(PipelineError, match="HF_ENDPOINT contains a user name") as caught:
        hub_file("main")
    assert "pass1234" not in str(caught.value)


def test_an_endpoint_that_is_not_a_url_is_refused(
    target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "HF_ENDPOINT" in refusal(hub_file("main"), target).fix
    assert waits == []
