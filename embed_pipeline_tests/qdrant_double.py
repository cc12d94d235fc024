"""A stand-in for a Qdrant server: its gRPC and REST doors on local ports, with faults on demand.

The wire is real: qdrant-client's own messages over real sockets. Behind both doors is qdrant-client's
in-memory engine, which takes options of an index, quantization and durability without heeding them.
"""

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Self

from qdrant_client import QdrantClient, models

from embed_pipeline_tests.qdrant_doors import Cut, GrpcDoor, Refused, RestDoor

Work = Callable[[], Any]
# What happens instead of an answer, given the work that it would take.
Fault = Callable[[Work], Any]


def refuse(code: str, text: str = "as told by the test", retry_after: int | None = None) -> Fault:
    """Answer with an error, having done nothing."""

    def fault(_: Work) -> NoReturn:
        raise Refused(code, text, retry_after)

    return fault


def cut(*, done: bool) -> Fault:
    """Cut the connection, before or after the work is done."""

    def fault(work: Work) -> NoReturn:
        if done:
            work()
        raise Cut

    return fault


def not_done(status: models.UpdateStatus = models.UpdateStatus.ACKNOWLEDGED) -> Fault:
    """Acknowledge a write that will never be carried out."""
    result = models.UpdateResult(operation_id=1, status=status)
    return lambda _: result


