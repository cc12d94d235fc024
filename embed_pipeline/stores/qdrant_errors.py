"""What a Qdrant server's errors mean: whether asking again may help, and what a person can do.

gRPC, REST and the in-memory client each have errors of their own. Here all become one of gRPC's codes.
"""

import json

from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from embed_pipeline.errors import CollectionMissing, StoreError, StoreUnavailable
from embed_pipeline.patience import Stopped


class NotCompleted(Exception):
    """A write was acknowledged, and not said to be carried out."""


# What may pass by itself: what the server does, and the remedy if it does not pass.
_SEE_LOG = "look at its log, and try again"
_TRANSIENT = {
    "UNAVAILABLE": (
        "does not answer",
        "start it, or unset QDRANT_URL to use the embedded store",
    ),
    "DEADLINE_EXCEEDED": ("does not answer in time", "look at its load and its log, and try again"),
    "RESOURCE_EXHAUSTED": ("has too much to do", "try again later, or raise its limits"),
    "NOT_COMPLETED": ("took a write and did not say that it is done", _SEE_LOG),
    "STOPPED": ("was not waited for", "try again"),
    **dict.fromkeys(("INTERNAL", "UNKNOWN", "ABORTED", "CANCELLED"), ("failed", _SEE_LOG)),
}
# What never passes by itself.
_PERMANENT = {
    "UNAUTHENTICATED": ("refused the key", "check QDRANT_API_KEY"),
    "PERMISSION_DENIED": ("refused the key", "check QDRANT_API_KEY, and what it permits"),
    "NOT_FOUND": ("knows nothing of this", "check QDRANT_URL and QDRANT_GRPC_PORT"),
    "UNIMPLEMENTED": ("knows nothing of this", "check QDRANT_URL, and the server's version"),
    "NO_QDRANT": ("gave an answer that is not Qdrant's", "check QDRANT_URL"),
    "TLS": (
        "cannot be spoken to",
        "check whether QDRANT_URL begins with http or https, and the server's certificate",
    ),
}
_REFUSED = ("refused", "check the server's version and its log")

_CODE_OF_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CODE_OF_KIND = {
    NotCompleted: "NOT_COMPLETED",
    Stopped: "STOPPED",
    json.JSONDecodeError: "NO_QDRANT",
    QdrantException: "RESOURCE_EXHAUSTED",  # the only thing that the client raises it for
}
_FIRST_SERVER_ERROR = 500
_LONGEST_REASON = 300


def code_of(error: BaseException) -> str:
    """The code that gRPC would have given, or NOT_COMPLETED, STOPPED, TLS, NO_QDRANT; else INVALID."""
    if isinstance(error, UnexpectedResponse):
        return _code_of_status(error.status_code or 0)
    if isinstance(error, ResponseHandlingException):
        return _code_of_transport(error.source)
    if callable(code := getattr(error, "code", None)):
        return str(code().name)
    if isinstance(error, ValueError) and str(error).endswith("not found"):
        return "NOT_FOUND"  # of the in-memory client
    return next(
        (code for kind, code in _CODE_OF_KIND.items() if isinstance(error, kind)), "INVALID"
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later with nothing changed."""
    return isinstance(error, Exception) and code_of(error) in _TRANSIENT


def explained(error: Exception, where: str, what: str) -> StoreError:
    """One line: the server, what it did, what it was asked, its reason, the remedy."""
    code, reason = code_of(error), reason_of(error)
    if code == "NOT_FOUND" and "ollection" in reason:
        return CollectionMissing(
            f"{what}: Qdrant at {where} has no such collection; sync the project first"
        )
    if code in _TRANSIENT:
        did, remedy = _TRANSIENT[code]
        return StoreUnavailable(f"Qdrant at {where} {did}: {what}: {reason}; {remedy}")
    did, remedy = _PERMANENT.get(code, _REFUSED)
    return StoreError(f"Qdrant at {where} {did}: {what}: {reason}; {remedy}")


def reason_of(error: BaseException) -> str:
    """What the error says, in one line. A gRPC error's own text has several."""
    if isinstance(error, UnexpectedResponse):
        text = f"{error.status_code} {error.reason_phrase}: {_said(error)}"
    elif isinstance(error, ResponseHandlingException):
        text = f"{type(error.source).__name__}: {error.source}"
    elif callable(details := getattr(error, "details", None)):
        text = f"{code_of(error)}: {details()}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:_LONGEST_REASON]


def _code_of_status(status: int) -> str:
    return _CODE_OF_STATUS.get(status, "INTERNAL" if status >= _FIRST_SERVER_ERROR else "INVALID")


def _code_of_transport(source: Exception) -> str:
    if isinstance(source, (ValidationError, ValueError)):
        return "NO_QDRANT"
    if "SSL" in str(source):
        return "TLS"
    return "DEADLINE_EXCEEDED" if "Timeout" in type(source).__name__ else "UNAVAILABLE"


def _said(error: UnexpectedResponse) -> str:
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, TypeError, KeyError):
        return error.content.decode(errors="replace")
