"""Downloads of single files: resumed, retried, verified by hash and kept."""

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
from cs_pipeline.core.lake import file_sha256, locked

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 6
_MAX_WAIT = 300.0
"""Seconds. A server that asks for a longer pause is given up."""
_TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and between two chunks of the response."""
_PROGRESS_INTERVAL = 3.0
"""Seconds between two log lines."""
_CHUNK = 1 << 16
"""Bytes."""
_OTHERWISE = "download the file some other way and give its path as the source."


@dataclass(frozen=True)
class RemoteFile:
    """A file at ``url`` with its expected size in bytes and its git blob hash, or its sha256 where that is None."""

    origin: Literal["github", "hub"]
    revision: str
    url: str
    size: int
    git_blob: str | None
    sha256: str | None


def download(remote: RemoteFile, target: Path, *, report: Callable[[str], None] = logger.info) -> Path:
    """Downloads ``remote`` to ``target`` by way of ``<target>.part``, unless it is already there; returns ``target``.

    An interrupted download resumes where it stopped, in this call (up to six attempts, with pauses that double or that
    the server asks for) or in a later one. ``HF_TOKEN`` is sent to the hub only, and ``HF_HUB_OFFLINE`` is respected. A
    second caller waits for the first and finds the file. ``report`` gets progress lines.

    Raises PipelineError when the download fails or the file is not the expected one, which is then deleted.
    """
    with locked(target.with_name(target.name + ".lock")):
        if target.exists():
            if _is_complete(remote, target):
                return target
            logger.warning("%s was changed since it was downloaded; downloading it again", target)
            target.unlink()
        part = target.with_name(target.name + ".part")
        _fetch(remote, part, report)
        if not _is_complete(remote, part):
            size, found = part.stat().st_size, _hash(remote, part)
            part.unlink()
            raise PipelineError(
                f"{remote.url} returned a different file than expected: {size:,} bytes, hash {found}, instead of "
                f"{remote.size:,} bytes, {remote.git_blob or remote.sha256}. It was deleted.",
                "Run again, which starts from the beginning. If the same file comes again, "
                + ("name a revision that has the expected file." if remote.origin == "hub" else _OTHERWISE),
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    return target


class _InterruptedError(Exception):
    """The download stopped for a reason that another attempt, after at least ``wait`` seconds, may not meet."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _fetch(remote: RemoteFile, part: Path, report: Callable[[str], None]) -> None:
    authorise = _authorisation(remote)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            _fetch_rest(remote, part, authorise, report)
            return
        except _InterruptedError as stop:
            wait = max(2.0 ** (attempt - 1), stop.wait)
            if attempt == _MAX_ATTEMPTS:
                raise PipelineError(
                    f"{remote.url} could not be downloaded in {_MAX_ATTEMPTS} attempts; the last one: {stop}.",
                    f"Check network and proxy and run again: it resumes where it stopped. Or {_OTHERWISE}",
                ) from None
            if wait > _MAX_WAIT:
                raise PipelineError(
                    f"{remote.url}: {stop}, and asks to wait {wait:,.0f} s.",
                    f"Run again after that time. Or {_OTHERWISE}",
                ) from None
            logger.warning("%s: %s; attempt %d of %d in %.0f s", remote.url, stop, attempt + 1, _MAX_ATTEMPTS, wait)
            time.sleep(wait)


def _fetch_rest(
    remote: RemoteFile,
    part: Path,
    authorise: Callable[[requests.PreparedRequest], requests.PreparedRequest],
    report: Callable[[str], None],
) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= remote.size:
        return
    # With compression the offsets would not count the bytes of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(remote.url, headers=headers, auth=authorise, stream=True, timeout=_TIMEOUT) as response:
            _check_status(remote, response)
            if response.status_code == 416:  # the remote file is shorter than the part here: not the expected one
                return
            if response.status_code == 200:
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _InterruptedError("the server answered with a different range than requested")
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
        raise PipelineError(
            f"{remote.url} cannot be requested: {error}.", "Check HF_ENDPOINT and the proxy."
        ) from error
    except OSError as error:
        raise PipelineError(
            f"{part} cannot be written: {error}.", "Free disk space or give write permission."
        ) from error


def _check_status(remote: RemoteFile, response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206) or (status == 416 and "Range" in response.request.headers):
        return
    what = f"the server answered {status} {response.reason}"
    if status in (408, 429) or status >= 500:
        raise _InterruptedError(what, _retry_after(response.headers.get("Retry-After", "")))
    if remote.origin == "hub" and status in (401, 403):
        fix = "Set HF_TOKEN to a token with read access, and accept the terms on the repository's page."
    elif remote.origin == "hub" and status == 404:
        fix = f"Check the revision '{remote.revision}' on the repository's page."
    else:
        fix = f"If a proxy answered, allow the URL there; else {_OTHERWISE}"
    raise PipelineError(f"{remote.url}: {what}.", fix)


def _retry_after(header: str) -> float:
    """The seconds to wait, from a Retry-After header: a number of seconds or a date (RFC 9110, 10.2.3)."""
    if header.isdecimal():
        return float(header)
    try:
        return parsedate_to_datetime(header).timestamp() - time.time()
    except ValueError:
        return 0.0


def is_hub_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids contacting the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _authorisation(remote: RemoteFile) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """For requests' ``auth``: adds ``HF_TOKEN`` for the hub. Other hosts get one too, or requests would read ~/.netrc.

    requests removes the header on a redirect to another host.
    """
    token = ""
    if remote.origin == "hub":
        if is_hub_offline():
            raise PipelineError(
                f"{remote.url} must come from the hub, and HF_HUB_OFFLINE forbids contacting it.",
                "Unset HF_HUB_OFFLINE for the download, or choose another source.",
            )
        token = os.environ.get("HF_TOKEN", "").strip()
        if not re.fullmatch(r"[!-~]*", token):  # refused here because the HTTP library's error would show the token
            raise PipelineError("HF_TOKEN contains characters that no token has.", "Set it to the token alone.")

    def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorise


def _reason(error: requests.RequestException) -> str:
    """The cause without the URL, which after a redirect would contain a signature."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", None) or cause)


def _is_complete(remote: RemoteFile, path: Path) -> bool:
    return path.stat().st_size == remote.size and _hash(remote, path) == (remote.git_blob or remote.sha256)


def _hash(remote: RemoteFile, path: Path) -> str:
    """The hash of ``path`` of the kind that ``remote`` has."""
    return _git_blob(path) if remote.git_blob else file_sha256(path)


def _git_blob(path: Path) -> str:
    """The git blob hash of a file: SHA-1 of ``blob <size>\\0`` and the content."""
    start = b"blob %d\0" % path.stat().st_size
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


class _Progress:
    """Log lines with megabytes, rate and time left."""

    def __init__(self, remote: RemoteFile, have: int, report: Callable[[str], None]) -> None:
        self.size, self.first, self.report = remote.size, have, report
        self.start = self.shown = time.monotonic()
        report(f"{'Resuming' if have else 'Downloading'} {remote.url} ({remote.size / 1e6:,.1f} MB)")

    def show(self, have: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.shown < _PROGRESS_INTERVAL:
            return
        self.shown = now
        rate = (have - self.first) / max(now - self.start, 1e-3)
        left = max(self.size - have, 0) / max(rate, 1.0)
        self.report(f"{have / 1e6:,.1f} of {self.size / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left")
