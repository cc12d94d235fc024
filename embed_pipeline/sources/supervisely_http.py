"""Requests to a Supervisely instance: each with a deadline, bounded tries, and errors in plain words."""

import logging
import time
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from json import JSONDecodeError
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState

from embed_pipeline.errors import (
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from embed_pipeline.patience import Patience, Stopped

logger = logging.getLogger(__name__)

# A look is two of these at most, one after the other, and Dagster ends a tick after 60 s.
LOOKS = Patience(tries=3, try_seconds=10, total_seconds=18)
# A run rides out the restart of an instance.
CALLS = Patience(tries=12, try_seconds=60, total_seconds=240)
# One picture among many: a later run tries it again.
PICTURES = Patience(tries=3, try_seconds=30, total_seconds=60)
# A server that is there has begun to answer by then.
SILENCE_SECONDS = 10.0

# As the SDK has them, from the platform (its io/network_exceptions.py).
_TRANSIENT = {408, 429, 499, 500, 502, 503, 504, 509, 598, 599}
_LONGEST_DETAIL = 200
_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Address:
    """Where an instance is, and who asks.

    server: as people open it. api: of its API inside a network, where that is another. access_token:
    exchanged for the administrator's API token, where there is no `api_token`.
    """

    server: str
    api_token: str | None = field(repr=False)
    api: str | None = None
    access_token: str | None = field(default=None, repr=False)


class Refused(Exception):
    """An answer with an error status. retry_after_s: how long the server asks to wait.

    secrets: what an answer may repeat, and nobody is to read.
    """

    def __init__(self, response: httpx.Response, secrets: Iterable[str]) -> None:
        self.status = response.status_code
        self.location = response.headers.get("location", "")
        asked = response.headers.get("retry-after", "")
        self.retry_after_s = float(asked) if asked.isdecimal() else 0.0
        told = f"{self.status} {_detail(response)}".strip()
        for secret in secrets:
            told = told.replace(secret, "***")
        super().__init__(told)


class Missing(SourceError):
    """The instance knows no such thing."""


class TooLarge(Exception):
    """An answer is longer than it may be."""


class NoJson(Exception):
    """An answer of the API that is none."""


@dataclass(frozen=True)
class Request:
    """What to ask. what: in words, for messages. max_bytes: of the answer."""

    what: str
    built: httpx.Request
    max_bytes: int = _NO_LIMIT


class Connection:
    """Asks one instance; to be shared between threads. at_once: connections that are kept open."""

    def __init__(
        self,
        address: Address,
        at_once: int = 8,
        *,
        calls: Patience = CALLS,
        looks: Patience = LOOKS,
        pictures: Patience = PICTURES,
    ) -> None:
        self.where = _without_password(address.server)
        self.calls, self.looks, self.pictures = calls, looks, pictures
        self._address = address
        self._api = f"{address.api or address.server + '/public/api'}/v3"
        self._lock = Lock()
        self._token = address.api_token
        limits = httpx.Limits(max_connections=at_once + 4, max_keepalive_connections=at_once + 4)
        timeout = httpx.Timeout(SILENCE_SECONDS, pool=None)
        self._client = httpx.Client(limits=limits, timeout=timeout)

    def post(self, method: str, data: object, patience: Patience) -> httpx.Response:
        """Call a method of the API; the answer is JSON.

        Raises SourceUnavailable for what may pass by itself, SourceRefused for what does not, and
        Missing where the instance knows no such thing.
        """
        return self._json(self._request(method, data), patience)

    def of_caller(self, token: str) -> "Connection":
        """The same connections, for requests of whom this token is; `close` closes those of both."""
        theirs = copy(self)
        theirs._address = replace(self._address, api_token=token, access_token=None)  # noqa: SLF001  # its own
        theirs._token = token  # noqa: SLF001  # as above
        return theirs

    def image(self, image_id: int, max_bytes: int, stop: Event) -> bytes:
        """An image as it is stored. Raises Refused, TooLarge, Stopped or httpx.HTTPError."""
        built = self._request("images.download", {"id": image_id}).built
        request = Request(f"download image {image_id}", built, max_bytes)
        return self._ask(request, self.pictures, stop).content

    def get(self, url: str, max_bytes: int, stop: Event) -> bytes:
        """What is at a URL; no token goes there. Raises as `image`."""
        request = Request("download a preview", self._client.build_request("GET", url), max_bytes)
        return self._ask(request, self.pictures, stop).content

    def close(self) -> None:
        """Close the connections; nothing can be asked any more."""
        self._client.close()

    def _request(self, method: str, data: object) -> Request:
        headers = {"x-api-key": self._known_token()}
        url = f"{self._api}/{method}"
        return Request(method, self._client.build_request("POST", url, json=data, headers=headers))

    def _known_token(self) -> str:
        with self._lock:
            if self._token is None:
                self._token = self._exchanged()
            return self._token

    def _exchanged(self) -> str:
        method = "instance.admin-info"
        asked = {"accessToken": self._address.access_token}
        built = self._client.build_request("POST", f"{self._api}/{method}", json=asked)
        answer = self._json(Request(method, built), self.looks)
        try:
            return str(answer.json()["apiToken"])
        except KeyError:
            raise SourceRefused(
                f"Supervisely at {self.where} gave no API token for SUPERVISELY_API_ACCESS_TOKEN; "
                "set API_TOKEN instead"
            ) from None

    def _json(self, request: Request, patience: Patience) -> httpx.Response:
        """An answer that is JSON. Raises as `post`."""
        try:
            answer = self._ask(request, patience, Event())
            _require_json(answer)
        except Exception as error:
            raise explained(error, self.where, request.what) from error
        return answer

    def _ask(self, request: Request, patience: Patience, stop: Event) -> httpx.Response:
        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.warning(
                "Supervisely at %s: %s: %s; trying again in %.1f s (%d of at most %d tries)",
                self.where,
                request.what,
                _reason(error) if error else "",
                state.upcoming_sleep,
                state.attempt_number,
                patience.tries,
            )

        def attempt() -> httpx.Response:
            return self._once(request, patience.try_seconds, stop)

        return patience.ask(attempt, is_transient, tell, stop)

    def _once(self, request: Request, seconds: float, stop: Event) -> httpx.Response:
        """One try. httpx knows no deadline for a whole answer, so it is read bit by bit."""
        deadline = time.monotonic() + seconds
        answer = self._client.send(request.built, stream=True)
        try:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"not all there after {seconds:g} s")
                if len(body) > request.max_bytes:
                    raise TooLarge
        finally:
            answer.close()
        whole = httpx.Response(answer.status_code, headers=_plain(answer), content=bytes(body))
        if whole.status_code != httpx.codes.OK:
            known = (self._token, self._address.access_token)
            raise Refused(whole, filter(None, known))
        return whole


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, Refused):
        return error.status in _TRANSIENT
    permanent = isinstance(error, httpx.UnsupportedProtocol) or "SSL" in str(error)
    return isinstance(error, httpx.TransportError) and not permanent


