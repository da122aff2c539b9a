"""Turns errors into HTTP responses. All have a status and a body in the format of OpenAI's errors."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.models.jobs import Busy, NotReady, TooLong, UnknownModel


class ErrorDetail(BaseModel):
    """What went wrong. ``param`` names the field at fault, if any."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


def error_response(
    status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
) -> JSONResponse:
    """An error response. Underscores in the names of ``headers`` stand for hyphens."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI ``responses`` of a route that can fail with these statuses."""
    described: dict[int | str, str] = {status: _DESCRIPTIONS[status] for status in statuses}
    described["default"] = "Any other error: no key (401), too large (413) …"
    return {status: {"model": ErrorBody, "description": text} for status, text in described.items()}


_DESCRIPTIONS = {
    400: "The request cannot be answered as it is.",
    404: "There is no such model.",
    422: "A field is missing or wrong.",
    429: "Too many questions. Retry-After says when to try again.",
    500: "The model failed. The server's log says why.",
    503: "The model is not ready. Retry-After says when to try again.",
}


def error_to_response(error: PipelineError) -> JSONResponse:
    """The response to a PipelineError."""
    message = f"{error.what} {error.fix}"
    match error:
        case Busy():
            return error_response(429, message, "busy", Retry_After=str(error.retry_after))
        case NotReady():
            return error_response(503, message, "not_ready", Retry_After=str(error.retry_after))
        case TooLong():
            return error_response(400, message, "context_length_exceeded")
        case UnknownModel():
            return error_response(404, message, "model_not_found", "model")
    return error_response(500, message, "failed")


async def _pipeline_error(request: Request, error: PipelineError) -> Response:
    return error_to_response(error)


async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    """Names each wrong field and the reason, but not the value, which may be a customer's text or no valid text at all."""
    faults = [(_field(fault["loc"]), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()]
    message = "; ".join(f"{field}: {why}" if field else why for field, why in faults)
    status = 400 if request.url.path.startswith("/v1/") else 422  # OpenAI's clients expect 400
    return error_response(status, message, "invalid", faults[0][0] or None)


def _field(location: tuple[int | str, ...]) -> str:
    path = [str(part) for part in location if part != "body"]
    return ".".join(path).encode("utf-8", "backslashreplace").decode()[:200]


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = error_response(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(500, "The server failed. Its log says why.", "failed")


ERROR_HANDLERS: dict[int | type[Exception], Any] = {
    PipelineError: _pipeline_error,
    RequestValidationError: _invalid_request,
    HTTPException: _http_error,
    Exception: _unexpected_error,
}
"""The handlers that turn every error of a route into an ``ErrorBody``."""
