"""The way to a Qdrant server: gRPC or REST, opened when first used, patient, never silent."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from qdrant_client import QdrantClient, models
from tenacity import RetryCallState

from embed_pipeline.errors import EmbedPipelineError, SettingsError
from embed_pipeline.patience import Patience, Stopped
from embed_pipeline.side_by_side import run_all
from embed_pipeline.stores.qdrant_errors import (
    NotCompleted,
    code_of,
    explained,
    is_transient,
    reason_of,
)
from embed_pipeline.stores.retrying import READS, WRITES

T = TypeVar("T")
Call = Callable[[QdrantClient], T]
Updated = models.UpdateResult | list[models.UpdateResult]

logger = logging.getLogger(__name__)

_GREETING_SECONDS = 2
_LOCAL = ("localhost", "127.0.0.1", "::1")
# What gRPC says where nothing listens, a firewall drops, or something else answers.
_NO_GRPC_THERE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNKNOWN", "INTERNAL")

# By default gRPC waits up to two minutes before it looks whether a server is back, and never notices
# that a connection leads nowhere.
_GRPC_OPTIONS = {
    "grpc.initial_reconnect_backoff_ms": 250,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
}


class Route:
    """How a server is reached. Nothing is sent before the first `open`.

    url: such as http://localhost:6333, REST's. where: what messages call the server, without secrets.
    by_grpc: None before it is known.
    """

    writes_at_once = 3

    def __init__(self, url: str, api_key: str | None, grpc_port: int) -> None:
        parts = _parts(url)
        self.where = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._url = url
        self._api_key = api_key
        self._grpc_port = grpc_port
        self.by_grpc: bool | None = None
        if api_key and parts.scheme == "http" and parts.hostname not in _LOCAL:
            logger.warning("Qdrant at %s: the API key crosses the network unencrypted", self.where)

    def open(self, timeout_seconds: int) -> QdrantClient:
        """A client by gRPC, or by REST where only that answers: found out once."""
        if self.by_grpc is None:
            self.by_grpc = self._greet_by_grpc()
        return self._client(timeout_seconds, by_grpc=self.by_grpc)

    def without_key(self, text: str) -> str:
        """A server or a proxy may repeat what it was sent."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def _greet_by_grpc(self) -> bool:
        no_grpc = self._greeted(by_grpc=True)
        if no_grpc is None or code_of(no_grpc) not in _NO_GRPC_THERE:
            return True
        no_rest = self._greeted(by_grpc=False)
        if no_rest and is_transient(no_rest):
            raise no_rest
        logger.warning(
            "Qdrant at %s: gRPC on port %d does not answer (%s); using REST, which is slower",
            self.where,
            self._grpc_port,
            reason_of(no_grpc),
        )
        return False

    def _greeted(self, *, by_grpc: bool) -> Exception | None:
        client = self._client(_GREETING_SECONDS, by_grpc=by_grpc)
        try:
            client.info()
        except Exception as error:  # noqa: BLE001  # the error is the answer
            return error
        finally:
            client.close()
        return None

    def _client(self, timeout_seconds: int, *, by_grpc: bool) -> QdrantClient:
        return QdrantClient(
            url=self._url,
            # Not as api_key=, which prints warnings of its own.
            headers={"api-key": self._api_key} if self._api_key else None,
            grpc_port=self._grpc_port,
            prefer_grpc=by_grpc,
            grpc_options=dict(_GRPC_OPTIONS),
            timeout=timeout_seconds,
            check_compatibility=False,  # it asks the server from a thread
        )


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    # Without a scheme the client would guess one, from whether there is a key.
    shown = url.rpartition("@")[2]
    raise SettingsError(f"QDRANT_URL={shown!r}: must be like http://qdrant.example:6333")


@dataclass
class _Opened:
    """A client. users: requests under way. is_given_up: whether the last of them closes it."""

    client: QdrantClient
    users: int = 0
    is_given_up: bool = False