def explained(error: Exception, where: str, what: str) -> SourceError:
    """Our error for one of a request's: what, why, and what a person can do."""
    kind, said, remedy = _meaning(error)
    return kind(f"Supervisely at {where} {said} {what} ({_reason(error)}); {remedy}")


_Meaning = tuple[type[SourceError], str, str]
_UP_AGAIN = "nothing was changed; look whether it is up; the next run tries again"
_BY_STATUS: dict[int, _Meaning] = {
    401: (SourceRefused, "refused the token for", "set API_TOKEN to a valid token of a user there"),
    403: (
        SourceRefused,
        "does not permit",
        "give the user of API_TOKEN a role in the team that may edit projects",
    ),
    404: (Missing, "knows nothing of", "check SERVER_ADDRESS, and the instance's version"),
}


def _meaning(error: Exception) -> _Meaning:
    if isinstance(error, Refused) and error.status in _BY_STATUS:
        return _BY_STATUS[error.status]
    if isinstance(error, Refused) and error.location:
        return SourceRefused, "has moved, it says to", f"set SERVER_ADDRESS to {error.location}"
    if isinstance(error, NoJson):
        remedy = "check SERVER_ADDRESS, and what stands in front of the instance"
        return SourceUnavailable, "gave a wrong answer to", remedy
    if isinstance(error, Stopped) or is_transient(error):
        return SourceUnavailable, "does not answer", _UP_AGAIN
    return SourceRefused, "refused", "check SERVER_ADDRESS, and the instance's version and log"


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _detail(response: httpx.Response) -> str:
    """What the platform says: {"error": …, "details": {"message": …} or a list of such}."""
    try:
        told = response.json()
        details = told.get("details") or {}
        details = details[0] if isinstance(details, list) else details
        said: Any = details.get("message") or told.get("error") or ""
    except (ValueError, AttributeError, LookupError):
        said = response.reason_phrase
    return " ".join(str(said).split())[:_LONGEST_DETAIL]


def _require_json(answer: httpx.Response) -> None:
    try:
        answer.json()
    except (JSONDecodeError, UnicodeDecodeError) as error:
        begin = answer.text[:40].splitlines()[:1]
        raise NoJson(f"what is not JSON: {begin}") from error


def _plain(answer: httpx.Response) -> dict[str, str]:
    """The headers, less those of an encoding that was undone by reading."""
    undone = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in answer.headers.items() if name not in undone}
