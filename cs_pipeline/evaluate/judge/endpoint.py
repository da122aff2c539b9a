"""An OpenAI-compatible endpoint of the user's choice, asked over plain HTTP.

Nothing is sent anywhere unless ``CS_JUDGE_URL`` and ``CS_JUDGE_MODEL`` are set; ``CS_JUDGE_KEY`` goes along where it is.
The key stands in no message, log or file.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

from cs_pipeline.core.errors import PipelineError

ATTEMPTS = 5
LONGEST_WAIT = 120.0
"""Seconds; an endpoint that asks for a longer pause is not waited for."""
TIMEOUT = (10.0, 120.0)
"""Seconds to connect, and for an answer."""
_HERE = ("localhost", "127.0.0.1", "::1")


class _BusyError(Exception):
    """The endpoint may answer later, after ``wait`` seconds at least."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked; ``url`` ends before ``/chat/completions``."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise PipelineError(
                "CS_JUDGE_URL is no address of an endpoint.",
                "Set it to one such as https://example.com/v1, without a key in it.",
            )
        if not self.model:
            raise PipelineError("CS_JUDGE_MODEL is not set.", "Name the model that the endpoint is to judge with.")
        if not re.fullmatch(r"[!-~]*", self.key):  # the HTTP library's own error would show it
            raise PipelineError("CS_JUDGE_KEY holds characters that no key has.", "Set it to the key alone.")
        if self.key and parts.scheme == "http" and parts.hostname not in _HERE:
            raise PipelineError(
                f"The key would travel readable for all to {parts.hostname}.",
                "Use https, or an endpoint on this machine.",
            )

    def ask(self, messages: Sequence[dict[str, str]], sleep: Callable[[float], None] = time.sleep) -> str:
        """What the model answers, at temperature 0. A limit on the rate is waited for, an error of the server retried.

        Raises PipelineError when the endpoint refuses, or has not answered in ATTEMPTS attempts.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(messages)
            except _BusyError as busy:
                wait = max(2.0 ** (attempt - 1), busy.wait)
                if attempt == ATTEMPTS or wait > LONGEST_WAIT:
                    asks = f", and asks to wait {wait:,.0f} s" if wait > LONGEST_WAIT else ""
                    raise PipelineError(
                        f"{self.url}: {busy} in attempt {attempt} of {ATTEMPTS}{asks}.",
                        "Run again later: what was judged is kept, and not asked again.",
                    ) from None
                sleep(wait)
        raise AssertionError("the last attempt answers or raises")

    def _ask(self, messages: Sequence[dict[str, str]]) -> str:
        def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # As ``auth`` even without a key: else requests would look for one in ~/.netrc.
            if self.key:
                request.headers["Authorization"] = f"Bearer {self.key}"
            return request

        body = {"model": self.model, "messages": list(messages), "temperature": 0}
        try:
            # A redirect would carry the texts to an address that the user has not named.
            response = requests.post(
                f"{self.url.rstrip('/')}/chat/completions",
                json=body,
                auth=authorise,
                timeout=TIMEOUT,
                allow_redirects=False,
            )
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _BusyError(f"no answer ({type(error).__name__})") from None
        said = f"the endpoint answered {response.status_code} {response.reason}"
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            asked = response.headers.get("Retry-After", "")
            raise _BusyError(said, float(asked) if asked.isdecimal() else 0.0)
        if response.status_code != 200:
            raise PipelineError(f"{self.url}: {said}.", _mend(response.status_code))
        return _content(response, self.url)


def endpoint_from_environment() -> Endpoint | None:
    """The endpoint that the user has configured, None where there is none. Raises PipelineError when it cannot be used."""
    url = os.environ.get("CS_JUDGE_URL", "").strip()
    if not url:
        return None
    return Endpoint(url, os.environ.get("CS_JUDGE_MODEL", "").strip(), os.environ.get("CS_JUDGE_KEY", "").strip())


def _content(response: requests.Response, url: str) -> str:
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise PipelineError(
            f"{url} answered with something else than a chat completion.", "Check that CS_JUDGE_URL ends as in …/v1."
        )
    return content


def _mend(status: int) -> str:
    if status in (401, 403):
        return "Check CS_JUDGE_KEY, and that it may use the model."
    if status == 404:
        return "Check CS_JUDGE_URL, which ends before /chat/completions, and CS_JUDGE_MODEL."
    if 300 <= status < 400:
        return "Set CS_JUDGE_URL to the address that it leads to, if the texts may go there."
    return "Check CS_JUDGE_MODEL: it must take temperature 0 and texts as long as two answers."