class QdrantDouble:
    """The server.

    asked: every request, by the name of qdrant-client's method, in order. doors: those that were used,
    `grpc` and `rest`. created: options of each collection. indexes: of each collection, by field.
    searched: parameters of each search. A write that does not wait is refused.
    api_key: what requests must carry. grpc: whether that door is open, too.
    """

    def __init__(self, *, api_key: str | None = None, grpc: bool = True) -> None:
        self.asked: list[str] = []
        self.doors: set[str] = set()
        self.created: dict[str, models.CreateCollection] = {}
        self.indexes: dict[str, dict[str, models.KeywordIndexParams]] = {}
        self.searched: list[models.SearchParams | None] = []
        self.engine = QdrantClient(":memory:")
        self._api_key = api_key
        self._has_grpc = grpc
        self._faults: dict[str, list[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._lock = threading.RLock()
        self._hurry = threading.Event()
        self.rest_port = 0
        self.grpc_port = 0 if grpc else free_port()
        self.start()

    @property
    def url(self) -> str:
        """For QDRANT_URL."""
        return f"http://127.0.0.1:{self.rest_port}"

    def start(self) -> None:
        """Open the doors, on the same ports as before."""
        self._hurry = threading.Event()
        self._rest = RestDoor(self, self.rest_port)
        self.rest_port = self._rest.server_port
        self._grpc = GrpcDoor(self, self.grpc_port) if self._has_grpc else None
        if self._grpc:
            self.grpc_port = self._grpc.wire.port

    def stop(self) -> None:
        """Close the doors and every connection; what the collections hold stays."""
        self._hurry.set()
        if self._grpc:
            self._grpc.close()
        self._rest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fail(self, verb: str, fault: Fault, times: int | None = 1) -> None:
        """Show the fault when next asked so, `times` times; None: for ever."""
        if times is None:
            self._always[verb] = fault
        else:
            self._faults.setdefault(verb, []).extend([fault] * times)

    def reset(self) -> None:
        """Be as new, on the same ports."""
        self.heal()
        self.engine = QdrantClient(":memory:")
        for log in (self.asked, self.doors, self.created, self.indexes, self.searched):
            log.clear()

    def heal(self) -> None:
        """Show no fault any more, and give the answers that are late."""
        self._faults.clear()
        self._always.clear()
        self._hurry.set()
        self._hurry = threading.Event()

    def late(self, seconds: float) -> Fault:
        """Do it, and answer late, or when healed."""
        hurry = self._hurry

        def fault(work: Work) -> Any:
            result = work()
            hurry.wait(seconds)
            return result

        return fault

    def answer(self, door: str, verb: str, key: str | None, **asked: Any) -> Any:
        """What the server says. Raises Refused or Cut."""
        with self._lock:
            self.asked.append(verb)
            self.doors.add(door)
            waiting = self._faults.get(verb)
            fault = waiting.pop(0) if waiting else self._always.get(verb)
        if verb != "info" and self._api_key not in (None, key):
            raise Refused("UNAUTHENTICATED", f"Invalid API key or JWT {key}")
        if asked.pop("wait", True) is False:
            raise Refused("INVALID_ARGUMENT", "a write that does not wait")
        work = partial(self._do, getattr(self, f"_{verb}"), asked)
        result = fault(work) if fault else work()
        return [result] if verb.startswith("batch") and not isinstance(result, list) else result

    def _do(self, method: Callable[..., Any], asked: dict[str, Any]) -> Any:
        try:
            with self._lock:
                return method(**asked)
        except ValueError as error:
            raise _as_the_server_says(error) from error

    def _info(self) -> None:
        """Nothing to say but that it is there."""

    def _get_collections(self) -> models.CollectionsResponse:
        return self.engine.get_collections()

    def _get_collection(self, name: str) -> models.CollectionInfo:
        info = self.engine.get_collection(name)
        keyword = models.PayloadSchemaType.KEYWORD
        indexes = {
            field: models.PayloadIndexInfo(data_type=keyword, params=params, points=0)
            for field, params in self.indexes.get(name, {}).items()
        }
        return info.model_copy(update={"payload_schema": indexes})

    def _create_collection(self, name: str, options: models.CreateCollection) -> bool:
        made = self.engine.create_collection(
            name, vectors_config=options.vectors, metadata=options.metadata
        )
        self.created[name] = options
        return made

    def _delete_collection(self, name: str) -> bool:
        self.indexes.pop(name, None)
        return self.engine.delete_collection(name)

    def _update_collection(self, name: str, metadata: dict[str, Any]) -> bool:
        return self.engine.update_collection(name, metadata=metadata)

    def _create_payload_index(
        self, name: str, field: str, params: models.KeywordIndexParams
    ) -> models.UpdateResult:
        self.engine.get_collection(name)
        self.indexes.setdefault(name, {})[field] = params
        return models.UpdateResult(operation_id=1, status=models.UpdateStatus.COMPLETED)

    def _upsert(self, name: str, points: Any) -> models.UpdateResult:
        return self.engine.upsert(name, points=points)

    def _delete(self, name: str, selector: Any) -> models.UpdateResult:
        return self.engine.delete(name, points_selector=selector)

    def _batch_update_points(self, name: str, operations: Any) -> list[models.UpdateResult]:
        return self.engine.batch_update_points(name, update_operations=operations)

    def _scroll(self, name: str, asked: models.ScrollRequest) -> Any:
        return self.engine.scroll(
            name,
            scroll_filter=asked.filter,
            limit=asked.limit,
            offset=asked.offset,
            with_payload=asked.with_payload,
            with_vectors=asked.with_vector,
        )

    def _count(self, name: str, chosen: models.Filter) -> models.CountResult:
        return self.engine.count(name, count_filter=chosen)

    def _query_points(self, name: str, asked: models.QueryRequest) -> models.QueryResponse:
        self.searched.append(asked.params)
        return self.engine.query_points(
            name,
            query=asked.query,
            query_filter=asked.filter,
            limit=asked.limit,
            with_payload=asked.with_payload,
            with_vectors=asked.with_vector,
        )


def free_port() -> int:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _as_the_server_says(error: ValueError) -> Refused:
    name = [*str(error).split(), ""][1]
    if str(error).endswith("not found"):
        return Refused("NOT_FOUND", f"Not found: Collection `{name}` doesn't exist!")
    if str(error).endswith("already exists"):
        return Refused("ALREADY_EXISTS", f"Wrong input: Collection `{name}` already exists!")
    return Refused("INVALID_ARGUMENT", f"Wrong input: {error}")
