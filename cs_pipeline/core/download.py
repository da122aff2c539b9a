"""Downloads a single file: resumes and retries, verifies the hash, and reuses a file that was downloaded before."""

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
"""Seconds. If the server asks for a longer pause, the download fails."""
_TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for each chunk of the response."""
_PROGRESS_INTERVAL = 3.0
"""Seconds between two log lines."""
_CHUNK = 1 << 16
"""Bytes."""
_MANUAL_DOWNLOAD = "download the file some other way and give its path as the source."


@dataclass(frozen=True)
class RemoteFile:
    """A file to download from ``url``. ``size`` is its expected size in bytes.

    The expected hash is ``git_blob`` (a git blob hash), or ``sha256`` if ``git_blob`` is None.
    """

    origin: Literal["github", "hub"]
    revision: str
    url: str
    size: int
    git_blob: str | None
    sha256: str | None


def download(remote: RemoteFile, target: Path, *, report: Callable[[str], None] = logger.info) -> Path:
    """Downloads ``remote`` to ``target``, unless it is already there; returns ``target``.

    The download is written to ``<target>.part`` first. If it is interrupted, it resumes where it stopped, in this call or
    in a later one. A call makes up to six attempts. The pause doubles after each, and is longer if the server asks for it.
    ``HF_TOKEN`` is sent to the hub only. With ``HF_HUB_OFFLINE`` the hub is not contacted. If another call is downloading
    the same file, this call waits and then uses that file. ``report`` is called with each line of progress.

    Raises PipelineError if the download fails, or if the file is not the expected one. A wrong file is deleted.
    """
    with locked(target.with_name(target.name + ".lock")):
        if target.exists():
            if _is_expected(remote, target):
                return target
            logger.warning("%s was changed since it was downloaded; downloading it again", target)
            target.unlink()
        part = target.with_name(target.name + ".part")
        _fetch(remote, part, report)
        if not _is_expected(remote, part):
            size, found = part.stat().st_size, _hash(remote, part)
            part.unlink()
            raise PipelineError(
                f"{remote.url} returned a different file than expected: {size:,} bytes, hash {found}, instead of "
                f"{remote.size:,} bytes, {remote.git_blob or remote.sha256}. It was deleted.",
                "Run again; the download starts from the beginning. If you get the same file again, "
                + ("name a revision that has the expected file." if remote.origin == "hub" else _MANUAL_DOWNLOAD),
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    return target


class _InterruptedError(Exception):
    """The download was interrupted. Another attempt may succeed if it waits at least ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _fetch(remote: RemoteFile, part: Path, report: Callable[[str], None]) -> None:
    authorise = _authorisation(remote)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            _fetch_rest(remote, part, authorise, report)
            return
        except _InterruptedError as interruption:
            wait = max(2.0 ** (attempt - 1), interruption.wait)
            if attempt == _MAX_ATTEMPTS:
                raise PipelineError(
                    f"{remote.url} could not be downloaded in {_MAX_ATTEMPTS} attempts; the last one: {interruption}.",
                    f"Check the network and the proxy, then run again to resume where it stopped. Or {_MANUAL_DOWNLOAD}",
                ) from None
            if wait > _MAX_WAIT:
                raise PipelineError(
                    f"{remote.url}: {interruption}, and asks to wait {wait:,.0f} s.",
                    f"Run again after that time. Or {_MANUAL_DOWNLOAD}",
                ) from None
            logger.warning(
                "%s: %s; attempt %d of %d in %.0f s", remote.url, interruption, attempt + 1, _MAX_ATTEMPTS, wait
            )
            time.sleep(wait)


def _fetch_rest(
    remote: RemoteFile,
    part: Path,
    authorise: Callable[[requests.PreparedRequest], requests.PreparedRequest],
    report: Callable[[str], None],
) -> None:
    received = part.stat().st_size if part.exists() else 0
    if received >= remote.size:
        return
    # Refuse compression: the offsets of a compressed response would count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={received}-"} if received else {})
    try:
        with requests.get(remote.url, headers=headers, auth=authorise, stream=True, timeout=_TIMEOUT) as response:
            _check_status(remote, response)
            if response.status_code == 416:  # the remote file ends where the part ends; ``download`` checks the part
                return
            if response.status_code == 200:
                received = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
                part.unlink(missing_ok=True)
                raise _InterruptedError("the server answered with a different range than requested")
            progress = _Progress(remote, received, report)
            with part.open("ab" if received else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    received += len(chunk)
                    progress.show(received)
                    if received > remote.size:
                        return
            progress.show(received, last=True)
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
    answer = f"the server answered {status} {response.reason}"
    if status in (408, 429) or status >= 500:
        raise _InterruptedError(answer, _retry_after(response.headers.get("Retry-After", "")))
    if remote.origin == "hub" and status in (401, 403):
        fix = "Set HF_TOKEN to a token with read access, and accept the terms on the repository's page."
    elif remote.origin == "hub" and status == 404:
        fix = f"Check the revision '{remote.revision}' on the repository's page."
    else:
        fix = f"If a proxy answered, allow the URL in the proxy. Otherwise {_MANUAL_DOWNLOAD}"
    raise PipelineError(f"{remote.url}: {answer}.", fix)


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
    """The argument ``auth`` of ``requests.get``: a function that adds ``HF_TOKEN`` to a request to the hub.

    Requests to other hosts need the function too: without ``auth``, the library would send a password from ~/.netrc.
    If the hub redirects to another host, the library removes the token.
    """
    token = ""
    if remote.origin == "hub":
        if is_hub_offline():
            raise PipelineError(
                f"{remote.url} is on the hub, and HF_HUB_OFFLINE forbids contacting the hub.",
                "Unset HF_HUB_OFFLINE for the download, or choose another source.",
            )
        token = os.environ.get("HF_TOKEN", "").strip()
        if not re.fullmatch(r"[!-~]*", token):  # refused here because the HTTP library's error would show the token
            raise PipelineError(
                "HF_TOKEN contains spaces or characters outside ASCII.", "Set it to the token and nothing else."
            )

    def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorise


def _reason(error: requests.RequestException) -> str:
    """The cause of ``error`` without the URL, which may contain a signature after a redirect."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", None) or cause)


def _is_expected(remote: RemoteFile, path: Path) -> bool:
    return path.stat().st_size == remote.size and _hash(remote, path) == (remote.git_blob or remote.sha256)


def _hash(remote: RemoteFile, path: Path) -> str:
    """The git blob hash of ``path`` if ``remote`` has one, else its sha256."""
    return _git_blob(path) if remote.git_blob else file_sha256(path)


def _git_blob(path: Path) -> str:
    """The git blob hash of a file: SHA-1 of ``blob <size>\\0`` and the content."""
    start = b"blob %d\0" % path.stat().st_size
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


class _Progress:
    """Reports megabytes, rate and remaining time, every few seconds."""

    def __init__(self, remote: RemoteFile, received: int, report: Callable[[str], None]) -> None:
        self.size, self.resumed_at, self.report = remote.size, received, report
        self.started = self.last_shown = time.monotonic()
        report(f"{'Resuming' if received else 'Downloading'} {remote.url} ({remote.size / 1e6:,.1f} MB)")

    def show(self, received: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.last_shown < _PROGRESS_INTERVAL:
            return
        self.last_shown = now
        rate = (received - self.resumed_at) / max(now - self.started, 1e-3)
        left = max(self.size - received, 0) / max(rate, 1.0)
        self.report(f"{received / 1e6:,.1f} of {self.size / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left")
