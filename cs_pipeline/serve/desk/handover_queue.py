"""Handovers to people: a file each in the lake, and from there to the company's webhook, if it has one.

``serve/handovers/H-….json`` waits; what the webhook has taken lies in ``serve/handovers/delivered/`` for as long as raw
deliveries are kept (``retention_days``). Without a webhook whoever works the queue takes the files away. A file is there
before the customer is told; it is sent again until the webhook says 2xx, after a restart too. So a webhook may see one
twice, with the same header ``Idempotency-Key``.
"""

import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import requests

from cs_pipeline.company import Company
from cs_pipeline.core.lake import PRIVATE, DataLake, atomic_file, make_folder
from cs_pipeline.serve.desk.handover import Handover

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds between two attempts: doubled after each pass in which something failed."""
PATIENCE = 10.0
"""Seconds for the webhook to answer."""

_LOG = logging.getLogger(__name__)


class HandoverQueue:
    """Keeps handovers, and delivers them in a thread of its own where the company has a webhook."""

    def __init__(self, lake: DataLake, company: Company) -> None:
        self._folder = lake.path("serve", "handovers")
        self._delivered = self._folder / "delivered"
        self._webhook = company.handover.webhook
        self._keep_seconds = company.retention_days * 86_400
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="handovers", daemon=True)
        if self._webhook:
            make_folder(self._delivered)
            self._thread.start()

    def put(self, handover: Handover) -> None:
        """Returns when it is on the disk. Raises PipelineError where the lake cannot be written."""
        with atomic_file(self._folder / f"{handover.reference}.json", PRIVATE) as temporary:
            temporary.write_text(json.dumps(asdict(handover), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._wake.set()

    def close(self) -> None:
        """Ends the thread, after the attempt it is making; what waits is delivered after the next start."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _deliver(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            self._wake.clear()
            # All are tried: one that the webhook refuses does not hold up the others.
            failed = [path for path in self._folder.glob("H-*.json") if not (self._closed.is_set() or self._sent(path))]
            self._expire()
            self._wake.wait(pause if failed else None)
            pause = min(2 * pause, LONGEST_PAUSE) if failed else FIRST_PAUSE

    def _sent(self, path: Path) -> bool:
        headers = {"Content-Type": "application/json", "Idempotency-Key": path.stem}
        try:
            # A redirect is no delivery: to follow it would be to ask there without what is to be told.
            answer = requests.post(
                self._webhook, data=path.read_bytes(), headers=headers, timeout=PATIENCE, allow_redirects=False
            )
            if answer.status_code // 100 != 2:
                _LOG.warning("Handover %s is not delivered yet: the webhook says %d.", path.stem, answer.status_code)
                return False
            path.rename(self._delivered / path.name)
        except FileNotFoundError:  # somebody has taken it away
            return True
        except OSError as error:  # requests' own errors are such
            # Without its text, which has the address and may have a key in it.
            _LOG.warning("Handover %s is not delivered yet: %s.", path.stem, type(error).__name__)
            return False
        return True

    def _expire(self) -> None:
        for path in self._delivered.glob("H-*.json"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - self._keep_seconds:
                    path.unlink()
