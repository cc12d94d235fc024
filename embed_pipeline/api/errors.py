"""Every error over HTTP has one shape, and no stack trace."""

import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from embed_pipeline import errors
from embed_pipeline.errors import EmbedPipelineError, ImageError

logger = logging.getLogger(__name__)

# What takes a moment: a lock, a server that starts, a token bucket.
RETRY_AFTER_SECONDS = 5
_LONGEST_SAID = 500

# The first that an error is one of. What is not here is 503 where it may pass by itself, else 500.
_STATUS: Sequence[tuple[type[EmbedPipelineError], HTTPStatus]] = (
    (errors.QueryError, HTTPStatus.BAD_REQUEST),
    (errors.ProjectNotFound, HTTPStatus.NOT_FOUND),
    (errors.CollectionMissing, HTTPStatus.NOT_FOUND),
    (errors.TableMissing, HTTPStatus.NOT_FOUND),
    (errors.LeaseHeld, HTTPStatus.CONFLICT),
    (errors.ProjectPaused, HTTPStatus.CONFLICT),
    (errors.RunNotStopped, HTTPStatus.CONFLICT),
    (errors.SourceUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.SourceError, HTTPStatus.BAD_GATEWAY),
)


class ApiError(Exception):
    """A request that is answered with an error. kind: a short stable word for programs.

    retry_after_seconds: when asking again makes sense; sent as the header Retry-After.
    """

    def __init__(
        self, status: HTTPStatus, kind: str, message: str, *, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class Fault(BaseModel):
    """What was wrong. type: a short stable word. retryable: the same request may succeed later."""

    type: str
    message: str
    retryable: bool


class Problem(BaseModel):
    """The body of every answer that is an error. message: one line for people, as in `error`."""

    message: str
    error: Fault


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: what it may answer beside success."""
    return {status.value: {"model": Problem, "description": status.phrase} for status in statuses}


def problem(error: ApiError) -> JSONResponse:
    """The answer to a request that failed."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    message = " ".join(str(error).split())
    retryable = error.retry_after_seconds is not None
    body = Problem(
        message=message, error=Fault(type=error.kind, message=message, retryable=retryable)
    )
    return JSONResponse(body.model_dump(), error.status, headers)


def explained(error: Exception) -> ApiError:
    """Any error as an answer. What the caller can do nothing about is logged, with a number to find it by."""
    match error:
        case ApiError():
            return error
        case EmbedPipelineError():
            return _of_ours(error)
        case RequestValidationError():
            return _of_request(error)
        case HTTPException():
            status = HTTPStatus(error.status_code)
            return ApiError(status, _snake(status.name), str(error.detail))
        case UnicodeEncodeError():  # JSON can say what no text is: half of a character
            said = "a text of the request is not Unicode; send whole characters"
            return ApiError(HTTPStatus.BAD_REQUEST, "invalid_text", said)
    number = _logged(error)
    said = f"an error inside the service; its log tells more under {number}"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", said)


def install_error_answers(app: FastAPI) -> None:
    """Have the app answer every error in the one shape."""

    async def answer(_: Any, error: Exception) -> JSONResponse:
        return problem(explained(error))

    for kind in (ApiError, EmbedPipelineError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _of_ours(error: EmbedPipelineError) -> ApiError:
    kind = _snake(type(error).__name__)
    status = next((status for known, status in _STATUS if isinstance(error, known)), None)
    retryable = error.retryable
    if isinstance(error, ImageError):
        status, retryable = HTTPStatus.UNPROCESSABLE_ENTITY, error.transient
    if status is None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if retryable else HTTPStatus.INTERNAL_SERVER_ERROR
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        _logged(error)
    return ApiError(
        status, kind, str(error), retry_after_seconds=RETRY_AFTER_SECONDS if retryable else None
    )


def _of_request(error: RequestValidationError) -> ApiError:
    """What was wrong with which fields; never what was sent: it may be a secret, or long."""
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return ApiError(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON")
    said = "; ".join(f"{_field(each['loc'])}: {_plain(each['msg'])}" for each in found)
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", said[:_LONGEST_SAID])


def _field(location: Sequence[int | str]) -> str:
    where, *path = map(str, location)
    return ".".join(path) or where


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _logged(error: Exception) -> str:
    number = uuid4().hex[:12]
    logger.error("%s: %s", number, error, exc_info=error)
    return number
