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
from cs_pipeline.core.download import ATTEMPTS, RemoteFile, download
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.sources import BITEXT, HUB_REPO, hub_file

CONTENT = bytes(range(256)) * 4000
"""About a megabyte: several pieces of the stream."""
TOKEN = "hf_verySecretTokenOfTheUser"


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Answer:
    """How the server answers one request; without any left it serves the content, ranges heeded."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    then: str = "end"
    """"end"; "drop": the connection is closed before all was sent; "stall": nothing more comes."""


class Server:
    """A real HTTP server on a free port of this machine that does what its script says and notes what it was asked."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.script: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with suppress(ConnectionError):  # who asked may have stopped reading
                    super().handle()

            def do_GET(self) -> None:
                outer.asked.append(dict(self.headers))
                outer.paths.append(self.path)
                answer = outer.script.pop(0) if outer.script else outer.proper(self.headers.get("Range"))
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
                    outer.over.wait(10)
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def proper(self, asked: str | None) -> Answer:
        if asked is None:
            return Answer(body=self.content)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
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
        return [headers.get("Range") for headers in self.asked]

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def waits() -> list[float]:
    """The pauses that were asked for; none is slept."""
    return []


@pytest.fixture
def remote(server: Server) -> RemoteFile:
    return at(f"{server.base}/data/rows.csv")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "rows.csv"


