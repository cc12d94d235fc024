"""Requests to a service that computes embeddings: deadlines, bounded tries, errors in plain words."""

import logging
import re
import time
from collections.abc import Mapping
from threading import Event
from typing import Any, ClassVar, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState

from embed_pipeline.errors import ModelError
from embed_pipeline.patience import Patience, Stopped

# A look at the card; the last known one will do where nobody answers.
LOOKS = Patience(tries=2, try_seconds=3, total_seconds=7)
# Somebody may be waiting for a search.
TEXTS = Patience(tries=6, try_seconds=20, total_seconds=50)
# A sync rides out the restart of the service.
IMAGES = Patience(tries=12, try_seconds=60, total_seconds=240)

_CONNECT_SECONDS = 3.0
_LONGEST_REASON = 200
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}

logger = logging.getLogger(__name__)
Told = TypeVar("Told", bound=BaseModel)


class ServiceAway(ModelError):
    """The service does not answer, or cannot just now; it may later."""

    retryable: ClassVar[bool] = True


class _Refused(Exception):
    """An answer with an error status. retry_after_s: how long the service asks to wait."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        asked = headers.get("retry-after", "")
        self.retry_after_s = float(asked) if asked.isdecimal() else 0.0
        super().__init__(f"{status} {_message(body)}".strip())


class Service:
    """The embedding service at an address; to be shared between threads. Close it.

    api_key: sent as a bearer token.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None,
        *,
        looks: Patience = LOOKS,
        texts: Patience = TEXTS,
        images: Patience = IMAGES,
    ) -> None:
        self.address = _checked(address)
        self.looks, self.texts, self.images = looks, texts, images
        self._api_key = api_key
        self._base = address.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers)

    def get(self, path: str, kind: type[Told], patience: Patience) -> Told:
        """What is at a path. Raises ServiceAway for what may pass by itself, else ModelError."""
        return self._ask(self._client.build_request("GET", self._base + path), kind, patience)

    def post(
        self, path: str, body: object, kind: type[Told], patience: Patience, stop: Event
    ) -> Told:
        """The answer to a JSON document. Raises as `get`; asks no more once `stop` is set."""
        request = self._client.build_request("POST", self._base + path, json=body)
        return self._ask(request, kind, patience, stop)

    def close(self) -> None:
        """Close the connections; nothing can be asked any more."""
        self._client.close()

    def _ask(
        self,
        request: httpx.Request,
        kind: type[Told],
        patience: Patience,
        stop: Event | None = None,
    ) -> Told:
        def attempt() -> Told:
            return kind.model_validate_json(self._once(request, patience.try_seconds))

        try:
            return patience.ask(attempt, _may_pass, self._tell, stop or Event())
        except (httpx.HTTPError, _Refused, ValidationError, Stopped) as error:
            raise self._explained(error) from error

    def _once(self, request: httpx.Request, seconds: float) -> bytes:
        """One try. httpx knows no deadline for a whole answer, so it is read bit by bit."""
        deadline = time.monotonic() + seconds
        request.extensions["timeout"] = httpx.Timeout(seconds, connect=_CONNECT_SECONDS).as_dict()
        answer = self._client.send(request, stream=True)
        try:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"not all there after {seconds:g} s")
        finally:
            answer.close()
        if not answer.is_success:
            raise _Refused(answer.status_code, answer.headers, bytes(body))
        return bytes(body)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning(
            "EMBED_MODEL=%s: %s; trying again in %.1f s",
            self.address,
            self._reason(error),
            state.upcoming_sleep,
        )

    def _explained(self, error: Exception) -> ModelError:
        kind, remedy = _meaning(error)
        return kind(f"EMBED_MODEL={self.address}: {self._reason(error)}; {remedy}")

    def _reason(self, error: BaseException | None) -> str:
        if isinstance(error, ValidationError):
            return "its answer is not that of `embed-pipeline serve`"
        told = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        return told.replace(self._api_key, "***") if self._api_key else told


def _checked(address: str) -> str:
    """The address. Raises ModelError for one that is none, or that holds a password or a query."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise ModelError(f"EMBED_MODEL={_hidden(address)}: not an address: {error}") from error
    if not parts.hostname or port == 0 or _has_more(parts):
        raise ModelError(
            f"EMBED_MODEL={_hidden(address)}: must be http(s)://host[:port][/prefix] and no more; a key "
            "goes into EMBED_MODEL_API_KEY"
        )
    return address


def _has_more(parts: SplitResult) -> bool:
    return bool(parts.username or parts.password or parts.query or parts.fragment)


def _hidden(address: str) -> str:
    return re.sub(r"//.*@", "//***@", address).partition("?")[0]


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, _Refused):
        return error.status in _TRANSIENT
    permanent = isinstance(error, httpx.UnsupportedProtocol) or "SSL" in str(error)
    return isinstance(error, httpx.TransportError) and not permanent


def _meaning(error: Exception) -> tuple[type[ModelError], str]:
    if isinstance(error, Stopped) or _may_pass(error):
        return ServiceAway, "look whether embed-pipeline serve runs there; a later sync goes on"
    match error.status if isinstance(error, _Refused) else None:
        case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
            return ModelError, "set EMBED_MODEL_API_KEY to the EMBED_API_KEY of that service"
        case httpx.codes.REQUEST_ENTITY_TOO_LARGE | httpx.codes.UNPROCESSABLE_ENTITY:
            return ModelError, "look at that service's limits (MAX_IMAGE_SIZE, EMBED_API_…)"
        case _:
            return ModelError, "set EMBED_MODEL to the address of an `embed-pipeline serve`"


def _message(body: bytes) -> str:
    """What the service's error says, in its JSON."""
    try:
        return str(_Error.model_validate_json(body).message)
    except ValidationError:
        return ""


class _Error(BaseModel):
    message: Any
