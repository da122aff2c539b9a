"""What stands before every route: who may ask, under which name, and how much."""

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cs_pipeline.serve.http.error_handlers import problem

BODY_BYTES = 512 * 1024
"""Most bytes of a request; a page that compares long chats sends a tenth of it."""

OPEN = frozenset({"/health", "/ready"})
"""What a load balancer asks, without a key."""


class KeyGuard:
    """Lets in who sends the key: as ``Authorization: Bearer``, or as the password of a browser (Basic, any user)."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in OPEN and not self._knows(Headers(scope=scope)):
            refusal = problem(401, "This server asks for its key.", "key", WWW_Authenticate='Basic realm="cs-pipeline"')
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = sent.strip().encode("latin-1")
        elif kind.lower() == "basic":
            try:
                given = base64.b64decode(sent, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        else:
            return False
        return hmac.compare_digest(given, self._key)


class SizeGuard:
    """Refuses a body of more than ``BODY_BYTES``, whether its length was told before or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "0")
        if not told.isdecimal() or int(told) > BODY_BYTES:
            await _too_much()(scope, receive, send)
            return
        read, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_BYTES:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if refused:
                return  # what the app says of a body that broke off is not what happened
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, sent)
        except Exception:
            if not refused:
                raise
        if refused and not begun:
            await _too_much()(scope, receive, send)


def _too_much() -> JSONResponse:
    return problem(413, f"A request may have {BODY_BYTES:,} bytes at most.", "too_large", Connection="close")
