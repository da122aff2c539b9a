"""The queue of handovers: one file each in the lake, delivered to the company's webhook if it has one.

A waiting handover is ``serve/handovers/H-….json``. Once the webhook has accepted it, it moves to ``delivered/`` and is kept
as long as raw deliveries (``retention_days``). Without a webhook, whoever processes the queue removes the files. A file is
written before the customer is told. It is sent again until the webhook answers 2xx, even after a restart. So a webhook may
get a handover twice, with the same ``Idempotency-Key`` header.
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

FIRST_PAUSE, MAX_PAUSE = 1.0, 300.0
"""Seconds between two rounds of deliveries, doubled after each round with a failure."""
_EXPIRY_SECONDS = 3600.0  # between two looks for expired handovers, if there is nothing to deliver
WEBHOOK_TIMEOUT = 10.0
"""Seconds for the webhook to answer."""

logger = logging.getLogger(__name__)


class HandoverQueue:
    """Stores handovers, and delivers them in its own thread if the company has a webhook."""

    def __init__(self, lake: DataLake, company: Company) -> None:
        self._folder = lake.path("serve", "handovers")
        self._delivered = self._folder / "delivered"
        self._webhook = company.handover.webhook
        self._retention_seconds = company.retention_days * 86_400
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="handovers", daemon=True)
        if self._webhook:
            make_folder(self._delivered)
            self._thread.start()

    def put(self, handover: Handover) -> None:
        """Stores ``handover``, which is on disk when this returns. Raises PipelineError if the lake cannot be written."""
        with atomic_file(self._folder / f"{handover.reference}.json", PRIVATE) as temporary:
            temporary.write_text(json.dumps(asdict(handover), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._wake.set()

    def close(self) -> None:
        """Ends the thread after its current attempt. Waiting handovers are delivered after the next start."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _deliver(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            self._wake.clear()
            # Every file is tried: one that the webhook refuses must not block the others.
            failed = [path for path in self._folder.glob("H-*.json") if not (self._closed.is_set() or self._send(path))]
            self._delete_expired()
            self._wake.wait(pause if failed else _EXPIRY_SECONDS)
            pause = min(2 * pause, MAX_PAUSE) if failed else FIRST_PAUSE

    def _send(self, path: Path) -> bool:
        """Tries to deliver the handover in ``path``. Returns False if it must be sent again."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": path.stem}
        try:
            # A redirect is not a delivery: following it would send a GET without the handover.
            reply = requests.post(
                self._webhook, data=path.read_bytes(), headers=headers, timeout=WEBHOOK_TIMEOUT, allow_redirects=False
            )
            if reply.status_code // 100 != 2:
                logger.warning("Handover %s not delivered yet: the webhook answered %d.", path.stem, reply.status_code)
                return False
            path.rename(self._delivered / path.name)
        except FileNotFoundError:  # whoever processes the queue removed it
            return True
        except OSError as error:  # the base class of all errors of requests
            # Without the error's text: it contains the address, which may contain a key.
            logger.warning("Handover %s not delivered yet: %s.", path.stem, type(error).__name__)
            return False
        return True

    def _delete_expired(self) -> None:
        for path in self._delivered.glob("H-*.json"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - self._retention_seconds:
                    path.unlink()
