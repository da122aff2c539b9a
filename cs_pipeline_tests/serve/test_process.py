"""``cs-pipeline serve`` as a process: it starts, answers, and on SIGTERM finishes running answers before it exits."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from cs_pipeline_tests.support.serving import PATIENCE, SURE, wait_for

COMMAND = Path(sys.executable).with_name("cs-pipeline")
SECRET = f"{SURE}, my card is 4111 1111 1111 1111"


AT_ONCE = 100


def test_a_server_starts_answers_and_finishes_running_answers_on_shutdown(two_versions: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    settings = {"CS_LAKE": str(two_versions), "CS_SERVE_PORT": str(port), "CS_SERVE_LOG_TEXT": "true"}
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"{url}/ready", timeout=PATIENCE).status_code == 200
        except requests.ConnectionError:
            return False

    def ask() -> requests.Response:
        return requests.post(f"{url}/chat", json={"user_input": SECRET}, timeout=PATIENCE)

    def all_accepted() -> bool:
        lines = [line.split() for line in requests.get(f"{url}/metrics", timeout=PATIENCE).text.splitlines()]
        counted = ("cs_questions_inside", "cs_answers_total")
        return sum(float(line[1]) for line in lines if line[0].startswith(counted)) == AT_ONCE

    with log.open("wb") as out, ThreadPoolExecutor(AT_ONCE) as clients:
        process = subprocess.Popen([COMMAND, "serve"], env=os.environ | settings, stdout=out, stderr=out)
        try:
            wait_for(ready)
            again = subprocess.run([COMMAND, "serve"], env=os.environ | settings, capture_output=True, text=True)
            assert again.returncode == 1
            assert f"Port {port} is in use by process {process.pid}" in again.stderr
            asked = [clients.submit(ask) for _ in range(AT_ONCE)]
            wait_for(all_accepted)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
    assert {answer.result().status_code for answer in asked} == {200}
    log_text = log.read_text()
    assert "Traceback" not in log_text
    assert log_text.index("Shutting down") < log_text.rindex("POST /chat 200")
    assert "version 1 was asked 'I want a new password" in log_text
    assert "4111" not in log_text, "the model gets the question without personal data"
