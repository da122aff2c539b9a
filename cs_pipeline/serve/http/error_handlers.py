"""What an error is over HTTP: a status, and one shape of body for all, which is OpenAI's."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.models.refusals import Busy, NotReady, TooLong, UnknownModel

logger = logging.getLogger(__name__)


class Fault(BaseModel):
    """What is wrong; ``param`` is the field that is."""

    message: str
    type: str
    param: str | None
    code: str | None


class Problem(BaseModel):
    """The body of every response that is no answer."""

    error: Fault


def problem(
    status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
) -> JSONResponse:
    """The response; underscores in the names of ``headers`` stand for hyphens."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = Problem(error=Fault(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's documentation says of these statuses, and of the others that are no answer."""
    meant: dict[int | str, str] = {status: _MEANING[status] for status in statuses}
    meant["default"] = "Anything else that is no answer: without the key (401), too large (413) …"
    return {status: {"model": Problem, "description": meaning} for status, meaning in meant.items()}


_MEANING = {
    400: "The request cannot be answered as it is.",
    404: "There is no such model.",
    422: "A field is missing or wrong.",
    429: "Too many questions; Retry-After says when to come again.",
    500: "The model failed; the server's log says why.",
    503: "The model is not ready; Retry-After says when to come again.",
}


def handle_errors(app: FastAPI) -> None:
    """Makes every error that a route raises a ``Problem``."""
    app.add_exception_handler(PipelineError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(Exception, _failed)


def as_problem(error: PipelineError) -> JSONResponse:
    """The response that an error of ours becomes."""
    message = f"{error.what} {error.fix}"
    match error:
        case Busy():
            return problem(429, message, "busy", Retry_After=str(error.retry_after))
        case NotReady():
            return problem(503, message, "not_ready", Retry_After=str(error.retry_after))
        case TooLong():
            return problem(400, message, "context_length_exceeded")
        case UnknownModel():
            return problem(404, message, "model_not_found", "model")
    return problem(500, message, "failed")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, PipelineError)
    return as_problem(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Which field and why, for each; never what stood there, which is a customer's and may be no text at all."""
    assert isinstance(error, RequestValidationError)
    faults = [(_field(fault["loc"]), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()]
    message = "; ".join(f"{field}: {why}" if field else why for field, why in faults)
    status = 400 if request.url.path.startswith("/v1/") else 422  # what OpenAI's clients know
    return problem(status, message, "invalid", faults[0][0] or None)


def _field(location: tuple[int | str, ...]) -> str:
    known = [str(part) for part in location if part != "body"]
    return ".".join(known).encode("utf-8", "backslashreplace").decode()[:200]


async def _other(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return problem(500, "The server failed; its log says why.", "failed")
