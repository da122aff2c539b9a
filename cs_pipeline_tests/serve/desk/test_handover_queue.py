"""The handover queue: a handover is on disk before the customer is told, and reaches the webhook despite failures."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cs_pipeline.company import Company, HandoverSettings
from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk import handover_queue
from cs_pipeline.serve.desk.handover import Handover, HandoverReason
from cs_pipeline.serve.desk.handover_queue import HandoverQueue
from cs_pipeline_tests.support.serving import wait_for

RECORD = Handover(
    reference="H-0000000A",
    at="2026-11-29T06:00:00+00:00",
    reason=HandoverReason.ASKED.value,
    follows="",
    summary="Reason: the customer asks for a person.",
    model="3",
    intent="track_order",
    confidence=0.5,
    context="",
    values={"Order Number": "4412345678"},
    conversation=(("customer", "where is my order"), ("agent", "On its way."), ("customer", "I want a human")),
)


class Webhook:
    """A real server that answers with the given statuses in turn, then always with the last one. 0 means no answer."""

    def __init__(self, *statuses: int) -> None:
        self.taken: list[tuple[str, Any]] = []
        self.calls = 0
        self.go_on = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = statuses[min(hook.calls, len(statuses) - 1)]
                hook.calls += 1
                if status == 0:
                    hook.go_on.wait(30)
                    return
                if status < 300:
                    hook.taken.append((self.headers["Idempotency-Key"], json.loads(body)))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.company = Company(
            handover=HandoverSettings(webhook=f"http://127.0.0.1:{self._server.server_port}/in?key=SECRET"),
            retention_days=2,
        )

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover_queue, "FIRST_PAUSE", 0.02)


@pytest.fixture
def hooks() -> Iterator[list[Webhook]]:
    started: list[Webhook] = []
    yield started
    for hook in started:
        hook.close()


def test_without_a_webhook_a_handover_waits_and_only_the_owner_can_read_it(lake: DataLake) -> None:
    queue = HandoverQueue(lake, Company())
    queue.put(RECORD)
    path = lake.path("serve", "handovers", "H-0000000A.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(RECORD)))
    assert path.stat().st_mode & 0o777 == 0o600
    queue.close()


def test_a_failing_webhook_is_retried_until_it_accepts_each_handover(
    lake: DataLake, hooks: list[Webhook], caplog: pytest.LogCaptureFixture
) -> None:
    hook = Webhook(503, 500, 404, 302, 200)
    hooks.append(hook)
    queue = HandoverQueue(lake, hook.company)
    for name in ("H-0000000A", "H-0000000B", "H-0000000C"):
        queue.put(replace(RECORD, reference=name))
    wait_for(lambda: len(hook.taken) == 3)
    queue.close()
    assert sorted(key for key, _ in hook.taken) == ["H-0000000A", "H-0000000B", "H-0000000C"]
    assert {body["summary"] for _, body in hook.taken} == {RECORD.summary}
    assert not list(lake.path("serve", "handovers").glob("H-*"))
    assert len(list(lake.path("serve", "handovers", "delivered").glob("H-*"))) == 3
    assert "the webhook answered 503" in caplog.text
    assert "SECRET" not in caplog.text
    assert "human" not in caplog.text


def test_a_hanging_webhook_does_not_block_the_queue(
    lake: DataLake, hooks: list[Webhook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_queue, "WEBHOOK_TIMEOUT", 0.5)
    hook = Webhook(0)
    hooks.append(hook)
    queue = HandoverQueue(lake, hook.company)
    began = time.monotonic()
    for number in range(5):
        queue.put(replace(RECORD, reference=f"H-0000000{number}"))
    assert time.monotonic() - began < 0.4
    wait_for(lambda: hook.calls)
    queue.close()
    assert len(list(lake.path("serve", "handovers").glob("H-*"))) == 5


def test_handovers_of_a_killed_server_are_delivered_by_the_next_one(lake: DataLake, hooks: list[Webhook]) -> None:
    hook = Webhook(200)
    hooks.append(hook)
    script = (
        "import sys, os, signal, json\n"
        "from pathlib import Path\n"
        "from cs_pipeline.company import Company\n"
        "from cs_pipeline.core.lake import DataLake\n"
        "from cs_pipeline.serve.desk.handover import Handover\n"
        "from cs_pipeline.serve.desk.handover_queue import HandoverQueue\n"
        "queue = HandoverQueue(DataLake(Path(sys.argv[1])), Company(handover={'webhook': 'http://127.0.0.1:9/'}))\n"
        "queue.put(Handover(**json.loads(sys.argv[2])))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(lake.root), json.dumps(asdict(RECORD))], env=dict(os.environ), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    queue = HandoverQueue(lake, hook.company)
    wait_for(lambda: hook.taken)
    queue.close()
    assert [key for key, _ in hook.taken] == ["H-0000000A"]


def test_delivered_handovers_are_kept_for_the_retention_days(lake: DataLake, hooks: list[Webhook]) -> None:
    hook = Webhook(200)
    hooks.append(hook)
    delivered = lake.path("serve", "handovers", "delivered")
    delivered.mkdir(parents=True)
    for name, days in (("H-AAAAAAAA.json", 3), ("H-BBBBBBBB.json", 1)):
        (delivered / name).write_text("{}")
        os.utime(delivered / name, (time.time() - days * 86_400,) * 2)
    queue = HandoverQueue(lake, hook.company)
    wait_for(lambda: not (delivered / "H-AAAAAAAA.json").exists())
    queue.close()
    assert [path.name for path in delivered.iterdir()] == ["H-BBBBBBBB.json"]
