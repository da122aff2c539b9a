"""A file over the network: resumed, retried, verified by its content, kept."""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import requests

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import file_sha256, make_folder

logger = logging.getLogger(__name__)

ATTEMPTS = 6
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause is not waited for."""
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and between two pieces of the answer."""
PROGRESS_EVERY = 3.0
"""Seconds between two log lines."""
_CHUNK = 1 << 16
_BY_HAND = "fetch the file by another way and give its path as the source."


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, known by its content: ``size`` in bytes, the hash git names it by, or else its sha256."""

    origin: Literal["github", "hub"]
    revision: str
    url: str
    size: int
    git_blob: str | None
    sha256: str | None


def download(
    remote: RemoteFile,
    target: Path,
    *,
    report: Callable[[str], None] = logger.info,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """``target``, holding ``remote``: at once where it does already, else fetched into ``<target>.part`` and renamed.

    An interrupted download goes on where it stopped, in this call (up to ``ATTEMPTS`` times, with pauses that double
    or that the server asks for) or in a later one. ``HF_TOKEN`` is sent to the hub and to nothing else;
    ``HF_HUB_OFFLINE`` is heeded. Two callers at once: the second waits and finds the file. ``report`` gets lines with
    megabytes, rate and time left.

    Raises PipelineError when the file cannot be had or is not the one that was asked for; that one is removed.
    """
    make_folder(target.parent)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            if _is(remote, target):
                return target
            logger.warning("%s is not the file that was downloaded; fetching it again", target)
            target.unlink()
        part = target.with_name(target.name + ".part")
        _fetch(remote, part, report, sleep)
        if not _is(remote, part):
            size, found = part.stat().st_size, _hash(remote, part)
            part.unlink()
            raise PipelineError(
                f"{remote.url} gave another file than the one expected: {size:,} bytes, hash {found}, instead of "
                f"{remote.size:,} bytes, {remote.git_blob or remote.sha256}. It was removed.",
                "Run again, which starts from the beginning. If it gives the same again, "
                + ("name a revision that holds the expected file." if remote.origin == "hub" else _BY_HAND),
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    return target


class _InterruptedError(Exception):
    """The download stopped in a way that another attempt may fix, after ``wait`` seconds at least."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _fetch(remote: RemoteFile, part: Path, report: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    authorise = _authorisation(remote)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(remote, part, authorise, report)
            return
        except _InterruptedError as stop:
            wait = max(2.0 ** (attempt - 1), stop.wait)
            if attempt == ATTEMPTS:
                raise PipelineError(
                    f"{remote.url} could not be downloaded in {ATTEMPTS} attempts; the last one: {stop}.",
                    f"Check network and proxy and run again: it goes on where it stopped. Or {_BY_HAND}",
                ) from None
            if wait > LONGEST_WAIT:
                raise PipelineError(
                    f"{remote.url}: {stop}, and asks to wait {wait:,.0f} s.",
                    f"Run again after that time. Or {_BY_HAND}",
                ) from None
            logger.warning("%s: %s; attempt %d of %d in %.0f s", remote.url, stop, attempt + 1, ATTEMPTS, wait)
            sleep(wait)


def _fetch_rest(
    remote: RemoteFile,
    part: Path,
    authorise: Callable[[requests.PreparedRequest], requests.PreparedRequest],
    report: Callable[[str], None],
) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= remote.size:
        return
    # Compressed on the way, the offsets would count other bytes than those in the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(remote.url, headers=headers, auth=authorise, stream=True, timeout=TIMEOUT) as response:
            _check_answer(remote, response)
            if response.status_code == 416:  # the file there is shorter than what is here: not the one expected
                return
            if response.status_code == 200:
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _InterruptedError("the server answered with another range than the one asked for")
            progress = _Progress(remote, have, report)
            with part.open("ab" if have else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    progress.show(have)
                    if have > remote.size:
                        return
            progress.show(have, last=True)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _InterruptedError(_reason(error)) from error
    except requests.RequestException as error:
        raise PipelineError(f"{remote.url} cannot be asked: {error}.", "Check HF_ENDPOINT and the proxy.") from error
    except OSError as error:
        raise PipelineError(
            f"{part} cannot be written: {error}.", "Free the disk, or give the right to write."
        ) from error


def _check_answer(remote: RemoteFile, response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206) or (status == 416 and "Range" in response.request.headers):
        return
    said = f"the server answered {status} {response.reason}"
    if status in (408, 429) or status >= 500:
        raise _InterruptedError(said, _asked_wait(response.headers.get("Retry-After", "")))
    if remote.origin == "hub" and status in (401, 403):
        fix = "Set HF_TOKEN to a token that may read it, and accept its terms on its page."
    elif remote.origin == "hub" and status == 404:
        fix = f"Check the revision '{remote.revision}' on the repository's page."
    else:
        fix = f"If a proxy answered, let it pass; else {_BY_HAND}"
    raise PipelineError(f"{remote.url}: {said}.", fix)


def _asked_wait(retry_after: str) -> float:
    """Seconds to wait, from a Retry-After header: a number of them or a date (RFC 9110, 10.2.3)."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except ValueError:
        return 0.0


def _authorisation(remote: RemoteFile) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Adds the token for the hub. As requests' ``auth`` also for others, for without one it would look into ~/.netrc.

    On a redirect to another host requests takes the header away again.
    """
    token = ""
    if remote.origin == "hub":
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise PipelineError(
                f"{remote.url} is needed from the hub, and HF_HUB_OFFLINE forbids asking it.",
                "Unset HF_HUB_OFFLINE for the download, or choose another source.",
            )
        token = os.environ.get("HF_TOKEN", "").strip()
        if not re.fullmatch(r"[!-~]*", token):  # refused here, for the HTTP library's own error would show it
            raise PipelineError("HF_TOKEN holds characters that no token has.", "Set it to the token alone.")

    def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorise


def _reason(error: requests.RequestException) -> str:
    """The cause without the address: after a redirect that would hold a signature."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", None) or cause)


def _is(remote: RemoteFile, path: Path) -> bool:
    return path.stat().st_size == remote.size and _hash(remote, path) == (remote.git_blob or remote.sha256)


def _hash(remote: RemoteFile, path: Path) -> str:
    """The hash of ``path`` by which ``remote`` is known."""
    return _git_blob(path) if remote.git_blob else file_sha256(path)


def _git_blob(path: Path) -> str:
    """The hash by which git names a file: SHA-1 of ``blob <size>\\0`` and the content."""
    start = b"blob %d\0" % path.stat().st_size
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


class _Progress:
    """Log lines with megabytes, rate and time left."""

    def __init__(self, remote: RemoteFile, have: int, report: Callable[[str], None]) -> None:
        self.size, self.first, self.report = remote.size, have, report
        self.start = self.shown = time.monotonic()
        report(f"{'Going on with' if have else 'Downloading'} {remote.url} ({remote.size / 1e6:,.1f} MB)")

    def show(self, have: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.shown < PROGRESS_EVERY:
            return
        self.shown = now
        rate = (have - self.first) / max(now - self.start, 1e-3)
        left = max(self.size - have, 0) / max(rate, 1.0)
        self.report(f"{have / 1e6:,.1f} of {self.size / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left")
