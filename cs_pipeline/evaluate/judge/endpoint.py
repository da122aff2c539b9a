"""The judge model, behind an OpenAI-compatible endpoint of the user's choice.

Nothing is sent unless ``CS_JUDGE_URL`` and ``CS_JUDGE_MODEL`` are set. ``CS_JUDGE_KEY`` is optional and appears in no
message, log or file.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cs_pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

JUDGE_ATTEMPTS = 5
_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 120.0
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SENT_HEADERS = frozenset(
    {"host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent"}
)


@dataclass(frozen=True)
class Endpoint:
    """A model at ``url`` (without ``/chat/completions``). Raises PipelineError when the address or the key is unsafe."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise PipelineError(
                "CS_JUDGE_URL is not the address of an endpoint.",
                "Set it to an address such as https://example.com/v1, without a key in it.",
            )
        if not self.model:
            raise PipelineError("CS_JUDGE_MODEL is not set.", "Set it to the name of the judge model at the endpoint.")
        if not re.fullmatch(r"[!-~]*", self.key):  # the HTTP library's own error would show the key
            raise PipelineError("CS_JUDGE_KEY contains a space or a non-ASCII character.", "Set it to the key alone.")
        if self.key and parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
            raise PipelineError(
                f"The key would be sent unencrypted to {parts.hostname}.",
                "Use https, or an endpoint on this machine.",
            )

    def client(self) -> "OpenAI":
        """A client for ``ask``; use it in a ``with`` block."""
        import openai

        http = openai.DefaultHttpxClient(
            timeout=openai.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            follow_redirects=False,  # a redirect would send the texts to an address that the user did not choose
            event_hooks={"request": [self._set_headers]},
        )
        return openai.OpenAI(
            base_url=self.url, api_key="see _set_headers", max_retries=JUDGE_ATTEMPTS - 1, http_client=http
        )

    def ask(self, client: "OpenAI", messages: Sequence[dict[str, str]]) -> str:
        """The model's answer to ``messages`` at temperature 0.

        Rate limits, server errors and lost connections are retried. If the endpoint asks for a pause of at most two minutes,
        the retry waits that long. Raises PipelineError when the endpoint refuses or all JUDGE_ATTEMPTS fail.
        """
        import openai

        request: Any = {"model": self.model, "messages": list(messages), "temperature": 0}
        try:
            content: Any = client.chat.completions.create(**request).choices[0].message.content
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            raise PipelineError(
                f"{self.url}: no answer in {JUDGE_ATTEMPTS} attempts ({type(error.__cause__ or error).__name__}).",
                "Check CS_JUDGE_URL and the network, and run again: verdicts given so far are kept.",
            ) from None
        except (AttributeError, LookupError, TypeError, ValueError):
            content = None
        if not isinstance(content, str):
            raise PipelineError(
                f"{self.url} did not answer with a chat completion.", "Check CS_JUDGE_URL: it usually ends in /v1."
            )
        return content

    def _set_headers(self, request: Any) -> None:
        """Adds the key, and removes the library's headers that describe this machine or come from ``OPENAI_*`` variables."""
        for name in set(request.headers) - _SENT_HEADERS:
            del request.headers[name]
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"

    def _refusal(self, error: "APIStatusError") -> PipelineError:
        status, answer = error.status_code, f"the endpoint answered {error.status_code} {error.response.reason_phrase}"
        if status in (408, 409, 429) or status >= 500:
            pause = error.response.headers.get("Retry-After", "")
            detail = f" and asks to wait {int(pause):,} s" if pause.isdecimal() else f" in {JUDGE_ATTEMPTS} attempts"
            return PipelineError(f"{self.url}: {answer}{detail}.", "Run again later: verdicts given so far are kept.")
        if status in (401, 403):
            hint = "Check CS_JUDGE_KEY, and that it may use the model."
        elif status == 404:
            hint = "Check CS_JUDGE_MODEL and CS_JUDGE_URL, which ends before /chat/completions."
        elif status < 400:
            hint = "Set CS_JUDGE_URL to the address that it redirects to, if the texts may be sent there."
        else:
            hint = "Check CS_JUDGE_MODEL: it must accept temperature 0 and texts as long as two answers."
        return PipelineError(f"{self.url}: {answer}.", hint)


def endpoint_from_environment() -> Endpoint | None:
    """The endpoint that the user has configured, or None. Raises PipelineError when it cannot be used."""
    url = os.environ.get("CS_JUDGE_URL", "").strip()
    if not url:
        return None
    return Endpoint(url, os.environ.get("CS_JUDGE_MODEL", "").strip(), os.environ.get("CS_JUDGE_KEY", "").strip())
