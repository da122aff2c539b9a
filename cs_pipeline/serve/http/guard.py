"""Checks before every route: the key, and the size of the request."""

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cs_pipeline.serve.http.error_handlers import error_response

MAX_BODY_BYTES = 512 * 1024
"""Limit for a request body. The largest requests of the page take about a tenth of it."""

_KEYLESS_PATHS = frozenset({"/health", "/ready"})
"""Load balancers ask for these without a key."""


class KeyGuard:
    """Requires the key: as ``Authorization: Bearer``, or as the password of a browser login (Basic, any user name)."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _KEYLESS_PATHS or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        challenge = 'Basic realm="cs-pipeline"'
        refusal = error_response(401, "This server requires a key.", "key", WWW_Authenticate=challenge)
        await refusal(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        kind, _, credentials = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = credentials.strip().encode("latin-1")
        elif kind.lower() == "basic":
            try:
                given = base64.b64decode(credentials, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        else:
            return False
        return hmac.compare_digest(given, self._key)


class SizeGuard:
    """Refuses bodies over ``MAX_BODY_BYTES``, with or without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > MAX_BODY_BYTES:
            await _too_large()(scope, receive, send)
            return
        received, response_started, refused = 0, False, False

        async def counting_receive() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal response_started
            if refused:
                return  # this would be the app's response to an incomplete body
            response_started = True
            await send(message)

        try:
            await self._app(scope, counting_receive, guarded_send)
        except Exception:
            if not refused:
                raise
        if refused and not response_started:
            await _too_large()(scope, receive, send)


def _too_large() -> JSONResponse:
    message = f"The request is too large: the limit is {MAX_BODY_BYTES:,} bytes."
    return error_response(413, message, "too_large", Connection="close")