class Connection:
    """Asks a server, and asks again where that may help. All errors are StoreErrors of one line.

    To be shared between threads. `close` ends what other threads still ask for; it can be used again.
    """

    def __init__(self, route: Route, reads: Patience = READS, writes: Patience = WRITES) -> None:
        self.where = route.where
        self._route = route
        self._reads = reads
        self._writes = writes
        self._lock = Lock()
        self._opened: dict[Patience, _Opened] = {}
        self._stops: set[Event] = set()

    def read(self, what: str, call: Call[T]) -> T:
        """Ask, as long as somebody may wait for a search. what: the question, for messages."""
        with self._stoppable() as stop:
            return self._ask(self._reads, what, call, stop)

    def write(self, what: str, call: Call[T]) -> T:
        """Ask, as long as a sync may wait for a server to come back."""
        with self._stoppable() as stop:
            return self._ask(self._writes, what, call, stop)

    def write_all(self, what: str, calls: Sequence[Call[Updated]]) -> None:
        """Make all calls, three at once; return when every one was carried out.

        When one fails for good, or we are interrupted, no other goes on.
        """
        with self._stoppable() as stop:
            writes = [partial(_completed, call) for call in calls]
            jobs = [partial(self._ask, self._writes, what, write, stop) for write in writes]
            try:
                run_all(jobs, self._route.writes_at_once, stop)
            except BaseException:
                # Closed, gRPC lets go of requests under way. REST's end by themselves.
                if len(jobs) > 1 and self._route.by_grpc:
                    self._close(self._writes)
                raise

    def close(self) -> None:
        """Close the connections."""
        for stop in list(self._stops):
            stop.set()
        self._close(self._reads)
        self._close(self._writes)

    def _ask(self, patience: Patience, what: str, call: Call[T], stop: Event) -> T:
        def tell(state: RetryCallState) -> None:
            self._tell(what, patience, state)

        def once() -> T:
            with self._client(patience, stop) as client:
                return call(client)

        try:
            return patience.ask(once, is_transient, tell, stop)
        except EmbedPipelineError:
            raise
        except Exception as error:  # noqa: BLE001  # explained, whatever it is
            # A call whose connection was closed under it fails in ways of its own.
            told = explained(Stopped() if stop.is_set() else error, self.where, what)
            # Dagster stores causes, too.
            repeats_key = self._route.without_key(str(error)) != str(error)
            cause = None if repeats_key else error
            raise type(told)(self._route.without_key(str(told))) from cause

    def _tell(self, what: str, patience: Patience, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning(
            "Qdrant at %s: %s: %s; trying again in %.1f s (%d of at most %d tries)",
            self.where,
            what,
            self._route.without_key(reason_of(error) if error else ""),
            state.upcoming_sleep,
            state.attempt_number,
            patience.tries,
        )

    @contextmanager
    def _client(self, patience: Patience, stop: Event) -> Iterator[QdrantClient]:
        with self._lock:
            if stop.is_set():  # a client opened now would be let go by nobody
                raise Stopped
            if patience not in self._opened:
                self._opened[patience] = _Opened(self._route.open(patience.try_seconds))
            opened = self._opened[patience]
            opened.users += 1
        try:
            yield opened.client
        finally:
            with self._lock:
                opened.users -= 1
                is_last = opened.is_given_up and not opened.users
            if is_last:
                opened.client.close()

    def _close(self, patience: Patience) -> None:
        """Close the client: by gRPC at once; by REST, which would lose open sockets, after its last use."""
        with self._lock:
            opened = self._opened.pop(patience, None)
            if opened and opened.users and not self._route.by_grpc:
                opened.is_given_up = True
                return
        if opened:
            opened.client.close()

    @contextmanager
    def _stoppable(self) -> Iterator[Event]:
        stop = Event()
        self._stops.add(stop)
        try:
            yield stop
        finally:
            self._stops.discard(stop)


def _completed(call: Call[Updated], client: QdrantClient) -> None:
    """Make the call. Acknowledged is not done: it may never be, or the server gave up waiting."""
    results = call(client)
    for result in results if isinstance(results, list) else [results]:
        if result.status != models.UpdateStatus.COMPLETED:
            raise NotCompleted(f"{result.status}")