def at(url: str) -> RemoteFile:
    return RemoteFile("github", "c0ffee", url, len(CONTENT), git_blob(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def on_hub(server: Server, monkeypatch: pytest.MonkeyPatch, revision: str = "main") -> RemoteFile:
    """The hub is that server, and the dataset's file there is ``CONTENT``."""
    monkeypatch.setenv("HF_ENDPOINT", server.base + "/")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return replace(hub_file(revision), size=len(CONTENT), git_blob=git_blob(CONTENT))


def refusal(remote: RemoteFile, target: Path, waits: list[float]) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        download(remote, target, sleep=waits.append)
    assert not target.exists()
    assert caught.value.fix
    return caught.value


def test_the_pinned_address() -> None:
    assert BITEXT.url == (
        "https://raw.githubusercontent.com/bitext/customer-support-llm-chatbot-training-dataset/"
        "72ea2203180d14a416b579c657033ecd21e59a11/data/"
        "Bitext_Sample_Customer_Support_Training_Dataset_27K_responses-v11.csv"
    )


def test_downloads_once(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    assert download(remote, target, sleep=waits.append) == target
    assert target.read_bytes() == CONTENT
    assert not target.with_name("rows.csv.part").exists()
    server.close()
    assert download(remote, target, sleep=waits.append) == target  # no network any more
    assert server.ranges == [None]
    assert waits == []


def test_no_compression_on_the_way(server: Server, remote: RemoteFile, target: Path) -> None:
    download(remote, target)
    assert server.asked[0]["Accept-Encoding"] == "identity"


def test_dropped_connection_goes_on_where_it_stopped(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    server.script = [Answer(body=CONTENT, then="drop")]
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    first, second = server.ranges
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(CONTENT) // 2
    assert waits == [1.0]


def test_silent_server_is_asked_again(
    server: Server, remote: RemoteFile, target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", (5.0, 0.2))
    server.script = [Answer(body=CONTENT, then="stall")]
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) >= 2


def test_a_later_call_goes_on(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_server_that_ignores_the_range(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    server.script = [Answer(200, body=CONTENT)]
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT


def test_server_that_answers_another_range(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT[:1000])
    server.script = [Answer(206, {"Content-Range": f"bytes 500-{len(CONTENT) - 1}/{len(CONTENT)}"}, CONTENT[500:])]
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_part_that_is_whole_already(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    target.parent.mkdir()
    target.with_name("rows.csv.part").write_bytes(CONTENT)
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    assert server.asked == []


def test_file_that_is_shorter_there_than_the_part_here(
    server: Server, remote: RemoteFile, target: Path, waits: list[float]
) -> None:
    target.parent.mkdir()
    part = target.with_name("rows.csv.part")
    part.write_bytes(CONTENT[:5000])
    server.script = [Answer(416, {"Content-Range": "bytes */4000"})]
    assert "gave another file than the one expected: 5,000 bytes" in refusal(remote, target, waits).what
    assert not part.exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again_after_its_pause(
    server: Server, remote: RemoteFile, target: Path, waits: list[float], status: int
) -> None:
    server.script = [Answer(status, {"Retry-After": "7"}), Answer(status), Answer(status, {"Retry-After": "soon"})]
    download(remote, target, sleep=waits.append)
    assert target.read_bytes() == CONTENT
    assert waits == [7.0, 2.0, 4.0]


def test_pause_given_as_a_date(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    server.script = [Answer(503, {"Retry-After": later}), Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
    download(remote, target, sleep=waits.append)
    assert 100 < waits[0] <= 200
    assert waits[1] == 2.0


def test_pause_that_is_too_long(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    server.script = [Answer(429, {"Retry-After": "3600"})]
    assert "429 Too Many Requests, and asks to wait 3,600 s" in refusal(remote, target, waits).what
    assert waits == []


def test_server_that_stays_down(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    server.script = [Answer(502)] * ATTEMPTS
    error = refusal(remote, target, waits)
    assert f"could not be downloaded in {ATTEMPTS} attempts; the last one: the server answered 502" in error.what
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(server.asked) == ATTEMPTS


def test_nobody_listens(server: Server, target: Path, waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = refusal(at(f"http://127.0.0.1:{port}/rows.csv"), target, waits)
    assert "Connection refused" in error.what
    assert "proxy" in error.fix
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_final(server: Server, remote: RemoteFile, target: Path, waits: list[float], status: int) -> None:
    server.script = [Answer(status)]
    assert f"{remote.url}: the server answered {status}" in refusal(remote, target, waits).what
    assert len(server.asked) == 1


def test_other_content_of_the_same_size(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    server.script = [Answer(body=CONTENT[::-1])]
    error = refusal(remote, target, waits)
    assert git_blob(CONTENT) in error.what
    assert git_blob(CONTENT[::-1]) in error.what
    assert list(target.parent.iterdir()) == [target.with_name("rows.csv.lock")]


def test_login_page_instead_of_the_file(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    server.script = [Answer(body=b"<html>Welcome to the hotel</html>")]
    assert "gave another file than the one expected: 33 bytes" in refusal(remote, target, waits).what
    assert len(server.asked) == 1


def test_stops_reading_what_is_too_long(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    server.script = [Answer(body=CONTENT * 8)]
    error = refusal(remote, target, waits)
    read = int(error.what.split("expected: ")[1].split(" bytes")[0].replace(",", ""))
    assert len(CONTENT) < read < 2 * len(CONTENT)


def test_target_that_was_changed_is_fetched_again(
    server: Server, remote: RemoteFile, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    download(remote, target)
    target.write_bytes(CONTENT[:-1] + b"x")
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert "is not the file that was downloaded" in caplog.text


def test_two_at_once_download_once(server: Server, remote: RemoteFile, target: Path) -> None:
    threads = [threading.Thread(target=download, args=(remote, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_folder_that_cannot_be_made(remote: RemoteFile, tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(PipelineError, match="cannot be written"):
        download(remote, tmp_path / "cache" / "rows.csv", sleep=waits.append)


def test_part_that_cannot_be_written(server: Server, remote: RemoteFile, target: Path, waits: list[float]) -> None:
    part = target.with_name("rows.csv.part")
    part.mkdir(parents=True)
    assert f"{part} cannot be written" in refusal(remote, target, waits).what


def test_progress_is_logged(
    server: Server,
    remote: RemoteFile,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "PROGRESS_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    download(remote, target)
    lines = [record.message for record in caplog.records if record.name == module.__name__]
    assert lines[0] == f"Downloading {remote.url} (1.0 MB)"
    assert len(lines) > 3
    assert lines[-1].startswith("1.0 of 1.0 MB, ")
    assert lines[-1].endswith(" MB/s, 0 s left")


def test_hub_is_given_the_token(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    download(on_hub(server, monkeypatch, "refs/convert"), target)
    assert server.asked[0]["Authorization"] == f"Bearer {TOKEN}"
    name = BITEXT.url.rpartition("/")[2]
    assert server.paths == [f"/datasets/{HUB_REPO}/resolve/refs%2Fconvert/{name}"]
    assert TOKEN not in caplog.text


def test_nobody_else_is_given_the_token(
    server: Server, remote: RemoteFile, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"default login user password {TOKEN}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(remote, target)
    assert "Authorization" not in server.asked[0]


def test_token_stays_behind_when_the_hub_redirects(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    storage = Server()
    try:
        server.script = [Answer(302, {"Location": f"{storage.base}/blob?signature=abc"})]
        download(on_hub(server, monkeypatch), target)
        assert server.asked[0]["Authorization"] == f"Bearer {TOKEN}"
        assert [headers.get("Authorization") for headers in storage.asked] == [None]
    finally:
        storage.close()


@pytest.mark.parametrize("token", [TOKEN + "\nX-Other: 1", "hf ä"])
def test_broken_token_is_refused_unseen(
    server: Server, target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(on_hub(server, monkeypatch), target, waits)
    assert "HF_TOKEN holds characters" in error.what
    assert token not in str(error)
    assert server.asked == []


@pytest.mark.parametrize(("status", "fix"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "revision 'v9'")])
def test_refusal_of_the_hub_says_what_to_do(
    server: Server, target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, status: int, fix: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.script = [Answer(status)]
    error = refusal(on_hub(server, monkeypatch, "v9"), target, waits)
    assert fix in error.fix
    assert TOKEN not in str(error)


def test_offline_hub(server: Server, target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = on_hub(server, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refusal(hub, target, waits).what
    assert server.asked == []
    target.write_bytes(CONTENT)
    assert download(hub, target) == target  # what is here already needs no hub


@pytest.mark.parametrize("revision", ["", "../main", "a b", "main?x", "-x"])
def test_impossible_revision(revision: str) -> None:
    with pytest.raises(PipelineError, match="is not a revision"):
        hub_file(revision)


def test_endpoint_with_a_password_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:pass1234@mirror.example")
    with pytest.raises(PipelineError, match="HF_ENDPOINT holds a user name") as caught:
        hub_file("main")
    assert "pass1234" not in str(caught.value)


def test_endpoint_that_is_no_address(target: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "HF_ENDPOINT" in refusal(hub_file("main"), target, waits).fix
    assert waits == []
